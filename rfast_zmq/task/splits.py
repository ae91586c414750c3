"""How one labelled data set becomes a shard a node: evenly mixed, by label, or in between.

Everything is drawn from the seed, so each node works out its own shard and nobody has to hand it out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rfast_zmq.errors import UsageError

_WOULD_DO = "iid, label, or dirichlet:ALPHA with ALPHA above 0, such as dirichlet:0.3"
_STREAM = 0x5B117  # Keeps these draws apart from others that are made from the same seed.


def check_split(how: str) -> float | None:
    """α of ``dirichlet:ALPHA``; None for ``iid`` and ``label``.

    Raises:
        UsageError: anything else.
    """
    if how in ("iid", "label"):
        return None
    kind, _, text = how.partition(":")
    try:
        alpha = float(text)
    except ValueError:
        alpha = -1.0
    if kind != "dirichlet" or not 0 < alpha < float("inf"):
        raise UsageError(f"--split {how}: no such split; {_WOULD_DO}")
    return alpha


def split(labels: ArrayLike, nodes: int, how: str, seed: int) -> list[NDArray[np.int64]]:
    """Deal the samples out to the nodes: each sample to exactly one, each node at least one.

    Args:
        labels: shape (samples,), anything that sorts; only its classes matter.
        nodes: number of shards.
        how: ``iid``: shuffled, in equal shards. ``label``: sorted by label and cut in equal pieces, so that a node sees
            few classes. ``dirichlet:ALPHA``: each class dealt out in proportions drawn from a Dirichlet distribution;
            the smaller α, the more uneven, in sizes too.
        seed: of all that is drawn; the same arguments give the same shards everywhere.

    Returns:
        One sorted int64 array of indices a node.

    Raises:
        UsageError: a ``how`` that is none of these, or fewer samples than nodes.
    """
    alpha = check_split(how)
    y = np.asarray(labels)
    if y.ndim != 1:
        raise UsageError(f"labels of shape {y.shape}: must be one label a sample, shape (samples,)")
    if not 1 <= nodes <= len(y):
        raise UsageError(f"--nodes {nodes}: {len(y)} samples cannot be dealt out so that each node has one")
    rng = np.random.default_rng([_STREAM, seed])
    order = rng.permutation(len(y))
    if how == "label":
        order = order[np.argsort(y[order], kind="stable")]
    shards = np.array_split(order, nodes) if alpha is None else _dirichlet(y, order, nodes, alpha, rng)
    return [np.sort(s).astype(np.int64) for s in shards]


def _dirichlet(
    y: NDArray[Any], order: NDArray[np.int64], nodes: int, alpha: float, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    shards: list[list[int]] = [[] for _ in range(nodes)]
    for label in np.unique(y):
        members = order[y[order] == label]
        share = rng.dirichlet(np.full(nodes, alpha))
        if not np.isfinite(share).all():  # α so small that the draw underflows: its limit, all to one node
            share = np.eye(nodes)[rng.integers(nodes)]
        cuts = np.round(np.cumsum(share)[:-1] * len(members)).astype(int)
        for shard, piece in zip(shards, np.split(members, cuts), strict=True):
            shard.extend(piece.tolist())
    for shard in shards:
        if not shard:
            shard.append(max(shards, key=len).pop())
    return [np.asarray(s, dtype=np.int64) for s in shards]
