"""The pictures of a suite: who is how fast in every cell, and the course of the runs in its base cell."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from rfast_zmq.bench.suites.perform import POINT, Row
from rfast_zmq.bench.suites.runner import FIXED, OWN
from rfast_zmq.bench.suites.standings import Standing, Table
from rfast_zmq.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

OURS, TEXT, LIMIT = "#1b5e9e", "#16293d", "#3a3a3a"
COLOURS = {
    "rfast-tree": OURS,
    "rfast": "#6fa8dc",
    "ddp": "#d9480f",
    "ring-allreduce": "#f08c00",
    "d-psgd": "#2b8a3e",
    "ad-psgd": "#9c36b5",
    "osgp": "#c2255c",
    "sgp": "#e599b1",
    "s-ab": "#868e96",
    "local-sgd": "#0b7285",
    "diloco": "#15aabf",
    "async-sgd": "#5c940d",
    "ringmaster": "#94d82d",
    "ringleader": "#a61e4d",
    "rennala": "#862e9c",
    "amelie": "#e8590c",
}
"""Each algorithm has its own in all pictures."""
DASHES = {"float32": "-", "bf16": ":", "int8": "--"}
"""Lines by wire."""
OTHER = "#5c677d"


def draw(tables: Sequence[Table], folder: Path, name: str) -> list[Path]:
    """Draw one ground.

    Args:
        tables: of one ground.
        folder: where to.
        name: the files begin with it.

    Returns:
        The files written.

    Raises:
        UsageError: matplotlib is missing.
    """
    _need_matplotlib()
    made = []
    for kind in (FIXED, OWN):
        timed = [t for t in tables if t.kind == kind and not t.cell.to_the_end]
        if timed:
            made.append(_times(timed, folder / f"{name}-times{'-own' if kind == OWN else ''}.png"))
    first = next((t for t in tables if t.kind == FIXED and not t.cell.to_the_end), None)
    if first is not None:
        made.append(_course(first, folder / f"{name}-course.png"))
    return made


# ----------------------------------------------------------------------------- who is how fast


def _times(tables: Sequence[Table], path: Path) -> Path:
    """A panel a cell: each contestant's time to the target, the fastest on top; the no-wait limit as a line."""
    from matplotlib.figure import Figure

    columns = min(3, len(tables))
    rows = -(-len(tables) // columns)
    most = max(len(t.standings) for t in tables)
    width = max(7.5, 4.6 * columns)  # of the title
    figure = Figure(figsize=(width, (0.9 + 0.27 * most) * rows + 0.6), facecolor="white", layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, table in zip(grid.flat, tables, strict=False):
        _times_panel(axes, table)
    for axes in list(grid.flat)[len(tables) :]:
        axes.set_visible(False)
    ground, kind = tables[0].block.ground, tables[0].kind
    how = "virtual time" if ground.simulated else "real processes, emulated compute"
    which = "each at its own best B and lr" if kind == OWN else f"B = {ground.batch}, each at its best lr"
    figure.suptitle(
        f"{ground.title}: seconds to {ground.target:g}\n{how}; {ground.nodes} nodes, {which}; fastest on top",
        fontsize=12, color=TEXT,
    )  # fmt: skip
    figure.savefig(path, format="png", dpi=130)
    return path


def _times_panel(axes: Axes, table: Table) -> None:
    def order(s: Standing) -> tuple[bool, float, float]:
        ended = [a for a in s.values("accuracy").values() if a is not None]
        return s.stops is not None, s.median_s(), -(median(ended) if ended else 0.0)

    ranked = sorted(table.standings, key=order)
    reached = [v for s in ranked for v in s.values("target_s").values() if v is not None]
    limits = [v for v in table.limit_s().values() if v is not None]
    low, high = min([*reached, *limits], default=1.0), max([*reached, *limits], default=10.0)
    for y, s in enumerate(ranked):
        colour = colour_of(s)
        values = [v for v in s.values("target_s").values() if v is not None]
        middle = s.median_s()
        if middle < inf:
            axes.plot(
                [min(values), max(values)], [y, y], color=colour, linewidth=2.2, alpha=0.55, solid_capstyle="round"
            )
            axes.plot([middle], [y], "o", color=colour, markersize=7)
            text = f"{middle:.3g}"
            axes.annotate(
                text, (max(values), y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8, color=TEXT
            )
        else:
            why = "stops" if s.stops else "never"
            axes.annotate(
                why, (0.98, y), xycoords=("axes fraction", "data"), ha="right", va="center", fontsize=8, color=colour,
                style="italic",
            )  # fmt: skip
    if limits:
        axes.axvline(median(limits), color=LIMIT, linewidth=1.0, linestyle=":")
        axes.annotate(
            "nobody waits", (median(limits), -0.75), xytext=(3, 0), textcoords="offset points", fontsize=7, color=LIMIT,
            va="center",
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(low / 1.25, high * 1.6)
    axes.set_ylim(len(ranked) - 0.4, -1.2)
    axes.set_yticks(range(len(ranked)), [s.contestant.label for s in ranked], fontsize=8.5)
    for tick, s in zip(axes.get_yticklabels(), ranked, strict=True):
        tick.set_color(colour_of(s))
        tick.set_fontweight("bold" if s.contestant.algorithm == "rfast-tree" else "normal")
    _plain(axes.xaxis)
    axes.set_title(table.cell.title, fontsize=9.5, color=TEXT)
    _dress(axes)


# ----------------------------------------------------------------------- the same on more and more nodes


def _need_matplotlib() -> None:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UsageError("drawing needs matplotlib: pip install 'rfast-zmq[demo]'") from None


def growth(tables: Sequence[Table], path: Path) -> Path:
    """A panel a cell: the time to the target over the number of nodes, beside that of never waiting.

    Args:
        tables: of grounds that differ in the number of nodes.
        path: of the picture.

    Raises:
        UsageError: matplotlib is missing.
    """
    _need_matplotlib()
    from matplotlib.figure import Figure

    cells = list(dict.fromkeys(t.cell for t in tables))
    figure = Figure(figsize=(5.8 * len(cells), 4.6), facecolor="white", layout="constrained")
    for axes, cell in zip(figure.subplots(1, len(cells), squeeze=False).flat, cells, strict=True):
        of_cell = [t for t in tables if t.cell == cell]
        lines: dict[str, list[tuple[int, Standing]]] = {}
        for table in of_cell:
            for s in table.standings:
                lines.setdefault(s.contestant.label, []).append((table.block.ground.nodes, s))
        seen: set[str] = set()
        for label, found in lines.items():
            _growth_line(axes, label, found, "--" if found[0][1].contestant.algorithm in seen else "-")
            seen.add(found[0][1].contestant.algorithm)
        limits = [(t.block.ground.nodes, [v for v in t.limit_s().values() if v is not None]) for t in of_cell]
        if told := [(n, median(values)) for n, values in limits if values]:
            axes.plot(*zip(*told, strict=True), color=LIMIT, linewidth=1.0, linestyle=":", label="nobody waits")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        nodes = sorted({t.block.ground.nodes for t in of_cell})
        axes.set_xticks(nodes, [f"{n:,}" for n in nodes])
        _plain(axes.yaxis)
        axes.set_xlabel("nodes", fontsize=9)
        axes.set_ylabel(f"virtual seconds to {of_cell[0].block.ground.target:g}", fontsize=9)
        axes.set_title(cell.title, fontsize=9.5, color=TEXT)
        axes.legend(fontsize=8.5, frameon=False)
        _dress(axes)
    ground = tables[0].block.ground
    figure.suptitle(
        f"The same work on more nodes: B = {ground.batch:,}, each at its best lr (virtual time)\n"
        "hollow: not with every seed; left out: not with most",
        fontsize=12,
        color=TEXT,
    )
    figure.savefig(path, format="png", dpi=130)
    return path


def _growth_line(axes: Axes, label: str, found: Sequence[tuple[int, Standing]], dashes: str) -> None:
    points = [(n, s.median_s()) for n, s in found if s.median_s() < inf]
    colour = colour_of(found[0][1])
    for n, s in found:
        values = [v for v in s.values("target_s").values() if v is not None]
        if values:
            axes.plot([n, n], [min(values), max(values)], color=colour, linewidth=2.2, alpha=0.4)
    if points:
        axes.plot(*zip(*points, strict=True), color=colour, linestyle=dashes, marker="o", markersize=5, label=label)
    some = [(n, s.median_s()) for n, s in found if s.nevers and s.median_s() < inf]
    if some:
        marks: Row = {"color": colour, "markerfacecolor": "white", "marker": "o", "markersize": 5, "linestyle": ""}
        axes.plot(*zip(*some, strict=True), **marks)


# ------------------------------------------------------------------------------ how they got there


def _course(table: Table, path: Path) -> Path:
    """Accuracy and loss over time, samples and bytes, and the share of time waited, of the base cell."""
    from matplotlib.figure import Figure

    shown = [s for s in table.best_of_each_algorithm() if not s.stops]
    ground = table.block.ground
    unit = "virtual seconds" if ground.simulated else "seconds"
    figure = Figure(figsize=(14.5, 7.4), facecolor="white", layout="constrained")
    grid = figure.subplots(2, 4)
    for column, (key, what, scale) in enumerate(
        (("time_s", unit, 1.0), ("samples", "samples, thousands", 1e-3), ("bytes_sent", "MB sent, all nodes", 1e-6))
    ):
        for row, score in enumerate(("accuracy", "loss")):
            _lines(grid[row, column], shown, key, score, scale, table)
            grid[row, column].set_xlabel(what, fontsize=9)
            grid[row, column].set_title(f"{score} over {what.split(',')[0]}", fontsize=10, color=TEXT)
    _waiting(grid[0, 3], shown)
    grid[1, 3].axis("off")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    grid[1, 3].legend(handles, labels, loc="center", fontsize=10, frameon=False)
    how = "virtual time" if ground.simulated else "real processes, emulated compute"
    figure.suptitle(
        f"{ground.title}; {table.cell.title}; {ground.nodes} nodes ({how})\n"
        f"B = {ground.batch}, each at its best lr; bold: the median seed, faint: the others",
        fontsize=12, color=TEXT,
    )  # fmt: skip
    figure.savefig(path, format="png", dpi=130)
    return path


def _lines(axes: Axes, shown: Sequence[Standing], key: str, score: str, scale: float, table: Table) -> None:
    x_at, y_at = POINT.index(key), POINT.index(score)
    ends: list[float] = []
    for s in shown:
        ordered = sorted(s.runs.values(), key=lambda row: (row["target_s"] or inf, row["seed"]))
        middle = ordered[(len(ordered) - 1) // 2]
        for row in ordered:
            points = [(p[x_at] * scale, p[y_at]) for p in row["points"] if p[y_at] is not None]
            if not points:
                continue
            bold = row is middle
            label = s.contestant.label if bold else None
            dashes = DASHES[s.contestant.wire]
            bright: Row = {"linewidth": 1.9, "zorder": 3} if bold else {"linewidth": 0.7, "alpha": 0.28, "zorder": 2}
            axes.plot(*zip(*points, strict=True), color=colour_of(s), linestyle=dashes, label=label, **bright)
            if bold:
                ends.append(points[-1][0])
    if score == "accuracy":
        axes.axhline(table.block.ground.target, color=LIMIT, linewidth=0.8, linestyle=":")
        axes.set_ylim(max(0.0, table.block.ground.target - 0.45), min(1.0, table.block.ground.target + 0.03))
    else:
        axes.set_yscale("log")
        _plain(axes.yaxis)
    if len(ends) > 2:  # the slowest would leave the others no room
        axes.set_xlim(0, min(max(ends), 1.6 * median(ends)) * 1.02)
    _dress(axes)


def _waiting(axes: Axes, shown: Sequence[Standing]) -> None:
    for y, s in enumerate(shown):
        found = [v for v in s.values("waited_share").values() if v is not None]
        share = 100 * median(found) if found else 0.0
        axes.barh(y, share, color=colour_of(s), height=0.62)
        axes.annotate(
            f"{share:.0f} %" if found else "?", (share, y), xytext=(4, 0), textcoords="offset points", va="center",
            fontsize=9, color=TEXT,
        )  # fmt: skip
    axes.set_yticks(range(len(shown)), [s.contestant.label for s in shown], fontsize=9)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, 110)
    axes.set_title("time waited for others, %", fontsize=10, color=TEXT)
    _dress(axes)


def colour_of(s: Standing) -> str:
    """By the algorithm."""
    return COLOURS.get(s.contestant.algorithm, OTHER)


def _plain(axis: Axis) -> None:
    """Numbers, not powers, along a logarithmic axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _dress(axes: Axes) -> None:
    axes.grid(True, color="#e3e8ee", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
