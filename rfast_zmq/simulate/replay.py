"""Replay: Algorithm 1 on a schedule that is written down, so that any interleaving is a fixture and any bug a file.

The input is one JSON object::

    {"W": [[..]], "A": [[..]],              n×n: W[i][j] = w_ij (i pulls from j), A[i][j] = a_ij (j pushes to i)
     "objective": {"kind": "quadratic", "H": [[..]], "b": [[..]]},      gradient_i(x) = H_i * (x − b_i), H_i a diagonal
     "x0": [..], "gamma": 0.05,
     "events": [["step", i], ["deliver", "W", j, i, k], ["deliver", "A", j, i, k], ...]}

``["step", i]`` is one step S1 to S5 of node i; its k-th step makes one message on each out-edge of each graph, stamped
k. ``["deliver", g, j, i, k]`` hands message k of the edge j → i of graph g to node i: late, twice, out of order, or
never. Every node starts at x0, with the gradient there as its tracker.

This is no second implementation: the events go through the very :class:`~rfast_zmq.algorithms.RFast` that trains, in
float64 and one bucket.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rfast_zmq.algorithms import NodeConfig, RFast
from rfast_zmq.core.events import (
    Edge,
    GradientReady,
    LinkReady,
    Message,
    ModelWanted,
    Received,
    RunGradient,
    Started,
    Transmit,
)
from rfast_zmq.errors import UsageError
from rfast_zmq.task.layout import Layout
from rfast_zmq.topology import NODES_MAX, Topology, from_edges

Array = NDArray[np.float64]

SUM_SLACK = 1e-9
"""How far the rows of W and the columns of A may be from 1."""
_KEYS = ("W", "A", "objective", "x0", "gamma", "events")
_FORMS = '["step", i] or ["deliver", "W" or "A", j, i, k]'


def replay(text: str) -> dict[str, Any]:
    """Run a schedule.

    Args:
        text: the JSON object that ``docs/algorithm.md`` describes.

    Returns:
        ``x`` and ``z`` (n×P, lists of floats), ``mass_error`` (largest absolute entry of Σ z + Σ(ρ − ρ̃) − Σ g), and
        over all nodes the number of messages ``accepted`` and dropped as ``stale``.

    Raises:
        UsageError: anything in the text that is not as described; the text of the error names it.
    """
    return _Replay(_Schedule.read(text)).run()


@dataclass(frozen=True)
class _Schedule:
    """The file, checked. Shapes: n nodes, P coordinates."""

    topology: Topology
    own_weights: tuple[tuple[float, float], ...]
    h_nP: Tensor
    b_nP: Tensor
    x0_P: Tensor
    gamma: float
    events: Sequence[Any]

    @classmethod
    def read(cls, text: str) -> _Schedule:
        try:
            given = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"replay: not a JSON object: {error}") from None
        if not isinstance(given, dict):
            raise UsageError(f"replay: not a JSON object but {_show(given)}")
        _check_keys("a schedule", given, _KEYS)
        w = _array("W", given["W"], (None, None))
        n = len(w)
        if w.shape != (n, n) or n > NODES_MAX:
            raise UsageError(f"replay: W is {w.shape[0]}×{w.shape[1]}: must be n×n, with n from 1 to {NODES_MAX}")
        a = _array("A", given["A"], (n, n))
        topology = _topology(w, a)
        x0 = _array("x0", given["x0"], (None,))
        objective = given["objective"]
        if not isinstance(objective, dict) or objective.get("kind") != "quadratic":
            kind = objective.get("kind") if isinstance(objective, dict) else objective
            raise UsageError(f'replay: objective of kind {_show(kind)}: must be "quadratic"')
        _check_keys("the objective", objective, ("kind", "H", "b"))
        h, b = (_array(f"objective {key}", objective[key], (n, len(x0))) for key in ("H", "b"))
        gamma = float(_array("gamma", given["gamma"], ()))
        if gamma < 0:
            raise UsageError(f"replay: gamma is {gamma:g}: must be 0 or more")
        if not isinstance(given["events"], list):
            raise UsageError(f"replay: events is {_show(given['events'])}: must be a list of {_FORMS}")
        return cls(
            topology=topology,
            own_weights=tuple(zip(w.diagonal().tolist(), a.diagonal().tolist(), strict=True)),
            h_nP=torch.from_numpy(h),
            b_nP=torch.from_numpy(b),
            x0_P=torch.from_numpy(x0),
            gamma=gamma,
            events=given["events"],
        )


class _Replay:
    """n nodes, and every message they ever made."""

    def __init__(self, schedule: _Schedule) -> None:
        self._schedule = schedule
        self._made: dict[Edge, list[Message]] = {}
        layout = Layout.vector(len(schedule.x0_P), dtype=torch.float64, bucket=len(schedule.x0_P))
        self._nodes = [
            RFast(
                NodeConfig(
                    rank=rank,
                    topology=schedule.topology,
                    layout=layout,
                    initial=(schedule.x0_P,),
                    lr=schedule.gamma,
                )
            )
            for rank in range(schedule.topology.nodes)
        ]
        for rank, node in enumerate(self._nodes):
            node.by_the_letter(*schedule.own_weights[rank])
            self._made.update((edge, []) for edge in node.out_edges)
            node.handle(Started(0.0))
            self._compute(rank, "x0")  # g_i = z_i = ∇f_i(x⁰): the start, which is no step and sends nothing

    def run(self) -> dict[str, Any]:
        for index, event in enumerate(self._schedule.events):
            match event:
                case ["step", i]:
                    self._step(self._rank(i, index), index)
                case ["deliver", "W" | "A" as graph, j, i, k]:
                    edge = Edge(graph, self._rank(j, index), self._rank(i, index))
                    self._nodes[edge.dst].handle(Received(0.0, self._message(edge, k, index)))
                case _:
                    raise UsageError(f"replay: event {index} is {_show(event)}: must be {_FORMS}")
        return self._outcome()

    def _step(self, rank: int, index: int) -> None:
        self._compute(rank, f"event {index}")
        node = self._nodes[rank]
        for edge in node.out_edges:
            (said,) = node.handle(LinkReady(0.0, edge, 0))
            assert isinstance(said, Transmit)
            self._made[edge].append(said.message)

    def _compute(self, rank: int, where: str) -> None:
        """S1, S2 (a model is wanted), its gradient, S3 and S5 (the gradient is ready)."""
        node, schedule = self._nodes[rank], self._schedule
        run = next(action for action in node.handle(ModelWanted(0.0)) if isinstance(action, RunGradient))
        gradient = schedule.h_nP[rank] * (run.model[0] - schedule.b_nP[rank])
        if not bool(torch.isfinite(gradient).all()):
            raise UsageError(f"replay: {where}: the gradient of node {rank} is not finite; a smaller gamma would do")
        node.handle(GradientReady(0.0, (gradient,), 1, 0.0, run.rounds, 0.0))

    def _rank(self, value: object, index: int) -> int:
        n = len(self._nodes)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < n:
            raise UsageError(f"replay: event {index}: there is no node {_show(value)}; nodes are 0 to {n - 1}")
        return value

    def _message(self, edge: Edge, k: object, index: int) -> Message:
        name = f"{edge.src} → {edge.dst} of {edge.graph}"
        made = self._made.get(edge)
        if made is None:
            raise UsageError(f"replay: event {index}: there is no edge {name}")
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= len(made):
            so_far = f"1 to {len(made)} are" if made else "none is"
            raise UsageError(f"replay: event {index}: message {_show(k)} of edge {name} is not made yet ({so_far})")
        return made[k - 1]

    def _outcome(self) -> dict[str, Any]:
        states = [node.state[0] for node in self._nodes]
        mass = torch.zeros_like(self._schedule.x0_P)
        for state in states:
            assert state.z is not None
            assert state.g is not None
            mass += state.z - state.g
            for rho in state.rho.values():
                mass += rho
            for used in state.used_rho.values():
                mass -= used
        if not bool(torch.isfinite(mass).all()):
            raise UsageError("replay: after the last event a tracker is not finite; a smaller gamma would do")
        statuses = [node.status() for node in self._nodes]
        return {
            "x": [state.x.tolist() for state in states if state.x is not None],
            "z": [state.z.tolist() for state in states if state.z is not None],
            "mass_error": float(mass.abs().max()),
            "accepted": sum(status.accepted for status in statuses),
            "stale": sum(status.stale for status in statuses),
        }


def _check_keys(what: str, given: Mapping[str, Any], keys: Sequence[str]) -> None:
    missing, unknown = [key for key in keys if key not in given], [key for key in given if key not in keys]
    if missing or unknown:
        said = f"missing {', '.join(missing)}" if missing else f"there is no {_show(unknown[0])}"
        raise UsageError(f"replay: {said}; {what} has {', '.join(keys)}")


def _topology(w: Array, a: Array) -> Topology:
    """The two graphs of the matrices' entries off the diagonal."""
    for what, sums in (("row {} of W sums", w.sum(axis=1)), ("column {} of A sums", a.sum(axis=0))):
        for rank, total in enumerate(sums):
            if abs(total - 1.0) > SUM_SLACK:
                raise UsageError(f"replay: {what.format(rank)} to {total:.12g}: must be 1 (within {SUM_SLACK:g})")
    for name, matrix in (("W", w), ("A", a)):
        for i, j in np.argwhere(matrix < 0):
            raise UsageError(f"replay: {name}[{i}][{j}] is {matrix[i, j]:g}: a weight must be 0 or more")
    return from_edges("replay", len(w), _edges(w), _edges(a))


