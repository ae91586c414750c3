"""The order in which the copies to and from a GPU are asked for, with streams that only write down what they are told.

That the copies arrive is tested on machines with a GPU (``test_gather.py``, ``test_gpu.py``); here, that none is begun
before what it reads is computed, none is looked at before it is done, and no memory is let go or written to while a
copy may still use it; and, whatever the threads' turns are, that a model is taken up with the rounds it has.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby, pairwise
from math import nan
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rfast_zmq.task import FlatModel
from rfast_zmq.task.pool import Pool
from rfast_zmq.task.staging import OnGpu, ToGpu

Log = list[tuple[Any, ...]]
SOON_S = 10.0


class Stream:
    """What it is told goes into the log: ``(who, what, …)``."""

    def __init__(self, name: str, log: Log) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: Stream) -> None:
        self.log.append((self.name, "waits for", other.name))

    def wait_event(self, event: Event) -> None:
        self.log.append((self.name, "waits for", event.stream.name, event.at))

    def record_event(self, event: None = None) -> Event:
        return Event(self)


class Event:
    """Marks what its stream was told of so far."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.at = stream, len(stream.log)

    def synchronize(self) -> None:
        self.stream.log.append(("host", "waits for", self.stream.name))


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """``torch.cuda`` written down, in place of the real one."""
    log: Log = []
    names = iter(["out", "in"] * 3)
    own = threading.local()

    def present() -> list[Stream]:
        if not hasattr(own, "streams"):
            own.streams = [Stream("compute", log)]
        return own.streams

    @contextmanager
    def within(stream: Stream) -> Iterator[None]:
        present().append(stream)
        yield
        present().pop()

    copy = Tensor.copy_

    def copied(into: Tensor, values: Tensor, non_blocking: bool = False) -> Tensor:
        log.append((present()[-1].name, "copies", values.data_ptr(), into.data_ptr(), len(values)))
        return copy(into, values)

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(next(names), log))
    monkeypatch.setattr(torch.cuda, "Event", lambda blocking: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: present()[-1])
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(Tensor, "copy_", copied)
    monkeypatch.setattr(Tensor, "record_stream", lambda t, s: log.append(("allocator", "keeps", t.data_ptr(), s.name)))
    monkeypatch.setattr("rfast_zmq.task.staging.Pool", lambda length, most, pinned: Pool(length, most))
    monkeypatch.setattr("rfast_zmq.task.flat.stager", OnGpu)
    monkeypatch.setattr("rfast_zmq.task.flat.incoming", ToGpu)
    return log


@pytest.mark.parametrize("number", [1.0, nan])
def test_gradients_leave_on_a_stream_of_their_own_and_are_looked_at_when_they_are_there_and_not_finite(
    log: Log, number: float
) -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    flat = FlatModel(module, bucket_bytes=16)
    x = torch.full((4, 3), number)
    log.clear()
    looked: list[int] = []

    def look(bucket: Tensor) -> None:
        copies = [k for k, (_, what, *rest) in enumerate(log) if what == "copies" and inside(rest[1], bucket)]
        assert copies
        assert ("host", "waits for", "out") in log[max(copies) :]
        looked.append(bucket.data_ptr())

    gradient, _ = flat.gradient(lambda: module(x).sum(), look)
    assert sorted(looked) == ([] if number == 1.0 else sorted(t.data_ptr() for t in gradient))
    runs = [(what, list(entries)) for what, entries in groupby(log, lambda entry: entry[:2])]
    copies = [k for k, (what, _) in enumerate(runs) if what[1] == "copies"]
    assert len(copies) == 4  # one run for each parameter's gradient
    for k in copies:
        assert runs[k][0][0] == "out"
        assert runs[k - 1][1] == [("out", "waits for", "compute")]
        assert runs[k + 1][1] == [("allocator", "keeps", runs[k][1][0][2], "out")]
    assert log[-1] == ("host", "waits for", "out")
    expected = torch.autograd.grad(module(x).sum(), list(module.parameters()))
    by_name = dict(zip((name for name, _ in module.named_parameters()), expected, strict=True))
    ordered = torch.cat([by_name[e.name].flatten() for e in flat.layout.entries])
    torch.testing.assert_close(flat.layout.join(gradient), ordered, rtol=0, atol=0, equal_nan=True)


def bring(flat: FlatModel, value: float) -> tuple[Tensor, ...]:
    """A model of this value in every coordinate, and in its rounds; it is near."""
    model, there = tuple(torch.full((size,), value) for size in flat.layout.sizes), threading.Event()
    assert not flat.bring(model, (value,) * len(model), there.set)
    assert there.wait(SOON_S)
    return model


def test_a_model_comes_near_beside_what_computes_and_waits_for_whoever_still_reads_the_one_before(log: Log) -> None:
    flat = FlatModel(nn.Linear(3, 2), bucket_bytes=16)
    log.clear()
    model = bring(flat, 1.0)
    addresses = [t.data_ptr() for t in model]
    assert [entry[:3] for entry in log] == [("in", "copies", address) for address in addresses]
    near = [entry[3] for entry in log]
    log.clear()
    assert flat.take_up() == (1.0,) * len(model)
    assert log == [("compute", "copies", near[0], flat._flat.data_ptr(), flat.layout.total)]  # all at once
    after = len(log)
    changed = bring(flat, 2.0)
    waits = ("host", "waits for", "compute")
    assert log[after:] == [
        entry
        for t, address in zip(changed, near, strict=True)
        for entry in (waits, ("in", "copies", t.data_ptr(), address, len(t)))
    ]
    log.clear()
    partly = (model[0], *changed[1:])
    assert not flat.bring(partly, (3.0,) * len(model), lambda: None)
    flat.load(partly)  # whatever of it is near by now
    assert torch.equal(flat.layout.join(flat.read()), flat.layout.join(partly))


def test_what_is_taken_up_has_the_rounds_that_it_is_said_to_have(log: Log) -> None:
    """While models follow each other as fast as they can be brought."""
    flat, over = FlatModel(nn.Linear(30, 20), bucket_bytes=100), threading.Event()
    bring(flat, 0.0)

    def offer() -> None:
        value = 1.0
        while not over.is_set():
            flat.bring(tuple(torch.full((s,), value) for s in flat.layout.sizes), (value,) * 25, lambda: None)
            value += 1.0

    assert len(flat.layout.sizes) == 25
    switch_s = sys.getswitchinterval()
    thread = threading.Thread(target=offer, daemon=True)
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        seen = [(flat.take_up(), flat.read()) for _ in range(300)]
    finally:
        over.set()
        thread.join(SOON_S)
        sys.setswitchinterval(switch_s)
    for rounds, model in seen:
        assert [t.unique().tolist() for t in model] == [[r] for r in rounds]
    assert len({rounds for rounds, _ in seen}) > 1
    assert all(a <= b for (before, _), (after, _) in pairwise(seen) for a, b in zip(before, after, strict=True))


def test_a_model_that_could_not_be_brought_is_said_where_it_is_taken_up(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = FlatModel(nn.Linear(3, 2))

    def full(like: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no memory left on the device")

    monkeypatch.setattr(torch, "empty_like", full)
    bring(flat, 1.0)
    with pytest.raises(torch.OutOfMemoryError, match="no memory left"):
        flat.take_up()


def inside(address: int, bucket: Tensor) -> bool:
    return 0 <= address - bucket.data_ptr() < bucket.nbytes
