"""One step along the mean direction, worth a fraction ``f`` of a round: the rule DESCEND of ``rfast-tree``.

With d the mean gradient over the nodes, P the progress in rounds after this step, τ the measured staleness::

    b1 = β^f,  b2 = β₂^f,  q = exp(−2f)  (0 while P < ½, and where one report is a whole round, f = 1)
    x ← x·(1 − lr·f·wd)                                    decayed coordinates only
    SGD                u' = d
    heavy, Nesterov    m ← b1·m + (1−b1)/(1−β)·d,   u' = m
    Adam, NAdam        m ← b1·m + (1−b1)·d,  a ← q·a + (1−q)·d,  v ← b2·v + (1−b2)·a²,
                       u' = m/(1−β^P) / (√(v/(1−β₂^P)) + ε)
    L' = min(τ, 4)  for SGD, heavy ball, Adam;   min(β + τ, 4)  for Nesterov, NAdam
    x ← x − lr·f·u' − (lr·L'·u' − lr_before·L·u);          u, L ← u', L'

So x leads the plain iterate θ = x + lr·L·u by L rounds of the current direction; θ is what is evaluated and saved. With
f = 1 and τ = 0 this is the textbook optimiser on a batch of B samples (Nesterov in the form that
``torch.optim.SGD(nesterov=True)`` uses; Adam with decoupled weight decay as ``torch.optim.AdamW``). NAdam looks ahead
with the present second moment, where ``torch.optim.NAdam`` differs in form.

Source: DESIGN of this project, changes 3, 4 and 6 of ``docs/algorithm.md``; Adam: arXiv 1412.6980; NAdam: Dozat 2016.
"""

from __future__ import annotations

from math import exp

import torch
from torch import Tensor

from rfast_zmq.errors import UsageError
from rfast_zmq.task.flat import Bucket, Group

LEAD_MOST_ROUNDS = 4.0
_LOOKS_AHEAD = {"nesterov", "nadam"}
RULES = ("nadam", "adam", "sgd", "momentum", "nesterov")


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
        self._spans = _spans(bucket, groups, weight_decay)
        self._lr = 0.0
        self._u: Tensor | None = None
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
        before, u_before = self._lr * self.lead, self._u
        x = x.clone()
        for start, stop, scale, decay in self._spans:
            part = x[start:stop]
            if decay:
                part.mul_(1.0 - lr * scale * f * decay)
            if u_before is not None and before:
                part.add_(u_before[start:stop], alpha=before * scale)
        u = self._direction(d, f)
        ahead = self.beta if self.rule in _LOOKS_AHEAD else 0.0
        self.lead = min(ahead + max(tau, 0.0), LEAD_MOST_ROUNDS)
        for start, stop, scale, _ in self._spans:
            x[start:stop].sub_(u[start:stop], alpha=lr * scale * (f + self.lead))
        self._u, self._lr = u, lr
        return x

    def plain(self, x: Tensor) -> Tensor:
        """θ: the plain iterate behind x. A new tensor (or x itself before the first step)."""
        if self._u is None or not self.lead:
            return x
        theta = x.clone()
        for start, stop, scale, _ in self._spans:
            theta[start:stop].add_(self._u[start:stop], alpha=self._lr * self.lead * scale)
        return theta

    def _direction(self, d: Tensor, f: float) -> Tensor:
        if self.rule == "sgd":
            return d
        if self._m is None:
            self._m = torch.zeros_like(d)
        b1 = self.beta**f
        if self.rule in ("momentum", "nesterov"):
            return self._m.mul_(b1).add_(d, alpha=(1.0 - b1) / (1.0 - self.beta))
        if self._v is None:
            self._v = torch.zeros_like(d)
        self._m.mul_(b1).add_(d, alpha=1.0 - b1)
        q = exp(-2.0 * f) if self.progress >= 0.5 and f < 1.0 and self._a is not None else 0.0
        self._a = d if q == 0.0 or self._a is None else torch.lerp(d, self._a, q)
        b2 = self.beta2**f
        self._v.mul_(b2).addcmul_(self._a, self._a, value=1.0 - b2)
        root = self._v.div(1.0 - self.beta2**self.progress).sqrt_().add_(self.eps)
        return torch.div(self._m, root, out=root).div_(1.0 - self.beta**self.progress)


def _spans(
    bucket: Bucket, groups: tuple[Group, ...], weight_decay: float
) -> tuple[tuple[int, int, float, float], ...]:
    """(start, stop, factor on lr, weight decay), neighbours of one kind merged."""
    spans: list[tuple[int, int, float, float]] = []
    for segment in bucket.segments:
        group = groups[segment.group]
        decay = weight_decay if group.decay else 0.0
        if spans and spans[-1][1:] == (segment.start, group.lr_scale, decay):
            spans[-1] = (spans[-1][0], segment.stop, group.lr_scale, decay)
        else:
            spans.append((segment.start, segment.stop, group.lr_scale, decay))
    return tuple(spans)
