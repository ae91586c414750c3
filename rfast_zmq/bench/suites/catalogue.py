"""The suites: which grounds, cells and contestants, and the figures that are to be reached."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rfast_zmq.bench.suites.ground import ALONE, Cell, Contestant, Ground
from rfast_zmq.errors import UsageError

TOPOLOGIES = ("binary-tree", "line", "ring", "exponential", "mesh")


@dataclass(frozen=True, kw_only=True)
class Aim:
    """A figure to reach.

    Attributes:
        what: it is.
        ours, over: labels of contestants; several of ours: the best of them.
        cell: where.
        least: it is to be so much, or (``accuracy``: points of accuracy lost; ``cpu``: a ratio) at most.
        kind: ``time``: theirs ÷ ours, to the target; ``limit``: the no-wait limit ÷ ours; ``accuracy``: theirs − ours
            in points, at the end; ``cpu``: ours ÷ theirs.
        table: of the given B, or of each one's own.
    """

    what: str
    ours: tuple[str, ...]
    over: str
    cell: Cell
    least: float
    kind: str = "time"
    table: str = "fixed"


@dataclass(frozen=True, kw_only=True)
class Block:
    """One ground with what runs on it.

    Attributes:
        part: of the suite; empty: it has none.
        ground: the ground.
        contestants: in the order of the tables; the first of ``reference`` is what the others are held against.
        cells: one factor at a time from the first.
        own_cells: of these, where each also runs at its own best B.
        reference: label that times are divided by.
        tuning_seeds: so many are run for one lr; of the reference more.
        seeds: so many are reported; None: ten in virtual time, five in real processes.
        aims: the figures to reach.
    """

    part: str = ""
    ground: Ground
    contestants: tuple[Contestant, ...]
    cells: tuple[Cell, ...]
    own_cells: tuple[Cell, ...] = ()
    reference: str
    tuning_seeds: int = 2
    seeds: int | None = None
    aims: tuple[Aim, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What ``rfast bench run`` takes.

    Attributes:
        name: its name.
        about: what it is, and what it costs on two cores.
        blocks: in their order.
    """

    name: str
    about: str
    blocks: tuple[Block, ...]


def suite(name: str) -> Suite:
    """
    Raises:
        UsageError: no such suite.
    """
    if name not in SUITES:
        raise UsageError(f"{name}: no such suite; one of {', '.join(SUITES)}")
    return SUITES[name]


# ------------------------------------------------------------------------------------- contestants


def _with(contestants: Sequence[Contestant], **changes: object) -> tuple[Contestant, ...]:
    return tuple(replace(c, **changes) for c in contestants)  # type: ignore[arg-type]


def _alone(optimizer: str, lr: float) -> Contestant:
    return Contestant(label=ALONE, algorithm="rfast-tree", topology="line", optimizer=optimizer, lr=lr)


def _one(label: str, topology: str, optimizer: str, lr: float, **more: object) -> Contestant:
    algorithm = label.split(",")[0]
    return Contestant(label=label, algorithm=algorithm, topology=topology, optimizer=optimizer, lr=lr, **more)  # type: ignore[arg-type]


def _gossip(label: str, topology: str, nadam: float, **more: object) -> Contestant:
    """Methods whose nodes each have momentum of their own: their authors took plain SGD and momentum."""
    return _one(label, topology, "nadam", nadam, others=(("momentum", 0.05), ("sgd", 0.4)), **more)


def _deep(label: str, topology: str, momentum: float, nadam: float, **more: object) -> Contestant:
    """The same on a deeper model, which nobody trains by plain SGD."""
    return _one(label, topology, "momentum", momentum, others=(("nadam", nadam),), **more)


def _by_topology(algorithm: str, lr: Iterable[float], report: float) -> tuple[Contestant, ...]:
    pairs = zip(TOPOLOGIES, lr, strict=True)
    return tuple(_one(f"{algorithm}, {t}", t, "sgd", start, report=report) for t, start in pairs)


ONE_PEER = ("one_peer=1",)
"""As the authors of SGP ran it: to one neighbour a round, another each time."""

LABEL, IID = Cell(split="label"), Cell(split="iid")
EVEN, UNEVEN = Cell(speeds="even"), Cell(speeds="lognormal")
IID_EVEN, IID_UNEVEN = Cell(split="iid", speeds="even"), Cell(split="iid", speeds="lognormal")

# ------------------------------------------------------------------------------------------- quick

