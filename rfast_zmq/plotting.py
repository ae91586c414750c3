"""The pictures of a run, from the files in its folder: curve.png and topology.png. Imports neither torch nor a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_high
from typing import TYPE_CHECKING, Any

from rfast_zmq.errors import UsageError
from rfast_zmq.topology import draw, load

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]

OURS, FAINT, ALONE, SLOW, OTHERS, TEXT = "#1b5e9e", "#8fb7dd", "#3a3a3a", "#d9480f", "#7fa3c4", "#16293d"
SLOW_FACTOR = 1.5
"""A node slower than the median by this factor is drawn in its own colour and named."""
NAMED_MAX = 4
"""So many slow nodes are named, the slowest ones."""
SMOOTH_S_SHARE = 0.02
"""A node's pace is averaged over this share of the run: a single report of a slow node is one or none."""


@dataclass
class _Run:
    """What the folder of a run says."""

    config: Row
    points: list[Row]
    nodes: list[Row]
    alone: list[Row]
    result: Row

    @property
    def virtual(self) -> bool:
        return bool(self.result.get("simulated"))

    @property
    def names(self) -> list[str]:
        return [str(name) for name in self.config.get("nodes", [])]


def pictures(folder: Path) -> list[Path]:
    """Draw all there is to draw.

    Args:
        folder: what was given to ``--out``.

    Returns:
        The files written.

    Raises:
        UsageError: matplotlib is missing, or the folder does not hold a run.
    """
    made = [curve(folder)]
    if (folder / "topology.toml").is_file():
        draw(load(folder / "topology.toml"), folder / "topology.png")
        made.append(folder / "topology.png")
    return made


