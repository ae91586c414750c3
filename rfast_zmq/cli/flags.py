"""The flags that the verbs share, parsed once, and what becomes of them: a checked :class:`Plan`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from rfast_zmq.errors import UsageError
from rfast_zmq.settings import Settings

if TYPE_CHECKING:
    from rfast_zmq.assembly import Plan
    from rfast_zmq.task import Task

_RUN = Parameter(group=Group("The run", sort_key=1))
_LEARNING = Parameter(group=Group("Learning", help="Where not given, the task's own value.", sort_key=2))
_TIMES = Parameter(group=Group("Emulated machines and links, and the pace of messages", sort_key=3))
_OUTPUT = Parameter(group=Group("Output", sort_key=4))


@dataclass(frozen=True, kw_only=True)
class Flags:
    """One field a field of :class:`Settings` (but for the task's own options), with the same default or None for it."""

    nodes: Annotated[int | None, _RUN] = None
    """Number of nodes: if not given, those of the topology's file, or 7."""
    topology: Annotated[str, _RUN] = "binary-tree"
    """binary-tree, line, star, ring, exponential, mesh, complete, random:K, or a TOML file."""
    algorithm: Annotated[str, _RUN] = "rfast-tree"
    """rfast-tree, or rfast: Algorithm 1 as published."""
    split: Annotated[str | None, _RUN] = None
    """How the samples are dealt to the nodes: iid, label or dirichlet:ALPHA."""
    samples: Annotated[int | None, _RUN] = None
    """End after so many samples of all nodes together."""
    target: Annotated[float | None, _RUN] = None
    """End when the accuracy reaches this."""
    optimizer: Annotated[str | None, _LEARNING] = None
    """nadam, adam, sgd, momentum or nesterov."""
    lr: Annotated[float | None, _LEARNING] = None
    """Learning rate."""
    momentum: Annotated[float | None, _LEARNING] = None
    """Momentum; Adam's beta 1."""
    weight_decay: Annotated[float | None, _LEARNING] = None
    """Decoupled weight decay."""
    global_batch: Annotated[int | None, _LEARNING] = None
    """B: samples of a round, of all nodes together."""
    report_batch: Annotated[int | None, _LEARNING] = None
    """Samples of one gradient and report; if not given, an eighth of a node's share of B."""
    compute: Annotated[str | None, _TIMES] = None
    """Emulated seconds of a gradient over a node's share of B: none, constant:S, uniform:A:B, lognormal:MEDIAN:SIGMA.
    If not given: none, and constant:0.1 in a simulation."""
    straggler: Annotated[tuple[str, ...], _TIMES] = ()
    """RANK:FACTOR: this node takes FACTOR times as long. May be given several times."""
    pace: Annotated[float | None, _TIMES] = None
    """Least seconds between two messages of a link; if not given, an eighth of a round as the root measures it."""
    resend: Annotated[float | None, _TIMES] = None
    """Seconds after which an idle link says its newest again."""
    drop: Annotated[float, _TIMES] = 0.0
    """Probability that a received message is lost."""
    duplicate: Annotated[float, _TIMES] = 0.0
    """Probability that a received message arrives twice."""
    reorder: Annotated[float, _TIMES] = 0.0
    """Probability that a received message changes places with a later one."""
    seed: Annotated[int, _RUN] = 0
    """Of everything drawn."""
    data: Annotated[str | None, _RUN] = None
    """The task's data file."""
    evaluate_every: Annotated[float, _RUN] = 1.0
    """Rounds between two evaluations."""
    device: Annotated[str, _RUN] = "auto"
    """Where gradients are computed: cpu, cuda, cuda:1, …; auto: a GPU if there is one."""

    def settings(self, task_options: dict[str, str] | None = None) -> Settings:
        """The same as :class:`Settings`.

        Raises:
            UsageError: a value out of range.
        """
        given = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        return Settings(**given, task_options=task_options or {})


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where results go."""

    out: Annotated[Path | None, _OUTPUT] = None
    """Folder for configuration, metrics, model and pictures."""
    json: Annotated[bool, _OUTPUT] = False
    """Print the result as one line of JSON, the last of standard output."""


def make_plan(task: str, flags: Flags, task_options: dict[str, str]) -> Plan:
    """Check flags and task against one another.

    Args:
        task: ``FILE.py`` or ``FILE.py:Class``.
        flags: as given.
        task_options: the options that are none of ours, by name without dashes.

    Raises:
        UsageError: whatever cannot be, said in one line.
        TaskError: the file raised while it was imported.
    """
    from rfast_zmq.assembly import Plan
    from rfast_zmq.task import load_task

    settings = flags.settings()  # what needs no torch to be refused is refused at once
    cls = load_task(task)
    known = {_plain(name): name for name in cls.options}
    for name in task_options:
        if _plain(name) not in known:
            raise UsageError(no_such_option(name, cls))
    if task_options:
        settings = flags.settings({known[_plain(name)]: text for name, text in task_options.items()})
    return Plan.make(cls, settings)


def own_options() -> list[str]:
    """The names of all flags of run, node and simulate, without dashes."""
    names = [f.name for cls in (Flags, Output) for f in fields(cls)]
    more = ["baseline", "require", "latency", "trace", "rank", "name", "insecure", "run-id", "help"]
    return [name.replace("_", "-") for name in names] + more


def no_such_option(name: str, task: type[Task] | None) -> str:
    """What to say of an option that neither we nor the task have."""
    own = own_options()
    theirs = list(task.options) if task is not None else []
    near = get_close_matches(name.replace("_", "-"), [*own, *theirs], 2, 0.75)
    text = f"--{name}: no such option"
    if near:
        text += f"; did you mean {' or '.join(f'--{option}' for option in near)}?"
    if task is not None:
        text += f"{'' if near else ';'} {task.__name__} has " + (
            ", ".join(f"--{o} (default {d})" for o, d in task.options.items()) or "none of its own"
        )
    return text if near else f"{text}; ours are in rfast run --help"


def _plain(name: str) -> str:
    return name.replace("_", "-")
