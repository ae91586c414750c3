"""Which samples come next: every sample once an epoch, in an order drawn anew for each epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset, default_collate

from rfast_zmq.errors import UsageError


class EpochSampler:
    """Indices of a shard, epoch after epoch; a batch may run over the end of an epoch into the next.

    The order of epoch e is drawn from (seed, rank, e) alone, so it does not depend on how large the batches are.

    Args:
        length: samples in the shard, at least 1.
        seed: of the run.
        rank: of the node.
    """

    def __init__(self, length: int, seed: int, rank: int) -> None:
        self._length = length
        self._key = (seed, rank)
        self._epoch = 0
        self._coming = np.empty(0, dtype=np.int64)

    def peek(self, count: int) -> NDArray[np.int64]:
        """The next ``count`` indices, which stay to be taken."""
        while len(self._coming) < count:
            order = np.random.default_rng([*self._key, self._epoch]).permutation(self._length)
            self._coming = np.concatenate([self._coming, order])
            self._epoch += 1
        return self._coming[:count]

    def take(self, count: int) -> NDArray[np.int64]:
        """The next ``count`` indices."""
        taken = self.peek(count)
        self._coming = self._coming[count:]
        return taken


class Feed(Protocol):
    """Where a node's batches come from."""

    def prefetch(self, samples: int) -> None:
        """Load the next batch already, if it will be one of so many samples."""

    def draw(self, samples: int) -> tuple[Any, int]:
        """The next batch, and how many samples it holds (``samples``, or what an iterable gives)."""


class IndexedFeed:
    """Batches drawn by index, in the order of an :class:`EpochSampler`.

    Args:
        source: tensors of equal length, or a map-style dataset.
        length: samples in it.
        seed, rank: of the sampler.
    """

    def __init__(self, source: tuple[Tensor, ...] | Dataset[Any], length: int, seed: int, rank: int) -> None:
        self._source = source
        self._sampler = EpochSampler(length, seed, rank)
        self._ahead: tuple[int, Any] | None = None

    def prefetch(self, samples: int) -> None:
        self._ahead = (samples, self._gather(self._sampler.peek(samples)))

    def draw(self, samples: int) -> tuple[Any, int]:
        ahead, self._ahead = self._ahead, None
        indices = self._sampler.take(samples)
        batch = ahead[1] if ahead is not None and ahead[0] == samples else self._gather(indices)
        return batch, samples

    def _gather(self, indices: NDArray[np.int64]) -> Any:
        if isinstance(self._source, tuple):
            rows = torch.from_numpy(indices)
            return tuple(t[rows] for t in self._source)
        return default_collate([self._source[int(i)] for i in indices])


class IterableFeed:
    """Batches as an iterable gives them; begun anew at its end.

    Args:
        source: gives batches; its length and order are its own affair.
    """

    def __init__(self, source: Iterable[Any]) -> None:
        self._source = source
        self._iterator: Iterator[Any] = iter(source)
        self._ahead: list[Any] = []

    def prefetch(self, samples: int) -> None:
        if not self._ahead:
            self._ahead.append(self._next())

    def draw(self, samples: int) -> tuple[Any, int]:
        batch = self._ahead.pop() if self._ahead else self._next()
        return batch, batch_length(batch)

    def _next(self) -> Any:
        for attempt in range(2):
            for batch in self._iterator:
                return batch
            if attempt == 0:
                self._iterator = iter(self._source)
        raise UsageError(
            "train_data gave an iterable that ran out and cannot be gone through again; give a DataLoader, a list of "
            "batches, or an endless generator"
        )


def make_feed(data: Any, seed: int, rank: int) -> Feed:
    """The feed of what :meth:`~rfast_zmq.task.task.Task.train_data` gave.

    Raises:
        UsageError: nothing that can be trained on, or no sample in it.
    """
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, Tensor | np.ndarray):
        data = (data,)
    if isinstance(data, tuple | list) and data and all(isinstance(t, Tensor | np.ndarray) for t in data):
        tensors = tuple(torch.as_tensor(t) for t in data)
        lengths = {len(t) if t.ndim else 0 for t in tensors}
        if len(lengths) > 1:
            raise UsageError(f"train_data gave tensors of {[len(t) for t in tensors]} samples: must be equally many")
        _some(lengths.pop(), rank)
        return IndexedFeed(tensors, len(tensors[0]), seed, rank)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset) and hasattr(data, "__len__"):
        _some(len(data), rank)
        return IndexedFeed(data, len(data), seed, rank)
    if hasattr(data, "__iter__") and not isinstance(data, str | bytes | Mapping):
        return IterableFeed(data)
    raise UsageError(
        f"train_data gave a {type(data).__name__}: must be a tuple of tensors of equal length, a map-style Dataset, or "
        "an iterable of batches"
    )


def _some(length: int, rank: int) -> None:
    if length < 1:
        raise UsageError(f"train_data gave rank {rank} no sample: use fewer --nodes or another --split")


def batch_length(batch: Any) -> int:
    """Samples in a batch: the length of the first tensor in it, at any depth of tuples, lists and dicts.

    Raises:
        UsageError: there is no tensor in it.
    """
    pending = [batch]
    while pending:
        head = pending.pop(0)
        if isinstance(head, Tensor) and head.ndim:
            return len(head)
        if isinstance(head, Mapping):
            pending = [*head.values(), *pending]
        elif isinstance(head, Sequence) and not isinstance(head, str | bytes):
            pending = [*head, *pending]
    raise UsageError(f"train_data gave a batch of type {type(batch).__name__} without a tensor of samples in it")


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on ``device``, through pinned memory and without waiting where that is a GPU."""
    if isinstance(batch, Tensor):
        if device.type == "cuda" and batch.device.type == "cpu":
            return batch.pin_memory().to(device, non_blocking=True)
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {k: to_device(v, device) for k, v in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(v, device) for v in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(to_device(v, device) for v in batch)
    return batch
