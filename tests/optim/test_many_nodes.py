"""Loops of the user's own, one a node: real sockets, each loop in a thread of this process; once under torchrun."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rfast_zmq import optim
from rfast_zmq.errors import UsageError
from rfast_zmq.topology import Endpoints, build, to_toml
from tests.ports import free_ports

ROOT = Path(__file__).parents[2]
SOON_S = 60.0
TARGETS = torch.tensor([[0.0, 3.0], [6.0, 0.0], [3.0, 9.0]])
MEAN = TARGETS.mean(0)


@pytest.fixture
def file() -> Iterator[Callable[[str, int], str]]:
    """Writes a topology whose nodes listen on Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="ro-") as folder:

        def write(family: str, nodes: int) -> str:
            ends = tuple(Endpoints(f"ipc://{folder}/{i}.W", f"ipc://{folder}/{i}.A") for i in range(nodes))
            path = Path(folder) / "t.toml"
            path.write_text(to_toml(replace(build(family, nodes), endpoints=ends)))
            return str(path)

        yield write


def together(loops: list[Callable[[], None]]) -> None:
    """Run each in a thread; what one raises is raised here."""
    errors: list[BaseException] = []

    def guarded(loop: Callable[[], None]) -> None:
        try:
            loop()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(loop,), daemon=True) for loop in loops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a loop did not end"


