"""``rennala``: batches of whoever is fast. The root gathers S gradients of its present model, and steps along their
mean::

    x^{k+1} = x^k − γ (1/S) Σ_{s=1}^S ∇f_{i_s}(x^k; ζ_s)          gradients of older models are ignored

Every node computes at the newest model again and again, so a fast one gives many of the S. Nobody waits, and no
gradient is old; what is under way as the model changes is lost. A fast node counts for more: on uneven data it ends at
the optimum weighted by speeds. ``batch_gradients`` is S; the default, 0, stands for as many as B samples are. If more
have come together than are wanted, all of them count.

Source: Tyurin and Richtárik, "Optimal time complexities of parallel stochastic optimization methods under a fixed
computation model" (arXiv 2305.12387), Rennala SGD, over a tree whose relays add up what comes, as in their Fragile SGD
(arXiv 2405.16218).
Departures: as of ``async-sgd``; means are weighted by samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import ClassVar

from rfast_zmq.core.events import Number
from rfast_zmq.core.gathered import Gathered
from rfast_zmq.core.interface import NodeConfig
from rfast_zmq.core.served import Gradient, mean_of


class Rennala(Gathered):
    """One node of Rennala SGD. See the module."""

    name: ClassVar[str] = "rennala"
    data_numbers: ClassVar[Mapping[str, type]] = {**Gathered.data_numbers, "gradients": float, "batch": int}

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        self._renew()

    def _renew(self) -> None:
        self._mean: Gradient | None = None
        self._gradients_of, self._samples_of = 0.0, 0
        """Of how many gradients (or samples) that is, and of how many samples."""

    def _add(self, mean: Gradient, gradients: float, samples: int) -> None:
        self._gradients_of, self._samples_of = self._gradients_of + gradients, self._samples_of + samples
        self._mean = mean_of(self._mean, mean, samples / self._samples_of)

    def _mine(self, gradient: Gradient, samples: int) -> None:
        self._add(gradient, self._amount(samples), samples)

    def _theirs(self, src: int, parts: Gradient, numbers: Mapping[str, Number]) -> None:
        gradients, samples = float(numbers["gradients"]), int(numbers["batch"])  # type: ignore[arg-type]
        if samples >= 1 and 0 < gradients < inf:
            self._add(parts, gradients, samples)

    def _step(self) -> bool:
        if self._mean is None or self._gradients_of < self._wanted:
            return False
        self._update(self._mean, self._samples_of)
        return True

    def _anew(self) -> bool:
        return self._mean is not None

    def _sum(self) -> tuple[Gradient, dict[str, Number]]:
        mean, numbers = self._mean, {"gradients": self._gradients_of, "batch": self._samples_of}
        assert mean is not None
        self._renew()
        return mean, numbers  # type: ignore[return-value]
