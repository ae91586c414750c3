"""Tasks that go wrong in one place, named by their option ``where``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rfast_zmq.task import Task


class Misbehaving(Task):
    defaults = {"optimizer": "sgd", "lr": 0.1, "global_batch": 8, "samples": 2000}
    options = {"where": "nowhere"}

    def configure_model(self) -> nn.Module:
        return nn.Linear(2, 1)

    def train_data(self, rank: int, nodes: int) -> tuple[Tensor]:
        return (torch.ones(16, 2),)

    def training_step(self, model: nn.Module, batch: tuple[Tensor]) -> Tensor:
        return model(batch[0]).square().mean() * (float("nan") if self.option("where") == "nan" else 1.0)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        self._maybe("evaluate")
        return {"loss": 0.0}

    def lr_schedule(self, rounds: float) -> float:
        self._maybe("lr_schedule")
        return 1.0

    def on_start(self) -> None:
        self._maybe("on_start")

    def on_report(self, status: object) -> None:
        self._maybe("on_report")

    def on_evaluate(self, metrics: dict[str, float]) -> None:
        self._maybe("on_evaluate")

    def on_stop(self) -> None:
        self._maybe("on_stop")

    def _maybe(self, here: str) -> None:
        if self.option("where") == here:
            raise KeyError(f"raised in {here}")
