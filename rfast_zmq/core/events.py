"""What a node is told (events) and what it answers (actions).

The core is one function, ``handle(event) -> actions``: no clock (every event carries ``now``, in seconds of whatever
clock the driver has), no sockets, no threads. The simulator and the node are two drivers of it.

Tensors in events and messages are never written to once handed over: the core makes new ones. So a driver may send,
keep or share them without a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

Graph = Literal["W", "A"]
"""``"W"``: the pull graph, which carries models. ``"A"``: the push graph, which carries gradient mass."""

Number = bool | int | float | list[int]
"""A small number that rides in a message's header."""


class Stamp(NamedTuple):
    """When a message was made. Compared as a tuple: a restarted node takes a higher incarnation, so its first packets
    are newer than all it sent before.
    """

    incarnation: int
    counter: int


NEVER = Stamp(-1, -1)
"""Older than any stamp."""


class Edge(NamedTuple):
    """A directed edge: ``src`` sends to ``dst`` in ``graph``."""

    graph: Graph
    src: int
    dst: int


@dataclass(frozen=True, slots=True)
class Message:
    """What travels along an edge: one bucket of the flat vector and the record's small numbers.

    Attributes:
        edge: the edge it travels along.
        bucket: index of the bucket, 0 ≤ bucket < number of buckets.
        stamp: when it was made; accepted stamps of an edge and bucket strictly increase (invariant I3).
        payload: 1-D tensor, the bucket's coordinates. Never written to.
        numbers: what the algorithm's :meth:`~rfast_zmq.core.interface.Algorithm.numbers` declares for this graph.
        packed: what travels in the payload's place, as 1-D uint8 (:mod:`rfast_zmq.core.packing`); None: itself.
    """

    edge: Edge
    bucket: int
    stamp: Stamp
    payload: Tensor
    numbers: Mapping[str, Number] = field(default_factory=dict)
    packed: Tensor | None = None


# ------------------------------------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True)
class Started:
    """The node begins (once, before any other event)."""

    now: float


@dataclass(frozen=True, slots=True)
class ModelWanted:
    """The compute coroutine is free and asks for a model; answered by :class:`RunGradient`, or by nothing if there is
    none to compute at (then :class:`Ready` follows when there is).
    """

    now: float


@dataclass(frozen=True, slots=True)
class GradientReady:
    """A gradient was computed at the model of a :class:`RunGradient`; all of it, or some buckets: then the others
    follow, in order, with nothing else of this node's own in between.

    Attributes:
        gradient: per bucket, from ``first`` on, a 1-D tensor: the mean gradient over the samples (for a bucket of
            running averages: their contribution, see :mod:`rfast_zmq.task.flat`).
        samples: how many samples it is the mean of.
        loss: mean loss over them; None: not known.
        rounds: per bucket, the ``rounds`` of that :class:`RunGradient`.
        seconds: how long it took (emulated time included).
        finite: whether ``loss`` and every coordinate of ``gradient`` are finite numbers, where the driver has looked
            already (in the thread that computed them, whose cache still holds them); None: not yet. True where it comes
            in parts: one that is not finite is told once.
        first: the bucket that ``gradient`` begins with.
        steps: of so many gradients of the node's it is the mean.
    """

    now: float
    gradient: tuple[Tensor, ...]
    samples: int
    loss: float | None
    rounds: tuple[float, ...]
    seconds: float
    finite: bool | None = None
    first: int = 0
    steps: int = 1


@dataclass(frozen=True, slots=True)
class Received:
    """A well-formed message of this run arrived on an edge that ends here."""

    now: float
    message: Message


@dataclass(frozen=True, slots=True)
class LinkReady:
    """The link of ``edge`` can take a message for ``bucket`` now; answered by :class:`Transmit`.

    Attributes:
        waited_s: how long it could not, although the edge might have spoken.
    """

    now: float
    edge: Edge
    bucket: int
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PeerLeft:
    """The connection to ``rank`` was closed by it (never drawn from injected faults)."""

    now: float
    rank: int


@dataclass(frozen=True, slots=True)
class StopWanted:
    """The driver of the root wants the run to end (samples done, target reached, Ctrl-C)."""

    now: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed; sent now and then so that silence can be noticed while a run closes. Carries no progress."""

    now: float


Event = Started | ModelWanted | GradientReady | Received | LinkReady | PeerLeft | StopWanted | Tick

# ------------------------------------------------------------------------------------------------ actions


@dataclass(frozen=True, slots=True)
class RunGradient:
    """Compute a gradient at ``model``.

    Attributes:
        model: per bucket a 1-D tensor.
        rounds: per bucket, the rounds of progress of that model (to be given back in :class:`GradientReady`).
    """

    model: tuple[Tensor, ...]
    rounds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Ready:
    """There is (again) a model to compute at: ask with :class:`ModelWanted`."""


@dataclass(frozen=True, slots=True)
class Send:
    """There is news for ``edge`` in ``bucket``: mark it in the edge's slot (latest wins). The message is built later,
    when the link takes it, from the state of then.

    Attributes:
        paces: how many C after the edge last spoke; more than 1 where waiting a little lets one message say more.
    """

    edge: Edge
    bucket: int
    paces: float = 1.0


@dataclass(frozen=True, slots=True)
class Transmit:
    """The message that :class:`LinkReady` asked for."""

    message: Message


@dataclass(frozen=True, slots=True)
class SetAside:
    """The subtree of ``rank`` made no progress for K rounds: its gradient leaves the sum until it moves."""

    rank: int


@dataclass(frozen=True, slots=True)
class CountsAgain:
    """``rank``, which was set aside, moved: it counts again."""

    rank: int


@dataclass(frozen=True, slots=True)
class Stopping:
    """The run is closing: compute no more."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Nothing is left to do: close the links and go."""


Action = RunGradient | Ready | Send | Transmit | SetAside | CountsAgain | Stopping | Leave
