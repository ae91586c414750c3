"""``rfast bench report``: the tables in Markdown and the pictures, for a folder or into a page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import inf
from pathlib import Path
from statistics import median

from rfast_zmq.bench.suites import pictures
from rfast_zmq.bench.suites.catalogue import suite as named
from rfast_zmq.bench.suites.ground import SIGMA, STRAGGLER_FACTOR, STRAGGLER_RANK, Ground
from rfast_zmq.bench.suites.runner import FIXED, OWN
from rfast_zmq.bench.suites.standings import NOT_RUN, Reached, Standing, Table, ratios, reached, spread, tables_of
from rfast_zmq.bench.suites.store import Row, Store
from rfast_zmq.errors import UsageError
from rfast_zmq.results import write_whole

KINDS = {FIXED: "B = {batch}, each at its best lr", OWN: "each at its own best B and lr"}


def write(folder: Path, page: Path | None = None) -> list[Path]:
    """Write ``report.md`` and the pictures into the folder of a suite; or into a page, between its marks.

    Args:
        folder: of the suite.
        page: a Markdown file that holds ``<!-- SUITE/GROUND -->`` and ``<!-- end SUITE/GROUND -->`` for each ground
            that it is to show; its pictures go to ``images/bench`` beside it. Tables of each one's own B go between
            ``<!-- SUITE/GROUND/own -->`` and its end, if the page has that, so that they can be of other runs.

    Returns:
        The files written.

    Raises:
        UsageError: no suite, no runs yet, no mark of this suite on the page, or a file that cannot be written.
    """
    try:
        return _write(folder, page)
    except OSError as error:
        raise UsageError(f"{error.filename or folder}: {error.strerror}") from None


def _write(folder: Path, page: Path | None) -> list[Path]:
    store = Store(folder, None)
    tables = tables_of(named(store.suite), store)
    if not tables:
        raise UsageError(f"{folder}: no run of {store.suite} is done yet; go on with rfast bench run")
    grounds = list({t.block.ground.name: t.block.ground for t in tables}.values())
    text = "" if page is None else _read(page)
    images = folder if page is None else page.parent / "images" / "bench"
    images.mkdir(parents=True, exist_ok=True)
    made: list[Path] = []
    shown = []
    over_nodes = f"{store.suite}/nodes"
    if len({ground.nodes for ground in grounds}) > 1 and (page is None or f"<!-- {over_nodes} -->" in text):
        picture = pictures.growth(tables, images / f"{store.suite}-nodes.png")
        made.append(picture)
        body = side_by_side(tables, f"{picture.relative_to(images if page is None else page.parent)}")
        shown.append(f"## Over the number of nodes\n\n{body}")
        if page is not None:
            text = _between(text, over_nodes, body, page)
    for ground in grounds:
        mark = f"{store.suite}/{ground.name}"
        kinds = {mark: [FIXED, OWN]}
        if page is not None:
            own = f"{mark}/{OWN}"
            kinds = {mark: [FIXED], own: [OWN]} if f"<!-- {own} -->" in text else kinds
        for mark, of_kinds in kinds.items():
            part = [t for t in tables if t.block.ground is ground and t.kind in of_kinds]
            if not part or (page is not None and f"<!-- {mark} -->" not in text):
                continue
            drawn = pictures.draw(part, images, f"{store.suite}-{ground.name}")
            made += drawn
            links = [f"{p.relative_to(images if page is None else page.parent)}" for p in drawn]
            body = section(ground, part, [f for f in reached(part) if f.aim.table in of_kinds], links)
            shown.append(f"## {ground.title}\n\n{body}")
            if page is not None:
                text = _between(text, mark, body, page)
    if page is None:
        page, text = folder / "report.md", f"# {store.suite}\n\n" + "\n".join(shown) + _tuning(tables)
    elif not shown:
        raise UsageError(f"--page {page}: has no <!-- {store.suite}/{grounds[0].name} -->, nor another ground's mark")
    write_whole(page, text)
    return [page, *made]


def section(ground: Ground, tables: Sequence[Table], figures: Sequence[Reached], links: Sequence[str]) -> str:
    """All that is to be said of one ground, in Markdown."""
    compared = bool(figures) or any(t.named(t.block.reference) and not t.cell.to_the_end for t in tables)
    parts = [_conditions([ground], tables, compared)]
    for link in links:
        parts.append(f"![{Path(link).stem.replace('-', ' ')}]({link})")
    if figures:
        lines = ["| figure | to reach | measured | |", "| --- | --- | --- | --- |"]
        lines += [_figure(f) for f in figures]
        parts.append("\n".join(lines))
    for kind in (FIXED, OWN):
        of_kind = [t for t in tables if t.kind == kind]
        if of_kind:
            parts.append(f"### {KINDS[kind].format(batch=ground.batch)}".replace("###", "####"))
            for table in of_kind:
                parts.append(f"**{table.cell.title}**")
                parts.append(_table(table))
    return "\n\n".join(parts) + "\n"


def side_by_side(tables: Sequence[Table], link: str) -> str:
    """Grounds that differ in the number of nodes: times to the target and bytes over that, two tables a cell."""
    grounds = list({t.block.ground.nodes: t.block.ground for t in tables}.values())
    parts = [_conditions(grounds, tables, compared=False)]
    parts.append(f"![over the number of nodes]({link})")
    for cell in dict.fromkeys(t.cell for t in tables):
        of_cell = {t.block.ground.nodes: t for t in tables if t.cell == cell}
        labels = dict.fromkeys(s.contestant.label for t in of_cell.values() for s in t.standings)
        limit = ["*no-wait limit*", *(spread(t.limit_s().values(), _seconds) for t in of_cell.values())]
        for what, tell, more in (
            (f"virtual s to {grounds[0].target:g}", _time_and_nevers, [limit]),
            ("MB sent to there", lambda s: "" if s.stops else _megabytes(s), []),
        ):
            head = [f"{cell.title}: {what}", *(f"{n:,} nodes" for n in of_cell)]
            lines = [head, ["---"] * len(head)]
            for label in labels:
                found = [t.named(label) for t in of_cell.values()]
                lines.append([f"`{label}`", *("not run" if s is None else tell(s) for s in found)])
            parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines + more))
    return "\n\n".join(parts) + "\n"


def _time_and_nevers(s: Standing) -> str:
    if s.stops:
        return "stops"
    return _time(s) + (f", {s.nevers} of {len(s.runs)} seeds never" if 0 < s.nevers < len(s.runs) else "")


def _conditions(grounds: Sequence[Ground], tables: Sequence[Table], compared: bool) -> str:
    """What holds for every table of grounds that differ in nothing but the number of nodes; ``compared``: they have
    ratios or differences."""
    ground = grounds[0]
    rows = [row for t in tables for s in t.standings for row in s.runs.values()]
    seeds = sorted({row["seed"] for row in rows})
    processors = sorted({row["processor"] for row in rows})
    torches = sorted({row["versions"].get("torch", "?") for row in rows})
    how = (
        f"in virtual time, each node on a line of {ground.bytes_per_s * 8 / 1e6:,.4g} Mbit/s out and in,"
        f" {ground.latency_s * 1e3:g} ms under way"
        if ground.simulated
        else "one process a node on this machine, each in a network namespace whose line out and in `tc tbf` limits to"
        f" {ground.bytes_per_s * 8 / 1e6:,.4g} Mbit/s, wall clock from the common start"
        if ground.hosts
        else "one process a node on this machine, wall clock from the common start"
    )
    nodes = f"{ground.nodes}"
    share = (
        f"a node needs {ground.share_s:g} s for its share of B = {ground.batch} samples, in proportion for other sizes"
    )
    if len(grounds) > 1:
        nodes = f"{ground.nodes:,} to {grounds[-1].nodes:,}"
        share = f"a sample takes any node {ground.share_s * ground.nodes / ground.batch:g} s; B is {ground.batch:,}"
    end = f"To an accuracy of {ground.target:g}, or {ground.samples:,} samples"
    if all(t.cell.to_the_end for t in tables):
        end = f"All of {ground.samples:,} samples"
    slow = min(STRAGGLER_RANK, ground.nodes - 1)
    speeds = {
        "straggler": f"; with a straggler, node {slow} takes {STRAGGLER_FACTOR} times as long as the others",
        "lognormal": f"; lognormal: each share times a draw with σ = {SIGMA:g}",
    }
    occur = "".join(said for name, said in speeds.items() if any(t.cell.speeds == name for t in tables))
    return (
        f"{nodes} nodes, {how}. Computing is emulated: {share}{occur}. {end}. Medians"
        f" of seeds {_ranges(seeds)} (least to most){', compared seed by seed' if compared else ''}."
        f" torch {', '.join(torches)}; {', '.join(processors)}.{_mixed(tables, rows)}"
    )


def _mixed(tables: Sequence[Table], rows: Sequence[Row]) -> str:
    """A warning where what stands side by side was not made alike."""
    virtual = all(t.block.ground.simulated for t in tables)
    alone = [row for t in tables if t.alone for row in t.alone.runs.values()]  # always in virtual time
    found = []
    if len({row.get("code") for row in (*rows, *(alone if virtual else ()))}) > 1:
        found.append("state of the code")
    if len({row["data"] for row in (*rows, *alone) if row.get("data")}) > 1:
        found.append("data file")
    if not virtual and len({row["processor"] for row in rows}) > 1:
        found.append("kind of machine")
    return "".join(f" **The runs are of more than one {what}.**" for what in found)


def _table(table: Table) -> str:
    ground = table.block.ground
    unit = "virtual s" if ground.simulated else "s"
    own = table.kind == OWN
    reference = table.named(table.block.reference)
    base = reference.values("target_s") if reference else {}
    end = table.cell.to_the_end
    head = ["algorithm", *(["B"] if own else []), "optimiser, lr"]
    if end:
        head += ["accuracy", "loss", unit]
    else:
        head += [f"{unit} to {ground.target:g}"]
        head += [f"{table.block.reference} ÷ it"] if base else []
        head += ["samples", "MB sent"]
    head += ["waited", *([] if ground.simulated else ["computed", "CPU s"])]
    lines = [head, ["---"] * len(head)]
    for s in table.standings:
        lr = f"{s.contestant.optimizer} {s.lr:.3g}" + (" (end of grid)" if s.open_end else "")
        partly = f" ({len(s.runs)} of {table.seeds} seeds)" if len(s.runs) < table.seeds else ""
        row = [f"`{s.contestant.label}`{partly}", *([f"{s.batch}"] if own else []), lr]
        if s.stops:
            lines.append([*row, "stops", *[""] * (len(head) - len(row) - 1)])
            continue
        if end:
            row += [spread(s.values(name).values(), "{:.4f}".format) for name in ("accuracy", "loss")]
            row += [spread(s.values("wall_s").values(), _seconds)]
        else:
            row += [_time(s)]
            row += [_times(ratios(base, s.values("target_s")))] if base else []
            row += [spread(s.values("target_samples").values(), "{:,.0f}".format)]
            row += [_megabytes(s)]
        row += [_middle(s, "waited_share", "{:.0%}")]
        if not ground.simulated:
            row += [spread(table.computed(s).values(), "{:.0%}".format), _middle(s, "cpu_s", "{:.3g}")]
        lines.append(row)
    if table.alone is not None and not end:
        alone = table.alone
        settings = [*([f"{alone.batch}"] if own else []), f"{alone.contestant.optimizer} {alone.lr:.3g}"]
        samples = spread(alone.values("target_samples").values(), "{:,.0f}".format)
        limit = spread(table.limit_s().values(), _seconds)
        waits = _times(ratios(base, table.limit_s()))
        blank = [""] * (1 if ground.simulated else 3)
        where = "" if ground.simulated else ", in virtual time"
        times = [(f"no-wait limit{where}", limit, waits)]
        times += [(f"one machine{where}", _time(alone), _times(ratios(base, alone.values("target_s"))))]
        for name, time_s, over in times:
            lines.append([f"*{name}*", *settings, time_s, *([over] if base else []), samples, "", *blank])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _time(s: Standing) -> str:
    """To the target; of a run that never was there, where it ended."""
    if s.median_s() == inf:
        diverged = sum(row.get("trouble") is not None for row in s.runs.values())
        ended = _middle(s, "accuracy", "{:.3f}")
        return f"never ({f'diverged in {diverged} of {len(s.runs)}' if diverged else f'{ended} at the end'})"
    return spread(s.values("target_s").values(), _seconds)


def _times(values: Sequence[float]) -> str:
    """Ratios: infinite where only the one got there that others' times are divided by its own."""
    return spread(values, "{:.2f}".format, "∞")


