"""``rfast bench overhead``: a training loop as a node among others, beside the same loop by itself."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rfast_zmq.assembly import find_device
from rfast_zmq.bench.crew import Crew, cores, spread_over_cores
from rfast_zmq.bench.figures import Figures, at_least
from rfast_zmq.bench.loops import OPTIMIZERS, Work, bare_loop, calibrate, node_loop
from rfast_zmq.errors import RfastError, UsageError
from rfast_zmq.topology import Endpoints, build, to_toml
from rfast_zmq.transport import Addresses

MIDDLE, INNER, LEAF = 1, 1, 4
"""Of the line of three, and of the binary tree of five (which has two children and a parent),
and one of its children."""
WARM = 10
"""Steps before those that are counted: the pace settles, memory is there."""
PRELOADED = ("rfast_zmq.bench.loops", "torch._dynamo")
"""Any optimiser of torch imports the second when it is made."""
SMALL = 1_000_000
"""Parameters of the model that is reported very often."""
IMPORTS = """
import time
began = time.perf_counter()
import torch
torch_there = time.perf_counter()
import rfast_zmq
package_there = time.perf_counter()
from rfast_zmq import optim
print(package_there - torch_there, time.perf_counter() - torch_there)
"""


@dataclass(frozen=True, kw_only=True)
class OverheadOptions:
    """
    Attributes:
        parameters: of the model.
        gradient_ms: how long forward and backward pass take, at least, in milliseconds; the core is busy meanwhile.
        optimizer: one of :data:`~rfast_zmq.bench.loops.OPTIMIZERS`.
        steps: counted in one measurement.
        reports: after so many, memory is looked at again.
        repeats: measurements of each kind, in turn.
        device: of the loop that is measured; the other nodes are always on the CPU.
    """

    parameters: int = 25_000_000
    gradient_ms: float = 50.0
    optimizer: str = "nadam"
    steps: int = 40
    reports: int = 10_000
    repeats: int = 5
    device: str = "cpu"

    def __post_init__(self) -> None:
        at_least("parameters", self.parameters, 2)
        at_least("gradient-ms", self.gradient_ms, 0)
        at_least("steps", self.steps, 1)
        at_least("reports", self.reports, 10)
        at_least("repeats", self.repeats, 1)
        if self.optimizer not in OPTIMIZERS:
            raise UsageError(f"--optimizer {self.optimizer}: one of {', '.join(OPTIMIZERS)}")
        find_device(self.device)


def overhead(options: OverheadOptions, tell: Callable[[str], None]) -> Figures:
    """Measure.

    Args:
        options: sizes.
        tell: told how it goes.
    """
    device = find_device(options.device)
    options = replace(options, device=str(device))
    pinned = _middle_alone() if device.type == "cpu" else [None] * 3
    figures = Figures(
        "overhead",
        parameters=options.parameters,
        gradient_ms=options.gradient_ms,
        optimizer=options.optimizer,
        steps=options.steps,
        reports=options.reports,
        repeats=options.repeats,
        device=_named(device),
        pinned=pinned,
        note="loopback (ipc); one process a node, one torch thread each; the loop that is measured has a core to itself"
        " where there are two, or is on a GPU, and the other nodes are on the CPU",
    )
    with tempfile.TemporaryDirectory(prefix="rfast-") as folder:
        _steps(figures, options, pinned, Path(folder), tell)
        _memory(figures, options, Path(folder), tell)
    _imports(figures, options.repeats, tell)
    return figures


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _middle_alone() -> list[int | None]:
    """A core for each of the line of three; the middle shares its with nobody if there are two."""
    found = cores()
    if not found:
        return [None] * 3
    others = [core for core in found if core != found[-1]] or found
    return [others[0], found[-1], others[-1]]


def _topology(folder: Path, family: str, nodes: int) -> str:
    """A file that names Unix sockets for so many nodes."""
    ipc = Addresses.ipc(folder, nodes)
    ends = tuple(Endpoints(pull, push) for pull, push in zip(ipc.pull, ipc.push, strict=True))
    path = folder / f"{family}.toml"
    path.write_text(to_toml(replace(build(family, nodes), endpoints=ends)))
    return str(path)


# ------------------------------------------------------------------------------------------------ time


def _steps(
    figures: Figures,
    options: OverheadOptions,
    pinned: Sequence[int | None],
    folder: Path,
    tell: Callable[[str], None],
) -> None:
    topology = _topology(folder, "line", 3)
    work, others = (Work(options.parameters, 0, options.optimizer, on) for on in (options.device, "cpu"))
    ours: list[dict[str, float]] = []
    bare_s: list[float] = []
    with Crew(pinned, *PRELOADED) as crew:
        crew.start(MIDDLE, calibrate, others, options.gradient_ms / 1e3)
        others = replace(others, extra=crew.result(MIDDLE)[0])
        crew.start(MIDDLE, calibrate, work, options.gradient_ms / 1e3)
        extra, gradient_s = crew.result(MIDDLE)
        works = [replace(work, extra=extra) if rank == MIDDLE else others for rank in range(3)]
        tell(f"forward and backward pass take {gradient_s * 1e3:.1f} ms")
        for repeat in range(options.repeats):
            crew.start(MIDDLE, bare_loop, works[MIDDLE], WARM, options.steps)
            bare_s.append(crew.result(MIDDLE)["step_s"])
            ours.append(_node_step(crew, works, topology, options.steps))
            tell(
                f"{repeat + 1}/{options.repeats} a step: {bare_s[-1] * 1e3:.1f} ms by itself,"
                f" {ours[-1]['step_s'] * 1e3:.1f} ms as a node; C {ours[-1]['pace_s'] * 1e3:.0f} ms,"
                f" {ours[-1]['mb_per_s']:.0f} MB/s sent, {ours[-1]['staleness']:.2f} rounds stale"
            )

    def each(name: str) -> list[float]:
        return [found[name] for found in ours]

    ratios = [a / b for a, b in zip(each("step_s"), bare_s, strict=True)]
    figures.add("step_ratio", ratios, "a step as the middle of three nodes over a step by itself", ("<=", 1.10))
    figures.add("step_ms", [s * 1e3 for s in each("step_s")], "a step as a node, ms")
    figures.add("bare_step_ms", [s * 1e3 for s in bare_s], "a step by itself, ms")
    figures.add("measured_gradient_ms", [gradient_s * 1e3], "forward and backward pass of it, ms")
    figures.add("pace_s", each("pace_s"), "C, the pace that the root chose, s")
    figures.add("mb_per_s", each("mb_per_s"), "sent by the middle node, both ways, MB/s")
    figures.add("staleness_rounds", each("staleness"), "staleness of the gradients, rounds of 8 steps of each node")


def _node_step(crew: Crew, works: Sequence[Work], topology: str, steps: int) -> dict[str, float]:
    before, after, staleness = _nodes(crew, works, topology, MIDDLE, (WARM, WARM + steps))
    took_s = after["at_s"] - before["at_s"]
    return {
        "step_s": took_s / steps,
        "pace_s": after["pace_s"],
        "mb_per_s": (after["bytes_sent"] - before["bytes_sent"]) / took_s / 1e6,
        "staleness": staleness,
    }


def _nodes(
    crew: Crew, works: Sequence[Work], topology: str, watched: int, marks: tuple[int, int]
) -> tuple[dict[str, float], dict[str, float], float]:
    """A whole run: how ``watched`` stands after so many steps, and so many; how stale the root saw the gradients."""
    nodes = len(works)
    for rank, work in enumerate(works):
        crew.start(rank, node_loop, work, topology, rank, marks if rank == watched else ())
    for rank in range(nodes):
        crew.result(rank)  # there
    for rank in range(nodes):
        crew.tell(rank, "go")
    before, after = crew.result(watched), crew.result(watched)
    crew.tell(0, "end")
    staleness, *_ = [crew.result(rank) for rank in range(nodes)]
    return before, after, float(staleness)


# ------------------------------------------------------------------------------------------------ memory


def _memory(figures: Figures, options: OverheadOptions, folder: Path, tell: Callable[[str], None]) -> None:
    nodes, topology = 5, _topology(folder, "binary-tree", 5)
    on_cpu = Work(options.parameters, 0, options.optimizer)
    works = [replace(on_cpu, device=options.device) if rank == INNER else on_cpu for rank in range(nodes)]
    model_bytes = 4.0 * options.parameters
    with Crew(spread_over_cores(nodes), *PRELOADED) as crew:
        # First the small model: what a large one leaves behind would hide its growth.
        small, early = [replace(w, parameters=min(SMALL, w.parameters)) for w in works], options.reports // 10
        before, after, _ = _nodes(crew, small, topology, INNER, (early, options.reports))
        crew.start(LEAF, bare_loop, works[INNER], WARM, WARM)
        bare = crew.result(LEAF)
        _, inner, _ = _nodes(crew, works, topology, INNER, (WARM, WARM + options.steps))
    growth = (after["steady_bytes"] - before["steady_bytes"]) / (4.0 * small[INNER].parameters)
    tell(f"memory of an inner node from report {early} to {options.reports}: grows by {growth:.2f} models")
    peak, steady = ((inner[name] - bare[name]) / model_bytes for name in ("peak_bytes", "steady_bytes"))
    tell(f"and above the loop by itself: {peak:.2f} models at the most, {steady:.2f} at the end")
    what = "resident memory of an inner node of a binary tree above the loop's by itself, in model sizes"
    figures.add("memory_models", [peak], f"{what}: the most", ("<=", 6.0))
    figures.add("memory_steady_models", [steady], f"{what}: at the end")
    figures.add(
        "memory_growth_models",
        [growth],
        f"its growth over {options.reports - early} reports, {small[INNER].parameters} parameters, in model sizes",
    )


# ------------------------------------------------------------------------------------------------ imports


def _imports(figures: Figures, repeats: int, tell: Callable[[str], None]) -> None:
    package_ms, optim_ms = [], []
    for repeat in range(repeats):
        done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RfastError(f"rfast_zmq cannot be imported:\n{done.stderr}")
        package, both = (float(word) * 1e3 for word in done.stdout.split())
        package_ms.append(package)
        optim_ms.append(both)
        tell(f"{repeat + 1}/{repeats} import beyond torch: {package:.1f} ms, with optim {both:.0f} ms")
    figures.add("import_ms", package_ms, "import rfast_zmq, beyond torch, ms", ("<=", 150.0))
    figures.add("import_optim_ms", optim_ms, "from rfast_zmq import optim, beyond torch, ms", ("<=", 150.0))
