"""The one interface behind which every algorithm stands, and what a driver may ask of it.

The interface is pull-driven, so that it holds more than R-FAST: :class:`~rfast_zmq.core.events.Send` only marks an
edge, and the message is made when the link is free. A latest-wins algorithm then says its newest; one that needs every
message in order keeps its own queue and marks the edge again while the queue lasts; one with a barrier answers
``ModelWanted`` with nothing until the barrier falls, and then says ``Ready``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, ClassVar

from torch import Tensor

from rfast_zmq.core.events import Action, Edge, Event, Graph
from rfast_zmq.core.packing import PACKINGS
from rfast_zmq.core.slots import EARLY, Timing
from rfast_zmq.settings import Settings
from rfast_zmq.task.layout import Layout
from rfast_zmq.topology import Topology


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """All that one node's algorithm is told before the first event.

    Attributes:
        rank: this node, 0 ≤ rank < topology.nodes.
        topology: the two graphs, their weights and the pair of spanning trees.
        layout: how the flat vector is cut in buckets, and which coordinates decay.
        initial: per bucket the first model x⁰; None on a node that takes it from its parent.
        global_batch: B, samples in a round.
        optimizer: ``sgd``, ``momentum`` (heavy ball), ``nesterov``, ``adam`` or ``nadam``.
        lr: learning rate (γ of Algorithm 1).
        momentum: β (β₁ for Adam).
        beta2: β₂ for Adam.
        eps: ε for Adam.
        weight_decay: decoupled weight decay, on the coordinates that decay.
        lr_schedule: factor on ``lr`` as a function of progress in rounds.
        group_rates: per parameter group its learning rate and weight decay at that progress, in place of the three
            above; None: as they say.
        clip_norm: the most that the norm of a round's mean gradient may be; None: any.
        packing: how payloads travel: ``float32``, ``bf16`` or ``int8`` (:mod:`rfast_zmq.core.packing`).
        weight: this node's weight in the mean over nodes.
        incarnation: higher at every restart of the node.
        pace_s: least seconds between two messages of an edge and bucket; None: the algorithm's own choice.
        resend_s: seconds after which an idle edge says its newest again; None: the algorithm's own choice.
        stop_samples: the root stops the run when all nodes together have done so many samples; None: never.
        options: the algorithm's own numbers, every one of ``Algorithm.options``.
        seed: of what the algorithm draws (the same on every node).
    """

    rank: int
    topology: Topology
    layout: Layout
    initial: tuple[Tensor, ...] | None = None
    global_batch: int = 256
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    lr_schedule: Callable[[float], float] = field(default=lambda rounds: 1.0)
    group_rates: Callable[[float], Sequence[tuple[float, float]]] | None = None
    clip_norm: float | None = None
    packing: str = "float32"
    weight: float = 1.0
    incarnation: int = 0
    pace_s: float | None = None
    resend_s: float | None = None
    stop_samples: int | None = None
    options: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0

    @property
    def packings(self) -> tuple[str, ...]:
        """Per bucket, how it travels: running averages always as they are."""
        return tuple(self.packing if b.kind == "parameters" else PACKINGS[0] for b in self.layout.buckets)

    def rates(self, rounds: float) -> Sequence[tuple[float, float]]:
        """Per parameter group its learning rate and weight decay at this progress."""
        if self.group_rates is not None:
            return self.group_rates(rounds)
        lr = self.lr * self.lr_schedule(rounds)
        return [(lr * group.lr_scale, self.weight_decay if group.decay else 0.0) for group in self.layout.groups]


@dataclass(frozen=True, slots=True)
class Status:
    """How a node sees the run; at the root it is the run's state.

    Attributes:
        rounds: progress, in rounds of B samples.
        samples: samples counted, of all nodes (at the root), else of the subtree.
        own_samples: samples this node computed.
        gradients: gradients this node computed.
        loss: newest mean training loss over the nodes (nan before the first).
        staleness_rounds: mean staleness of the gradients in the sum, in rounds (0.0 where not defined).
        pace: this node's samples a second of computing (0.0 before the first gradient).
        slowest_rank, slowest_pace: the slowest node of the subtree, and its samples a second (-1 and inf: unknown).
        set_aside: ranks whose subtree is set aside at this node or below it.
        trouble: the lowest rank whose loss or gradient is not finite (-1: none).
        stopping: the run is closing.
        stale: messages dropped because their stamp was not newer.
        accepted: messages taken in.
        waited_s: seconds in which the node had nothing to compute, because its algorithm waits for others.
    """

    rounds: float = 0.0
    samples: int = 0
    own_samples: int = 0
    gradients: int = 0
    loss: float = float("nan")
    staleness_rounds: float = 0.0
    pace: float = 0.0
    slowest_rank: int = -1
    slowest_pace: float = float("inf")
    set_aside: tuple[int, ...] = ()
    trouble: int = -1
    stopping: bool = False
    stale: int = 0
    accepted: int = 0
    waited_s: float = 0.0


class Method(ABC):
    """What is known of a way to train before it runs, whoever carries it out."""

    name: ClassVar[str]
    """As given to ``--algorithm``."""
    optimizers: ClassVar[tuple[str, ...]]
    """The values of ``--optimizer`` it can honour."""
    clips: ClassVar[bool] = False
    """Whether it can honour ``--clip-norm``."""
    packs: ClassVar[tuple[str, ...]] = ()
    """The values of ``--wire`` it can honour, besides float32."""
    bears_loss: ClassVar[bool] = True
    """Whether it goes on where messages are lost, late or repeated; else injected faults are refused."""
    options: ClassVar[Mapping[str, float]] = {}
    """Its own numbers, that ``--algorithm-option NAME=VALUE`` changes, and what they are where nobody says."""
    switches: ClassVar[tuple[str, ...]] = ()
    """Those of them that are 0 or 1."""
    cpu_only: ClassVar[bool] = False
    """Whether gradients are computed on the CPU even where there is a GPU."""
    alike: ClassVar[str] = ""
    """Where somebody else's code carries it out: what to take in virtual time, and on hosts of one's own."""
    judged_by_mean: ClassVar[bool] = False
    """Whether what is scored is the mean of the nodes' models, not the root's (``rfast node``: at the end alone)."""

    @classmethod
    def check(cls, topology: Topology) -> None:
        """Can it run on this topology?

        Raises:
            UsageError: no.
        """
        return

    @classmethod
    def check_options(cls, options: Mapping[str, float]) -> None:
        """Will these values do? (That there are such names was looked at.)

        Raises:
            UsageError: no.
        """
        return

    @classmethod
    def check_settings(cls, settings: Settings) -> None:
        """Will these settings, which are resolved, do for what this method alone minds?

        Raises:
            UsageError: no.
        """
        return

    @classmethod
    def turns(cls, topology: Topology) -> int:
        """The number of buckets has to be a multiple of this."""
        return len(topology.pull_trees)

    @staticmethod
    @abstractmethod
    def identity_error(records: Mapping[int, Mapping[str, Any]], root: int) -> float | None:
        """How far the nodes' last records violate the identity I1, as a relative number.

        Args:
            records: rank to :meth:`Algorithm.last_record` (numbers may have become 0-d tensors), of every node, after
                the run has closed.
            root: the common root.

        Returns:
            None: it has no such identity.
        """


class Algorithm(Method):
    """One node of a distributed training algorithm: a state machine without clock or I/O."""

    @abstractmethod
    def __init__(self, config: NodeConfig) -> None: ...

    config: NodeConfig
    out_edges: tuple[Edge, ...]
    """Edges this node sends along (each is one link, one slot)."""
    in_edges: tuple[Edge, ...]
    """Edges that end here; a message on any other is refused by the codec."""

    def buckets_along(self, edge: Edge) -> tuple[int, ...]:
        """The buckets that travel along an out-edge, ascending; at least one."""
        return tuple(range(len(self.config.layout.buckets)))

    @abstractmethod
    def handle(self, event: Event) -> list[Action]:
        """Take one event, change the state, say what is to be done. Deterministic; never blocks; never raises on what a
        peer sent."""

    @classmethod
    @abstractmethod
    def numbers(cls, graph: Graph) -> Mapping[str, type]:
        """The small numbers that ride in every message of ``graph``: name to ``bool``, ``int``, ``float`` or ``list``
        (of int). The codec refuses a message that has others."""

    @abstractmethod
    def status(self) -> Status:
        """How the node sees the run now."""

    @property
    @abstractmethod
    def rounds(self) -> float:
        """Progress in rounds, as ``status().rounds``, without the rest."""

    @abstractmethod
    def export(self) -> tuple[Tensor, ...] | None:
        """The model to evaluate and save, per bucket; None before there is one. Never written to afterwards."""

    @abstractmethod
    def last_record(self) -> Mapping[str, Tensor | float]:
        """What the identity I1 is checked with after the run; named tensors and numbers of this node."""

    @property
    @abstractmethod
    def pace_s(self) -> float:
        """C: least seconds between two messages of one edge and bucket, as of now."""

    @property
    def line_pace_s(self) -> float:
        """C as this node keeps to it: longer where its line is far slower than those that C is made for."""
        return self.pace_s

    @property
    def timing(self) -> Timing:
        """When its edges may speak. A driver may keep it until the next :meth:`handle`: it hangs on nothing else."""
        return Timing(self.line_pace_s, self.resend_s, self.early)

    @property
    def early(self) -> float:
        """The part of C by which an edge may speak early where the node is awake, as of now; 0.0 where reports are
        wanted in the moment that they come."""
        return EARLY

    def not_before(self, edge: Edge) -> float:
        """The time before which the receiver of ``edge`` has no use for a message, as of now."""
        return -inf

    def fed_by_reports(self) -> tuple[Edge, ...]:
        """The out-edges for whose sake alone a message of A is taken in: until one of them may speak, it may wait (and
        the node need not wake). Empty: messages of A are wanted at once."""
        return ()

    @property
    def gradient_makes_model(self) -> bool:
        """Whether this node's gradient makes the model of its next one, as of now. Else the model of the next may be
        asked for, any number of times, and its gradient begun, before the last is told of."""
        return True

    @property
    def models_can_wait(self) -> bool:
        """Whether a message of W is taken in for the sake of this node's next gradient alone, and may wait for it."""
        return False

    @property
    @abstractmethod
    def resend_s(self) -> float:
        """Seconds after which an idle edge says its newest again, as of now (inf: never)."""
