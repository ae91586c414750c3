"""What becomes of a run: its files, its pictures, its summary or its line of JSON, its exit status."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rfast_zmq import plotting
from rfast_zmq.assembly import Plan
from rfast_zmq.cli import FAILED, INTERRUPTED, USAGE
from rfast_zmq.cli.progress import RUN_FILES, make_console, size, slow_node
from rfast_zmq.errors import RfastError, UsageError
from rfast_zmq.launch import Run
from rfast_zmq.results import RunFolder
from rfast_zmq.simulate import Simulation


@dataclass
class Outcome:
    """A run that has ended.

    Attributes:
        plan: what was run.
        run: what it gave.
        interrupted: by Ctrl-C.
        require: the accuracy without which the exit status is 1.
        rank: the only node that ran here; None: all.
        baseline: the same task on one machine.
    """

    plan: Plan
    run: Run
    interrupted: bool = False
    require: float | None = None
    rank: int | None = None
    baseline: Simulation | None = None


def open_folder(path: Path | None) -> RunFolder | None:
    """The folder of ``--out``, made if it is not there.

    Raises:
        UsageError: it cannot be.
    """
    if path is None:
        return None
    try:
        return RunFolder(path)
    except OSError as error:
        raise UsageError(f"--out {path}: cannot be made a folder: {error.strerror}; give another") from None


def finish(outcome: Outcome, folder: RunFolder | None, *, json: bool) -> int:
    """Save, draw and print.

    Args:
        outcome: of the run.
        folder: where its files go; None: nowhere.
        json: print one line of JSON instead of a summary.

    Returns:
        The exit status.

    Raises:
        RfastError: the folder cannot be written to.
    """
    result = outcome.run.result
    if outcome.baseline is not None:
        result.baseline_accuracy = outcome.baseline.result.accuracy
    pictures: list[Path] = []
    console = make_console(json)
    if folder is not None:
        _save(outcome, folder)
        if outcome.rank in (None, outcome.plan.topology.root):  # only the root evaluates: the others have no curve
            pictures = _draw(folder, Console(file=sys.stderr, highlight=False, markup=False))
    if not json:
        _summary(outcome, console)
        if folder is not None:
            _where(folder, pictures, console)
    status = _verdict(outcome, folder)
    if json:
        print(result.to_json())
    return status


def _save(outcome: Outcome, folder: RunFolder) -> None:
    run = outcome.run
    try:
        folder.metrics(run.points)
        folder.nodes(run.node_points)
        folder.baseline(None if outcome.baseline is None else outcome.baseline.points)
        if run.model is not None:
            folder.model(run.model)
        folder.result(run.result)
    except OSError as error:
        raise RfastError(f"--out {folder.path}: cannot be written to: {error.strerror}") from None


def _draw(folder: RunFolder, hints: Console) -> list[Path]:
    try:
        return plotting.pictures(folder.path)
    except UsageError as error:  # no matplotlib, or no evaluation yet: the run is worth no less
        hints.print(Text(f"no pictures: {error}"), soft_wrap=True)
        return []


def _verdict(outcome: Outcome, folder: RunFolder | None) -> int:
    result, require = outcome.run.result, outcome.require
    if result.trouble is not None:
        if outcome.run.model is None:
            kept = "there was no model before it to keep"
        elif folder is not None:
            kept = f"the model before it is kept: {folder.path / 'model.safetensors'}"
        else:
            kept = "with --out DIR the model before it is kept"
        who = outcome.plan.topology.called(result.trouble)
        return _complain(f"{who}: its loss is not a finite number; {kept}; try a lower --lr", USAGE)
    root, lost = outcome.plan.topology.root, _root_lost(outcome)
    if outcome.interrupted:
        if lost:
            _complain("the root did not answer: no model could be saved", INTERRUPTED)
        return INTERRUPTED
    if lost:
        who, kept = outcome.plan.topology.called(root), "" if folder is None else "; the other results are kept"
        return _complain(f"{who}, the root, died: no model could be saved{kept}", FAILED)
    if require is not None and result.accuracy is None:
        return _complain(f"--require {require}: the task's evaluate() gave no accuracy", FAILED)
    if require is not None and result.accuracy is not None and not result.accuracy >= require:  # nan is not enough
        return _complain(f"--require {require}: the accuracy ended at {result.accuracy:.4f}", FAILED)
    return 0


def _root_lost(outcome: Outcome) -> bool:
    """Whether the root went, and its model with it."""
    return outcome.run.model is None and outcome.plan.topology.root in outcome.run.result.missing


def _complain(line: str, status: int) -> int:
    sys.stdout.flush()
    print(f"rfast: {line}", file=sys.stderr)
    return status


# ------------------------------------------------------------------------------------------ the summary


def _summary(outcome: Outcome, console: Console) -> None:
    table = Table.grid(padding=(0, 2))
    for label, value in _rows(outcome):
        table.add_row(Text(label), Text(value))
    console.print()
    console.print(table)
    if len(outcome.run.result.per_node) > 1:
        console.print()
        console.print(_nodes(outcome))


def _rows(outcome: Outcome) -> list[tuple[str, str]]:
    plan, result = outcome.plan, outcome.run.result
    seen_from = plan.topology.root if outcome.rank is None else outcome.rank
    partial = seen_from != plan.topology.root  # one node, which knows of the run only what comes by
    settings, virtual = plan.settings, " of virtual time" if result.simulated else ""
    rows = []
    if result.accuracy is not None:
        rows.append(("accuracy", f"{result.accuracy:.4f}"))
    if result.baseline_accuracy is not None:
        rows.append(
            ("  of one machine", f"{result.baseline_accuracy:.4f} (same lr, batch, optimizer and samples; simulated)")
        )
    if result.loss is not None:
        rows.append(("loss", f"{result.loss:.4f}"))
    rows += [(name, f"{value:.4g}") for name, value in result.extra.items()]
    emulated = f" (gradient times emulated: {settings.compute})" if plan.speeds.emulated and not virtual else ""
    if partial:
        own = sum(int(node["samples"]) for node in result.per_node)
        rows.append(("own samples", f"{own:,}"))
        rows.append(("the run", f"{result.rounds:,.1f} rounds of {settings.global_batch}, as last heard"))
    else:
        rows.append(("samples", f"{result.samples:,} in {result.rounds:,.1f} rounds of {settings.global_batch}"))
    rows.append(("time", f"{result.wall_s:.1f} s{virtual}{emulated}"))
    if settings.target is not None and not partial:
        reached = (
            f"after {result.target_s:.1f} s and {result.target_samples:,} samples" if result.target_s else "not reached"
        )
        rows.append((f"accuracy {settings.target:g}", reached))
    if not partial:
        rows.append(("staleness", f"{result.staleness_rounds:.2f} rounds in the mean"))
    faults = [f"{times:,} {name}" for name, times in result.faults.items() if times]
    refused = [f"{times:,} refused ({reason})" for reason, times in result.messages_refused.items()]
    sent = f"{result.messages_sent:,} sent, {size(result.bytes_sent)}"
    rows.append(("messages", ", ".join([sent, *faults, *refused])))
    if result.cpu_s is not None:
        communication = (
            f", {result.communication_cpu_s:.1f} s of it communication" if result.communication_cpu_s else ""
        )
        rows.append(("cpu", f"{result.cpu_s:.1f} s{communication}"))
    if result.identity_error is not None:
        rows.append(("identity error", f"{result.identity_error:.1e}"))
    paces = {int(n["rank"]): n["pace"] for n in result.per_node if n["pace"] > 0}
    if len(paces) > 1:
        rows.append(("slow node", slow_node(plan, paces).removeprefix("slow: ")))
    elif result.slowest_node is not None and plan.topology.push_tree.children[seen_from]:
        slowest, whose = result.slowest_node, " of the subtree" if partial else ""
        who = plan.topology.called(int(slowest["rank"]))
        rows.append((f"slowest node{whose}", f"{who}, {slowest['pace']:,.0f} samples/s"))
    for label, ranks in (("set aside", result.set_aside), ("did not end", result.missing)):
        if ranks:
            rows.append((label, ", ".join(plan.topology.called(rank) for rank in ranks)))
    return rows


def _nodes(outcome: Outcome) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    result = outcome.run.result
    waits = result.wall_s > 0 and any(node.get("waited_s", 0) for node in result.per_node)
    headings = ("node", "gradients", "samples", "samples/s of computing", *(["waited for others"] if waits else []))
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "node" else "right")
    names, root = outcome.plan.topology.names, outcome.plan.topology.root
    for node in result.per_node:
        rank = int(node["rank"])
        name = Text(names[rank] + (" (root)" if rank == root else ""))
        waited = [f"{node.get('waited_s', 0) / result.wall_s:.0%} of the time"] if waits else []
        table.add_row(name, f"{node['gradients']:,.0f}", f"{node['samples']:,.0f}", f"{node['pace']:,.0f}", *waited)
    return table


def _where(folder: RunFolder, pictures: list[Path], console: Console) -> None:
    there = [name for name in RUN_FILES if not name.endswith(".png") and (folder.path / name).exists()]
    console.print()
    console.print(Text(f"files in {folder.path}: {', '.join(there)}"), soft_wrap=True)
    if pictures:
        console.print(Text(f"pictures: {', '.join(str(path) for path in pictures)}"), soft_wrap=True)
