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

Cost: 9 passes over the bucket for NAdam, each over pieces that stay in a core's cache, so that main memory is read and
written once for each of d, θ, m, a, v and x.

Source: ``docs/algorithm.md``, changes 3, 4 and 6; Adam: arXiv 1412.6980; NAdam: Dozat 2016.
"""

from __future__ import annotations

from math import exp, sqrt

import torch
from torch import Tensor

from rfast_zmq.errors import UsageError
from rfast_zmq.task.flat import Bucket, Group

LEAD_MOST_ROUNDS = 4.0
_LOOKS_AHEAD = {"nesterov", "nadam"}
RULES = ("nadam", "adam", "sgd", "momentum", "nesterov")
PIECE = 1 << 16
"""Coordinates worked on at once: six vectors of so many float32 fit into a second-level cache."""


class Descent:
    """The optimiser's state for one bucket. Only the root has one.

    Args:
        bucket: the bucket; its segments name the parameter groups.
        groups: the parameter groups of the layout (weight decay or none; a factor on lr).
        rule: one of :data:`RULES`.
        momentum: β, or β₁.
        beta2, eps: Adam's.
        weight_decay: decoupled, for groups that decay.

    Raises:
        UsageError: an unknown rule.
    """

    def __init__(
        self,
        bucket: Bucket,
        groups: tuple[Group, ...],
        *,
        rule: str,
        momentum: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if rule not in RULES:
            raise UsageError(f"--optimizer {rule}: one of {', '.join(RULES)}")
        self.rule, self.beta, self.beta2, self.eps = rule, momentum, beta2, eps
        self.progress = 0.0
        self.lead = 0.0
        """L, the rounds by which x leads the plain iterate."""
        self._pieces = _pieces(bucket, groups, weight_decay)
        self._theta: Tensor | None = None
        self._m: Tensor | None = None
        self._a: Tensor | None = None
        self._v: Tensor | None = None

    def step(self, x: Tensor, d: Tensor, f: float, tau: float, lr: float) -> Tensor:
        """The next iterate.

        Args:
            x: the present one, shape (bucket,). Not written to.
            d: mean gradient over the nodes, same shape. Not written to.
            f: progress of this step in rounds, 0 < f ≤ 1.
            tau: mean staleness of d, in rounds.
            lr: learning rate now.

        Returns:
            A new tensor.
        """
        self.progress += f
        if self._theta is None:
            self._theta = x.clone()
            if self.rule != "sgd":
                self._m = torch.zeros_like(x)
            if self.rule in ("adam", "nadam"):
                self._a, self._v = torch.zeros_like(x), torch.zeros_like(x)
        ahead = self.beta if self.rule in _LOOKS_AHEAD else 0.0
        self.lead = min(ahead + max(tau, 0.0), LEAD_MOST_ROUNDS)
        following = torch.empty_like(x)
        for part, scale, decay in self._pieces:
            theta = self._theta[part]
            if decay:
                theta.sub_(x[part], alpha=lr * scale * f * decay)
            over, under = self._direction(part, d[part], f)
            if under is None:
                theta.sub_(over, alpha=lr * scale * f)
                torch.sub(theta, over, alpha=lr * scale * self.lead, out=following[part])
            else:
                theta.addcdiv_(over, under, value=-lr * scale * f)
                torch.addcdiv(theta, over, under, value=-lr * scale * self.lead, out=following[part])
        return following

    def plain(self, x: Tensor) -> Tensor:
        """θ: the plain iterate behind x. A new tensor (or x itself before the first step)."""
        return x if self._theta is None else self._theta.clone()

    def _direction(self, part: slice, d: Tensor, f: float) -> tuple[Tensor, Tensor | None]:
        """u' on one piece, as a quotient (over, under); under None: 1."""
        if self._m is None:
            return d, None
        b1, m = self.beta**f, self._m[part]
        if self._a is None or self._v is None:
            return m.mul_(b1).add_(d, alpha=(1.0 - b1) / (1.0 - self.beta)), None
        m.lerp_(d, 1.0 - b1)
        q = exp(-2.0 * f) if self.progress >= 0.5 and f < min(1.0, self.progress) else 0.0  # nor in the first step
        a, v = self._a[part], self._v[part]
        if q:
            a.lerp_(d, 1.0 - q)
        else:
            a.copy_(d)
        b2 = self.beta2**f
        v.mul_(b2).addcmul_(a, a, value=1.0 - b2)
        m_bias, v_bias = 1.0 - self.beta**self.progress, 1.0 - self.beta2**self.progress
        return m, v.sqrt().mul_(m_bias / sqrt(v_bias)).add_(self.eps * m_bias)


def _pieces(bucket: Bucket, groups: tuple[Group, ...], weight_decay: float) -> tuple[tuple[slice, float, float], ...]:
    """(coordinates, factor on lr, weight decay): one kind each, at most :data:`PIECE` long."""
    pieces: list[tuple[slice, float, float]] = []
    for segment in bucket.segments:
        group = groups[segment.group]
        for start in range(segment.start, segment.stop, PIECE):
            part = slice(start, min(start + PIECE, segment.stop))
            pieces.append((part, group.lr_scale, weight_decay if group.decay else 0.0))
    return tuple(pieces)
