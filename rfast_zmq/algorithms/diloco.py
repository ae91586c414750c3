"""``diloco``: everybody goes H inner steps of its own; the mean of what they changed is the gradient of an outer step::

    H times       x_i ← inner optimiser(x_i, ∇f_i(x_i; ζ))         nobody sends, nobody waits
    outer step    Δ = Σ_i w_i (x − x_i) / Σ w                      everybody waits for the slowest
                  m ← μ m + Δ,    x ← x − η (Δ + μ m)              Nesterov momentum, the same everywhere
                  x_i ← x    for all i

Δ is made on the ring (:class:`~rfast_zmq.core.ring.Ring`), where 2 (n − 1)/n models leave each node at an outer step:
2 (n − 1)/(n H) models a node and round. With η = 1 and μ = 0 it is ``local-sgd``; on quadratics, whatever η and μ, it
ends where that does, which on uneven data is beside the optimum.

What is judged is the outer model x, which all nodes have. Progress is told, and a run ends, at an outer step. The inner
optimiser's state is each node's own and goes on through an outer step. Of running averages (BatchNorm) the mean of what
the nodes have at that moment is taken, without momentum.

Departures: the inner optimiser is what ``--optimizer`` says (the paper's AdamW is ``adam`` with ``--weight-decay``);
node weights weigh the changes; each node has its own share of the data, as the paper's "non-i.i.d." runs; the learning
rate of the inner steps goes by rounds.

Options: ``local_steps``, H (32); ``outer_lr``, η (0.7); ``outer_momentum``, μ (0.9). The last two are the paper's. Its
H is 500, of 88,000 steps; the runs here are of some hundreds or thousands of rounds, in which an outer momentum of 0.9
needs its tens of outer steps too.

Source: Douillard et al., "DiLoCo: distributed low-communication training of language models" (arXiv 2311.08105),
Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from rfast_zmq.algorithms.local_sgd import LocalSgd
from rfast_zmq.core.interface import NodeConfig
from rfast_zmq.errors import UsageError


class DiLoCo(LocalSgd):
    """One node of DiLoCo. See the module."""

    name: ClassVar[str] = "diloco"
    options: ClassVar[Mapping[str, float]] = {"local_steps": 32, "outer_lr": 0.7, "outer_momentum": 0.9}

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        self._outer_lr, self._outer_momentum = config.options["outer_lr"], config.options["outer_momentum"]
        self._m: list[Tensor | None] = [None] * self.buckets
        """The outer momentum; None: 0."""

    @classmethod
    def check_options(cls, options: Mapping[str, float]) -> None:
        super().check_options(options)
        lr, momentum = options["outer_lr"], options["outer_momentum"]
        if lr <= 0:
            raise UsageError(f"--algorithm-option outer_lr={lr:g}: must be more than 0")
        if not 0 <= momentum < 1:
            raise UsageError(f"--algorithm-option outer_momentum={momentum:g}: must be 0 or more, and less than 1")

    def _part_of(self, bucket: int, local: Tensor) -> Tensor:
        x = self._x[bucket]
        assert x is not None
        return x - local

    def _following_x(self, bucket: int, mean: Tensor) -> Tensor:
        x, m = self._x[bucket], self._m[bucket]
        assert x is not None
        if self._outer_momentum:
            self._m[bucket] = m = mean if m is None else mean.add(m, alpha=self._outer_momentum)
            mean = mean.add(m, alpha=self._outer_momentum)
        return x.sub(mean, alpha=self._outer_lr)
