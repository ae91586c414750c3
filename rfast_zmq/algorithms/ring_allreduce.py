"""``ring-allreduce``: synchronous SGD; the gradients' mean is made by a ring reduce-scatter and an all-gather.

The model is cut in n chunks. Of chunk c, node c + 1 sends its gradient to node c + 2, which adds its own and sends the
sum on, … until node c has that of all; the mean then goes round the same way until node c − 1 has it::

    reduce-scatter   s_c+1 = w_c+1 g_c+1,   s_i = s_i−1 + w_i g_i,   mean_c = s_c / Σ w          n − 1 messages of x/n
    all-gather       node c sends mean_c on, everybody passes it on                             n − 1 messages of x/n
    step             every node:  x ← optimiser(x, mean),  the same everywhere                  2 (n − 1)/n x in all

The first two are :class:`~rfast_zmq.core.ring.Ring`'s. Nobody computes before it has every mean, so a round takes as
long as its slowest node, and the ring.

Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations" (2009); the baseline
of R-FAST, arXiv 2307.11617, section VI.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from rfast_zmq.core.events import Action, GradientReady
from rfast_zmq.core.interface import NodeConfig
from rfast_zmq.core.ordered import OwnSteps
from rfast_zmq.core.ring import Ring


class RingAllReduce(Ring):
    """One node of synchronous SGD on a ring. See the module."""

    name: ClassVar[str] = "ring-allreduce"

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        self._steps = OwnSteps(config)
        self._samples = 0

    def _at(self) -> tuple[Tensor, ...] | None:
        model = tuple(x for x in self._x if x is not None)
        return model if not self._reducing and len(model) == self.buckets else None

    def _plain(self, bucket: int, x: Tensor) -> Tensor:
        return self._steps.plain(bucket, x)

    def _computed(self, gradient: tuple[Tensor, ...], event: GradientReady) -> list[Action]:
        self._samples = event.samples
        return self._reduce(gradient)

    def _reduced(self, means: tuple[Tensor, ...]) -> None:
        for b, (x, mean) in enumerate(zip(self._x, means, strict=True)):
            assert x is not None
            averages = self.config.layout.buckets[b].kind == "averages"
            self._x[b] = mean if averages else x + self._steps.change(b, x, mean)
        self._steps.done(self._samples)
        self._progress(self._last_s)

    def _samples_done(self) -> int:
        """Samples are progress when they are in the model; what the census has may be of the next round already."""
        return round(self._steps.rounds * self.config.global_batch)
