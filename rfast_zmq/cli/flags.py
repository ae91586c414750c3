"""The flags that the verbs share, parsed once, and what becomes of them: a checked :class:`Plan`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from rfast_zmq.errors import UsageError
from rfast_zmq.settings import Settings
from rfast_zmq.topology import is_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cyclopts import Token

    from rfast_zmq.assembly import Plan
    from rfast_zmq.task import Task


def _whole(_: object, tokens: Sequence[Token]) -> int:
    token = tokens[0]
    try:
        return int(token.value, 0)  # 0x10 and 10_000 too
    except ValueError:
        pass
    try:
        value = float(token.value)  # 1e6
        if value == int(value):
            return int(value)
    except (ValueError, OverflowError):
        pass
    raise UsageError(f"{token.keyword} {token.value}: must be a whole number, such as 7")


def _pace(_: object, tokens: Sequence[Token]) -> float | Literal["auto"]:
    token = tokens[0]
    if token.value.strip().lower() == AUTO:
        return AUTO
    try:
        return float(token.value)
    except ValueError:
        raise UsageError(f"{token.keyword} {token.value}: must be a number of seconds, or {AUTO}") from None


AUTO: Literal["auto"] = "auto"
WHOLE = Parameter(converter=_whole)
"""Of a flag that takes an integer: nothing is rounded."""
_RUN = Parameter(group=Group("The run", sort_key=1))
_LEARNING = Parameter(group=Group("Learning", sort_key=2))
_TIMES = Parameter(group=Group("Emulated machines and links, and the pace of messages", sort_key=3))
_JUDGING = Parameter(group=Group("How good it is", sort_key=4))
_OUTPUT = Parameter(group=Group("Output", sort_key=5))

Config = Annotated[
    Path | None,
    Parameter(
        group=Group("The run", sort_key=1),
        help="Start from the settings of an earlier run: the config.json of its --out. Flags that are given win.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Flags:
    """One field a field of :class:`Settings` (but for the task's own options); None: not given."""

    nodes: Annotated[int | None, _RUN, WHOLE] = None
    """Number of nodes. Default: those of the topology's file, or 7."""
    topology: Annotated[str | None, _RUN] = None
    """binary-tree, double-tree, line, star, ring, exponential, mesh, complete, random:K, or a TOML file. Default:
    binary-tree."""
    algorithm: Annotated[str | None, _RUN] = None
    """rfast-tree; rfast: Algorithm 1 as published; or to compare with: ring-allreduce, d-psgd, ad-psgd, sgp, osgp,
    s-ab, local-sgd, diloco, async-sgd, ringmaster, ringleader, rennala, amelie, ddp, hivemind
    (torch's own, in rfast run only). Default: rfast-tree."""
    algorithm_option: Annotated[tuple[str, ...] | None, _LEARNING] = None
    """NAME=VALUE: one of the algorithm's own numbers (docs/algorithm.md). May be given several times."""
    split: Annotated[str | None, _RUN] = None
    """How the samples are dealt to the nodes: iid, label or dirichlet:ALPHA. Default: the task's own, or iid."""
    samples: Annotated[int | None, _RUN, WHOLE] = None
    """End after so many samples of all nodes together. Default: the task's own; if it has none, the run goes on until
    --target or Ctrl-C (a simulation must have one)."""
    target: Annotated[float | None, _RUN] = None
    """End when the accuracy reaches this. Default: the task's own, or none."""
    optimizer: Annotated[str | None, _LEARNING] = None
    """nadam, adam, sgd, momentum or nesterov. Default: the task's own, or nadam."""
    lr: Annotated[float | None, _LEARNING] = None
    """Learning rate, for batches of B. Default: the task's own, or 0.01."""
    momentum: Annotated[float | None, _LEARNING] = None
    """Momentum; Adam's beta 1. Default: the task's own, or 0.9."""
    beta2: Annotated[float | None, _LEARNING] = None
    """Adam's beta 2. Default: 0.999."""
    eps: Annotated[float | None, _LEARNING] = None
    """Adam's epsilon. Default: 1e-8."""
    weight_decay: Annotated[float | None, _LEARNING] = None
    """Decoupled weight decay. Default: the task's own, or 0."""
    clip_norm: Annotated[float | None, _LEARNING] = None
    """The most that the norm of a round's mean gradient may be (rfast-tree, ddp). Default: the task's own, or any."""
    global_batch: Annotated[int | None, _LEARNING, WHOLE] = None
    """B: samples of a round, of all nodes together. Default: the task's own, or 256."""
    report_batch: Annotated[int | None, _LEARNING, WHOLE] = None
    """Samples of one gradient and report. Default: the task's own, or an eighth of a node's share of B."""
    compute: Annotated[str | None, _TIMES] = None
    """Emulated seconds of a gradient over a node's share of B: none, constant:S, uniform:A:B, lognormal:MEDIAN:SIGMA.
    Default: none; in a simulation constant:0.1."""
    straggler: Annotated[tuple[str, ...] | None, _TIMES] = None
    """RANK:FACTOR: this node takes FACTOR times as long. May be given several times."""
    pace: Annotated[float | Literal["auto"] | None, _TIMES, Parameter(converter=_pace)] = None
    """C: least seconds between two messages of a link; auto, the default: under rfast-tree an eighth of a round, as the
    root measures it, or what the busiest line takes for a model; under rfast no pace."""
    resend: Annotated[float | None, _TIMES] = None
    """Seconds after which an idle link says its newest again. Default: under rfast-tree 2 C; under rfast never."""
    bucket_bytes: Annotated[int | None, _TIMES, WHOLE] = None
    """A message carries at most so many bytes of the model: the fewer, the sooner a slow line has passed one on.
    Default: 1048576."""
    wire: Annotated[str | None, _TIMES] = None
    """How payloads travel: float32, bf16 or int8, with error feedback (rfast-tree). Default: float32."""
    drop: Annotated[float | None, _TIMES] = None
    """Probability that a received message is lost. Default: 0."""
    duplicate: Annotated[float | None, _TIMES] = None
    """Probability that a received message arrives twice. Default: 0."""
    reorder: Annotated[float | None, _TIMES] = None
    """Probability that a received message changes places with a later one. Default: 0."""
    seed: Annotated[int | None, _RUN, WHOLE] = None
    """Of everything drawn. Default: 0."""
    data: Annotated[str | None, _RUN] = None
    """The task's data file. Default: the task's own, or none."""
    evaluate_every: Annotated[float | None, _RUN] = None
    """Rounds between two evaluations. Default: 1."""
    device: Annotated[str | None, _RUN] = None
    """Where gradients are computed: cpu, cuda, cuda:1, …; auto: a GPU if there is one. Default: auto."""

    def settings(self, base: Settings | None = None) -> Settings:
        """``base`` with what was given put in its place.

        Args:
            base: of an earlier run; None: the defaults.

        Raises:
            UsageError: a value out of range.
        """
        given = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        if self.pace == AUTO:
            given["pace"] = None
        if base is not None and is_file(given.get("topology", "")):  # it says itself how many nodes there are
            given.setdefault("nodes", None)
        return replace(base or Settings(), **given)


@dataclass(frozen=True, kw_only=True)
class Judging:
    """What the result is held against."""

    baseline: Annotated[bool, _JUDGING] = False
    """Afterwards train on one machine at the same hyper-parameters (simulated), and put its accuracy beside ours."""
    require: Annotated[float | None, _JUDGING] = None
    """Exit with status 1 if the accuracy ends below this."""

    def check(self) -> None:
        """
        Raises:
            UsageError: a value out of range.
        """
        if self.require is not None and not 0 < self.require <= 1:
            raise UsageError(f"--require {self.require}: an accuracy above 0, at most 1")


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where results go."""

    out: Annotated[Path | None, _OUTPUT] = None
    """Folder for configuration, metrics, model and pictures."""
    json: Annotated[bool, _OUTPUT] = False
    """Print the result as one line of JSON, the last of standard output."""


def make_plan(task: str, settings: Settings, task_options: dict[str, str]) -> Plan:
    """Check settings and task against one another.

    Args:
        task: ``FILE.py`` or ``FILE.py:Class``.
        settings: as given; with task options only of an earlier run.
        task_options: the options that are none of ours, by name without dashes.

    Raises:
        UsageError: whatever cannot be, said in one line.
        TaskError: the file raised while it was imported.
    """
    from rfast_zmq.assembly import Plan
    from rfast_zmq.task import load_task

    cls = load_task(task)
    _check_options(cls)
    known = {_plain(name): name for name in cls.options}
    options = {**settings.task_options, **task_options}
    for name in options:
        if _plain(name) not in known:
            raise UsageError(no_such_option(name, cls))
    return Plan.make(cls, replace(settings, task_options={known[_plain(name)]: text for name, text in options.items()}))


def own_options() -> dict[str, tuple[str, ...]]:
    """The names of all flags of run, node and simulate, without dashes, and which of these verbs have each."""
    every = ("run", "node", "simulate")
    named = {cls: [_plain(f.name) for f in fields(cls)] for cls in (Flags, Judging, Output)}
    return {
        **dict.fromkeys([*named[Flags], *named[Output], "config", "help", "version"], every),
        **dict.fromkeys(named[Judging], ("run", "simulate")),
        **dict.fromkeys(("latency", "bandwidth", "trace", "halt"), ("simulate",)),
        **dict.fromkeys(("rank", "name", "insecure", "run-id"), ("node",)),
    }


def no_such_option(name: str, task: type[Task] | None) -> str:
    """What to say of an option that the verb does not have, and the task neither."""
    own = own_options()
    if verbs := own.get(_plain(name)):
        which = " and ".join(f"rfast {verb}" for verb in verbs)
        return f"--{_plain(name)} " + (f"belongs to {which}" if len(verbs) < 3 else "takes no value")
    theirs = list(task.options) if task is not None else []
    near = get_close_matches(_plain(name), [*own, *theirs], 2, 0.75)
    text = f"--{name}: no such option" + (", unless it is the task's own and lacks its value" if task is None else "")
    if near:
        text += f"; did you mean {' or '.join(f'--{option}' for option in near)}?"
    if task is not None:
        text += f"{'' if near else ';'} {task.__name__} has " + (
            ", ".join(f"--{o} (default {d})" for o, d in task.options.items()) or "none of its own"
        )
    return text if near else f"{text}; ours are in rfast run --help"


def _check_options(task: type[Task]) -> None:
    """
    Raises:
        UsageError: options of the task that nobody could give.
    """
    if not isinstance(task.options, Mapping):
        raise UsageError(f'{task.__name__}.options is {task.options!r}: want a dict, such as {{"hidden": "64"}}')
    for name in task.options:
        if _plain(name) in own_options():
            raise UsageError(
                f"{task.__name__}.options has {name!r}: --{_plain(name)} is rfast's own; choose another name"
            )


def _plain(name: str) -> str:
    return name.replace("_", "-")
