"""Handwritten digits, 8 x 8 pixels, that come with scikit-learn: nothing to download, seconds to train.

1437 images to train on, 360 to test on (a fixed shuffle), a perceptron with one hidden layer.

    rfast run nodes/digits.py --nodes 7 --topology binary-tree --split label
    python nodes/digits.py run --nodes 7                                            the same from Python
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rfast_zmq.errors import UsageError
from rfast_zmq.task import Task, positive


class Digits(Task):
    defaults = {"lr": 0.006, "global_batch": 64, "samples": 40_000}
    options = {"hidden": "64"}

    def configure_model(self) -> nn.Module:
        hidden = self.option("hidden", positive)
        return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))

    def train_data(self, rank: int, nodes: int) -> tuple[Tensor, Tensor]:
        x, y = load()
        self.test = x[1437:], y[1437:]
        x, y = x[:1437], y[:1437]
        mine = self.shard(y)
        return x[mine], y[mine]

    def training_step(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return F.cross_entropy(model(x), y)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        x, y = (t.to(next(model.parameters()).device) for t in self.test)
        scores = model(x)
        return {
            "loss": F.cross_entropy(scores, y).item(),
            "accuracy": (scores.argmax(1) == y).double().mean().item(),
        }


@cache
def load() -> tuple[Tensor, Tensor]:
    """All images and labels, in the same order everywhere; once a process, for a simulation has many nodes in one."""
    try:
        from sklearn.datasets import load_digits  # here, for only this task needs it
    except ImportError:
        raise UsageError("digits needs scikit-learn: pip install 'rfast-zmq[demo]'") from None
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return torch.tensor(images[order] / 16, dtype=torch.float32), torch.tensor(labels[order])


if __name__ == "__main__":
    from rfast_zmq import main

    main(Digits)
