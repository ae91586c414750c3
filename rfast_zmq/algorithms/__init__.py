"""Every algorithm, one file each, by the name that ``--algorithm`` takes."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from math import isfinite

from rfast_zmq.algorithms.ad_psgd import AdPsgd
from rfast_zmq.algorithms.amelie import Amelie
from rfast_zmq.algorithms.async_sgd import AsyncSgd
from rfast_zmq.algorithms.d_psgd import DPsgd
from rfast_zmq.algorithms.ddp import Ddp
from rfast_zmq.algorithms.diloco import DiLoCo
from rfast_zmq.algorithms.hivemind import Hivemind
from rfast_zmq.algorithms.local_sgd import LocalSgd
from rfast_zmq.algorithms.rennala import Rennala
from rfast_zmq.algorithms.rfast import RFast
from rfast_zmq.algorithms.rfast_tree import RFastTree
from rfast_zmq.algorithms.ring_allreduce import RingAllReduce
from rfast_zmq.algorithms.ringleader import Ringleader
from rfast_zmq.algorithms.ringmaster import Ringmaster
from rfast_zmq.algorithms.s_ab import SAb
from rfast_zmq.algorithms.sgp import Osgp, Sgp
from rfast_zmq.core.interface import Algorithm, Method, NodeConfig
from rfast_zmq.errors import UsageError
from rfast_zmq.settings import WIRES

OURS: dict[str, type[Algorithm]] = {kind.name: kind for kind in (RFastTree, RFast)}
RIVALS: dict[str, type[Algorithm]] = {
    kind.name: kind
    for kind in (
        *(RingAllReduce, DPsgd, AdPsgd, Sgp, Osgp, SAb, LocalSgd, DiLoCo),
        *(AsyncSgd, Ringmaster, Ringleader, Rennala, Amelie),
    )
}
"""What they are compared with."""
ALGORITHMS = {**OURS, **RIVALS}
METHODS: dict[str, type[Method]] = {**ALGORITHMS, Ddp.name: Ddp, Hivemind.name: Hivemind}
"""And what somebody else's code carries out."""


def algorithm(name: str, optimizer: str, clips: bool = False, wire: str = WIRES[0]) -> type[Method]:
    """The class behind a name.

    Args:
        name: of the algorithm.
        optimizer: that it must honour.
        clips: whether it must clip gradients.
        wire: how payloads are to travel.

    Raises:
        UsageError: no such algorithm, or it cannot honour the optimiser or the wire, or clip.
    """
    if name not in METHODS:
        near = get_close_matches(name, METHODS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UsageError(f"--algorithm {name}: one of {', '.join(METHODS)}{hint}")
    chosen = METHODS[name]
    if optimizer not in chosen.optimizers:
        takes = " or ".join(chosen.optimizers)
        raise UsageError(
            f"--optimizer {optimizer} (given, or the task's own): --algorithm {name} takes {takes};"
            f" add --optimizer {chosen.optimizers[0]}, and an --lr for it"
        )
    if clips and not chosen.clips:
        raise UsageError(f"--clip-norm (given, or the task's own): --algorithm {name} does not clip; leave it out")
    if wire not in (WIRES[0], *chosen.packs):
        sends = " or ".join((WIRES[0], *chosen.packs)) if chosen.packs else f"{WIRES[0]} only"
        raise UsageError(f"--wire {wire}: --algorithm {name} sends {sends}; leave it out")
    return chosen


def options_of(kind: type[Method], given: Sequence[str]) -> dict[str, float]:
    """An algorithm's own numbers.

    Args:
        kind: of which.
        given: ``NAME=VALUE`` each; the others keep their default.

    Raises:
        UsageError: not of that form, no such name, given twice, or a value that will not do.
    """
    options, seen = dict(kind.options), set()
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise UsageError(f"--algorithm-option {text}: must be NAME=VALUE")
        if name not in options:
            has = ", ".join(f"{o} (default {v:g})" for o, v in options.items()) or "none"
            raise UsageError(f"--algorithm-option {text}: --algorithm {kind.name} has {has}")
        if name in seen:
            raise UsageError(f"--algorithm-option {text}: {name} is given twice")
        try:
            options[name] = float(value)
        except ValueError:
            raise UsageError(f"--algorithm-option {text}: {value!r} is no number") from None
        if not isfinite(options[name]):
            raise UsageError(f"--algorithm-option {text}: must be a finite number")
        if name in kind.switches and options[name] not in (0.0, 1.0):
            raise UsageError(f"--algorithm-option {text}: must be 0 or 1")
        seen.add(name)
    kind.check_options(options)
    return options


__all__ = [
    "ALGORITHMS",
    "METHODS",
    "OURS",
    "RIVALS",
    "Algorithm",
    "Ddp",
    "Hivemind",
    "Method",
    "NodeConfig",
    "RFast",
    "RFastTree",
    "algorithm",
    "options_of",
]
