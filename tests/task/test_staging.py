"""The order in which the copies to and from a GPU are asked for, with streams that only write down what they are told.

That the copies arrive is tested on machines with a GPU (``test_gather.py``); here, that none is begun before what it
reads is computed, none is looked at before it is done, and no memory is let go while a copy may still use it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rfast_zmq.task import FlatModel
from rfast_zmq.task.pool import Pool
from rfast_zmq.task.staging import OnGpu

Log = list[tuple[Any, ...]]


class Stream:
    """What it is told goes into the log: ``(who, what, …)``."""

    def __init__(self, name: str, log: Log) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: Stream) -> None:
        self.log.append((self.name, "waits for", other.name))

    def synchronize(self) -> None:
        self.log.append(("host", "waits for", self.name))

    def record_event(self, event: None = None) -> Event:
        return Event(self)


class Event:
    """Marks the copies that its stream was told of so far."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.done = stream, False

    def synchronize(self) -> None:
        self.done = True
        self.stream.log.append(("host", "waits for", self.stream.name))

    def query(self) -> bool:
        return self.done or ("host", "waits for", self.stream.name) in self.stream.log


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """``torch.cuda`` written down, in place of the real one."""
    log: Log = []
    names = iter(["out", "in"] * 3)
    present = [Stream("compute", log)]

    @contextmanager
    def within(stream: Stream) -> Iterator[None]:
        present.append(stream)
        yield
        present.pop()

    copy = Tensor.copy_

    def copied(into: Tensor, values: Tensor, non_blocking: bool = False) -> Tensor:
        if non_blocking:
            log.append((present[-1].name, "copies", values.data_ptr(), into.data_ptr(), len(values)))
        return copy(into, values)

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(next(names), log))
    monkeypatch.setattr(torch.cuda, "Event", lambda blocking: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: present[-1])
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(Tensor, "copy_", copied)
    monkeypatch.setattr(Tensor, "record_stream", lambda t, s: log.append(("allocator", "keeps", t.data_ptr(), s.name)))
    monkeypatch.setattr("rfast_zmq.task.staging.Pool", lambda length, most, pinned: Pool(length, most))
    monkeypatch.setattr("rfast_zmq.task.flat.stager", OnGpu)
    return log


def test_gradients_leave_on_a_stream_of_their_own_and_are_looked_at_when_they_are_there(log: Log) -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    flat = FlatModel(module, bucket_bytes=16)
    log.clear()
    looked: list[int] = []

    def look(bucket: Tensor) -> None:
        copies = [k for k, (_, what, *rest) in enumerate(log) if what == "copies" and inside(rest[1], bucket)]
        assert copies
        assert ("host", "waits for", "out") in log[max(copies) :]
        looked.append(bucket.data_ptr())

    x = torch.ones(4, 3)
    gradient, _ = flat.gradient(lambda: module(x).sum(), look)
    assert sorted(looked) == sorted(t.data_ptr() for t in gradient)
    for k, (who, what, *rest) in enumerate(log):
        if what == "copies":
            assert (who, "waits for", "compute") in log[:k]
            assert log[k - 1] == (who, "waits for", "compute")
            assert log[k + 1] == ("allocator", "keeps", rest[0], who)
    expected = torch.autograd.grad(module(x).sum(), list(module.parameters()))
    by_name = dict(zip((name for name, _ in module.named_parameters()), expected, strict=True))
    ordered = torch.cat([by_name[e.name].flatten() for e in flat.layout.entries])
    assert torch.equal(flat.layout.join(gradient), ordered)


def test_a_model_goes_in_behind_what_still_reads_the_one_before_and_ahead_of_what_computes_next(log: Log) -> None:
    flat = FlatModel(nn.Linear(3, 2), bucket_bytes=16)
    model = flat.read()
    log.clear()
    flat.load(model)
    assert [entry[:2] for entry in log] == [("in", "waits for"), ("in", "copies")] * len(model) + [
        ("compute", "waits for")
    ]
    locked = {entry[2] for entry in log if entry[1] == "copies"}
    assert not locked & {t.data_ptr() for t in model}  # copies in page-locked memory of our own

    def taken() -> set[int]:
        return {t.data_ptr() for t in flat.read()}

    assert not taken() & locked  # they may still be read from
    log.append(("host", "waits for", "in"))
    flat.load(tuple(t.clone() for t in model))
    assert taken() & locked


def inside(address: int, bucket: Tensor) -> bool:
    return 0 <= address - bucket.data_ptr() < bucket.nbytes
