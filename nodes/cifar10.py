"""CIFAR-10 from a file you have, with a small ResNet (BatchNorm, 0.3 million parameters).

``--data FILE.npz`` holds ``x_train`` and ``x_test``, uint8 (N, 32, 32, 3), and ``y_train`` and ``y_test`` (N,); or only
``x`` and ``y``, of which a fifth, drawn at random, tests. Training images are flipped and shifted at random.
``--width``: channels of the first of four stages; each stage has twice as many as the one before. ``--norm group``:
GroupNorm in the place of BatchNorm, for ``--split label``, under which a node's BatchNorm sees one or two classes at a
time, the test's all of them, and learns far less, whatever the algorithm.

    rfast run nodes/cifar10.py --data cifar10.npz --nodes 8
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rfast_zmq.errors import UsageError
from rfast_zmq.task import Task, positive

WANTED = "give a .npz file with arrays x_train, x_test (or x alone), uint8 (N, 32, 32, 3), and y_…, labels 0 to 9 (N,)"
SHIFT = 2
Norm = Callable[[int], nn.Module]
NORMS: dict[str, Norm] = {"batch": nn.BatchNorm2d, "group": lambda channels: nn.GroupNorm(2 - channels % 2, channels)}


class Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.first, self.second = conv(before, after, 3, stride, norm), conv(after, after, 3, 1, norm)
        self.short = nn.Identity() if before == after else conv(before, after, 1, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.short(x))


def conv(before: int, after: int, size: int, stride: int, norm: Norm) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False), norm(after))


def norm_named(name: str) -> Norm:
    """What makes a layer that normalises so many channels. Raises ValueError where there is no such kind."""
    if name not in NORMS:
        raise ValueError(f"no such normalisation; one of {', '.join(NORMS)}")
    return NORMS[name]


class Cifar10(Task):
    defaults = {"lr": 0.002, "weight_decay": 0.02, "global_batch": 256, "samples": 200_000}
    options = {"width": "16", "norm": "batch"}

    def configure_model(self) -> nn.Module:
        w, norm = self.option("width", positive), self.option("norm", norm_named)
        sizes = [(w, w, 1), (w, 2 * w, 2), (2 * w, 4 * w, 2), (4 * w, 8 * w, 2)]
        stages = [Block(*size, norm) for size in sizes]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * w, 10)]
        return nn.Sequential(conv(3, w, 3, 1, norm), nn.ReLU(), *stages, *head)

    def train_data(self, rank: int, nodes: int) -> tuple[Tensor, Tensor]:
        (x, y), *test = self._load()
        if not test:
            train, rest = np.split(np.random.default_rng(0).permutation(len(y)), [len(y) * 4 // 5])
            (x, y), test = (x[train], y[train]), [(x[rest], y[rest])]
        self.test, mine = test[0], self.shard(y)
        return x[mine], y[mine]

    def training_step(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return F.cross_entropy(model(ready(jitter(x))), y)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        x, y = (t.to(next(model.parameters()).device) for t in self.test)
        scores = torch.cat([model(ready(part)) for part in torch.split(x, 500)])
        return {"loss": F.cross_entropy(scores, y).item(), "accuracy": (scores.argmax(1) == y).double().mean().item()}

    def _load(self) -> list[tuple[Tensor, Tensor]]:
        """Images and labels: all of them, or those to train on and those to test on."""
        path = self.settings.data
        if path is None:
            raise UsageError(f"--data is missing: {WANTED}")
        try:
            with np.load(path) as arrays:
                parts = [""] if "x" in arrays else ["_train", "_test"]
                loaded = [(arrays[f"x{part}"], arrays[f"y{part}"]) for part in parts]
        except Exception as error:  # numpy says of most other files that they might be pickles
            why = error if isinstance(error, OSError | KeyError) else "cannot be read as arrays"
            raise UsageError(f"--data {path}: {why}; {WANTED}") from None
        for x, y in loaded:
            if x.dtype != np.uint8 or x.shape[1:] != (32, 32, 3) or y.shape != x.shape[:1] or len(y) < 5:
                raise UsageError(f"--data {path}: x is {x.dtype} {x.shape}, y is {y.shape}; {WANTED}")
            if y.dtype.kind not in "iu" or y.min() < 0 or y.max() > 9:
                raise UsageError(f"--data {path}: y is {y.dtype}, {y.min()} to {y.max()}; {WANTED}")
        return [(torch.tensor(x), torch.tensor(y).long()) for x, y in loaded]


def jitter(x: Tensor) -> Tensor:
    """Every second image or so flipped, and each moved by up to SHIFT pixels both ways; what is bared is black."""
    (dy, dx), flip = torch.randint(2 * SHIFT + 1, (2, len(x), 1)), torch.rand(len(x), 1) < 0.5
    at = torch.arange(32)
    rows, columns = at + dy, torch.where(flip, at.flip(0), at) + dx
    places = torch.arange(len(x))[:, None, None], rows[:, :, None], columns[:, None, :]
    return F.pad(x, (0, 0, SHIFT, SHIFT, SHIFT, SHIFT))[tuple(p.to(x.device) for p in places)]


def ready(x: Tensor) -> Tensor:
    """Bytes (N, 32, 32, 3) as the network takes them, (N, 3, 32, 32), by about CIFAR-10's mean and deviation. In that
    order in memory too: with the channels last, torch 2.13's kernels of size 1 and stride 2 with few channels write
    beyond their memory in the backward pass, on processors without AVX-512."""
    return (x.permute(0, 3, 1, 2).float().contiguous() - 121) / 64


if __name__ == "__main__":
    from rfast_zmq import main

    main(Cifar10)
