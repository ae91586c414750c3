"""``rfast``: Algorithm 1 (R-FAST) as published, on any pair of graphs that share a root.

State of node i, per bucket: model x, tracker z, last gradient g, one running sum ρ_ji per out-edge of A, one buffer
ρ̃_ij per in-edge of A, the newest model v_j heard per in-edge of W and the newest ρ_ij heard per in-edge of A. One
step::

    S1  v_i  ← x_i − γ z_i                                                local descent
    S2  x_i⁺ ← w_ii v_i + Σ_{j∈In_W} w_ij v_j                             consensus pull
    S3  h    ← z_i + Σ_{j∈In_A} (ρ_ij − ρ̃_ij) + ∇f_i(x_i⁺; ζ⁺) − g_i      robust gradient tracking
        z_i  ← a_ii h;   ρ_ji ← ρ_ji + a_ji h for j ∈ Out_A;   g_i ← ∇f_i(x_i⁺; ζ⁺)
    S4  send v_i along W and ρ_ji along A
    S5  ρ̃_ij ← the ρ_ij that S3 used

S1 and S2 run when a model is wanted, S3 to S5 when its gradient is ready, so v_i is on its way while the gradient is
computed (a 1.4 times larger stable step than sending it afterwards).

Source: arXiv 2307.11617, Algorithm 1; the ancestor ASY-SONATA (arXiv 1803.10359) keeps one running sum per node.
Departures: a running sum per edge, as the design asks; a node weight scales its gradient; weight decay enters the
gradient (the L2-regularised objective). Running averages (BatchNorm) are not mixed: each node keeps its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from rfast_zmq.core.events import Action, Edge, GradientReady, Message, Number, Ready, RunGradient
from rfast_zmq.core.interface import NodeConfig
from rfast_zmq.core.skeleton import SCALE_LEAST, Skeleton
from rfast_zmq.task.layout import Bucket, Layout


class _Bucket:
    """Algorithm 1 on the coordinates of one bucket."""

    def __init__(self, pull_in: Mapping[int, float], push_out: Mapping[int, float], push_in: tuple[int, ...]) -> None:
        self.x: Tensor | None = None
        self.v: Tensor | None = None
        self.z: Tensor | None = None
        self.g: Tensor | None = None
        self.w, self.w_self = pull_in, 1.0 - sum(pull_in.values())
        self.a, self.a_self = push_out, 1.0 - sum(push_out.values())
        self.heard_v: dict[int, Tensor] = {}
        self.heard_rho: dict[int, Tensor] = {}
        self.used_rho: dict[int, Tensor] = {}
        """ρ̃"""
        self.rho: dict[int, Tensor] = {}
        self.push_in = push_in
        self.letter = False
        """S3 as it is written, instead of its form without drift."""

    def start(self, x: Tensor) -> None:
        self.x = self.v = x
        zero = torch.zeros_like(x)
        self.rho = dict.fromkeys(self.a, zero)
        self.used_rho = dict.fromkeys(self.push_in, zero)
        self.heard_rho = {**self.used_rho, **self.heard_rho}
        self.heard_v = {**dict.fromkeys(self.w, x), **self.heard_v}

    def pull(self, gamma: float | Tensor) -> None:
        """S1, S2; ``gamma`` a number, or one for each coordinate."""
        assert self.x is not None
        assert self.z is not None
        self.v = self.x - gamma * self.z
        x = self.w_self * self.v
        for j, w in self.w.items():
            x.add_(self.heard_v[j], alpha=w)
        self.x = x

    def track(self, gradient: Tensor) -> None:
        """S3, S5. With z from I1, h = z + Σ (ρ_in − ρ̃) + g⁺ − g is g⁺ + Σ ρ_in − Σ ρ_out: so no rounding piles up."""
        if self.g is None or self.z is None:
            self.g = self.z = gradient
            return
        if self.letter:
            h = self.z + sum(rho - self.used_rho[j] for j, rho in self.heard_rho.items()) + gradient - self.g
        else:
            h = gradient + sum(self.heard_rho.values()) - sum(self.rho.values())
        self.used_rho = dict(self.heard_rho)
        self.z = self.a_self * h
        self.rho = {j: self.rho[j] + a * h for j, a in self.a.items()}
        self.g = gradient

    def identity(self) -> tuple[Tensor, float]:
        """I1: z − (g + Σ ρ̃ − Σ ρ), and the scale to hold it against: the largest |ρ| or |g|."""
        assert self.z is not None
        assert self.g is not None
        right = self.g + sum(self.used_rho.values()) - sum(self.rho.values())
        scale = max(float(t.abs().max()) for t in (self.g, *self.rho.values(), *self.used_rho.values()))
        return self.z - right, scale


class RFast(Skeleton):
    """One node of Algorithm 1. See the module."""

    name: ClassVar[str] = "rfast"
    optimizers: ClassVar[tuple[str, ...]] = ("sgd",)

    def __init__(self, config: NodeConfig) -> None:
        topology, rank = config.topology, config.rank
        out = [Edge("W", rank, j) for j in topology.pull_out(rank)] + [
            Edge("A", rank, j) for j in topology.push_out(rank)
        ]
        into = [Edge("W", j, rank) for j in topology.pull_in(rank)] + [
            Edge("A", j, rank) for j in topology.push_in(rank)
        ]
        super().__init__(config, out, into)
        self._state = [
            _Bucket(
                {j: topology.pull[j, rank] for j in topology.pull_in(rank)},
                {j: topology.push[rank, j] for j in topology.push_out(rank)},
                topology.push_in(rank),
            )
            for _ in config.layout.buckets
        ]
        self._fixed = [bucket.kind == "averages" for bucket in config.layout.buckets]
        self._lr_scale = [_lr_scale(bucket, config.layout) for bucket in config.layout.buckets]
        self._t0: float | None = None
        if config.initial is not None:
            for state, x in zip(self._state, config.initial, strict=True):
                state.start(x)

    def by_the_letter(self, pull: float, push: float) -> None:
        """Run the published lines as they stand, for a replay: w_ii and a_ii as a file gives them (not what the others
        leave of 1, which rounding makes differ), and S3 with the z of the step before.
        """
        for state in self._state:
            state.w_self, state.a_self, state.letter = pull, push, True

    @property
    def state(self) -> tuple[_Bucket, ...]:
        """x, z, g, ρ and ρ̃ of each bucket, to be looked at."""
        return tuple(self._state)

    def _ready(self) -> bool:
        return all(state.x is not None for state in self._state)

    def _models(self, now: float) -> list[Action]:
        if not self._ready():
            return []
        if self._t0 is None:
            self._t0 = now
        gamma = self.config.lr * self.config.lr_schedule(self.root_rounds)
        pulled = False
        for state, fixed, scale in zip(self._state, self._fixed, self._lr_scale, strict=True):
            if state.g is not None and not fixed:
                state.pull(gamma if scale is None else gamma * scale)
                pulled = True
        model = tuple(state.x for state in self._state if state.x is not None)
        run = RunGradient(model, (self.root_rounds,) * self.buckets)
        return [run, *self._mark("W")] if pulled else [run]

    def _gradient(self, event: GradientReady) -> list[Action]:
        config, told = self.config, slice(event.first, event.first + len(event.gradient))
        for state, fixed, bucket, g in zip(
            self._state[told], self._fixed[told], config.layout.buckets[told], event.gradient, strict=True
        ):
            if fixed:
                state.x = state.g = state.z = g
                continue
            if config.weight_decay:
                assert state.x is not None
                g = g.clone()
                for segment in bucket.segments:
                    if config.layout.groups[segment.group].decay:
                        part = slice(segment.start, segment.stop)
                        g[part].add_(state.x[part], alpha=config.weight_decay)
            state.track(g if config.weight == 1.0 else config.weight * g)
        self._progress(event.now)
        return [send for b in range(event.first, told.stop) for send in self._mark("A", b)]

    def _progress(self, now: float) -> None:
        if not self.is_root or not self._closing.running:
            return  # a round's time that grew while the run closes would make its patience endless
        self.root_rounds = self.census().samples / self.config.global_batch
        if self._t0 is not None and self.root_rounds > 0:
            self.round_s = (now - self._t0) / self.root_rounds

    def _received(self, message: Message, now: float) -> list[Action]:
        state, src = self._state[message.bucket], message.edge.src
        if message.edge.graph == "A":
            state.heard_rho[src] = message.payload
            self._progress(now)
            return []
        state.heard_v[src] = message.payload
        if state.x is None and src == self._pull_parent:
            state.start(message.payload)
            if self._ready():
                return [Ready(), *self._mark("W")]
        return []

    def _payload(self, edge: Edge, bucket: int, now: float) -> tuple[Tensor, dict[str, Number]] | None:
        state = self._state[bucket]
        if edge.graph == "W":
            return None if state.v is None else (state.v, {})
        if edge.dst not in state.rho:
            return (torch.zeros(self.config.layout.buckets[bucket].size, dtype=self.config.layout.dtype), {})
        return state.rho[edge.dst], {}

    def _started(self, now: float) -> list[Action]:
        return super()._started(now) + (self._mark("W") if self._ready() else [])

    def export(self) -> tuple[Tensor, ...] | None:
        """The model x of this node."""
        return tuple(state.x for state in self._state if state.x is not None) if self._ready() else None

    def last_record(self) -> Mapping[str, Tensor | float]:
        """The identity I1 of this node: ``identity`` = largest |z − (g + Σ ρ̃ − Σ ρ)|, ``scale`` = largest |ρ|, |g|."""
        checked = [
            s.identity() for s, fixed in zip(self._state, self._fixed, strict=True) if s.g is not None and not fixed
        ]
        return {
            "identity": max((float(gap.abs().max()) for gap, _ in checked), default=0.0),
            "scale": max((scale for _, scale in checked), default=0.0),
        }

    @staticmethod
    def identity_error(records: Mapping[int, Mapping[str, Any]], root: int) -> float:
        """Largest violation of I1 over the nodes ÷ largest |ρ| or |g|."""
        scale = max(float(r["scale"]) for r in records.values())
        return max(float(r["identity"]) for r in records.values()) / max(scale, SCALE_LEAST)


def _lr_scale(bucket: Bucket, layout: Layout) -> Tensor | None:
    """The parameter groups' factors on γ, one for each coordinate; None where all are 1."""
    if all(layout.groups[segment.group].lr_scale == 1.0 for segment in bucket.segments):
        return None
    scale = torch.ones(bucket.size, dtype=layout.dtype)
    for segment in bucket.segments:
        scale[segment.start : segment.stop] = layout.groups[segment.group].lr_scale
    return scale
