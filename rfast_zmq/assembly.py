"""From settings to a node: what the simulator and the real node put together in the same way."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rfast_zmq.algorithms import METHODS, Algorithm, Method, NodeConfig, algorithm, options_of
from rfast_zmq.conditions import Faults, Speeds
from rfast_zmq.errors import UsageError
from rfast_zmq.results import Result
from rfast_zmq.settings import DEFAULT_NODES, Settings
from rfast_zmq.task import Task, Trained, Worker, check_split, load_task
from rfast_zmq.task.task import make_task
from rfast_zmq.topology import Topology, build, is_file
from rfast_zmq.wire import Codec


@dataclass(frozen=True)
class Plan:
    """A run, checked: everything that can be known before a process starts.

    Attributes:
        task: the user's class.
        source: the file and class it can be loaded from again, ``FILE.py:Class``.
        settings: resolved against the task's defaults; ``nodes`` is a number.
        topology: the two graphs.
        speeds: how long gradients take, where machines are emulated.
        faults: what the links do to messages.
    """

    task: type[Task]
    source: str
    settings: Settings
    topology: Topology
    speeds: Speeds
    faults: Faults

    @classmethod
    def make(cls, task: str | type[Task], settings: Settings) -> Plan:
        """Check the settings against the task and one another.

        Args:
            task: ``FILE.py`` or ``FILE.py:Class``, or the class itself (defined in a file, which the nodes import).
            settings: as the user gave them; what they leave open is the task's, then the default.

        Raises:
            UsageError: whatever cannot be, said in one line.
            TaskError: the file raised while it was imported.
        """
        chosen = load_task(task) if isinstance(task, str) else task
        source = f"{Path(inspect.getfile(chosen)).resolve()}:{chosen.__name__}"
        settings = settings.resolved(chosen.defaults)
        wanted = settings.nodes if settings.nodes is not None or is_file(settings.topology) else DEFAULT_NODES
        topology = build(settings.topology, wanted, settings.seed)
        settings = replace(settings, nodes=topology.nodes)
        assert settings.split is not None
        assert settings.optimizer is not None
        check_split(settings.split)
        clips = settings.clip_norm is not None
        kind = algorithm(settings.algorithm, settings.optimizer, clips=clips, wire=settings.wire)
        kind.check(topology)
        kind.check_settings(settings)
        options_of(kind, settings.algorithm_option)
        for flag in ("drop", "duplicate", "reorder"):
            if getattr(settings, flag) and not kind.bears_loss:
                raise UsageError(
                    f"--{flag} {getattr(settings, flag):g}: --algorithm {kind.name} counts on every message, once and"
                    " in order; leave it out"
                )
        for straggler in settings.straggler:
            if ":" not in straggler:
                raise UsageError(f"--straggler {straggler}: must be RANK:FACTOR, as 0:5")
        speeds = Speeds.parse(settings.compute, settings.straggler, topology.nodes, settings.seed)
        faults = Faults(drop=settings.drop, duplicate=settings.duplicate, reorder=settings.reorder, seed=settings.seed)
        if settings.data is not None and not Path(settings.data).is_file():
            what = "a folder" if Path(settings.data).is_dir() else "no such file"
            raise UsageError(f"--data {settings.data}: {what}; give the path of the task's data file")
        return cls(chosen, source, settings, topology, speeds, faults)

    @property
    def method(self) -> type[Method]:
        """What the run's ``--algorithm`` stands for."""
        return METHODS[self.settings.algorithm]

    @property
    def options(self) -> dict[str, float]:
        """Its own numbers."""
        return options_of(self.method, self.settings.algorithm_option)

    def worker(self, rank: int) -> Worker:
        """The task on one node (evaluations run at the root)."""
        task, evaluates = make_task(self.task, self.settings, rank), rank == self.topology.root
        return Worker(
            task,
            self.settings,
            rank,
            find_device("cpu" if self.method.cpu_only else self.settings.device),
            evaluates=evaluates,
            turns=self.method.turns(self.topology),
        )

    def node(self, rank: int, worker: Trained, incarnation: int) -> Algorithm:
        """The algorithm's state of one node.

        Raises:
            UsageError: it is none of ours, and has no state that we know of.
        """
        s, kind = self.settings, self.method
        if not issubclass(kind, Algorithm):
            raise UsageError(
                f"--algorithm {s.algorithm}: is not this package's own, and runs under rfast run alone; take"
                f" --algorithm {kind.alike}"
            )
        assert s.optimizer is not None
        assert s.lr is not None
        assert s.momentum is not None
        assert s.weight_decay is not None
        assert s.global_batch is not None
        config = NodeConfig(
            rank=rank,
            topology=self.topology,
            layout=worker.layout,
            initial=worker.initial() if rank == self.topology.root else None,
            global_batch=s.global_batch,
            optimizer=s.optimizer,
            lr=s.lr,
            momentum=s.momentum,
            beta2=s.beta2,
            eps=s.eps,
            weight_decay=s.weight_decay,
            lr_schedule=worker.lr_schedule,
            group_rates=worker.group_rates,
            clip_norm=s.clip_norm,
            packing=s.wire,
            weight=worker.weight,
            incarnation=incarnation,
            pace_s=s.pace,
            resend_s=s.resend,
            stop_samples=s.samples,
            options=self.options,
            seed=s.seed,
        )
        return kind(config)

    def codec(self, node: Algorithm, run: str) -> Codec:
        """The codec of one node's edges."""
        layout = node.config.layout
        return Codec(
            run=run,
            layout=layout.hash,
            sizes=layout.sizes,
            dtype=layout.dtype,
            packings=node.config.packings,
            in_edges=node.in_edges,
            numbers={"W": node.numbers("W"), "A": node.numbers("A")},
        )

    def result(self, simulated: bool) -> Result:
        """An empty result of this run."""
        s = self.settings
        return Result(
            algorithm=s.algorithm,
            topology=self.topology.name,
            nodes=self.topology.nodes,
            seed=s.seed,
            simulated=simulated,
        )


def find_device(name: str) -> torch.device:
    """The device of this name; ``auto``: a GPU if there is one.

    Raises:
        UsageError: none that torch has here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device: torch.device | None = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise UsageError(f"--device {name}: cpu, cuda, cuda:0, … or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices; use cpu or auto")
    return device
