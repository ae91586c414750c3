"""``paper``: the claims of the R-FAST paper, on its own ground, on a perceptron and on a ResNet."""

from __future__ import annotations

from dataclasses import replace

from rfast_zmq.bench.suites.block import Aim, Block
from rfast_zmq.bench.suites.contestants import (
    EVEN,
    IID,
    IID_EVEN,
    IID_UNEVEN,
    LABEL,
    ONE_PEER,
    TOPOLOGIES,
    UNEVEN,
    alone,
    by_topology,
    deep,
    gossip,
    one,
)
from rfast_zmq.bench.suites.ground import ALONE, Cell, Ground

SOFTMAX = Ground(
    name="softmax", title="MNIST, softmax regression (strongly convex)", task="mnist.py", data="mnist",
    options={"model": "logreg"}, target=0.88, samples=100_000,
)  # fmt: skip
OURS_A = tuple(f"rfast-tree, {t}" for t in TOPOLOGIES)
PUBLISHED = "rfast as published, on its best topology"
EIGHTHS = "rfast, exponential, eighths"
"""Algorithm 1 does not say how many samples a gradient is of: here an eighth of a node's share of B."""
PUBLISHED_A = tuple(f"rfast, {t}" for t in TOPOLOGIES)
RIVALS_A = (
    one("ring-allreduce", "ring", "sgd", 1.6),
    one("d-psgd, ring", "ring", "sgd", 0.8),
    one("d-psgd, exponential", "exponential", "sgd", 0.8),
    one("ad-psgd, ring", "ring", "sgd", 0.8),
    one("ad-psgd, exponential", "exponential", "sgd", 0.8),
    one("ad-psgd, exponential, eighths", "exponential", "sgd", 0.2, report=0.125),
    one("osgp, exponential", "exponential", "sgd", 0.8),
    one("osgp, one peer", "exponential", "sgd", 0.4, options=ONE_PEER),
)
PAPER_A = Block(
    part="a",
    ground=SOFTMAX,
    contestants=(
        *by_topology("rfast-tree", (1.6, 1.6, 1.6, 1.6, 1.6), 0.125),
        *by_topology("rfast", (0.1, 0.1, 0.1, 0.4, 0.2), 1.0),
        one(EIGHTHS, "exponential", "sgd", 0.4, report=0.125),
        *RIVALS_A,
        alone("sgd", 1.6),
    ),
    cells=(LABEL, IID, EVEN, UNEVEN, Cell(loss=0.2), Cell(loss=0.5)),
    own_cells=(LABEL, IID),
    reference="ring-allreduce",
    aims=(
        *(
            Aim(what=PUBLISHED, ours=PUBLISHED_A, over=over, cell=LABEL, least=least)
            for over, least in (
                ("ring-allreduce", 1.5),
                ("d-psgd, ring", 1.5),
                ("d-psgd, exponential", 1.5),
                ("ad-psgd, ring", 1.0),
                ("ad-psgd, exponential", 1.0),
                ("osgp, exponential", 1.0),
                ("osgp, one peer", 1.0),
            )
        ),
        *(
            Aim(what=PUBLISHED, ours=PUBLISHED_A, over=over, cell=IID, least=1.5)
            for over in ("ring-allreduce", "d-psgd, ring", "d-psgd, exponential")
        ),
        *(
            Aim(what="rfast, gradients of an eighth of a share", ours=(EIGHTHS,), over=over, cell=LABEL, least=least)
            for over, least in (
                ("ring-allreduce", 1.5),
                ("ad-psgd, exponential", 1.0),
                ("ad-psgd, exponential, eighths", 1.0),
            )
        ),
        Aim(what="rfast-tree, binary tree", ours=OURS_A[:1], over="ring-allreduce", cell=LABEL, least=3.0),
        Aim(what="rfast-tree, binary tree", ours=OURS_A[:1], over="ring-allreduce", cell=IID, least=3.5),
        *(
            Aim(what="rfast-tree, binary tree", ours=OURS_A[:1], over=rival.label, cell=cell, least=1.0)
            for rival in RIVALS_A[1:]
            for cell in (LABEL, IID)
        ),
    ),
)  # fmt: skip

MLP = Ground(
    name="mlp", title="MNIST, a perceptron of 784-128-10", task="mnist.py", data="mnist", target=0.93, samples=90_000,
    simulated=False,
)  # fmt: skip
SPARING = "rfast-tree, sparing"
"""Gradients of half a share, and a model each 50 ms: a quarter of the default's gradients and messages."""
QUARTERS = "ad-psgd, quarters"
"""Gradients of the size that ``rfast-tree`` has here, an exchange with each."""
CONTESTANTS_B = (
    # Gradients of a quarter of a share, a model each 25 ms. The default makes twice as many of each; eight processes on
    # two cores have no room for that.
    one("rfast-tree", "binary-tree", "nadam", 0.016, report=0.25, pace=0.025),
    one(SPARING, "binary-tree", "nadam", 0.012, report=0.5, pace=0.05),
    one("rfast", "exponential", "sgd", 0.2),
    one("ddp", "ring", "nadam", 0.012, tuned_as=("ring-allreduce", "ring")),
    one("ring-allreduce", "ring", "nadam", 0.012),
    gossip("d-psgd", "exponential", 0.008),
    gossip("ad-psgd", "exponential", 0.008),
    gossip(QUARTERS, "exponential", 0.004, report=0.25),
    gossip("osgp", "exponential", 0.008, options=ONE_PEER),
    alone("nadam", 0.008),
)