def _edges(matrix: Array) -> list[tuple[int, int, float]]:
    """(source, destination, weight): entry [i][j] belongs to the edge j → i in either matrix."""
    return [(int(j), int(i), float(matrix[i, j])) for i, j in np.argwhere(matrix) if i != j]


def _array(name: str, value: object, shape: tuple[int | None, ...]) -> Array:
    """``value`` as finite float64 of ``shape``, in which None is any length but 0."""
    size = "×".join("n" if length is None else str(length) for length in shape)
    wanted = f"{size} numbers" if size else "one number"
    if not _is_numbers(value, len(shape)):
        raise UsageError(f"replay: {name} is {_show(value)}: must be {wanted}")
    try:
        array = np.array(value, dtype=np.float64)
    except (ValueError, OverflowError):
        raise UsageError(f"replay: {name}: its rows must be equally long, and of numbers float64 can hold") from None
    ok = array.ndim == len(shape) and all(
        length == (want or length) and length > 0 for length, want in zip(array.shape, shape, strict=True)
    )
    if not ok:
        found = "×".join(str(length) for length in array.shape) if array.size else "empty"
        raise UsageError(f"replay: {name} is {found}: must be {wanted}")
    if not np.isfinite(array).all():
        raise UsageError(f"replay: {name} holds a number that is not finite")
    return array


def _is_numbers(value: object, depth: int) -> bool:
    """Lists in lists, ``depth`` deep, of numbers."""
    if depth == 0:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, list) and all(_is_numbers(item, depth - 1) for item in value)


def _show(value: object) -> str:
    text = json.dumps(value) if not isinstance(value, Mapping) else "an object"
    return text if len(text) <= 60 else text[:57] + "..."
