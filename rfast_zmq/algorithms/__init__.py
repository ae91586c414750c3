"""Every algorithm, one file each, by the name that ``--algorithm`` takes."""

from __future__ import annotations

from difflib import get_close_matches

from rfast_zmq.algorithms.d_psgd import DPsgd
from rfast_zmq.algorithms.rfast import RFast
from rfast_zmq.algorithms.rfast_tree import RFastTree
from rfast_zmq.algorithms.ring_allreduce import RingAllReduce
from rfast_zmq.algorithms.sgp import Osgp, Sgp
from rfast_zmq.core.interface import Algorithm, NodeConfig
from rfast_zmq.errors import UsageError

OURS: dict[str, type[Algorithm]] = {kind.name: kind for kind in (RFastTree, RFast)}
RIVALS: dict[str, type[Algorithm]] = {kind.name: kind for kind in (RingAllReduce, DPsgd, Sgp, Osgp)}
"""What they are compared with."""
ALGORITHMS = {**OURS, **RIVALS}


def algorithm(name: str, optimizer: str, clips: bool = False, packs: bool = False) -> type[Algorithm]:
    """The class behind a name.

    Args:
        name: of the algorithm.
        optimizer: that it must honour.
        clips: whether it must clip gradients.
        packs: whether payloads are to travel as something else than float32.

    Raises:
        UsageError: no such algorithm, or it cannot honour the optimiser, clip, or pack.
    """
    if name not in ALGORITHMS:
        near = get_close_matches(name, ALGORITHMS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UsageError(f"--algorithm {name}: one of {', '.join(ALGORITHMS)}{hint}")
    chosen = ALGORITHMS[name]
    if optimizer not in chosen.optimizers:
        takes = " or ".join(chosen.optimizers)
        raise UsageError(
            f"--optimizer {optimizer} (given, or the task's own): --algorithm {name} takes {takes};"
            f" add --optimizer {chosen.optimizers[0]}, and an --lr for it"
        )
    if clips and not chosen.clips:
        raise UsageError(f"--clip-norm (given, or the task's own): --algorithm {name} does not clip; leave it out")
    if packs and not chosen.packs:
        raise UsageError(f"--wire: --algorithm {name} sends float32 only; leave it out")
    return chosen


__all__ = ["ALGORITHMS", "OURS", "RIVALS", "Algorithm", "NodeConfig", "RFast", "RFastTree", "algorithm"]