def _against_ddp(cell: Cell, least: float, **more: object) -> Aim:
    return Aim(what="rfast-tree", ours=("rfast-tree",), over="ddp", cell=cell, least=least, **more)  # type: ignore[arg-type]


PAPER_B = Block(
    part="b",
    ground=MLP,
    contestants=CONTESTANTS_B,
    cells=(LABEL, IID),
    reference="ddp",
    tuning_seeds=4,
    aims=(
        _against_ddp(IID, 4.0),
        _against_ddp(LABEL, 3.5),
        Aim(what="rfast-tree", ours=("rfast-tree",), over="ad-psgd", cell=IID, least=1.1),
        Aim(what="rfast-tree", ours=("rfast-tree",), over="ad-psgd", cell=LABEL, least=1.5),
        Aim(what="rfast-tree", ours=("rfast-tree",), over=QUARTERS, cell=IID, least=1.1),
        Aim(what="rfast-tree", ours=("rfast-tree",), over=QUARTERS, cell=LABEL, least=1.5),
        *(
            Aim(what=f"CPU of {ours}", ours=(ours,), over=over, cell=IID, least=0.5, kind="cpu")
            for ours in ("rfast-tree", SPARING)
            for over in ("ad-psgd", QUARTERS)
        ),
        Aim(what=SPARING, ours=(SPARING,), over="ad-psgd", cell=IID, least=1.1),
        Aim(what="share of the no-wait limit", ours=("rfast-tree",), over=ALONE, cell=IID, least=0.9, kind="limit"),
        Aim(what="share of the no-wait limit", ours=("rfast-tree",), over=ALONE, cell=LABEL, least=0.8, kind="limit"),
    ),
)  # fmt: skip
PAPER_B_SPEEDS = Block(
    part="b",
    ground=replace(MLP, name="mlp-speeds", title=f"{MLP.title}, at other speeds and under loss"),
    contestants=CONTESTANTS_B,
    cells=(EVEN, IID_EVEN, UNEVEN, IID_UNEVEN, Cell(loss=0.2), Cell(loss=0.5)),
    reference="ddp",
    tuning_seeds=4,
    aims=(
        _against_ddp(IID_UNEVEN, 1.8),
        _against_ddp(UNEVEN, 1.5),
        _against_ddp(IID_EVEN, 1.0),
        _against_ddp(EVEN, 0.9),
    ),
)
SLOWER = 4
"""So many times slower are the machines on which each chooses its B: where a round is of few samples, and a gradient of
a few, eight processes fill two cores at the speed of the others, and it is these that are measured. The pace is not
slower: it is what a model may cost, and rounds of fewer samples want one sooner."""
PAPER_B_OWN = Block(
    part="b",
    ground=replace(MLP, name="mlp-own", title=f"{MLP.title}, each at its own B", share_s=SLOWER * MLP.share_s),
    contestants=tuple(c for c in CONTESTANTS_B if c.label != SPARING),
    cells=(),
    own_cells=(LABEL, IID),
    reference="ddp",
    tuning_seeds=4,
    aims=(_against_ddp(LABEL, 3.0, table="own"), _against_ddp(IID, 3.5, table="own")),
)
PAPER_B_OWN_EVEN = replace(
    PAPER_B_OWN,
    ground=replace(PAPER_B_OWN.ground, name="mlp-own-even", title=f"{PAPER_B_OWN.ground.title}, at even speeds"),
    own_cells=(EVEN, IID_EVEN),
    aims=(_against_ddp(EVEN, 0.0, table="own"), _against_ddp(IID_EVEN, 0.0, table="own")),
)
TO_THE_END = tuple(Cell(split=split, speeds="even", to_the_end=True) for split in ("label", "iid"))
PAPER_B_END = Block(
    part="b",
    ground=replace(MLP, name="mlp-end", title=f"{MLP.title}, all samples"),
    contestants=CONTESTANTS_B[:-1],
    cells=TO_THE_END,
    reference="ddp",
    tuning_seeds=2,
    aims=tuple(
        Aim(what="points behind ddp", ours=("rfast-tree",), over="ddp", cell=cell, least=0.5, kind="accuracy")
        for cell in TO_THE_END
    ),
)

CIFAR = Ground(
    name="cifar10", title="CIFAR-10, a small ResNet with GroupNorm", task="cifar10.py", data="cifar10",
    options={"width": "8", "norm": "group"}, target=0.35, samples=40_000, evaluate_every=4.0,
)  # fmt: skip
PAPER_C = Block(
    part="c",
    ground=CIFAR,
    contestants=(
        one("rfast-tree", "binary-tree", "nadam", 0.002, report=0.25),
        one("rfast, quarters", "exponential", "sgd", 0.1, report=0.25),
        one("ring-allreduce", "ring", "nadam", 0.004),
        deep("d-psgd", "exponential", 0.1, 0.004),
        deep("ad-psgd", "exponential", 0.1, 0.004),
        deep(QUARTERS, "exponential", 0.05, 0.002, report=0.25),
        deep("osgp", "exponential", 0.1, 0.004, options=ONE_PEER),
        alone("nadam", 0.004),
    ),
    cells=(LABEL, IID, EVEN, IID_EVEN),
    reference="ring-allreduce",
    tuning_seeds=1,
    seeds=5,
)
