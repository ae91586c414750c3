"""MNIST from a file you have: ``--data FILE.npz`` with ``x`` uint8 (N, 28, 28) and ``y`` (N,); a fifth, drawn at random
(the file's later half is easier), tests.

``--model mlp``: a 784-128-10 perceptron. ``--model logreg``: softmax regression with an L2 term of 1e-4, which is
strongly convex: the task of the R-FAST paper.

    rfast run nodes/mnist.py --data mnist.npz --nodes 8 --split label
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rfast_zmq.errors import UsageError
from rfast_zmq.task import Task

WANTED = "give a .npz file with arrays x, uint8 (N, 28, 28), and y, labels 0 to 9 (N,)"


class Mnist(Task):
    defaults = {"lr": 0.008, "global_batch": 256, "samples": 80_000}
    options = {"model": "mlp"}

    def configure_model(self) -> nn.Module:
        models = {"mlp": [nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)], "logreg": [nn.Linear(784, 10)]}
        if self.option("model") not in models:
            raise UsageError(f"--model {self.option('model')}: no such model; {' or '.join(models)}")
        return nn.Sequential(*models[self.option("model")])

    def train_data(self, rank: int, nodes: int) -> tuple[Tensor, Tensor]:
        if self.settings.data is None:
            raise UsageError(f"--data is missing: {WANTED}")
        try:
            with np.load(self.settings.data) as arrays:
                pixels, labels = arrays["x"], arrays["y"]
        except Exception as error:  # numpy says of most other files that they might be pickles
            why = error if isinstance(error, OSError | KeyError) else "cannot be read as arrays"
            raise UsageError(f"--data {self.settings.data}: {why}; {WANTED}") from None
        if pixels.shape[1:] != (28, 28) or labels.shape != pixels.shape[:1] or len(labels) < 5:
            raise UsageError(f"--data {self.settings.data}: x is {pixels.shape}, y is {labels.shape}; {WANTED}")
        train, test = np.split(np.random.default_rng(0).permutation(len(labels)), [len(labels) * 4 // 5])
        self.test, mine = ready(pixels[test], labels[test]), train[self.shard(labels[train])]
        return ready(pixels[mine], labels[mine])

    def training_step(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        l2 = 1e-4 / 2 * sum(p.square().sum() for p in model.parameters()) if self.option("model") == "logreg" else 0.0
        return F.cross_entropy(model(x), y) + l2

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        x, y = (t.to(next(model.parameters()).device) for t in self.test)
        scores = model(x)
        return {"loss": F.cross_entropy(scores, y).item(), "accuracy": (scores.argmax(1) == y).double().mean().item()}


def ready(pixels: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.tensor(pixels).flatten(1).float() / 255, torch.tensor(labels).long()


if __name__ == "__main__":
    from rfast_zmq import main

    main(Mnist)
