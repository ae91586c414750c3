"""One run of a suite, in virtual time or in real processes, as a line of ``runs.jsonl``."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import asdict
from functools import cache
from math import inf, isfinite
from pathlib import Path
from typing import Any

import torch

from rfast_zmq.algorithms import METHODS
from rfast_zmq.bench.suites.ground import Job, digest, task_file
from rfast_zmq.bench.suites.tuning import Score
from rfast_zmq.errors import RfastError
from rfast_zmq.launch import run
from rfast_zmq.launch.namespaces import Namespaces
from rfast_zmq.results import Point, Result, versions
from rfast_zmq.simulate import Simulator

Row = dict[str, Any]
POINT = ("time_s", "samples", "bytes_sent", "accuracy", "loss")
"""What is kept of an evaluation, in this order."""


def perform(job: Job) -> Row:
    """Run it to its end. A run that the algorithm refuses gives a row that says why under ``stops``.

    Raises:
        KeyboardInterrupt: the user ended a real run.
        UsageError, TaskError: so it would be every time.
        RfastError: a process was killed, or did not end by itself: the run says nothing of the algorithm.
    """
    settings = job.settings()
    row: Row = {
        "key": job.key,
        "series": job.series,
        "ground": job.ground.name,
        "cell": job.cell.key,
        "contestant": job.contestant.label,
        "lr": job.lr,
        "batch": job.batch,
        "seed": job.seed,
        "simulated": job.simulated,
        "settings": {**asdict(settings), "data": job.data and Path(job.data).name},
        "versions": versions(),
        "code": code(job.ground.task, job.simulated),
        "processor": processor(),
        "data": job.data and digest(job.data)[:12],
    }
    if job.cell.loss and not METHODS[settings.algorithm].bears_loss:
        return row | {"stops": "it counts on every message"}
    plan = job.plan()
    if job.simulated:
        alone, ground = job.contestant.alone, job.ground
        line = inf if alone else ground.bytes_per_s
        simulator = Simulator(plan, latency_s=0.0 if alone else ground.latency_s, bytes_per_s=line)
        simulation = simulator.run(job.until_s)
        result = simulation.result
        if simulation.broken_off and result.target_s is None and result.trouble is None:
            row["cut_s"] = job.until_s
        return row | _found(result, simulation.points)
    if job.ground.hosts:
        with Namespaces(plan.topology.nodes, bytes_per_s=job.ground.bytes_per_s) as hosts:
            done = run(plan, hosts=hosts)
    else:
        done = run(plan)
    if done.interrupted:
        raise KeyboardInterrupt
    if done.result.missing:  # slower, or never there, for a reason that is none of the algorithm's
        lost = ", ".join(map(str, done.result.missing))
        raise RfastError(f"rank {lost} did not end by itself")
    return row | _found(done.result, done.points)


def score(row: Row) -> Score:
    """How good a run was: the sooner at the target the better; if it never was there, the higher its accuracy."""
    never = row.get("target_s") is None
    return (inf if never else row["target_s"]), -(row.get("accuracy") or 0.0)


def _found(result: Result, points: list[Point]) -> Row:
    at_target = next((p for p in points if p.time_s == result.target_s), None)
    n = len(result.per_node)
    waited = [node.get("waited_s", 0.0) for node in result.per_node]
    return {
        "target_s": result.target_s,
        "target_samples": result.target_samples,
        "target_bytes": at_target and at_target.bytes_sent,
        "accuracy": _number(result.accuracy),
        "loss": _number(result.loss),
        "wall_s": result.wall_s,
        "samples": result.samples,
        "bytes": result.bytes_sent,
        "cpu_s": result.cpu_s,
        "waited_share": sum(waited) / (n * result.wall_s) if n and result.wall_s else None,
        "staleness_rounds": _number(result.staleness_rounds),
        "identity_error": _number(result.identity_error),
        "trouble": result.trouble,
        "missing": result.missing,
        "points": [[_number(getattr(p, name)) for name in POINT] for p in points],
    }


@cache
def processor() -> str:
    """The name of the CPU, where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _number(value: float | None) -> float | None:
    if value is None or not isfinite(value):
        return None
    return float(f"{value:.7g}") if isinstance(value, float) else value


@cache
def code(task: str, simulated: bool) -> str:
    """A hash of what a run's figures depend on beside its settings: torch's version, the task's file, and this package
    but for what reads results or the command line, the optimiser for a loop of one's own, and what is of real runs, or
    of simulated ones, alone.

    Args:
        task: name of a file of ``nodes``.
        simulated: is it a run in virtual time?
    """
    package = Path(__file__).parents[2]
    others = ("launch", "node", "transport") if simulated else ("simulate",)
    unseen = {package / name for name in ("bench", "cli", "optim", *others)}
    files = [path for path in sorted(package.rglob("*.py")) if not unseen & {*path.parents}]
    found = hashlib.sha256(torch.__version__.encode())
    for path in (*files, task_file(task)):
        found.update(f"{path.name}\0".encode() + path.read_bytes())
    return found.hexdigest()[:12]
