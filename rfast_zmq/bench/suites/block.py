"""What a suite is made of: blocks, each a ground with cells, contestants and the figures that are to be reached."""

from __future__ import annotations

from dataclasses import dataclass

from rfast_zmq.bench.suites.ground import Cell, Contestant, Ground


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
        own_cells: where each runs at its own best B: some of ``cells``, or, where that is empty, any.
        reference: label that times are divided by.
        tuning_seeds: so many are run for one lr; of the reference more; for each one's own B at most two.
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
        about: what it is.
        costs: the time it takes, whole, on two cores.
        blocks: in their order.
    """

    name: str
    about: str
    costs: str
    blocks: tuple[Block, ...]
