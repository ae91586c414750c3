"""What a run leaves behind: one :class:`Result`, a line of metrics per evaluation, and the files of ``--out DIR``."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rfast_zmq.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(kw_only=True)
class Point:
    """One evaluation, at the root: of its plain iterate θ, or of the mean of all nodes' (``Method.judged_by_mean``).

    Attributes:
        time_s: when the snapshot was taken, in seconds since the start (virtual seconds in a simulation).
        samples, rounds: progress of the snapshot: samples of all nodes, rounds of B samples.
        accuracy: on the task's evaluation data (None: the task gives none).
        loss: on the task's evaluation data (None: the task gives none).
        train_loss: newest mean training loss over the nodes (nan before the first gradient).
        staleness_rounds: mean staleness of the gradients, in rounds.
        bytes_sent: by all nodes until then; in real processes reckoned from their reports, half a second apart (by this
            node alone under ``rfast node``).
        extra: whatever else the task's ``evaluate`` gave.
    """

    time_s: float
    samples: int
    rounds: float
    accuracy: float | None = None
    loss: float | None = None
    train_loss: float | None = None
    staleness_rounds: float = 0.0
    bytes_sent: int = 0
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(kw_only=True)
class NodePoint:
    """How one node stood at a moment.

    Attributes:
        time_s: seconds since the start (virtual seconds in a simulation).
        rank: which node.
        samples: that it had computed until then.
        pace: samples a second since the last of its points.
    """

    time_s: float
    rank: int
    samples: int
    pace: float


@dataclass(kw_only=True)
class Result:
    """One run, as ``--json`` prints it.

    Attributes:
        algorithm, topology, nodes, seed: as run.
        samples: of all nodes.
        rounds: progress, in rounds of B samples.
        accuracy, loss: of the plain iterate at the end, on the task's evaluation data; None: the task gives none.
        wall_s: seconds from the gate to the end (virtual seconds in a simulation).
        target_s, target_samples: when and after how many samples the target was reached; None if it was not.
        identity_error: how far the identity I1 is violated after the drain, relative; None when a node is missing, or
            the algorithm has no such identity.
        staleness_rounds: mean staleness at the root over the evaluations, in rounds.
        bytes_sent: header and payload of every message, before faults.
        messages_sent, messages_received, messages_stale: how many; received are those that got through the faults,
            stale those of them that were dropped for a stamp that was not newer.
        messages_refused: how many, by reason (``docs/wire.md``).
        faults: messages ``dropped``, ``duplicated`` and ``reordered`` on purpose.
        cpu_s: CPU seconds of all nodes since the gate, without those of showing their models where the mean is judged;
            None in a simulation.
        communication_cpu_s: of these, without the threads that compute gradients and evaluate; None in a simulation.
        per_node: by rank: gradients, samples, pace (samples a second of computing), waited_s (for others).
        slowest_node: rank and pace of the slowest node as the root heard it.
        set_aside: ranks set aside at the end.
        missing: ranks that did not end by themselves.
        trouble: rank whose loss was not finite; None.
        simulated: whether times are virtual.
        baseline_accuracy: of one machine at the same hyper-parameters; None if it was not asked for.
        extra: whatever else the task's ``evaluate`` gave.
    """

    algorithm: str
    topology: str
    nodes: int
    seed: int
    samples: int = 0
    rounds: float = 0.0
    accuracy: float | None = None
    loss: float | None = None
    wall_s: float = 0.0
    target_s: float | None = None
    target_samples: int | None = None
    identity_error: float | None = None
    staleness_rounds: float = 0.0
    bytes_sent: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    messages_stale: int = 0
    messages_refused: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    cpu_s: float | None = None
    communication_cpu_s: float | None = None
    per_node: list[dict[str, float]] = field(default_factory=list)
    slowest_node: dict[str, float] | None = None
    set_aside: list[int] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    trouble: int | None = None
    simulated: bool = False
    baseline_accuracy: float | None = None
    extra: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of strict JSON (a number that is not finite becomes null)."""
        return json.dumps(_finite(asdict(self)), sort_keys=False, allow_nan=False)

    def settle(self, points: list[Point], target: float | None) -> None:
        """Take accuracy, loss, target and staleness from the evaluations."""
        if points:
            last = points[-1]
            self.accuracy, self.loss, self.extra = last.accuracy, last.loss, last.extra
            self.staleness_rounds = sum(p.staleness_rounds for p in points) / len(points)
        if target is not None:
            for p in points:
                if p.accuracy is not None and p.accuracy >= target:
                    self.target_s, self.target_samples = p.time_s, p.samples
                    break


class RunFolder:
    """``--out DIR``: config.json, topology.toml, metrics.jsonl, nodes.jsonl, baseline.jsonl (where one machine was
    trained too), model.safetensors, result.json. (Pictures: ``rfast plot``.)

    Args:
        path: the folder; made if it is not there. A file that is written replaces the one of its name; the command line
            first puts aside what an earlier run left.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def config(self, settings: Settings, task: str, **more: object) -> None:
        """The whole configuration, the seed and the versions it ran with."""
        text = {"task": task, "settings": asdict(settings), "versions": versions(), **more}
        write_whole(self.path / "config.json", json.dumps(text, indent=2, default=str) + "\n")

    def topology(self, toml: str) -> None:
        """The two graphs, as a file that ``--topology`` takes."""
        write_whole(self.path / "topology.toml", toml)

    def metrics(self, points: list[Point]) -> None:
        """One line an evaluation."""
        write_whole(self.path / "metrics.jsonl", "".join(json.dumps(_finite(asdict(p))) + "\n" for p in points))

    def nodes(self, points: list[NodePoint]) -> None:
        """One line a node and moment."""
        write_whole(self.path / "nodes.jsonl", "".join(json.dumps(_finite(asdict(p))) + "\n" for p in points))

    def baseline(self, points: list[Point] | None) -> None:
        """One line an evaluation of one machine; None: there is none, and an older one goes."""
        if points is None:
            (self.path / "baseline.jsonl").unlink(missing_ok=True)
        else:
            write_whole(self.path / "baseline.jsonl", "".join(json.dumps(_finite(asdict(p))) + "\n" for p in points))

    def model(self, state: Mapping[str, Tensor]) -> None:
        """The model, for ``safetensors.torch.load_file`` and ``Module.load_state_dict``."""
        from safetensors.torch import save

        write_whole(
            self.path / "model.safetensors", save({k: v.detach().contiguous().clone() for k, v in state.items()})
        )

    def result(self, result: Result) -> None:
        """The result, as ``--json`` prints it."""
        write_whole(self.path / "result.json", result.to_json() + "\n")


def versions() -> dict[str, str]:
    """Python, platform, and the packages that matter to a run."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("rfast-zmq", "torch", "pyzmq", "msgpack", "numpy", "uvloop"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file whole, so that a run cut short leaves the old one or the new one, never half."""
    part = path.with_name(path.name + ".part")
    if isinstance(content, str):
        part.write_text(content, encoding="utf-8")
    else:
        part.write_bytes(content)
    part.replace(path)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
