"""The paper's own ground: softmax regression on MNIST (L2 1e-4, strongly convex), 7 nodes, SGD; virtual time to .88.

`rfast` as published on an exponential graph and on a binary tree, and `rfast-tree`, over a synchronous run: each at its
best lr of a grid. A synchronous round of B samples takes as long as the slowest node's draw; communication is taken as
free for everybody. Even speeds, and one 5× straggler.

    python benchmarks/paper_ground.py --data mnist10k.npz
"""

from __future__ import annotations

from typing import Any

from common import MNIST, arguments, last_line, middle, one_machine, ratio, seeds_of, simulated, spread, table, tell

from rfast_zmq.assembly import Plan
from rfast_zmq.settings import Settings

NODES, BATCH, TARGET = 7, 224, 0.88
GRID = {
    "synchronous": (0.4, 0.8, 1.6, 3.2, 6.4),
    "rfast on exponential": (0.1, 0.2, 0.4, 0.8, 1.6, 3.2),
    "rfast on binary-tree": (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2),
    "rfast-tree": (0.4, 0.8, 1.6, 3.2, 6.4),
}


def time_to_target(
    what: str, straggler: tuple[str, ...], split: str, compute: str, data: str, *, lr: float, seed: int
) -> float | None:
    """Virtual seconds to the target, None if it was not reached."""
    settings: dict[str, Any] = {
        "nodes": NODES, "split": split, "global_batch": BATCH, "optimizer": "sgd", "lr": lr, "target": TARGET,
        "samples": 90_000, "compute": compute, "straggler": straggler, "data": data, "seed": seed,
        "task_options": {"model": "logreg"},
    }  # fmt: skip
    if what == "synchronous":
        samples = one_machine(MNIST, **settings).result.target_samples
        speeds, rounds = Plan.make(MNIST, Settings(**settings)).speeds, (samples or 0) // BATCH
        share = BATCH / NODES
        slowest = (
            max(speeds.seconds(rank, int(k * share), int(share), share) for rank in range(NODES)) for k in range(rounds)
        )
        return sum(slowest) if samples else None
    if what == "rfast-tree":
        return simulated(MNIST, **settings, report_batch=8).result.target_s
    # As published: a gradient is a node's whole share; every node descends along its own tracker.
    topology = what.rpartition(" ")[2]
    return simulated(
        MNIST, **settings, algorithm="rfast", topology=topology, report_batch=BATCH // NODES
    ).result.target_s


def main() -> None:
    parser = arguments(__doc__, 5)
    parser.add_argument("--split", default="label")
    parser.add_argument("--compute", default="constant:0.1")
    parser.add_argument("--only", nargs="+", default=list(GRID), choices=list(GRID), help="these beside synchronous")
    args = parser.parse_args()
    rows, found = [], []
    for straggler in ((), ("5:5",)):
        speeds = "one 5× straggler" if straggler else "even"
        best: dict[str, tuple[float, list[float | None]]] = {}
        for what, grid in GRID.items():
            if what not in ("synchronous", *args.only):
                continue
            fixed = what, straggler, args.split, args.compute, args.data
            tuned = {lr: time_to_target(*fixed, lr=lr, seed=args.first_seed + 1000) for lr in grid}
            lr = min(grid, key=lambda lr: tuned[lr] or float("inf"))
            tell(f"{speeds}, {what}: lr {lr} of {tuned}")
            times = [time_to_target(*fixed, lr=lr, seed=seed) for seed in seeds_of(args)]
            best[what] = lr, times
        for what, (lr, times) in best.items():
            faster = [ratio(b, a) for a, b in zip(times, best["synchronous"][1], strict=True)]
            rows.append((speeds, what, lr, spread(times), spread(faster)))
            found.append({"speeds": speeds, "what": what, "lr": lr, "times_s": times, "speedup": middle(faster)})
    table(["speeds", "algorithm", "best lr", f"virtual seconds to {TARGET}", "synchronous ÷ it"], rows)
    last_line(split=args.split, rows=found)


if __name__ == "__main__":
    main()
