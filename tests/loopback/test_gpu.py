"""Every algorithm with gradients that are computed on a GPU, which the processes of a run share."""

from __future__ import annotations

import pytest
import torch

from rfast_zmq.algorithms import METHODS
from rfast_zmq.launch import run
from tests.loopback.test_ddp import SAME, simulated
from tests.loopback.test_ddp import plan as ddp_plan
from tests.loopback.test_run import plan

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"), pytest.mark.timeout(300)]
IN_RING = ("ring-allreduce", "local-sgd", "diloco")
BETTER = 0.7
"""Of an accuracy that begins near .1. What takes a step an epoch of its slowest node has taken few by then."""


@pytest.mark.parametrize("algorithm", sorted(set(METHODS) - {"hivemind"}))
def test_a_run_learns_the_digits(algorithm: str) -> None:
    sgd = "nadam" not in METHODS[algorithm].optimizers
    done = run(
        plan(
            "digits",
            algorithm=algorithm,
            device="cuda",
            optimizer="sgd" if sgd else "nadam",
            lr=0.05 if sgd else 0.006,
            topology="ring" if algorithm in IN_RING else "binary-tree",
            report_batch=None,
            samples=20_000,
        )
    )
    assert done.result.missing == []
    assert all(node["gradients"] > 0 for node in done.result.per_node)
    assert done.result.accuracy is not None
    assert done.result.accuracy > BETTER
    assert done.model is not None
    assert {t.device.type for t in done.model.values()} == {"cpu"}


@pytest.mark.parametrize("optimizer", ["sgd", "nadam"])
def test_ddp_takes_the_steps_it_takes_on_the_cpu(optimizer: str) -> None:
    settings = {"optimizer": optimizer, "lr": 0.01, "global_batch": 33}
    expected, steps = simulated("Uneven", **settings, device="cpu")
    done = run(ddp_plan("Uneven", **settings, device="cuda", samples=steps * 33))
    assert done.result.identity_error == 0.0
    assert done.model is not None
    for name, t in expected.items():
        assert done.model[name] == pytest.approx(t, abs=SAME), name


def test_ddp_in_bf16_ends_near_what_it_is_in_float32() -> None:
    settings = {"optimizer": "sgd", "lr": 0.01, "global_batch": 903, "samples": 40 * 903}
    whole, half = (run(ddp_plan("Uneven", **settings, device="cuda", wire=wire)) for wire in ("float32", "bf16"))
    assert (half.result.samples, half.result.identity_error) == (40 * 903, 0.0)
    assert whole.model is not None
    assert half.model is not None
    for name, t in whole.model.items():
        assert 0 < float((half.model[name] - t).norm() / t.norm()) < 0.02, name


def test_ddp_says_what_was_computed_and_what_was_waited_for() -> None:
    """Not emulated: what a GPU still computes when the calls return is no waiting. The others wait for it."""
    done = run(ddp_plan("HeavyAtOne", device="cuda", samples=100 * 33, global_batch=33))
    waits = [node["waited_s"] / done.result.wall_s for node in done.result.per_node]
    assert waits[0] > 0.5 > waits[1]
