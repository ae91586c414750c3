"""One step along the mean direction, worth a fraction ``f`` of a round: the rule DESCEND of ``rfast-tree``.

With d the mean gradient over the nodes, P the progress in rounds after this step, τ the measured staleness::

    b1 = β^f,  b2 = β₂^f,  q = exp(−2f)  (0 while P < ½, in the first step, and where a report is a whole round, f = 1)
    x ← x·(1 − lr·f·wd)                                    decayed coordinates only
    SGD                u' = d
    heavy, Nesterov    m ← b1·m + (1−b1)/(1−β)·d,   u' = m
    Adam, NAdam        m ← b1·m + (1−b1)·d,  a ← q·a + (1−q)·d,  v ← b2·v + (1−b2)·a²,
                       u' = m/(1−β^P) / (√(v/(1−β₂^P)) + ε)
    L' = min(τ, 4)  for SGD, heavy ball, Adam;   min(β + τ, 4)  for Nesterov, NAdam
    x ← x − lr·f·u' − (lr·L'·u' − lr_before·L·u);          u, L ← u', L'

So x leads the plain iterate θ = x + lr·L·u by L rounds of the current direction; θ is what is evaluated and saved. What
is kept is θ itself, by which the same step reads θ ← θ − lr·f·(u' + wd·x), x = θ − lr·L'·u': no u to keep, and nothing
to mend when lr changes. With f = 1 and τ = 0 this is the textbook optimiser on a batch of B samples (Nesterov in the
form that ``torch.optim.SGD(nesterov=True)`` uses; Adam with decoupled weight decay as ``torch.optim.AdamW``). NAdam
looks ahead with the present second moment, where ``torch.optim.NAdam`` differs in form.

With clipping, d and a are both taken times min(1, most ÷ ‖a‖), where ‖a‖ is over all buckets (:class:`Norm`; a is then
kept for every rule): the norm of a round's average, so that a bound means what it means on one machine with batch B.
The norm of d itself, the mean of a few samples, is mostly their noise.

Cost: 9 passes over the bucket for NAdam, each over pieces that stay in a core's cache, so that main memory is read once
for each of d, θ, m, a, v (and x, where it decays) and written once for each of θ, m, a, v and x. Beside the state no
more is allocated than a piece: the x handed out is one of before that nobody refers to any more.

Source: ``docs/algorithm.md``, changes 3, 4 and 6; Adam: arXiv 1412.6980; NAdam: Dozat 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import exp, sqrt
from typing import Any

import torch
from torch import Tensor

from rfast_zmq.errors import UsageError
from rfast_zmq.task.layout import Bucket
from rfast_zmq.task.pool import Pool

LEAD_MOST_ROUNDS = 4.0
_LOOKS_AHEAD = {"nesterov", "nadam"}
RULES = ("nadam", "adam", "sgd", "momentum", "nesterov")
_STATE = ("theta", "m", "a", "v")
PIECE = 1 << 16
"""Coordinates worked on at once: six vectors of so many float32 fit into a second-level cache."""


class Descent:
    """The optimiser's state for one bucket. Only the root has one.

    Args:
        bucket: the bucket; its segments name the parameter groups.
        rule: one of :data:`RULES`.
        momentum: β, or β₁.
        beta2, eps: Adam's.

    Raises:
        UsageError: an unknown rule.
    """

    def __init__(
        self,
        bucket: Bucket,
        *,
        rule: str,
        momentum: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
    ) -> None:
        if rule not in RULES:
            raise UsageError(f"--optimizer {rule}: one of {', '.join(RULES)}")
        self.rule, self.beta, self.beta2, self.eps = rule, momentum, beta2, eps
        self.progress = 0.0
        self.lead = 0.0
        """L, the rounds by which x leads the plain iterate."""
        self._pieces = _pieces(bucket)
        self._theta: Tensor | None = None
        self._m: Tensor | None = None
        self._a: Tensor | None = None
        self._v: Tensor | None = None
        self._pool: Pool | None = None
        """Has the memory of each x that was handed out, once nobody refers to it any more."""

    def step(
        self,
        x: Tensor,
        d: Tensor,
        f: float,
        tau: float,
        rates: Sequence[tuple[float, float]],
        clip: Callable[[float], float] | None = None,
    ) -> Tensor:
        """The next iterate.

        Args:
            x: the present one, shape (bucket,). Not written to.
            d: mean gradient over the nodes, same shape. Not written to.
            f: progress of this step in rounds, 0 < f ≤ 1.
            tau: mean staleness of d, in rounds.
            rates: per parameter group, learning rate and (decoupled) weight decay now.
            clip: the factor, at most 1, for a squared norm of this bucket's a; None: no clipping.

        Returns:
            A tensor that is not written to again.
        """
        self.progress += f
        if self._theta is None:
            self._theta = x.clone()
            if self.rule != "sgd":
                self._m = torch.zeros_like(x)
            if self.rule in ("adam", "nadam"):
                self._v = torch.zeros_like(x)
            if self._v is not None or clip is not None:
                self._a = torch.zeros_like(x)
        ahead = self.beta if self.rule in _LOOKS_AHEAD else 0.0
        self.lead = min(ahead + max(tau, 0.0), LEAD_MOST_ROUNDS)
        shrunk = 1.0
        if clip is not None:
            assert self._a is not None
            self._average(self._a, d, f)
            shrunk = clip(float(torch.dot(self._a, self._a)))
        if self._pool is None:
            self._pool = Pool(len(x), 1, dtype=x.dtype)
        following = self._pool.take(len(x))
        for part, group in self._pieces:
            lr, decay = rates[group]
            theta = self._theta[part]
            if decay:
                theta.sub_(x[part], alpha=lr * f * decay)
            over, under = self._direction(part, d[part], f, shrunk, averaged=clip is not None)
            if under is None:
                theta.sub_(over, alpha=lr * f)
                torch.sub(theta, over, alpha=lr * self.lead, out=following[part])
            else:
                theta.addcdiv_(over, under, value=-lr * f)
                torch.addcdiv(theta, over, under, value=-lr * self.lead, out=following[part])
        return following

    def moved(self, by: Tensor) -> None:
        """The iterate was moved by somebody else."""
        if self._theta is not None:
            self._theta.add_(by)

    def plain(self, x: Tensor) -> Tensor:
        """θ: the plain iterate behind x. A new tensor (or x itself before the first step)."""
        return x if self._theta is None else self._theta.clone()

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs to go on: numbers, and copies of the tensors (θ, m, a, v; each may be missing)."""
        kept = {name: getattr(self, f"_{name}") for name in _STATE}
        tensors = {name: t.clone() for name, t in kept.items() if t is not None}
        return {"progress": self.progress, "lead": self.lead, **tensors}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.progress, self.lead = float(state["progress"]), float(state["lead"])
        for name in _STATE:
            setattr(self, f"_{name}", state[name].clone() if name in state else None)

    def _average(self, a: Tensor, d: Tensor, f: float) -> None:
        """a ← q·a + (1−q)·d."""
        if self.progress >= 0.5 and f < min(1.0, self.progress):  # nor in the first step
            a.lerp_(d, 1.0 - exp(-2.0 * f))
        else:
            a.copy_(d)

    def _direction(
        self, part: slice, d: Tensor, f: float, shrunk: float, *, averaged: bool
    ) -> tuple[Tensor, Tensor | None]:
        """u' on one piece, as a quotient (over, under); under None: 1. ``averaged``: a is up to date."""
        if self._m is None:
            return d if shrunk == 1.0 else d * shrunk, None
        b1, m = self.beta**f, self._m[part]
        if self._v is None:
            return m.mul_(b1).add_(d, alpha=shrunk * (1.0 - b1) / (1.0 - self.beta)), None
        if shrunk == 1.0:
            m.lerp_(d, 1.0 - b1)
        else:
            m.mul_(b1).add_(d, alpha=shrunk * (1.0 - b1))
        assert self._a is not None
        a, v = self._a[part], self._v[part]
        if not averaged:
            self._average(a, d, f)
        b2 = self.beta2**f
        v.mul_(b2).addcmul_(a, a, value=shrunk * shrunk * (1.0 - b2))
        m_bias, v_bias = 1.0 - self.beta**self.progress, 1.0 - self.beta2**self.progress
        return m, v.sqrt().mul_(m_bias / sqrt(v_bias)).add_(self.eps * m_bias)


class Norm:
    """The global norm of what the buckets last said, for clipping.

    Args:
        most: what it may be.
        sizes: coordinates of each bucket; where some have said nothing yet they are taken to be like the others.
    """

    def __init__(self, most: float, sizes: Sequence[int]) -> None:
        self._most, self._sizes = most, sizes
        self._squares: dict[int, float] = {}

    def shrink(self, bucket: int, square: float) -> float:
        """The factor that brings the norm down to the most, now that ``bucket``'s squared norm is ``square``; at most
        1 (and a little below for a norm at the bound, as ``torch.nn.utils.clip_grad_norm_`` has it)."""
        self._squares[bucket] = square
        known = sum(self._sizes[b] for b in self._squares)
        norm = sqrt(sum(self._squares.values()) * sum(self._sizes) / known)
        return min(1.0, self._most / (norm + 1e-6))


def _pieces(bucket: Bucket) -> tuple[tuple[slice, int], ...]:
    """(coordinates, their parameter group): one group each, at most :data:`PIECE` long."""
    return tuple(
        (slice(start, min(start + PIECE, segment.stop)), segment.group)
        for segment in bucket.segments
        for start in range(segment.start, segment.stop, PIECE)
    )
