"""A live node is sent everything but what it expects: it refuses, counts, and goes on."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import zmq

from rfast_zmq.assembly import Plan
from rfast_zmq.core.events import Edge, Message, Stamp
from rfast_zmq.launch import run
from rfast_zmq.settings import Settings
from rfast_zmq.transport import Addresses
from tests.loopback.test_run import NEAR, OPTIMUM, TASKS, Watch, weights
from tests.wire.mutate import hostile

CASES = 3000


def real_frames(plan: Plan) -> list[list[bytes]]:
    """Frames as the nodes of this run exchange them, but for the run's id."""
    node = plan.node(0, plan.worker(0), 1)
    codec = plan.codec(node, "0" * 16)
    payload = torch.ones(node.config.layout.sizes[0])
    values = {bool: False, int: 1, float: 1.0, list: [1]}
    messages = [
        Message(
            edge, 0, Stamp(2**40, 7), payload, {name: values[kind] for name, kind in node.numbers(edge.graph).items()}
        )
        for edge in (Edge("W", 0, 1), Edge("A", 1, 0))
    ]
    return [[bytes(frame) for frame in codec.encode(message)] for message in messages]


def test_hostile_frames_are_refused_and_the_run_goes_on(monkeypatch: Any) -> None:
    addresses: list[str] = []

    made = Addresses.ipc

    def spied(folder: Path, nodes: int) -> Addresses:
        found = made(folder, nodes)
        addresses.extend((*found.pull, *found.push))
        return found

    monkeypatch.setattr(Addresses, "ipc", spied)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    plan = Plan.make(f"{TASKS}:Line", Settings(nodes=3, compute="constant:0.02", report_batch=4, samples=15_000))
    corpus = real_frames(plan)

    def act(watch: Watch) -> None:
        watch.until(lambda: watch.rounds > 2)
        context = zmq.Context()
        try:
            for address in addresses:
                if not Path(address.removeprefix("ipc://")).exists():
                    continue
                push = context.socket(zmq.PUSH)
                push.setsockopt(zmq.LINGER, 0)
                push.setsockopt(zmq.SNDTIMEO, 2000)
                push.connect(address)
                for _ in range(CASES // len(addresses)):
                    frames = hostile(rng, corpus)
                    try:
                        push.send_multipart([bytes(frame) for frame in frames] or [b""])
                    except zmq.Again:
                        break
                    time.sleep(0.003)  # or a frame that gets the line cut takes with it many that nobody has read yet
                push.close()
        finally:
            context.term()

    done = run(plan, Watch(act))
    assert done.result.missing == []
    assert sum(done.result.messages_refused.values()) > 100
    assert weights(done) == pytest.approx(OPTIMUM, abs=NEAR)
    assert done.result.identity_error is not None
    assert done.result.identity_error <= 1e-5