DIGITS = Ground(name="digits", title="digits, a perceptron", task="digits.py", batch=128, target=0.95, samples=40_000)
QUICK = Block(
    ground=DIGITS,
    contestants=(
        _one("rfast-tree", "binary-tree", "sgd", 0.4, report=0.125),
        _one("rfast", "exponential", "sgd", 0.1),
        _one("ring-allreduce", "ring", "sgd", 0.4),
        _one("d-psgd", "exponential", "sgd", 0.4),
        _one("ad-psgd", "exponential", "sgd", 0.4),
        _one("ad-psgd, eighths", "exponential", "sgd", 0.2, report=0.125),
        _one("osgp", "exponential", "sgd", 0.4, options=ONE_PEER),
        _one("sgp", "exponential", "sgd", 0.4, options=ONE_PEER),
        _one("s-ab", "exponential", "sgd", 0.1),
        _alone("sgd", 0.4),
    ),
    cells=(LABEL, EVEN),
    reference="ring-allreduce",
    tuning_seeds=1,
    seeds=5,
)

# ------------------------------------------------------------------------------------------- paper

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
    _one("ring-allreduce", "ring", "sgd", 1.6),
    _one("d-psgd, ring", "ring", "sgd", 0.8),
    _one("d-psgd, exponential", "exponential", "sgd", 0.8),
    _one("ad-psgd, ring", "ring", "sgd", 0.8),
    _one("ad-psgd, exponential", "exponential", "sgd", 0.8),
    _one("ad-psgd, exponential, eighths", "exponential", "sgd", 0.2, report=0.125),
    _one("osgp, exponential", "exponential", "sgd", 0.8),
    _one("osgp, one peer", "exponential", "sgd", 0.4, options=ONE_PEER),
)
PAPER_A = Block(
    part="a",
    ground=SOFTMAX,
    contestants=(
        *_by_topology("rfast-tree", (1.6, 1.6, 1.6, 1.6, 1.6), 0.125),
        *_by_topology("rfast", (0.1, 0.1, 0.1, 0.4, 0.2), 1.0),
        _one(EIGHTHS, "exponential", "sgd", 0.4, report=0.125),
        *RIVALS_A,
        _alone("sgd", 1.6),
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
    _one("rfast-tree", "binary-tree", "nadam", 0.016, report=0.25, pace=0.025),
    _one(SPARING, "binary-tree", "nadam", 0.012, report=0.5, pace=0.05),
    _one("rfast", "exponential", "sgd", 0.2),
    _one("ddp", "ring", "nadam", 0.012, tuned_as=("ring-allreduce", "ring")),
    _one("ring-allreduce", "ring", "nadam", 0.012),
    _gossip("d-psgd", "exponential", 0.008),
    _gossip("ad-psgd", "exponential", 0.008),
    _gossip(QUARTERS, "exponential", 0.004, report=0.25),
    _gossip("osgp", "exponential", 0.008, options=ONE_PEER),
    _alone("nadam", 0.008),
)


def _against_ddp(cell: Cell, least: float, **more: object) -> Aim:
    return Aim(what="rfast-tree", ours=("rfast-tree",), over="ddp", cell=cell, least=least, **more)  # type: ignore[arg-type]


PAPER_B = Block(
    part="b",
    ground=MLP,
    contestants=CONTESTANTS_B,
    cells=(LABEL, IID),
    own_cells=(LABEL, IID),
    reference="ddp",
    tuning_seeds=4,
    aims=(
        _against_ddp(IID, 4.0),
        _against_ddp(LABEL, 3.5),
        _against_ddp(LABEL, 3.0, table="own"),
        _against_ddp(IID, 3.5, table="own"),
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
    own_cells=(EVEN, IID_EVEN),
    reference="ddp",
    tuning_seeds=4,
    aims=(
        _against_ddp(IID_UNEVEN, 1.8),
        _against_ddp(UNEVEN, 1.5),
        _against_ddp(IID_EVEN, 1.0),
        _against_ddp(EVEN, 0.9),
        _against_ddp(EVEN, 0.0, table="own"),
        _against_ddp(IID_EVEN, 0.0, table="own"),
    ),
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
        _one("rfast-tree", "binary-tree", "nadam", 0.002, report=0.125),
        _one("ring-allreduce", "ring", "nadam", 0.004),
        _deep("d-psgd", "exponential", 0.1, 0.004),
        _deep("ad-psgd", "exponential", 0.1, 0.004),
        _deep("ad-psgd, eighths", "exponential", 0.05, 0.002, report=0.125),
        _deep("osgp", "exponential", 0.1, 0.004, options=ONE_PEER),
        _alone("nadam", 0.004),
    ),
    cells=(LABEL, IID, EVEN, IID_EVEN),
    reference="ring-allreduce",
    tuning_seeds=1,
    seeds=5,
)

# ------------------------------------------------------------------------------------------ rivals

RIVALS = Block(
    ground=replace(MLP, name="mlp-virtual", simulated=True),
    contestants=(
        _one("rfast-tree", "binary-tree", "nadam", 0.016, report=0.125),
        _one("rfast", "exponential", "sgd", 0.2),
        _one("s-ab", "exponential", "sgd", 0.2),
        _one("ring-allreduce", "ring", "nadam", 0.012),
        _gossip("d-psgd", "exponential", 0.008),
        _gossip("ad-psgd", "exponential", 0.016),
        _gossip("ad-psgd, eighths", "exponential", 0.004, report=0.125),
        _gossip("sgp", "exponential", 0.008),
        _gossip("sgp, one peer", "exponential", 0.008, options=ONE_PEER),
        _gossip("osgp", "exponential", 0.008),
        _gossip("osgp, one peer", "exponential", 0.008, options=ONE_PEER),
        *(_gossip(f"local-sgd, H {h}", "ring", 0.008, options=(f"local_steps={h}",)) for h in (4, 8, 32)),
        *(_one(f"diloco, H {h}", "ring", "nadam", 0.004, options=(f"local_steps={h}",)) for h in (8, 32)),
        *(
            _one(name, "binary-tree", "nadam", 0.012)
            for name in ("async-sgd", "ringmaster", "ringleader", "rennala", "amelie")
        ),
        *(
            _one(f"{name}, eighths", "binary-tree", "nadam", 0.006, report=0.125)
            for name in ("async-sgd", "ringmaster", "ringleader")
        ),
        _one("ringmaster, R n", "binary-tree", "nadam", 0.012, options=("delay_threshold=8",)),
        _alone("nadam", 0.016),
    ),
    cells=(LABEL, IID, EVEN, IID_EVEN),
    reference="ring-allreduce",
    tuning_seeds=1,
)

# ------------------------------------------------------------------------------ charlm, slow-links

TEXT = Ground(
    name="charlm", title="tinyshakespeare, a transformer that predicts the next character", task="charlm.py",
    data="text", options={"context": "32", "layers": "2", "dim": "64"}, batch=64, target=0.35, samples=40_000,
    evaluate_every=10.0,
)  # fmt: skip
CHARLM = Block(
    ground=TEXT,
    contestants=(
        _one("rfast-tree", "binary-tree", "nadam", 0.004, report=0.125),
        _one("ring-allreduce", "ring", "nadam", 0.004),
        _one("d-psgd", "exponential", "nadam", 0.004),
        _one("ad-psgd", "exponential", "nadam", 0.004),
        _one("ad-psgd, eighths", "exponential", "nadam", 0.002, report=0.125),
        _one("osgp", "exponential", "nadam", 0.004, options=ONE_PEER),
        _alone("nadam", 0.004),
    ),
    cells=(LABEL, EVEN),
    reference="ring-allreduce",
    tuning_seeds=1,
    seeds=5,
)

MODEL_BYTES = 101_770 * 4
SLOW = replace(
    MLP,
    name="slow-mlp",
    title="MNIST, the perceptron, on lines on which a float32 Ring-AllReduce takes as long as the gradient",
    simulated=True,
    bytes_per_s=2 * 7 / 8 * MODEL_BYTES / MLP.share_s,
)
SLOW_LINKS = Block(
    part="a",
    ground=SLOW,
    contestants=(
        *_with(
            (
                _one("rfast-tree, float32", "double-tree", "nadam", 0.012, report=0.125),
                _one("rfast-tree, bf16", "double-tree", "nadam", 0.012, report=0.125, wire="bf16"),
                _one("rfast-tree, int8", "double-tree", "nadam", 0.012, report=0.125, wire="int8"),
                _one("ring-allreduce", "ring", "nadam", 0.012),
                _gossip("d-psgd", "ring", 0.008),
                _gossip("ad-psgd", "ring", 0.008),
                _gossip("osgp", "exponential", 0.008, options=ONE_PEER),
                _gossip("local-sgd", "ring", 0.008),
                _one("diloco", "ring", "nadam", 0.004, options=("local_steps=8",)),
            ),
            bucket_bytes=25_600,
        ),
        _alone("nadam", 0.008),
    ),
    cells=(LABEL, IID, EVEN, IID_EVEN),
    reference="ring-allreduce",
    aims=tuple(
        Aim(what=f"rfast-tree, {wire}", ours=(f"rfast-tree, {wire}",),
            over="ring-allreduce", cell=cell, least=least)
        for wire, leasts in (("float32", (2.2, 4.0, 1.0, 1.5)), ("bf16", (0.0,) * 4), ("int8", (3.5, 3.5, 1.5, 1.5)))
        for cell, least in zip((LABEL, IID, EVEN, IID_EVEN), leasts, strict=True)
    ),
)  # fmt: skip

SLOW_HOSTS = Block(
    part="b",
    ground=replace(
        SLOW,
        name="slow-hosts",
        title="MNIST, the perceptron, on slow lines between network namespaces",
        simulated=False,
        hosts=True,
    ),
    contestants=(
        *(replace(c, report=0.5) for c in SLOW_LINKS.contestants[:3]),
        _one("ddp", "ring", "nadam", 0.012, tuned_as=("ring-allreduce", "ring")),
        # Its default is one bucket of so small a model; several can leave while the rest is being computed.
        _one("ddp, buckets of .1 MB", "ring", "nadam", 0.012, tuned_as=("ring-allreduce", "ring"),
             options=("bucket_mb=0.1",)),
        _one("ddp, bf16", "ring", "nadam", 0.012, tuned_as=("ring-allreduce", "ring"), wire="bf16"),
        _alone("nadam", 0.008),
    ),
    cells=SLOW_LINKS.cells,
    reference="ddp",
    aims=tuple(
        replace(aim, over=over, least=aim.least if over == "ddp" or "float32" in aim.what else 0.0)
        for overs, aims in (
            (("ddp", "ddp, buckets of .1 MB"), SLOW_LINKS.aims[:4]),
            (("ddp, bf16",), SLOW_LINKS.aims[4:8]),
            (("ddp", "ddp, bf16"), SLOW_LINKS.aims[8:]),
        )
        for over in overs
        for aim in aims
    ),
)  # fmt: skip

# ------------------------------------------------------------------------------------------- scale


def _scale(nodes: int) -> Block:
    """B is 1,024 on 8 to 1,024 nodes; a sample takes a node 0.1 s whatever they are."""
    ground = Ground(
        name=f"scale-{nodes}", title=f"digits on {nodes} nodes", task="digits.py", nodes=nodes, batch=1024, target=0.93,
        samples=120_000, share_s=0.1 * 1024 / nodes,
    )  # fmt: skip
    report = max(1 / 8, nodes / 1024)
    return Block(
        part=str(nodes),
        ground=ground,
        contestants=(
            _one("rfast-tree", "binary-tree", "sgd", 0.8, report=report),
            _one("rfast-tree, star", "star", "sgd", 0.8, report=report),
            _one("osgp", "exponential", "sgd", 0.8, nodes_most=256, options=ONE_PEER),
            _one("ad-psgd", "exponential", "sgd", 0.8, nodes_most=256),
            _one("ring-allreduce", "ring", "sgd", 1.6, nodes_most=64),
            _alone("sgd", 1.6),
        ),
        cells=(Cell(split="iid"), Cell()),
        reference=ALONE,
        tuning_seeds=1,
    )


SUITES = {
    s.name: s
    for s in (
        Suite(
            name="quick",
            about="the paper's algorithms on digits, in virtual time; some minutes; no data file",
            blocks=(QUICK,),
        ),
        Suite(
            name="paper",
            about="the paper's claims: (a) softmax regression over five topologies, in virtual time; (b) a perceptron"
            " in real processes; (c) a ResNet, in virtual time",
            blocks=(PAPER_A, PAPER_B, PAPER_B_SPEEDS, PAPER_B_END, PAPER_C),
        ),
        Suite(name="rivals", about="every algorithm here on the perceptron, in virtual time", blocks=(RIVALS,)),
        Suite(name="charlm", about="a transformer on text, in virtual time", blocks=(CHARLM,)),
        Suite(
            name="slow-links",
            about="lines on which an all-reduce takes as long as the gradient: (a) in virtual time; (b) in namespaces",
            blocks=(SLOW_LINKS, SLOW_HOSTS),
        ),
        Suite(
            name="scale",
            about="8 to 1,024 nodes, in virtual time; --part: the number of nodes",
            blocks=tuple(_scale(nodes) for nodes in (8, 32, 128, 512, 1024)),
        ),
    )
}
