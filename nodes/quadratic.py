"""A sum of quadratics whose optimum is known: f_i(x) = 1/2 sum_k H_ik (x_k - b_ik)^2, H and b drawn per node.

The nodes pull to different places, and ``error`` says how far the model is from the optimum of their weighted mean,
sum_i w_i H_i b_i / sum_i w_i H_i. ``--noise S`` adds noise of standard deviation S to each sample's gradient;
``--weights uneven`` gives node i a weight in proportion to i + 1.

    rfast run nodes/quadratic.py --nodes 7 --topology binary-tree --optimizer sgd
"""

import numpy as np
import torch
from torch import Tensor, nn

from rfast_zmq.errors import UsageError
from rfast_zmq.settings import Settings
from rfast_zmq.task import Task, positive


class Point(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(dim))


class Quadratic(Task):
    defaults = {"optimizer": "sgd", "lr": 0.3, "global_batch": 56, "samples": 8_000}
    options = {"dim": "16", "noise": "0", "weights": "even"}

    def __init__(self, settings: Settings, rank: int = 0) -> None:
        super().__init__(settings, rank)
        n, self.dim = settings.nodes, self.option("dim", positive)
        rng = np.random.default_rng([settings.seed, n])
        self.H, self.b = rng.uniform(0.5, 1, (n, self.dim)), rng.normal(0, 1, (n, self.dim))
        weights = {"even": np.ones(n), "uneven": 2 * np.arange(1, n + 1) / (n + 1)}
        if self.option("weights") not in weights:
            raise UsageError(f"--weights {self.option('weights')}: {' or '.join(weights)}")
        self.w = weights[self.option("weights")]
        self.optimum = self.w @ (self.H * self.b) / (self.w @ self.H)

    def configure_model(self) -> nn.Module:
        return Point(self.dim)

    def weight(self) -> float:
        return float(self.w[self.rank])

    def train_data(self, rank: int, nodes: int) -> tuple[Tensor]:
        """256 samples, each a draw of noise; their mean is taken off, so that the optimum stays exact."""
        draws = np.random.default_rng([self.settings.seed, nodes, rank]).normal(0, 1, (256, self.dim))
        return (torch.tensor(self.option("noise", float) * (draws - draws.mean(0)), dtype=torch.float32),)

    def training_step(self, model: nn.Module, batch: tuple[Tensor]) -> Tensor:
        H, b = (torch.tensor(a[self.rank], dtype=torch.float32, device=model.x.device) for a in (self.H, self.b))
        return (H * (model.x - b).square()).sum() / 2 + (batch[0] @ model.x).mean()

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        x = model.x.double().cpu().numpy()
        losses = (self.H * (x - self.b) ** 2).sum(1) / 2
        return {"loss": float(self.w @ losses / self.w.sum()), "error": float(abs(x - self.optimum).max())}


if __name__ == "__main__":
    from rfast_zmq import main

    main(Quadratic)
