"""The suites by their names."""

from __future__ import annotations

from rfast_zmq.bench.suites.block import Suite
from rfast_zmq.bench.suites.others import CHARLM, QUICK, RIVALS, scale
from rfast_zmq.bench.suites.paper import PAPER_A, PAPER_B, PAPER_B_END, PAPER_B_OWN, PAPER_B_SPEEDS, PAPER_C
from rfast_zmq.bench.suites.slow_links import SLOW_HOSTS, SLOW_LINKS
from rfast_zmq.errors import UsageError

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
            blocks=(PAPER_A, PAPER_B, PAPER_B_SPEEDS, PAPER_B_OWN, PAPER_B_END, PAPER_C),
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
            blocks=tuple(scale(nodes) for nodes in (8, 32, 128, 512, 1024)),
        ),
    )
}


def suite(name: str) -> Suite:
    """
    Raises:
        UsageError: no such suite.
    """
    if name not in SUITES:
        raise UsageError(f"{name}: no such suite; one of {', '.join(SUITES)}")
    return SUITES[name]