def _megabytes(s: Standing) -> str:
    """Sent by all nodes until the target."""
    return spread((v and v / 1e6 for v in s.values("target_bytes").values()), "{:,.0f}".format)


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"


def _middle(s: Standing, name: str, form: str) -> str:
    found = [v for v in s.values(name).values() if v is not None]
    return form.format(median(found)) if found else "–"


def _figure(f: Reached) -> str:
    aim = f.aim
    where = f"{aim.cell.title}{', own B and lr' if aim.table == OWN else ''}"
    over = {"time": f" against `{aim.over}`", "cpu": f" ÷ that of `{aim.over}`"}.get(aim.kind, "")
    sign = "≤" if aim.kind in ("cpu", "accuracy") else "≥"
    own = f" ({f.label.partition(', ')[2]})" if len(aim.ours) > 1 else ""
    unit = " ×" if aim.kind == "time" else ""
    goal = f"{sign} {aim.least:g}{unit}" if aim.least else "stated"
    if not f.values:
        return f"| {aim.what}{own if f.why != NOT_RUN else ''}{over}; {where} | {goal} | {f.why} | |"
    measured = _times(f.values) + unit
    if f.value == inf:
        measured = f"`{aim.over}` never got there" if min(f.values) == f.value else f"{measured} (never: `{aim.over}`)"
    verdict = "reached" if f.reached else "**not reached**"
    if f.reached is None or not aim.least:
        verdict = "" if not aim.least else f"{len(f.values)} pairs of seeds are too few to say"
    return f"| {aim.what}{own}{over}; {where} | {goal} | {measured} | {verdict} |"


def _tuning(tables: Sequence[Table]) -> str:
    """Every best lr with what its grid said, for the report of the folder."""
    lines = ["", "## Tuning", "", "Lr and B were searched on seeds 1000 and up, in virtual time: factors of 2 until no"]
    lines += ["end of the grid is the best, then √2 to both sides. tuned.jsonl holds every score.", ""]
    ends = sorted({s.contestant.label for t in tables for s in t.standings if s.open_end})
    lines += [f"At the end of its grid: {', '.join(ends) or 'none'}.", ""]
    return "\n".join(lines)


def _ranges(seeds: Sequence[int]) -> str:
    if len(seeds) > 1 and seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))


def _read(page: Path) -> str:
    try:
        return page.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"--page {page}: {error.strerror}; give a Markdown file with the marks of this suite"
        ) from None


def _between(text: str, mark: str, body: str, page: Path) -> str:
    begin, end = f"<!-- {mark} -->", f"<!-- end {mark} -->"
    if end not in text[text.index(begin) :]:
        raise UsageError(f"--page {page}: {begin} has no {end} after it")
    return re.sub(
        re.escape(begin) + ".*?" + re.escape(end), lambda _: f"{begin}\n\n{body}\n{end}", text, count=1, flags=re.DOTALL
    )