class Point(nn.Module):
    """Its loss is half the squared distance to a point."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.full((2,), start))

    def forward(self, target: Tensor) -> Tensor:
        return 0.5 * (self.at - target).square().sum()


def train(model: nn.Module, opt: Any, target: Tensor, pause_s: float) -> None:
    for there in opt.through([target]):
        opt.zero_grad()
        loss = model(there)
        loss.backward()
        opt.step(loss=loss)
        time.sleep(pause_s)


@pytest.mark.parametrize("wire", ["float32", "int8"])
def test_uneven_loops_on_uneven_data_find_the_mean_of_the_optima(file: Any, wire: str) -> None:
    """Three nodes, one of them five times slower, each with an optimum and a first model of its own."""
    topology, models = file("binary-tree", 3), [Point(float(i)) for i in range(3)]

    def loop(rank: int) -> None:
        settings: Any = {"topology": topology, "rank": rank, "batch": 1, "global_batch": 12, "samples": 3000}
        with optim.SGD(models[rank], lr=0.2, wire=wire, **settings) as opt:
            train(models[rank], opt, TARGETS[rank], 0.01 if rank == 2 else 0.002)
            assert opt.rounds > 100
            if rank == 0:
                status = opt.status()
                assert status.samples >= 3000
                assert status.loss == pytest.approx(float((TARGETS - MEAN).square().sum()) / 6, rel=0.1)

    together([lambda rank=rank: loop(rank) for rank in range(3)])
    torch.testing.assert_close(models[0].at.detach(), MEAN, rtol=0, atol=0.05)
    for model in models[1:]:
        torch.testing.assert_close(model.at.detach(), MEAN, rtol=0, atol=0.3)


@pytest.mark.parametrize("room", [(False, False, True), (False,)], ids=["now and then", "never"])
def test_a_loop_ahead_of_its_node_goes_on_and_every_sample_counts(file: Any, room: tuple[bool, ...]) -> None:
    """What there is no room for is added up; at the latest the end of the loop hands it on."""
    topology, seen, steps = file("line", 2), [], 7
    settings: Any = {"topology": topology, "batch": 2, "global_batch": 64}
    done = threading.Event()

    def root() -> None:
        model = Point()
        with optim.SGD(model, lr=1e-9, rank=0, **settings) as opt:
            opt.start()
            assert done.wait(SOON_S)
            end_s = time.monotonic() + SOON_S
            while opt.status().samples < 2 * steps:
                assert time.monotonic() < end_s
                time.sleep(0.01)
            assert opt.status().samples == 2 * steps
            assert opt.status().loss == pytest.approx(sum(losses[-held:]) / held)

    losses = [float(k) for k in range(steps)]
    held = steps % len(room) if len(room) > 1 else steps

    def other() -> None:
        model = Point()
        with optim.SGD(model, lr=1e-9, rank=1, **settings) as opt:
            opt.start()
            turns, ask = cycle(room), opt._steps.room
            opt._steps.room = lambda anyhow=False: (anyhow or next(turns)) and ask(anyhow=True)  # type: ignore[method-assign]
            give = opt._steps.give
            opt._steps.give = lambda gradient: (seen.append(gradient), give(gradient))[1]  # type: ignore[method-assign]
            for k in range(steps):
                opt.zero_grad()
                (model.at * float(k)).sum().backward()
                opt.step(loss=torch.tensor(losses[k]))
            done.set()
        assert opt.status().gradients == steps

    together([root, other])
    sizes = [3, 3, 1] if len(room) > 1 else [7]
    assert [gradient.steps for gradient in seen] == sizes
    assert [gradient.samples for gradient in seen] == [2 * size for size in sizes]
    first = 0
    for gradient, size in zip(seen, sizes, strict=True):
        mean = sum(range(first, first + size)) / size
        assert gradient.gradient[0].tolist() == pytest.approx([mean, mean])
        assert gradient.loss == pytest.approx(mean)
        first += size


def test_what_goes_wrong_on_the_way_is_raised_by_the_next_step(file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Point()
    opt = optim.SGD(model, lr=0.1, batch=1)
    opt.start()
    monkeypatch.setattr(opt._model.flat, "hand_on", lambda then, failed: failed(RuntimeError("no memory left")))
    opt.zero_grad()
    model(TARGETS[0]).backward()
    with pytest.raises(RuntimeError, match="no memory left"):
        opt.step()
    opt.close()


@pytest.mark.parametrize("loss", [torch.ones(3), "low", (1.0, 2.0)])
def test_a_loss_that_is_no_number(loss: Any) -> None:
    """Given as the loss it is a mistake; what a closure gives is its own affair."""
    model = Point()
    with optim.SGD(model, lr=0.1, batch=1) as opt:

        def closure() -> Any:
            opt.zero_grad()
            model(TARGETS[0]).backward()
            return loss

        with pytest.raises(UsageError, match=r"step\(loss=.*must be one number"):
            opt.step(loss=loss)
        assert opt.step(closure) is loss
        assert opt.status().gradients == 1


def test_weights_weigh_and_lr_is_the_roots(file: Any) -> None:
    topology, models = file("line", 2), [Point(), Point()]

    def loop(rank: int) -> None:
        settings: Any = {"topology": topology, "rank": rank, "batch": 1, "global_batch": 8, "samples": 2000}
        with optim.SGD(models[rank], lr=0.2 if rank == 0 else 1e9, weight=3.0 if rank else 1.0, **settings) as opt:
            train(models[rank], opt, TARGETS[rank], 0.002)

    together([lambda: loop(0), lambda: loop(1)])
    torch.testing.assert_close(models[0].at.detach(), (TARGETS[0] + 3 * TARGETS[1]) / 4, rtol=0, atol=0.05)


def test_a_loop_never_waits_for_a_root_that_does_nothing(file: Any) -> None:
    """The root stands still in its loop; the other computes on, at the model it has; then both go on."""
    topology, goes_on = file("line", 2), threading.Event()
    settings: Any = {"topology": topology, "batch": 1, "global_batch": 4}

    def root() -> None:
        model = Point()
        with optim.SGD(model, lr=0.1, rank=0, **settings) as opt:
            opt.start()
            assert goes_on.wait(SOON_S)
            while opt.status().samples < 400:
                opt.zero_grad()
                model(TARGETS[0]).backward()
                opt.step()

    def other() -> None:
        model = Point()
        with optim.SGD(model, lr=0.1, rank=1, **settings) as opt:
            opt.start()
            began_s = time.perf_counter()
            for _ in range(200):
                opt.zero_grad()
                model(TARGETS[1]).backward()
                opt.step()
            assert time.perf_counter() - began_s < SOON_S / 2
            goes_on.set()
            train(model, opt, TARGETS[1], 0.001)

    together([root, other])


def test_a_loop_that_ends_early_passes_on_what_it_hears(file: Any) -> None:
    """In a line of three the node in the middle has few batches: the last node's gradients still reach the root."""
    topology, models = file("line", 3), [Point() for _ in range(3)]
    settings: Any = {"topology": topology, "batch": 1, "global_batch": 6}
    ended = threading.Event()

    def loop(rank: int) -> None:
        with optim.SGD(models[rank], lr=0.1, rank=rank, **settings) as opt:
            if rank == 0:
                opt.start()
                assert ended.wait(SOON_S)
                before = opt.status().samples
                for _ in opt.through([0]):
                    opt.zero_grad()
                    models[0](TARGETS[0]).backward()
                    opt.step()
                    time.sleep(0.002)
                    if opt.status().samples - opt.status().own_samples > before + 100:
                        break
            elif rank == 1:
                for _ in range(5):
                    opt.zero_grad()
                    models[1](TARGETS[1]).backward()
                    opt.step()
                ended.set()
            else:
                train(models[2], opt, TARGETS[2], 0.002)

    together([lambda rank=rank: loop(rank) for rank in range(3)])


