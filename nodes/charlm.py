"""A character-level language model from a text you have: a small transformer that predicts the next character.

``--data FILE.txt``, UTF-8: trained on windows of ``--context`` characters of its first nine tenths, tested on the last.
A sample is a window. ``--split label`` gives each node its own part of the text, ``iid`` windows from everywhere.
``--layers``, ``--dim`` and ``--heads`` size the model.

    rfast run nodes/charlm.py --data tinyshakespeare.txt --nodes 8 --split label
"""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Subset

from rfast_zmq.errors import UsageError
from rfast_zmq.settings import Settings
from rfast_zmq.task import Task, positive

WANTED = "give a text file in UTF-8"


class Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.before_attention(x)).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in qkv)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return torch.add(x, self.mlp(self.before_mlp(x)))


class Transformer(nn.Module):
    def __init__(self, characters: int, context: int, layers: int, dim: int, heads: int) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(characters, dim), nn.Embedding(context, dim)
        for embedding in (self.characters, self.places):
            nn.init.normal_(embedding.weight, std=0.02)
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(layers)), nn.LayerNorm(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, length, characters) of the character after each of x, (N, length)."""
        inner = self.characters(x) + self.places.weight[: x.shape[1]]
        return F.linear(self.blocks(inner), self.characters.weight)


class CharLM(Task):
    defaults = {"lr": 0.003, "weight_decay": 0.1, "global_batch": 32, "samples": 64_000}
    options = {"context": "64", "layers": "3", "dim": "96", "heads": "4"}

    def __init__(self, settings: Settings, rank: int = 0) -> None:
        super().__init__(settings, rank)
        sizes = (self.option(name, positive) for name in ("context", "layers", "dim", "heads"))
        self.context, self.layers, self.dim, self.heads = sizes
        if self.dim % self.heads:
            raise UsageError(f"--heads {self.heads}: must divide --dim {self.dim}; such as --heads 1")
        if settings.data is None:
            raise UsageError(f"--data is missing: {WANTED}")
        try:
            text = Path(settings.data).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UsageError(f"--data {settings.data}: {error}; {WANTED}") from None
        if len(text) < 10 * (self.context + 1):
            would_do = f"{WANTED} of {10 * (self.context + 1)} or more, or a smaller --context"
            raise UsageError(f"--data {settings.data}: {len(text)} characters; {would_do}")
        self.alphabet, codes = np.unique(list(text), return_inverse=True)
        self.train, self.test = torch.tensor_split(torch.tensor(codes), [len(text) - len(text) // 10])

    def configure_model(self) -> nn.Module:
        return Transformer(len(self.alphabet), self.context, self.layers, self.dim, self.heads)

    def train_data(self, rank: int, nodes: int) -> Subset[Tensor]:
        windows = self.train.unfold(0, self.context + 1, 1)  # a view: one from every character on
        # A window's label is which of as many equal parts as there are nodes it starts in: sorted by it and cut in
        # equal pieces, as --split label does, they leave each node with one part.
        mine = self.shard(np.arange(nodes).repeat(len(windows) // nodes))
        return Subset(windows, mine.tolist())  # type: ignore[arg-type]  # a tensor does as well as a data set

    def training_step(self, model: nn.Module, batch: Tensor) -> Tensor:
        return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def lr_schedule(self, rounds: float) -> float:
        """Up over the first twentieth of the run, then a cosine down to a tenth."""
        assert self.settings.global_batch
        assert self.settings.samples  # by the defaults
        done = min(rounds * self.settings.global_batch / self.settings.samples, 1.0)
        return min(done / 0.05, 1.0) * (0.55 + 0.45 * math.cos(math.pi * done))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        windows = self.test.unfold(0, self.context + 1, self.context).to(next(model.parameters()).device)
        scores = torch.cat([model(part[:, :-1]) for part in torch.split(windows, 256)]).flatten(0, 1)
        wanted = windows[:, 1:].flatten()
        accuracy = (scores.argmax(1) == wanted).double().mean().item()
        return {"loss": F.cross_entropy(scores, wanted).item(), "accuracy": accuracy}


if __name__ == "__main__":
    from rfast_zmq import main

    main(CharLM)
