"""``slow-links``: each host's line is so slow that an all-reduce takes as long as the gradient."""

from __future__ import annotations

from dataclasses import replace

from rfast_zmq.bench.suites.block import Aim, Block
from rfast_zmq.bench.suites.contestants import EVEN, IID, IID_EVEN, LABEL, ONE_PEER, alone, gossip, one, with_all
from rfast_zmq.bench.suites.paper import MLP

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
        *with_all(
            (
                one("rfast-tree, float32", "double-tree", "nadam", 0.012, report=0.125),
                one("rfast-tree, bf16", "double-tree", "nadam", 0.012, report=0.125, wire="bf16"),
                one("rfast-tree, int8", "double-tree", "nadam", 0.012, report=0.125, wire="int8"),
                one("rfast", "exponential", "sgd", 0.2),
                one("ring-allreduce", "ring", "nadam", 0.012),
                gossip("d-psgd", "ring", 0.008),
                gossip("ad-psgd", "ring", 0.008),
                gossip("ad-psgd, quarters", "ring", 0.004, report=0.25),
                gossip("osgp", "exponential", 0.008, options=ONE_PEER),
                gossip("local-sgd", "ring", 0.008),
                one("diloco", "ring", "nadam", 0.004, options=("local_steps=8",)),
            ),
            bucket_bytes=25_600,
        ),
        alone("nadam", 0.008),
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

SLOWER = 4
"""So many times slower compute the hosts of part b, and so are their lines: at part a's speeds the messages of eight
hosts fill two cores, and then it is these that are measured."""
MESSAGE_BYTES = 6_400
"""Of a message of ``rfast-tree`` between the hosts of part b, on any wire: the smaller, the sooner it is passed on."""
SLOW_HOSTS = Block(
    part="b",
    ground=replace(
        SLOW,
        name="slow-hosts",
        title="MNIST, the perceptron, on slow lines between network namespaces",
        simulated=False,
        hosts=True,
        share_s=SLOWER * SLOW.share_s,
        bytes_per_s=SLOW.bytes_per_s / SLOWER,
    ),
    contestants=(
        *(
            replace(c, report=0.25, bucket_bytes=parts * MESSAGE_BYTES)
            for c, parts in zip(SLOW_LINKS.contestants[:3], (1, 2, 4), strict=True)
        ),
        one("ddp", "ring", "nadam", 0.012, tuned_as=("ring-allreduce", "ring")),
        # Its default is one bucket of so small a model; several could leave while the rest is being computed (but that
        # of the first layer, 99 % of this model, comes last).
        one("ddp, buckets of .1 MB", "ring", "nadam", 0.012, tuned_as=("ring-allreduce", "ring"),
             options=("bucket_mb=0.1",)),
        one("ddp, bf16", "ring", "nadam", 0.012, tuned_as=("ring-allreduce", "ring"), wire="bf16"),
        alone("nadam", 0.008),
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
