"""``local-sgd``: everybody goes H steps of its own, then the models are averaged::

    H times     x_i ← optimiser(x_i, ∇f_i(x_i; ζ))                 nobody sends, nobody waits
    averaging   x_i ← Σ_j w_j x_j / Σ w    for all i                everybody waits for the slowest

The mean is made on the ring (:class:`~rfast_zmq.core.ring.Ring`), where 2 (n − 1)/n models leave each node at an
averaging: 2 (n − 1)/(n H) models a node and round. With H = 1 and plain SGD it is ``ring-allreduce``.

What is judged is the model of the last averaging, which all nodes have, not the mean of what they have made of it
since: that is nowhere before the next. Progress is told, and a run ends, at an averaging.

With H > 1 and a fixed step, uneven data leave a bias. On quadratics f_i = ½ h_i (x − b_i)², with q_i = (1 − γ h_i)^H,

    x* = Σ w_i (1 − q_i) b_i / Σ w_i (1 − q_i),    which is the optimum only where all h_i are the same, or H = 1.

The optimiser's state is each node's own and goes on through an averaging: momentum is not averaged, as in
``torch.distributed.optim.PostLocalSGDOptimizer``. What is averaged of running averages (BatchNorm) is what each node
has at that moment.

Departures: the paper is for plain SGD and equal weights; here any optimiser may take the local steps, and node weights
weigh the models. No phase of H = 1 comes first ("post-local SGD", arXiv 1808.07217).

Option: ``local_steps``, H (8).

Source: Stich, "Local SGD converges fast and communicates little" (arXiv 1805.09767), Algorithm 1, with averagings every
H steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from rfast_zmq.core.events import Action, GradientReady
from rfast_zmq.core.interface import NodeConfig
from rfast_zmq.core.ordered import OwnSteps
from rfast_zmq.core.ring import Ring
from rfast_zmq.errors import UsageError


class LocalSgd(Ring):
    """One node of local SGD. See the module.

    A subclass may say otherwise what the mean is of, and what follows from it.
    """

    name: ClassVar[str] = "local-sgd"
    options: ClassVar[Mapping[str, float]] = {"local_steps": 8}

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        self._local_steps = int(config.options["local_steps"])
        self._steps = OwnSteps(config)
        self._local: list[Tensor | None] = [None] * self.buckets
        """This node's own model, since its first step from the averaged one, ``_x``; None: before that."""
        self._taken = 0
        """Local steps since the last averaging."""
        self._averaged = 0
        """Samples of all nodes that are in the averaged model."""

    @classmethod
    def check_options(cls, options: Mapping[str, float]) -> None:
        steps = options["local_steps"]
        if steps < 1 or steps != int(steps):
            raise UsageError(f"--algorithm-option local_steps={steps:g}: must be a whole number, 1 or more")

    def _part_of(self, bucket: int, local: Tensor) -> Tensor:
        """What this node gives to the mean of a bucket of parameters, once its H steps have brought it to ``local``."""
        return local

    def _following_x(self, bucket: int, mean: Tensor) -> Tensor:
        """The model of a bucket of parameters that the mean of those makes, the same on every node."""
        return mean

    def _is_parameters(self, bucket: int) -> bool:
        return self.config.layout.buckets[bucket].kind == "parameters"

    def _at(self) -> tuple[Tensor, ...] | None:
        own = (x if local is None else local for x, local in zip(self._x, self._local, strict=True))
        model = tuple(x for x in own if x is not None)
        return model if not self._reducing and len(model) == self.buckets else None

    def _computed(self, gradient: tuple[Tensor, ...], event: GradientReady) -> list[Action]:
        for b, (x, local, g) in enumerate(zip(self._x, self._local, gradient, strict=True)):
            at = x if local is None else local
            assert at is not None
            self._local[b] = self._steps.after(b, at, g) if self._is_parameters(b) else g
        self._steps.done(event.samples)
        self._taken += 1
        if self._taken < self._local_steps:
            return []
        own = [x for x in self._local if x is not None]
        return self._reduce(tuple(self._part_of(b, x) if self._is_parameters(b) else x for b, x in enumerate(own)))

    def _reduced(self, means: tuple[Tensor, ...]) -> None:
        self._x = [self._following_x(b, mean) if self._is_parameters(b) else mean for b, mean in enumerate(means)]
        self._local, self._taken = [None] * self.buckets, 0
        self._averaged = round(self._steps.rounds * self.config.global_batch)
        self._progress(self._last_s)

    def _samples_done(self) -> int:
        """Samples are progress when they are in the model: a run ends at an averaging."""
        return self._averaged
