"""Which node of which run an optimiser is: by its arguments, or by the environment that ``torchrun`` made."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from typing import Any, Self

from rfast_zmq.assembly import Plan
from rfast_zmq.errors import UsageError
from rfast_zmq.settings import Settings
from rfast_zmq.task import Task
from rfast_zmq.topology import is_file


@dataclass(frozen=True)
class Place:
    """One node's place in a run.

    Attributes:
        plan: the run, checked.
        rank: of this node.
        under_torchrun: the environment says which it is.
    """

    plan: Plan
    rank: int
    under_torchrun: bool

    @classmethod
    def find(
        cls,
        *,
        batch: int,
        topology: str,
        rank: int | None,
        nodes: int | None,
        global_batch: int | None,
        **settings: Any,
    ) -> Self:
        """From what the optimiser was given.

        Args:
            batch, topology, rank, nodes, global_batch: as of :class:`~rfast_zmq.optim.RFast`.
            settings: the other fields of :class:`~rfast_zmq.settings.Settings`.

        Raises:
            UsageError: an argument that will not do.
        """
        for name, count in (("batch", batch), ("global_batch", global_batch), ("nodes", nodes), ("rank", rank)):
            if count is not None and (not isinstance(count, int) or isinstance(count, bool)):
                raise UsageError(f"{name}={count!r}: must be a whole number")
        if batch < 1:
            raise UsageError(f"batch={batch}: the samples behind one step must be 1 or more")
        if global_batch is not None and global_batch < 1:
            raise UsageError(f"global_batch={global_batch}: the samples of a round must be 1 or more")
        under_torchrun = rank is None and "RANK" in os.environ and "WORLD_SIZE" in os.environ
        if nodes is None and not is_file(topology):
            nodes = int(os.environ["WORLD_SIZE"]) if under_torchrun else 1
        wanted = Settings(
            nodes=nodes,
            topology=topology,
            report_batch=batch,
            evaluate_every=sys.float_info.max,
            global_batch=global_batch or batch * (nodes or 1),
            **settings,
        )
        plan = Plan.make(Task, wanted)
        if global_batch is None and nodes is None:
            plan = Plan.make(Task, replace(wanted, global_batch=batch * plan.topology.nodes))
        name, count = plan.topology.name, plan.topology.nodes
        if rank is None and not under_torchrun and count > 1:  # or each of them would be the root
            raise UsageError(f"rank: which of the {count} nodes of {name} is this? 0 to {count - 1}")
        rank = (int(os.environ["RANK"]) if under_torchrun else 0) if rank is None else rank
        if not 0 <= rank < count:
            raise UsageError(f"rank={rank}: {name} has {count} nodes, so 0 to {count - 1}")
        return cls(plan, rank, under_torchrun)
