"""What a run is told: every flag of ``rfast run``, ``rfast node`` and ``rfast simulate``, as plain data.

A field left at None takes the task's default (``Task.defaults``), then the one in :data:`DEFAULTS`. As JSON they repeat
a run: ``config.json`` of ``--out`` holds them, and ``--config`` starts from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import msgspec

from rfast_zmq.errors import UsageError

DEFAULTS: dict[str, Any] = {
    "lr": 0.01,
    "optimizer": "nadam",
    "weight_decay": 0.0,
    "global_batch": 256,
    "momentum": 0.9,
    "split": "iid",
}
DEFAULT_NODES = 7
BUCKET_BYTES = 1 << 20
BUCKET_BYTES_LEAST, BUCKET_BYTES_MOST = 1 << 10, 1 << 24
SEED_MAX = 2**63 - 1
WIRES = ("float32", "bf16", "int8")
OPTIMIZERS = ("nadam", "adam", "sgd", "momentum", "nesterov")


REPORTS_A_ROUND = {"rfast-tree": 8, "rfast": 8, "rennala": 8, "amelie": 8}
"""So many reports a node makes in a round, where the user does not say how many samples one is of; of others one."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run, completely described (with the task's file).

    Attributes:
        nodes: number of nodes; None: those of the topology's file, or 7.
        topology: a family (``binary-tree``, ``line``, …) or a TOML file.
        algorithm: ``rfast-tree`` or ``rfast``, or one that they are compared with.
        algorithm_option: ``NAME=VALUE`` each: the algorithm's own numbers.
        split: ``iid``, ``label`` or ``dirichlet:ALPHA``.
        samples: end the run after so many samples of all nodes together.
        target: end the run when the accuracy reaches this.
        optimizer: ``nadam``, ``adam``, ``sgd``, ``momentum`` or ``nesterov``.
        lr: learning rate.
        momentum: β, β₁ for Adam.
        beta2, eps: Adam's β₂ and ε.
        weight_decay: decoupled weight decay.
        clip_norm: the most that the norm of a round's mean gradient may be; None: any.
        global_batch: B, the samples of a round.
        report_batch: μ, the samples of a report; None: as :data:`REPORTS_A_ROUND` has it.
        compute: emulated seconds of a gradient over the share B/n: ``none``, ``constant:S``, ``uniform:A:B``,
            ``lognormal:MEDIAN:SIGMA``.
        straggler: ``RANK:FACTOR`` each.
        pace: C in seconds; None: chosen by the algorithm.
        resend: idle resend in seconds; None: chosen by the algorithm.
        bucket_bytes: a message carries at most so many bytes of the model (before ``wire`` makes them fewer).
        wire: how payloads travel: ``float32``, ``bf16`` or ``int8``.
        drop, duplicate, reorder: probabilities for every received message.
        seed: of everything drawn.
        data: the task's data file.
        evaluate_every: rounds between two evaluations.
        device: where gradients are computed: ``cpu``, ``cuda``, ``cuda:1``, …; ``auto``: a GPU if there is one.
        task_options: the task's own options, by name.
    """

    nodes: int | None = None
    topology: str = "binary-tree"
    algorithm: str = "rfast-tree"
    algorithm_option: tuple[str, ...] = ()
    split: str | None = None
    samples: int | None = None
    target: float | None = None
    optimizer: str | None = None
    lr: float | None = None
    momentum: float | None = None
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float | None = None
    clip_norm: float | None = None
    global_batch: int | None = None
    report_batch: int | None = None
    compute: str = "none"
    straggler: tuple[str, ...] = ()
    pace: float | None = None
    resend: float | None = None
    bucket_bytes: int = BUCKET_BYTES
    wire: str = "float32"
    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    seed: int = 0
    data: str | None = None
    evaluate_every: float = 1.0
    device: str = "auto"
    task_options: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self)

    def resolved(self, task_defaults: Mapping[str, Any]) -> Settings:
        """A copy in which no field with a default is None.

        Args:
            task_defaults: ``Task.defaults``: field name to value.

        Raises:
            UsageError: no dict, or a task's default that is no field of the settings, or that the field does not take.
        """
        if not isinstance(task_defaults, Mapping):
            raise UsageError(f'the task\'s defaults are {task_defaults!r}: want a dict, such as {{"lr": 0.01}}')
        open_ones = sorted(f.name for f in fields(self) if f.default is None)
        for name in task_defaults:
            if name not in open_ones:
                raise UsageError(f"the task's defaults name {name!r}; a task has a say in {', '.join(open_ones)}")
        chosen = {**DEFAULTS, **task_defaults}
        try:
            return replace(self, **{k: v for k, v in chosen.items() if getattr(self, k) is None})
        except UsageError as error:  # all else was checked when it was made
            raise UsageError(f"the task's defaults: {error}") from None

    def to_json(self) -> str:
        """All fields as one JSON object, which :meth:`from_json` reads."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Settings:
        """What :meth:`to_json` wrote. A field that is not there keeps its default; nothing is converted.

        Raises:
            UsageError: no JSON object, an unknown field, a value of another type or out of range.
        """
        try:
            given = msgspec.json.decode(text, type=dict[str, Any])
            known = [f.name for f in fields(cls)]
            for name in given:
                if name not in known:
                    raise UsageError(f"{name}: no such setting; there are {', '.join(known)}")
            return msgspec.convert(given, cls)
        except (ValueError, RecursionError) as error:  # all of msgspec's are ValueErrors
            what, _, where = str(error).partition(" - at ")
            name = where.strip("`").removeprefix("$.")
            raise UsageError(f"{name}: {what}" if name else f"no settings: {what}") from None

    @property
    def count(self) -> int:
        """Number of nodes."""
        return self.nodes or DEFAULT_NODES

    @property
    def share(self) -> float:
        """b = B/n: a node's share of a round, in samples."""
        return (self.global_batch or DEFAULTS["global_batch"]) / self.count

    @property
    def report(self) -> int:
        """μ: samples of one report; an eighth of a node's share, or, where nodes wait for each other, all of it."""
        return self.report_batch or max(1, round(self.share / REPORTS_A_ROUND.get(self.algorithm, 1)))


