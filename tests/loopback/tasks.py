"""Tasks for the loopback tests: small, and one for each thing that can go wrong."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from rfast_zmq.core.interface import Status
from rfast_zmq.task import Group, Task


class Line(Task):
    """Least squares with its optimum known: y = w·x and a little noise, the same w on every node, other x.

    Without the noise gradients would vanish, and with them the scale against which the identity's error is told.
    """

    defaults = {"lr": 0.05, "optimizer": "sgd", "global_batch": 32, "samples": 4000}

    def configure_model(self) -> nn.Module:
        return nn.Linear(8, 1, bias=False)

    def train_data(self, rank: int, nodes: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(rank)
        x = torch.randn(256, 8, generator=generator)
        return x, x @ torch.arange(1.0, 9.0)[:, None] + 0.1 * torch.randn(256, 1, generator=generator)

    def training_step(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return (model(x) - y).square().mean()

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        error = (next(model.parameters()).detach()[0].cpu() - torch.arange(1.0, 9.0)).abs().max().item()
        return {"loss": error**2, "error": error, "accuracy": 1.0 / (1.0 + error)}


class Wide(Line):
    """The same with three megabytes of model, so that it travels in several buckets."""

    def configure_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(8, 1, bias=False), Unused(800_000))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return super().evaluate(model[0])  # type: ignore[index]

    def training_step(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        pull = model[1].weight.square().mean() * 400_000  # type: ignore[index, operator, union-attr]
        return (model[0](x) - y).square().mean() + pull  # type: ignore[index, operator]


class Unused(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x


class Deep(Wide):
    """Of four such layers, each of .8 MB."""

    def configure_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(8, 1, bias=False), *(Unused(200_000) for _ in range(4)))

    def training_step(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return (model[0](x) - y).square().mean() + sum(p.square().mean() for p in model[1:].parameters())  # type: ignore[index]


class RaisesAtTwo(Line):
    def training_step(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if self.rank == 2:
            raise ValueError("no such column: price")
        return super().training_step(model, batch)


class Differs(Line):
    def configure_model(self) -> nn.Module:
        return nn.Linear(8, 1, bias=self.rank == 1)


class TurnsNan(Line):
    """Rank 1's loss is not a number from its 301st gradient on."""

    steps = 0

    def training_step(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        self.steps += 1
        loss = super().training_step(model, batch)
        return loss * float("nan") if self.rank == 1 and self.steps > 300 else loss


class Hooks(Line):
    """Keeps the names of the hooks that were called, in order; the root writes them to ``path``."""

    def on_start(self) -> None:
        self.seen = ["start"]

    def on_report(self, status: object) -> None:
        self.seen.append("report")

    def on_evaluate(self, metrics: dict[str, float]) -> None:
        self.seen.append("evaluate")

    def on_stop(self) -> None:
        if self.rank == 0:
            assert self.seen[0] == "start"
            assert {"report", "evaluate"} <= set(self.seen)
            Path(self.option("path")).write_text(" ".join(self.seen))

    options = {"path": ""}


class Uneven(Line):
    """Nodes of different weight, two groups of parameters, and a learning rate that falls."""

    def configure_model(self) -> nn.Module:
        return nn.Linear(8, 1)

    def weight(self) -> float:
        return 1.0 + self.rank

    def parameter_group(self, name: str, parameter: nn.Parameter) -> Group:
        return Group(decay=parameter.ndim >= 2, lr_scale=1.0 if parameter.ndim >= 2 else 0.5)

    def lr_schedule(self, rounds: float) -> float:
        return 1.0 / (1.0 + rounds / 20)


class HeavyAtOne(Line):
    """Rank 1 has a TFLOP to do in each forward pass besides, which its device does whenever it comes to it."""

    def training_step(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = super().training_step(model, batch)
        if self.rank == 1:
            h = torch.eye(4096, device=loss.device)
            for _ in range(8):
                h = h @ h
            loss = loss + 0.0 * h.sum()
        return loss


class Apart(Line):
    """Each rank wants another model, its own number; in the mean they want the middle."""

    def configure_model(self) -> nn.Module:
        return nn.Linear(1, 1, bias=False)

    def training_step(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return 0.5 * (next(model.parameters()) - self.rank).square().sum()

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {"loss": 0.0, "model": next(model.parameters()).item()}


class RaisesInReport(Line):
    def on_report(self, status: Status) -> None:
        if self.rank == 1:
            raise ValueError("no such dashboard")


class LeavesUnused(Line):
    def configure_model(self) -> nn.Module:
        module = nn.Linear(8, 1)
        module.register_parameter("spare", nn.Parameter(torch.ones(3)))
        return module
