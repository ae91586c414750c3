"""A loop of the user's own on a GPU: what ``torch.optim`` does there, alone and among others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from rfast_zmq import optim
from rfast_zmq.settings import Settings
from rfast_zmq.task import Task, Worker
from tests.optim.test_many_nodes import MEAN, TARGETS, Point, file, together, train  # noqa: F401
from tests.optim.test_one_node import PAIRS, batches, both, net, same

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
GPU = torch.device("cuda")


def on_gpu() -> nn.Module:
    return net().to(GPU)


@pytest.mark.parametrize("pair", PAIRS)
def test_the_losses_are_torchs(pair: str) -> None:
    def loop(model: nn.Module, opt: Any) -> list[float]:
        losses = []
        for x, y in batches():
            opt.zero_grad()
            loss = cross_entropy(model(x.to(GPU)), y.to(GPU))
            loss.backward()
            opt.step()
            losses.append(loss)  # nothing waits for the device
        return [loss.item() for loss in losses]

    same(*both(on_gpu, PAIRS[pair], loop)[:2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_a_scaler_that_skips_a_step(dtype: torch.dtype) -> None:
    def mixed(model: nn.Module, opt: Any) -> list[float]:
        scaler, losses = torch.amp.GradScaler("cuda", init_scale=1024.0), []
        for k, (x, y) in enumerate(batches()):
            opt.zero_grad(set_to_none=bool(k % 2))
            with torch.autocast("cuda", dtype=dtype):
                loss = cross_entropy(model(x.to(GPU)), y.to(GPU))
            scaled = scaler.scale(loss)
            (scaled * float("inf") if k == 5 else scaled).backward()
            scaler.step(opt)
            scaler.update()
            losses.append(loss.item())
        assert scaler.get_scale() == 512.0
        return losses

    theirs, ours, *_ = both(on_gpu, PAIRS["heavy ball"], mixed)
    assert ours == pytest.approx(theirs, rel=2e-2, abs=1e-3)
    assert ours[-1] < ours[0]


def test_nodes_on_one_gpu_find_the_mean_of_what_they_want(file: Callable[[str, int], str]) -> None:  # noqa: F811
    topology, models = file("binary-tree", 3), [Point().to(GPU) for _ in range(3)]

    def loop(rank: int) -> None:
        settings: Any = {"topology": topology, "rank": rank, "batch": 1, "global_batch": 12, "samples": 3000}
        with optim.SGD(models[rank], lr=0.2, **settings) as opt:
            train(models[rank], opt, TARGETS[rank].to(GPU), 0.002)

    together([lambda rank=rank: loop(rank) for rank in range(3)])
    torch.testing.assert_close(models[0].at.detach().cpu(), MEAN, rtol=0, atol=0.05)


class Fits(Task):
    def configure_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))

    def train_data(self, rank: int, nodes: int) -> Any:
        draw = torch.Generator().manual_seed(rank)
        x = torch.randn(32, 6, generator=draw)
        return x, x.sum(1, keepdim=True)

    def training_step(self, model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        return nn.functional.mse_loss(model(x), y)


def test_a_tasks_gradients_are_those_of_the_cpu() -> None:
    settings = Settings(nodes=2, global_batch=16, seed=5)
    cpu, gpu = (Worker(Fits(settings, 0), settings, 0, torch.device(d)) for d in ("cpu", "cuda"))
    for k in range(5):
        model = tuple(t + 0.1 * k for t in cpu.initial()) if k else cpu.initial()
        there = threading.Event()
        if not gpu.bring(model, (float(k),) * len(model), there.set):
            assert there.wait(10.0)
        assert gpu.take_up() == (float(k),) * len(model)
        expected, loss, done = cpu.gradient(model, 8)
        gradient, our_loss, our_done = gpu.gradient(None, 8)
        assert (our_loss, our_done) == (pytest.approx(loss, rel=1e-4), done)
        for ours, theirs in zip(gradient, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
