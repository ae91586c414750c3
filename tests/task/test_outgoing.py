"""Gradients of a loop of the user's own: what is handed on is the mean of what was held."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rfast_zmq.task import FlatModel
from rfast_zmq.task.outgoing import FromGpu
from rfast_zmq.task.pool import Pool
from tests.task.test_staging import Log, inside, log  # noqa: F401

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
STEPS = st.lists(st.tuples(st.floats(-9, 9), st.booleans(), st.booleans()), min_size=1, max_size=12)


def raised(error: Exception) -> None:
    raise error


def module() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def flatten(flat: FlatModel, gradients: dict[str, Tensor]) -> Tensor:
    zero = torch.zeros(())
    return torch.cat(
        [
            gradients.get(e.name, zero).cpu().expand(e.shape).flatten()
            for e in flat.layout.entries
            if e.kind == "parameter"
        ]
    )


@pytest.mark.parametrize("device", DEVICES)
@given(steps=STEPS)
def test_what_is_handed_on_is_the_mean_of_what_was_held_since(device: str, steps: list[Any]) -> None:
    """Each step: a factor on the loss, whether the last layer has a part in it, and whether the node has room. What was
    handed on before stays as it was."""
    net = module().to(device)
    flat, x = FlatModel(net, bucket_bytes=24), torch.arange(15.0).view(5, 3).to(device)
    held: list[Tensor] = []
    losses: list[float] = []
    expected, handed = [], []
    for factor, whole, room in [*steps, (1.0, True, True)]:
        net.zero_grad()
        (factor * (net if whole else net[:2])(x).square().mean()).backward()
        gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        held.append(flatten(flat, gradients))
        loss = torch.tensor(factor, device=device if whole else "cpu")
        flat.hold(loss if whole else None)
        losses += [factor] * whole
        loss.fill_(float("nan"))
        for p in net.parameters():
            if p.grad is not None:
                p.grad.fill_(float("nan"))  # it is the user's again
        if room:
            averages = (net[1].running_mean.cpu().clone(), net[1].running_var.cpu().clone())
            expected.append(
                (
                    torch.stack(held).mean(0),
                    *averages,
                    fmean(losses) if losses else None,
                    max(map(abs, losses), default=0.0),
                )
            )
            held, losses = [], []
            flat.hand_on(lambda buckets, finite, loss: handed.append((buckets, finite, loss)), raised)
    if device == "cuda":
        flat._outgoing._aside.settle()  # type: ignore[union-attr]
    count = flat.layout.parameters
    for (buckets, finite, loss), (gradient, mean, var, mean_loss, largest) in zip(handed, expected, strict=True):
        assert finite
        assert loss == (None if mean_loss is None else pytest.approx(mean_loss, rel=1e-5, abs=1e-12 + 1e-6 * largest))
        assert tuple(len(b) for b in buckets) == flat.layout.sizes
        joined = torch.cat(buckets)
        torch.testing.assert_close(joined[:count], gradient, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(joined[count : count + 4], mean)
        torch.testing.assert_close(joined[count + 4 :], var + mean * mean)


@pytest.mark.parametrize("device", DEVICES)
def test_one_step_that_is_not_finite_makes_what_it_is_held_with_not_finite_and_nothing_else(device: str) -> None:
    net = module().to(device)
    flat, x, handed = FlatModel(net, bucket_bytes=24), torch.ones(5, 3, device=device), []
    for k, factor in enumerate((1.0, float("inf"), 1.0, 1.0)):
        net.zero_grad()
        (factor * net(x).mean()).backward()
        flat.hold()
        if k:
            flat.hand_on(lambda buckets, finite, loss: handed.append(finite), raised)
    if device == "cuda":
        flat._outgoing._aside.settle()  # type: ignore[union-attr]
    assert handed == [False, True, True]


def test_on_a_gpu_the_sum_is_read_when_it_is_made_and_written_again_when_it_was_read(
    log: Log,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rfast_zmq.task.outgoing.Pool", lambda length, most, pinned: Pool(length, most))
    net, handed = nn.Linear(3, 2), []
    flat = FlatModel(net, bucket_bytes=16)
    bounds = [(b.start, b.stop) for b in flat.layout.buckets]
    flat._outgoing = FromGpu([net.weight, net.bias], flat._flat, flat._contribute, bounds)
    add = torch._foreach_add_
    monkeypatch.setattr(torch, "_foreach_add_", lambda *a: (log.append(("compute", "adds")), add(*a)))

    def step() -> list[Any]:
        net.zero_grad()
        net(torch.ones(4, 3)).sum().backward()
        log.clear()
        flat.hold(torch.tensor(3.0))
        return [entry for entry in log if entry[:2] != ("compute", "copies")]  # but for the loss

    assert step() == [("compute", "adds")]
    second = step()
    assert second == [("compute", "adds"), ("host", "waits for", "compute")]  # of the step before
    log.clear()
    flat.hand_on(lambda buckets, finite, loss: handed.append((buckets, finite, loss)), raised)
    flat._outgoing._aside.settle()
    copies = next(k for k, entry in enumerate(log) if entry[:2] == ("out", "copies"))
    assert log[copies - 1] == ("out", "waits for", "compute")
    assert log[-1] == ("host", "waits for", "out")
    ((buckets, finite, loss),) = handed
    assert finite
    assert loss == 3.0
    assert all(inside(log[copies][3], b) or b.data_ptr() > log[copies][3] for b in buckets)
    assert torch.equal(flat.layout.join(buckets), flatten(flat, {"weight": net.weight.grad, "bias": net.bias.grad}))
    third = step()
    assert third[0][:3] == ("compute", "waits for", "out")
    assert third[1] == ("compute", "adds")


def test_what_goes_wrong_in_the_thread_is_told(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr("rfast_zmq.task.outgoing.Pool", lambda length, most, pinned: Pool(length, most))
    net, failed = nn.Linear(3, 2), []
    flat = FlatModel(net)
    outgoing = FromGpu([net.weight, net.bias], flat._flat, flat._contribute, [(0, 8)])

    def full(buckets: object, finite: object, loss: object) -> None:
        raise torch.OutOfMemoryError("no memory left")

    outgoing.hold(None)
    outgoing.hand_on(full, failed.append)
    outgoing._aside.settle()
    assert [str(error) for error in failed] == ["no memory left"]