def check_seed(seed: int) -> None:
    """
    Raises:
        UsageError: a seed that torch does not take.
    """
    if not 0 <= seed <= SEED_MAX:
        raise UsageError(f"--seed {seed}: must be 0 or more, at most {SEED_MAX}")


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (lambda v: isinstance(v, int) and not isinstance(v, bool), "a whole number"),
    "float": (lambda v: isinstance(v, int | float) and not isinstance(v, bool), "a number"),
    "str": (lambda v: isinstance(v, str), "a string"),
    "tuple[str, ...]": (lambda v: isinstance(v, tuple | list) and all(isinstance(t, str) for t in v), "some strings"),
    "dict[str, str]": (
        lambda v: isinstance(v, dict) and all(isinstance(t, str) for pair in v.items() for t in pair),
        "a dict of strings",
    ),
}
"""By a field's annotation: whether a value will do, and what would."""


def _check_kinds(s: Settings) -> None:
    """What comes from Python or from a task's defaults has gone through no parser."""
    for f in fields(s):
        value, kind = getattr(s, f.name), str(f.type).removesuffix(" | None")
        takes, wanted = _KINDS[kind]
        if not takes(value) and not (value is None and kind != f.type):
            raise UsageError(f"{f.name} is {value!r}: want {wanted}")


def _check(s: Settings) -> None:
    _check_kinds(s)

    def need(ok: bool, flag: str, value: object, would_do: str) -> None:
        if not ok:
            raise UsageError(f"--{flag} {value}: {would_do}")

    def positive(flag: str, value: float | None, what: str = "a number above 0") -> None:
        need(value is None or 0 < value < float("inf"), flag, value, f"must be {what}")

    need(s.nodes is None or s.nodes >= 1, "nodes", s.nodes, "must be 1 or more")
    need(s.optimizer is None or s.optimizer in OPTIMIZERS, "optimizer", s.optimizer, f"one of {', '.join(OPTIMIZERS)}")
    positive("samples", s.samples)
    need(s.target is None or 0 < s.target <= 1, "target", s.target, "an accuracy above 0, at most 1")
    positive("lr", s.lr)
    need(s.momentum is None or 0 <= s.momentum < 1, "momentum", s.momentum, "must be at least 0 and below 1")
    need(s.weight_decay is None or 0 <= s.weight_decay < 1, "weight-decay", s.weight_decay, "at least 0 and below 1")
    need(0 <= s.beta2 < 1, "beta2", s.beta2, "must be at least 0 and below 1")
    positive("eps", s.eps, "a number above 0")
    positive("clip-norm", s.clip_norm)
    positive("global-batch", s.global_batch)
    positive("report-batch", s.report_batch)
    need(s.pace is None or 0 <= s.pace < float("inf"), "pace", s.pace, "must be 0 or more seconds")
    positive("resend", s.resend, "a number of seconds above 0")
    positive("evaluate-every", s.evaluate_every, "a number of rounds above 0")
    for flag in ("drop", "duplicate", "reorder"):
        value = getattr(s, flag)
        need(0 <= value < 1, flag, value, "a probability: at least 0 and below 1")
    need(
        BUCKET_BYTES_LEAST <= s.bucket_bytes <= BUCKET_BYTES_MOST,
        "bucket-bytes",
        s.bucket_bytes,
        f"from {BUCKET_BYTES_LEAST} to {BUCKET_BYTES_MOST}",
    )
    need(s.wire in WIRES, "wire", s.wire, f"one of {', '.join(WIRES)}")
    check_seed(s.seed)