def test_batch_norms_averages_are_those_of_all_the_data(file: Any) -> None:
    topology = file("line", 2)
    models = [nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1)) for _ in range(2)]

    def loop(rank: int) -> None:
        draw = torch.Generator().manual_seed(rank)
        settings: Any = {"topology": topology, "rank": rank, "batch": 64, "global_batch": 512, "samples": 64 * 400}
        with optim.SGD(models[rank], lr=1e-3, **settings) as opt:
            for _ in opt.through([0]):
                x = torch.randn(64, 1, generator=draw) + 10.0 * rank
                opt.zero_grad()
                models[rank](x).square().mean().backward()
                opt.step()
                time.sleep(0.002)
            opt.close()

    together([lambda: loop(0), lambda: loop(1)])
    norm: Any = models[0][0]
    assert float(norm.running_mean) == pytest.approx(5.0, abs=0.3)
    assert float(norm.running_var) == pytest.approx(26.0, abs=2.0)  # 1 within each, 25 between them


def test_a_node_with_another_model_is_told_so(file: Any) -> None:
    topology, told = file("line", 2), threading.Event()
    settings: Any = {"topology": topology, "batch": 1, "global_batch": 4}

    def root() -> None:
        with optim.SGD(Point(), rank=0, **settings) as opt:
            opt.start()
            assert told.wait(SOON_S)

    def other() -> None:
        opt = optim.SGD(nn.Linear(3, 3), rank=1, **settings)
        try:
            with pytest.raises(UsageError, match="trains another model"):
                opt.zero_grad()
        finally:
            told.set()

    together([root, other])


def test_an_address_in_use_is_said(file: Any) -> None:
    topology = file("line", 2).replace("t.toml", "t2.toml")
    ports = free_ports(4)
    ends = tuple(Endpoints(f"tcp://127.0.0.1:{a}", f"tcp://127.0.0.1:{b}") for a, b in (ports[:2], ports[2:]))
    Path(topology).write_text(to_toml(replace(build("line", 2), endpoints=ends)))
    with optim.SGD(Point(), rank=0, topology=topology, batch=1) as opt:
        opt.start()
        with pytest.raises(UsageError, match=f"{ports[1]}.* in use"):
            optim.SGD(Point(), rank=0, topology=topology, batch=1).start()


SCRIPT = """
import time
import torch
from rfast_zmq import optim
model = torch.nn.Linear(2, 1)
true = torch.tensor([[1.0], [-2.0]])
opt = optim.NAdam(model, lr=0.02, batch=4, global_batch=32, samples=12000)
draw = torch.Generator().manual_seed(opt.rank)
for _ in opt.through([0]):
    x = torch.randn(4, 2, generator=draw) + opt.rank
    opt.zero_grad()
    loss = (model(x) - x @ true - 0.5).square().mean()
    loss.backward()
    opt.step(loss=loss)
    time.sleep(0.002)
opt.close()
if opt.is_root:
    print("learnt", model.weight.detach().flatten().tolist(), model.bias.item())
"""


def test_under_torchrun(tmp_path: Path) -> None:
    """Ranks, how many, and who listens where come from its environment and its store."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", str(script)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = re.search(r"learnt \[(.*), (.*)\] (.*)", done.stdout)
    assert found is not None, done.stdout
    assert [float(x) for x in found.groups()] == pytest.approx([1.0, -2.0, 0.5], abs=0.05)