def curve(folder: Path) -> Path:
    """Accuracy and loss over time and over samples, staleness, and each node's pace, in one figure.

    Args:
        folder: holds config.json and metrics.jsonl; nodes.jsonl, baseline.jsonl and result.json may be missing.

    Returns:
        ``folder/curve.png``.

    Raises:
        UsageError: matplotlib is missing, or a file is missing or broken.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter
    except ImportError:
        raise UsageError("drawing needs matplotlib: pip install 'rfast-zmq[demo]'") from None
    run = _read(folder)
    has = {name: any(p.get(name) is not None for p in run.points) for name in ("accuracy", "loss", "train_loss")}
    figure = Figure(figsize=(10, 8.6 if has["accuracy"] else 6.2), facecolor="white", layout="constrained")
    grid = figure.subplots(3 if has["accuracy"] else 2, 2, squeeze=False)
    end_s = max((p["time_s"] for p in run.points), default=0.0) or 1.0
    for column, (key, what) in enumerate((("time_s", _time(run)), ("samples", "samples, of all nodes"))):
        rows = [*(["accuracy"] if has["accuracy"] else []), "loss"]
        for axes, score in zip(grid[:, column], rows, strict=False):
            (_accuracy if score == "accuracy" else _loss)(axes, run, key)
            axes.set_title(f"{score} over {'time' if key == 'time_s' else 'samples'}")
            axes.set_xlabel(what)
            if key == "time_s":
                axes.set_xlim(0, end_s * 1.02)
            else:
                axes.set_xlim(0, None)
                axes.xaxis.set_major_formatter(FuncFormatter(_count))
    _staleness(grid[-1, 0], run, end_s)
    _paces(grid[-1, 1], run, end_s)
    for axes in grid.flat:
        _dress(axes)
    title, conditions = _headline(run)
    figure.suptitle(f"{title}\n", fontsize=13, fontweight="bold", color=TEXT)  # the empty line is for the conditions
    figure.text(0.5, 1 - 23 / 72 / figure.get_figheight(), conditions, ha="center", va="top", fontsize=11, color=TEXT)
    path = folder / "curve.png"
    try:
        figure.savefig(path, format="png", dpi=150)
    except OSError as error:
        raise UsageError(f"{path}: the drawing cannot be written: {error.strerror}") from None
    return path


# ------------------------------------------------------------------------------------------ panels


def _accuracy(axes: Axes, run: _Run, key: str) -> None:
    x, y = _columns(run.points, key, "accuracy")
    if target := run.config.get("settings", {}).get("target"):
        axes.axhline(target, color=TEXT, linewidth=0.9, linestyle=":")
        axes.annotate(
            f"target {target:g}",
            (0.995, target),
            xycoords=("axes fraction", "data"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=10,
            color=TEXT,
        )
    _alone(axes, run, key, "accuracy")
    axes.plot(x, y, color=OURS, linewidth=1.8, label=_label(run, y))
    low = min([*y, *_columns(run.alone, key, "accuracy")[1]])
    axes.set_ylim(max(0.0, min(low, 0.9) - 0.03), 1.03)
    axes.legend(loc="lower right")


def _loss(axes: Axes, run: _Run, key: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    _alone(axes, run, key, "loss")
    x, newest = _columns(run.points, key, "train_loss")
    train = x, _smooth(newest)
    axes.plot(*train, color=FAINT, linewidth=1.3, label="training, smoothed", zorder=1.5)
    tested = _columns(run.points, key, "loss")
    axes.plot(*tested, color=OURS, linewidth=1.8, label="evaluation")
    positive = all(value > 0 for value in (*train[1], *tested[1]))
    if positive and (train[1] or tested[1]):
        axes.set_yscale("log")
        bottom, top = axes.get_ylim()
        if top / bottom < 30:  # a decade alone would leave one number on the axis
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    if key == "samples" and (train[1] or tested[1]):  # over samples all lines fall together, and leave the corner free
        axes.legend(loc="upper right")


def _staleness(axes: Axes, run: _Run, end_s: float) -> None:
    x, newest = _columns(run.points, "time_s", "staleness_rounds")
    axes.plot(x, newest, color=FAINT, linewidth=0.8)
    axes.plot(x, _smooth(newest), color=OURS, linewidth=1.8)
    axes.set_title("staleness of the gradients")
    axes.set_xlabel(_time(run))
    axes.set_ylabel("rounds")
    axes.set_xlim(0, end_s * 1.02)
    axes.set_ylim(0, None)


def _paces(axes: Axes, run: _Run, end_s: float) -> None:
    axes.set_title("pace of each node")
    axes.set_xlabel(_time(run))
    axes.set_ylabel("samples / virtual s" if run.virtual else "samples / s")
    lines = {rank: _pace(run.nodes, rank, end_s) for rank in sorted({int(p["rank"]) for p in run.nodes})}
    lines = {rank: line for rank, line in lines.items() if line[0]}
    means = {rank: _mean_pace(run.nodes, rank) for rank in lines}
    middle = median_high(means.values()) if means else 0.0
    slow = sorted((rank for rank in means if means[rank] * SLOW_FACTOR < middle), key=lambda rank: means[rank])
    for rank, (x, y) in lines.items():
        is_slow = rank in slow
        axes.plot(
            x, y, color=SLOW if is_slow else OTHERS, linewidth=1.8 if is_slow else 1.0, zorder=3 if is_slow else 2
        )
    axes.set_xlim(0, end_s * 1.02)
    top = max((value for _, y in lines.values() for value in y), default=0.0) or 1.0  # all are 0 before a gradient
    axes.set_ylim(0, top * 1.22)
    for group in _alike(slow, means)[:NAMED_MAX]:
        factor = middle / means[group[0]] if means[group[0]] > 0 else float("inf")
        highest = max(lines[rank][1][-1] for rank in group)
        _note(axes, f"{_called(run, group)}: {factor:.1f}× slower", (end_s, highest), SLOW)
    if others := [rank for rank in lines if rank not in slow]:
        _note(axes, _called(run, others), (end_s, max(value for rank in others for value in lines[rank][1])), TEXT)


def _note(axes: Axes, text: str, place: tuple[float, float], colour: str) -> None:
    """A label just above the right end of a line."""
    axes.annotate(
        text, place, xytext=(-2, 4), textcoords="offset points", ha="right", va="bottom", fontsize=10, color=colour
    )


def _alone(axes: Axes, run: _Run, key: str, score: str) -> None:
    x, y = _columns(run.alone, key, score)
    if not y:
        return
    label = "one machine, evaluation"
    if score == "accuracy":
        label = "one machine, as fast as the fastest" if key == "time_s" else f"one machine: {y[-1]:.3f}"
    if key == "time_s" and not run.config.get("settings", {}).get("compute", "none").startswith(("c", "u", "l")):
        return  # its time was made up
    axes.plot(x, y, color=ALONE, linewidth=1.3, linestyle=(0, (4, 2)), label=label, zorder=3)


def _dress(axes: Axes) -> None:
    axes.title.set(fontsize=12, color=TEXT)
    axes.tick_params(labelsize=10, colors=TEXT)
    axes.xaxis.label.set(fontsize=10.5, color=TEXT)
    axes.yaxis.label.set(fontsize=10.5, color=TEXT)
    axes.grid(visible=True, color="#dfe6ec", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#9aa9b8")
    if (legend := axes.get_legend()) is not None:
        legend.set_frame_on(True)
        legend.get_frame().set(edgecolor="none", facecolor="white", alpha=0.85)
        for text in legend.get_texts():
            text.set(fontsize=10, color=TEXT)


# ------------------------------------------------------------------------------------------ words and numbers


def _headline(run: _Run) -> tuple[str, str]:
    """What was run, and under which conditions."""
    s = run.config.get("settings", {})
    task = str(run.config.get("task", "")).rpartition("/")[2].partition(":")[0]
    first = [
        task,
        f"{s.get('algorithm')} on {Path(str(s.get('topology'))).name}",
        f"{len(run.names)} node{'s' * (len(run.names) != 1)}",
    ]
    second = [f"split {s.get('split')}", *(f"{k} {s[k]:g}" for k in ("drop", "duplicate", "reorder") if s.get(k))]
    if s.get("straggler"):
        second.append("straggler " + ", ".join(s["straggler"]))
    if s.get("compute", "none") != "none":
        second.append(f"compute {s['compute']}" + (" (emulated)" if not run.virtual else ""))
    if run.virtual:
        second.append("simulated")
    return _plain(", ".join(first)), _plain(", ".join(second))


def _label(run: _Run, y: Sequence[float]) -> str:
    return f"{len(run.names)} nodes: {y[-1]:.3f}" if len(run.names) > 1 else f"accuracy: {y[-1]:.3f}"


def _alike(slow: Sequence[int], means: dict[int, float]) -> list[list[int]]:
    """The slow nodes, slowest first, those of about the same pace in one group: their labels would overlap."""
    groups: list[list[int]] = []
    for rank in slow:
        if groups and means[rank] < 1.25 * means[groups[-1][0]]:
            groups[-1].append(rank)
        else:
            groups.append([rank])
    return groups


def _called(run: _Run, ranks: Sequence[int]) -> str:
    if len(ranks) > 8:
        return f"{len(ranks)} nodes"
    return ("nodes " if len(ranks) > 1 else "node ") + ", ".join(_name(run, rank) for rank in sorted(ranks))


def _name(run: _Run, rank: int) -> str:
    name = run.names[rank] if rank < len(run.names) else str(rank)
    return _plain(name if len(name) <= 16 else name[:15] + "…")


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib would set what stands between two of them as mathematics


def _time(run: _Run) -> str:
    return "virtual seconds" if run.virtual else "seconds"


def _count(value: float, _: int) -> str:
    return f"{value / 1e6:g} M" if value >= 1e6 else f"{value / 1e3:g} k" if value >= 1e3 else f"{value:g}"


def _columns(rows: Sequence[Row], x: str, y: str) -> tuple[list[float], list[float]]:
    both = [(row[x], row[y]) for row in rows if row.get(y) is not None and row.get(x) is not None]
    return [a for a, _ in both], [b for _, b in both]


def _smooth(values: Sequence[float]) -> list[float]:
    """An exponential average over about ten values, without bias at the start; of few values none."""
    newest = min(1.0, max(0.1, 20 / max(len(values), 1)))
    smoothed: list[float] = []
    total = weight = 0.0
    for value in values:
        total, weight = (1 - newest) * total + newest * value, (1 - newest) * weight + newest
        smoothed.append(total / weight)
    return smoothed


def _pace(rows: Sequence[Row], rank: int, end_s: float) -> tuple[list[float], list[float]]:
    """A node's samples a second over time: the difference of its counts over windows wide enough to hold some."""
    own = [(0.0, 0), *((row["time_s"], row["samples"]) for row in rows if row["rank"] == rank)]
    own = [(at, count) for at, count in own if at <= end_s * 1.02]
    window_s = max(end_s * SMOOTH_S_SHARE, 0.9)
    xs: list[float] = []
    ys: list[float] = []
    first = 0
    for at, count in own[1:]:
        while own[first + 1][0] <= at - window_s:
            first += 1
        since_s, before = own[first]
        if at > since_s:
            xs.append(at)
            ys.append((count - before) / (at - since_s))
    return xs, ys


