"""``quick``, ``rivals``, ``charlm`` and ``scale``: all in virtual time."""

from __future__ import annotations

from dataclasses import replace

from rfast_zmq.bench.suites.block import Block
from rfast_zmq.bench.suites.contestants import EVEN, IID, LABEL, ONE_PEER, alone, deep, gossip, one
from rfast_zmq.bench.suites.ground import ALONE, Ground
from rfast_zmq.bench.suites.paper import MLP

DIGITS = Ground(name="digits", title="digits, a perceptron", task="digits.py", batch=128, target=0.95, samples=40_000)
QUICK = Block(
    ground=DIGITS,
    contestants=(
        one("rfast-tree", "binary-tree", "sgd", 0.4, report=0.125),
        one("rfast", "exponential", "sgd", 0.1),
        one("rfast, eighths", "exponential", "sgd", 0.4, report=0.125),
        one("ring-allreduce", "ring", "sgd", 0.4),
        one("d-psgd", "exponential", "sgd", 0.4),
        one("ad-psgd", "exponential", "sgd", 0.4),
        one("ad-psgd, eighths", "exponential", "sgd", 0.2, report=0.125),
        one("osgp", "exponential", "sgd", 0.4, options=ONE_PEER),
        one("sgp", "exponential", "sgd", 0.4, options=ONE_PEER),
        one("s-ab", "exponential", "sgd", 0.1),
        alone("sgd", 0.4),
    ),
    cells=(LABEL, EVEN),
    reference="ring-allreduce",
    tuning_seeds=1,
    seeds=5,
)

RIVALS = Block(
    ground=replace(MLP, name="mlp-virtual", simulated=True),
    contestants=(
        one("rfast-tree", "binary-tree", "nadam", 0.016, report=0.125),
        one("rfast", "exponential", "sgd", 0.2),
        one("rfast, eighths", "exponential", "sgd", 0.4, report=0.125),
        one("s-ab", "exponential", "sgd", 0.2),
        one("ring-allreduce", "ring", "nadam", 0.012),
        gossip("d-psgd", "exponential", 0.008),
        gossip("ad-psgd", "exponential", 0.016),
        gossip("ad-psgd, eighths", "exponential", 0.004, report=0.125),
        gossip("sgp", "exponential", 0.008),
        gossip("sgp, one peer", "exponential", 0.008, options=ONE_PEER),
        gossip("osgp", "exponential", 0.008),
        gossip("osgp, one peer", "exponential", 0.008, options=ONE_PEER),
        *(gossip(f"local-sgd, H {h}", "ring", 0.008, options=(f"local_steps={h}",)) for h in (4, 8, 32)),
        *(one(f"diloco, H {h}", "ring", "nadam", 0.004, options=(f"local_steps={h}",)) for h in (8, 32)),
        *(
            one(name, "binary-tree", "nadam", 0.012)
            for name in ("async-sgd", "ringmaster", "ringleader", "rennala", "amelie")
        ),
        *(
            one(f"{name}, eighths", "binary-tree", "nadam", 0.006, report=0.125)
            for name in ("async-sgd", "ringmaster", "ringleader", "rennala", "amelie")
        ),
        one("ringmaster, R n", "binary-tree", "nadam", 0.012, options=("delay_threshold=8",)),
        alone("nadam", 0.016),
    ),
    cells=(LABEL, IID),
    reference="ring-allreduce",
    tuning_seeds=1,
    seeds=5,
)

TEXT = Ground(
    name="charlm", title="tinyshakespeare, a transformer that predicts the next character", task="charlm.py",
    data="text", options={"context": "32", "layers": "2", "dim": "64"}, batch=64, target=0.35, samples=40_000,
    evaluate_every=10.0,
)  # fmt: skip
CHARLM = Block(
    ground=TEXT,
    contestants=(
        one("rfast-tree", "binary-tree", "nadam", 0.004, report=0.25),
        one("rfast, quarters", "exponential", "sgd", 0.1, report=0.25),
        one("ring-allreduce", "ring", "nadam", 0.004),
        deep("d-psgd", "exponential", 0.1, 0.004),
        deep("ad-psgd", "exponential", 0.1, 0.004),
        deep("ad-psgd, quarters", "exponential", 0.05, 0.002, report=0.25),
        deep("osgp", "exponential", 0.1, 0.004, options=ONE_PEER),
        alone("nadam", 0.004),
    ),
    cells=(LABEL, EVEN),
    reference="ring-allreduce",
    tuning_seeds=1,
    seeds=5,
)


def scale(nodes: int) -> Block:
    """B is 1,024 on 8 to 1,024 nodes; a sample takes a node 0.1 s whatever they are. On hundreds, a label has fewer
    samples than nodes: no split by labels."""
    ground = Ground(
        name=f"scale-{nodes}", title=f"digits on {nodes} nodes", task="digits.py", nodes=nodes, batch=1024, target=0.9,
        samples=60_000, share_s=0.1 * 1024 / nodes,
    )  # fmt: skip
    report = max(1 / 8, nodes / 1024)
    few, many = 32, 512  # of whatever takes minutes a run on more
    return Block(
        part=str(nodes),
        ground=ground,
        contestants=(
            one("rfast-tree", "binary-tree", "sgd", 0.8, report=report),
            one("rfast-tree, star", "star", "sgd", 0.8, report=report, nodes_most=many),
            one("rfast, eighths", "exponential", "sgd", 0.4, report=report, nodes_most=few),
            one("osgp", "exponential", "sgd", 0.8, nodes_most=256, options=ONE_PEER),
            one("ad-psgd", "exponential", "sgd", 0.8, nodes_most=256),
            one("ad-psgd, eighths", "exponential", "sgd", 0.2, report=report, nodes_most=256),
            one("ring-allreduce", "ring", "sgd", 1.6, nodes_most=few),
            alone("sgd", 1.6),
        ),
        cells=(IID, LABEL) if nodes <= 128 else (IID,),
        reference=ALONE,
        tuning_seeds=1,
        seeds=5,
    )
