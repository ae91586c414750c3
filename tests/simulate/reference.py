"""Algorithm 1 once more, in plain numpy, written from the text of DESIGN sections 1 and 7 and from nothing else.

python tests/simulate/reference.py      writes what each tests/scenarios/NAME.json should give to NAME.expected
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

SCENARIOS = Path(__file__).parents[1] / "scenarios"


def reference(schedule: dict[str, Any]) -> dict[str, Any]:
    W, A = np.array(schedule["W"], float), np.array(schedule["A"], float)
    H, b = (np.array(schedule["objective"][key], float) for key in ("H", "b"))
    n, gamma, x0 = len(W), schedule["gamma"], np.array(schedule["x0"], float)
    off = ~np.eye(n, dtype=bool)
    w_edges = [(j, i) for i, j in zip(*np.nonzero(W * off), strict=True)]
    a_edges = [(j, i) for i, j in zip(*np.nonzero(A * off), strict=True)]

    def grad(i: int, x: np.ndarray) -> np.ndarray:
        return H[i] * (x - b[i])

    x = np.tile(x0, (n, 1))
    g = np.array([grad(i, x0) for i in range(n)])
    z = g.copy()
    rho = {e: np.zeros_like(x0) for e in a_edges}
    used = {e: np.zeros_like(x0) for e in a_edges}  # rho tilde
    heard_rho = {e: np.zeros_like(x0) for e in a_edges}
    heard_v = dict.fromkeys(w_edges, x0)
    made: dict[tuple[str, int, int], list[np.ndarray]] = {}
    made |= {("W", *e): [] for e in w_edges} | {("A", *e): [] for e in a_edges}
    newest = dict.fromkeys(made, 0)
    accepted = stale = 0
    for event in schedule["events"]:
        if event[0] == "step":
            i = event[1]
            v = x[i] - gamma * z[i]  # S1
            x[i] = W[i, i] * v + sum(W[i, j] * heard_v[j, d] for j, d in w_edges if d == i)  # S2
            fresh = grad(i, x[i])
            h = z[i] + sum(heard_rho[e] - used[e] for e in a_edges if e[1] == i) + fresh - g[i]  # S3
            z[i], g[i] = A[i, i] * h, fresh
            for e in a_edges:
                if e[0] == i:
                    rho[e] = rho[e] + A[e[1], i] * h
                if e[1] == i:
                    used[e] = heard_rho[e]  # S5
            for e in w_edges:  # S4
                if e[0] == i:
                    made["W", *e].append(v)
            for e in a_edges:
                if e[0] == i:
                    made["A", *e].append(rho[e])
        else:
            _, graph, j, i, k = event
            if k <= newest[graph, j, i]:
                stale += 1
                continue
            accepted += 1
            newest[graph, j, i] = k
            (heard_v if graph == "W" else heard_rho)[j, i] = made[graph, j, i][k - 1]
    mass = z.sum(0) - g.sum(0) + sum((rho[e] - used[e] for e in a_edges), np.zeros_like(x0))
    return {
        "x": x.tolist(),
        "z": z.tolist(),
        "mass_error": float(abs(mass).max()),
        "accepted": accepted,
        "stale": stale,
    }


def random_graphs(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, int]:
    """W row-stochastic, A column-stochastic, and a root that the two share; beside the spanning trees random edges."""
    order = rng.permutation(n)
    matrices = []
    for _ in range(2):
        edge = rng.random((n, n)) < rng.uniform(0, 0.6)
        for place in range(1, n):
            edge[order[place], order[rng.integers(place)]] = True  # from a node that is nearer to the root
        matrices.append(np.where(edge | np.eye(n, dtype=bool), rng.uniform(0.1, 1, (n, n)), 0.0))
    w, a = matrices[0], matrices[1].T  # A's reverse is what the root reaches everybody in
    return w / w.sum(1, keepdims=True), a / a.sum(0, keepdims=True), int(order[0])


def random_events(rng: np.random.Generator, W: np.ndarray, A: np.ndarray, length: int) -> list[list[Any]]:
    """Steps at uneven paces; messages lost, late, twice, in any order."""
    n = len(W)
    off = ~np.eye(n, dtype=bool)
    edges = [(g, int(j), int(i)) for g, m in (("W", W), ("A", A)) for i, j in zip(*np.nonzero(m * off), strict=True)]
    pace = rng.uniform(0.2, 1, n)
    deliveries = rng.uniform(0.2, 3)
    made, events = [0] * n, []
    for _ in range(length):
        i = int(rng.choice(n, p=pace / pace.sum()))
        made[i] += 1
        events.append(["step", i])
        for _ in range(rng.poisson(deliveries)):
            graph, src, dst = edges[rng.integers(len(edges))]
            if made[src]:
                late = int(rng.geometric(0.5)) - 1  # mostly the newest; an older one may be the first or the n-th time
                events.append(["deliver", graph, src, dst, max(1, made[src] - late)])
    return events


def random_schedule(seed: int, n: int, length: int, dim: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    W, A, _ = random_graphs(rng, n)
    return {
        "W": W.tolist(),
        "A": A.tolist(),
        "objective": {
            "kind": "quadratic",
            "H": rng.uniform(0.5, 1, (n, dim)).tolist(),
            "b": rng.normal(0, 1, (n, dim)).tolist(),
        },
        "x0": rng.normal(0, 1, dim).tolist(),
        "gamma": float(rng.uniform(0.01, 0.1)),
        "events": random_events(rng, W, A, length),
    }


if __name__ == "__main__":
    for path in sorted(SCENARIOS.glob("*.json")):
        expected = reference(json.loads(path.read_text(encoding="utf-8")))
        path.with_suffix(".expected").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")
        print(path.name, {k: v for k, v in expected.items() if k not in ("x", "z")})