def _mean_pace(rows: Sequence[Row], rank: int) -> float:
    own = [row for row in rows if row["rank"] == rank]
    return float(own[-1]["samples"] / own[-1]["time_s"]) if own and own[-1]["time_s"] > 0 else 0.0


# ------------------------------------------------------------------------------------------ the folder


def _read(folder: Path) -> _Run:
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise UsageError(f"{folder}: {what}; give the one that a run was told with --out")
    config, result = _object(folder / "config.json"), folder / "result.json"
    points = _lines(folder / "metrics.jsonl")
    if not points:
        raise UsageError(f"{folder / 'metrics.jsonl'}: no evaluations yet: there is nothing to draw")
    nodes, alone = (_lines(p) if (p := folder / name).is_file() else [] for name in ("nodes.jsonl", "baseline.jsonl"))
    run = _Run(config, points, nodes, alone, _object(result) if result.is_file() else {})
    for rows, file, needed in (
        (run.points, "metrics", ("time_s", "samples")),
        (run.nodes, "nodes", ("time_s", "rank", "samples")),
        (run.alone, "baseline", ("time_s", "samples")),
    ):
        for number, row in enumerate(rows, 1):
            if not all(isinstance(row.get(name), int | float) for name in needed):
                raise UsageError(f"{folder / file}.jsonl, line {number}: {' or '.join(needed)} is missing or no number")
    return run


def _object(path: Path) -> Row:
    found = _parsed(_text(path), str(path))
    if not isinstance(found, dict):
        raise UsageError(f"{path}: not a JSON object; it is not what a run wrote")
    return found


def _lines(path: Path) -> list[Row]:
    rows = [_parsed(line, f"{path}, line {n}") for n, line in enumerate(_text(path).splitlines(), 1) if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{path}: a line is not a JSON object; it is not what a run wrote")
    return rows


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; give the folder that a run was told with --out") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text at byte {error.start}; it is not what a run wrote") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not valid JSON: {error}") from None
