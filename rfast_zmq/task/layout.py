"""What each coordinate of the flat vector is, and where it is cut in buckets of about 1 MB.

R-FAST is elementwise, so each bucket is an independent instance of it: a message carries one bucket, and a lost one
costs only its own coordinates.

The vector is laid out as ``[group 0 | group 1 | … | running averages]``: first the parameters, each group contiguous
(groups in the order of their first parameter, within a group in order of registration; a tied weight once), then what
the nodes average beside them (:mod:`rfast_zmq.task.flat`).

Parameters with ``requires_grad=False`` are no part of the vector: they never change, never travel and do not enter the
layout's hash. Every node makes the module from the same seed, or loads the same file, so they agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, prod
from typing import Literal

import torch
from torch import Tensor, nn

from rfast_zmq.errors import UsageError
from rfast_zmq.settings import BUCKET_BYTES

BucketKind = Literal["parameters", "averages"]
EntryKind = Literal["parameter", "mean", "var"]


@dataclass(frozen=True)
class Group:
    """How the optimiser treats some parameters.

    Attributes:
        decay: whether weight decay acts on them.
        lr_scale: factor on the learning rate.
        name: tells groups apart that are otherwise alike (their learning rates may part later).
    """

    decay: bool
    lr_scale: float = 1.0
    name: str = ""


@dataclass(frozen=True)
class Segment:
    """Coordinates ``[start, stop)``, counted within a bucket, of parameter group ``group``."""

    group: int
    start: int
    stop: int


@dataclass(frozen=True)
class Bucket:
    """A piece ``[start, stop)`` of the flat vector that travels as one message.

    Attributes:
        start, stop: coordinates in the flat vector.
        kind: ``"parameters"`` (descended on) or ``"averages"`` (only averaged over nodes); a bucket never mixes them.
        segments: the groups of its coordinates, in order and without gaps; empty for averages.
    """

    start: int
    stop: int
    kind: BucketKind
    segments: tuple[Segment, ...]

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return self.stop - self.start


@dataclass(frozen=True)
class Entry:
    """One named tensor of the module in the flat vector.

    Attributes:
        name: as in the module's ``state_dict``.
        shape: its shape.
        kind: ``"parameter"``, or ``"mean"`` / ``"var"`` of a running average.
        group: index into :attr:`Layout.groups`; −1 for averages.
        offset: its first coordinate in the flat vector.
    """

    name: str
    shape: tuple[int, ...]
    kind: EntryKind
    group: int
    offset: int

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """What each coordinate of the flat vector is. Two nodes can train together when their :attr:`hash` is the same.

    Attributes:
        entries: the named tensors, in order of offset.
        groups: the parameter groups.
        buckets: in order of start, covering ``[0, total)`` without gaps; parameters before averages.
        total: length of the flat vector.
        dtype: of the flat vector.
        hash: 16 hexadecimal characters over names, shapes, kinds, groups, dtype and the buckets' bounds.
    """

    entries: tuple[Entry, ...]
    groups: tuple[Group, ...]
    buckets: tuple[Bucket, ...]
    total: int
    dtype: torch.dtype
    hash: str

    @classmethod
    def build(
        cls, entries: Sequence[Entry], groups: Sequence[Group], dtype: torch.dtype, bucket_size: int, turns: int = 1
    ) -> Layout:
        """Cut the entries into buckets of at most ``bucket_size`` coordinates, all of about the same size.

        Args:
            entries: in order of offset, without gaps; parameters (group by group) before averages.
            groups: what :attr:`Entry.group` points into.
            dtype: of the flat vector.
            bucket_size: coordinates, at least 1.
            turns: the number of buckets of parameters is a multiple of this (or there is one for each coordinate).
        """
        total = sum(e.size for e in entries)
        parameters = sum(e.size for e in entries if e.kind == "parameter")
        buckets = [
            Bucket(start, stop, "parameters", _segments(entries, start, stop))
            for start, stop in _cut(0, parameters, bucket_size, turns)
        ]
        buckets += [Bucket(start, stop, "averages", ()) for start, stop in _cut(parameters, total, bucket_size)]
        canonical = repr(
            (
                [(e.name, tuple(e.shape), e.kind, e.group, e.offset) for e in entries],
                [(g.decay, float(g.lr_scale), g.name) for g in groups],
                [(b.start, b.stop, b.kind) for b in buckets],
                str(dtype),
            )
        )
        digest = hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()
        return cls(tuple(entries), tuple(groups), tuple(buckets), total, dtype, digest)

    @classmethod
    def vector(
        cls, length: int, *, dtype: torch.dtype = torch.float32, bucket: int | None = None, decay: bool = True
    ) -> Layout:
        """The layout of a bare vector of parameters, without a module (replays, tests).

        Args:
            length: coordinates, at least 1.
            dtype: of the vector.
            bucket: at most so many coordinates in a bucket; None: as many as :data:`BUCKET_BYTES` hold.
            decay: whether weight decay acts on it.

        Raises:
            UsageError: ``length`` or ``bucket`` below 1.
        """
        if length < 1 or (bucket is not None and bucket < 1):
            raise UsageError(f"a vector of {length} coordinates in buckets of {bucket}: both must be 1 or more")
        entry = Entry("vector", (length,), "parameter", 0, 0)
        return cls.build([entry], [Group(decay)], dtype, bucket or max(1, BUCKET_BYTES // dtype.itemsize))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Coordinates of each bucket."""
        return tuple(b.size for b in self.buckets)

    @property
    def parameters(self) -> int:
        """How many of the coordinates, the first ones, are parameters; the rest are running averages."""
        return sum(b.size for b in self.buckets if b.kind == "parameters")

    def split(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Views of ``flat`` (1-D, ``total`` long), one a bucket.

        Raises:
            ValueError: ``flat`` has another shape.
        """
        if flat.shape != (self.total,):
            raise ValueError(f"a flat vector of this layout has shape ({self.total},), not {tuple(flat.shape)}")
        return tuple(flat[b.start : b.stop] for b in self.buckets)

    def join(self, pieces: Sequence[Tensor]) -> Tensor:
        """The flat vector (1-D, ``total`` long, freshly made) of one piece a bucket: the reverse of :meth:`split`."""
        flat = torch.cat(list(pieces))
        if tuple(len(p) for p in pieces) != self.sizes:
            raise ValueError(f"pieces of {[len(p) for p in pieces]} coordinates where the buckets have {self.sizes}")
        return flat

    def describe(self) -> str:
        """Some lines for a human: each entry with shape, group and place, then the buckets."""
        lines = [f"layout {self.hash}: {self.total} coordinates of {self.dtype} in {len(self.buckets)} buckets"]
        for e in self.entries:
            what = str(e.kind)
            if e.kind == "parameter":
                group = self.groups[e.group]
                what = f"group {e.group}, {'decay' if group.decay else 'no decay'}, lr x {group.lr_scale:g}"
            lines.append(f"  [{e.offset}, {e.offset + e.size}) {e.name} {list(e.shape)} ({what})")
        lines += [f"  bucket {i}: [{b.start}, {b.stop}) {b.kind}" for i, b in enumerate(self.buckets)]
        return "\n".join(lines)


def _cut(start: int, stop: int, size: int, turns: int = 1) -> list[tuple[int, int]]:
    """Consecutive pieces of ``[start, stop)``, each at most ``size`` long, their lengths at most 1 apart; a multiple of
    ``turns``, if there are so many coordinates."""
    pieces = min(ceil((stop - start) / size / turns) * turns, stop - start)
    bounds = [start + (stop - start) * i // pieces for i in range(pieces + 1)] if pieces else []
    return list(pairwise(bounds))


def _segments(entries: Sequence[Entry], start: int, stop: int) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    for e in entries:
        low, high = max(e.offset, start) - start, min(e.offset + e.size, stop) - start
        if low >= high:
            continue
        if segments and segments[-1].group == e.group:
            segments[-1] = Segment(e.group, segments[-1].start, high)
        else:
            segments.append(Segment(e.group, low, high))
    return tuple(segments)


def default_group(name: str, parameter: nn.Parameter) -> Group:
    """Weight decay on matrices and kernels, none on biases and the parameters of norms (those of fewer than 2 dims)."""
    return Group(decay=parameter.ndim >= 2)
