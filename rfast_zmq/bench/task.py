"""What the nodes of ``rfast bench stall`` train: little, so that what they take of the machine is communication."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rfast_zmq.task import Task


class Regression(Task):
    """Least squares over noise."""

    defaults: ClassVar[dict[str, Any]] = {"optimizer": "nadam", "lr": 1e-3}

    def configure_model(self) -> nn.Module:
        return nn.Linear(1024, 16)

    def train_data(self, rank: int, nodes: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(rank)
        return torch.randn(64, 1024, generator=generator), torch.randn(64, 16, generator=generator)

    def training_step(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss: Tensor = (model(batch[0]) - batch[1]).square().mean()
        return loss
