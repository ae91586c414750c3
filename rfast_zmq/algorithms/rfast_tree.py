"""``rfast-tree``: the default. R-FAST on a pair of spanning trees, relayed at network speed, stepped by progress.

With every self-weight but the root's at 0, Algorithm 1 becomes: each node tells its parent the sum of the newest
gradients of its subtree, the root descends along the total, the model flows down. Per bucket::

    record     (w·g, w, w·V, c): a gradient times the node's weight; the weight; the version of the model it was made
               from (rounds of progress P); samples counted
    GRADIENT   own record = mean of the node's gradients since its last report left (at the root: since its last
               descent); c ← c + μ; UP
    RECV A     a child's record = mean of what it said since this node's last report left (at the root: since its last
               descent), with the newest c; UP
    UP         S = own record + Σ children's, recomputed, never added to.  Not the root: news for the parent.
               The root: news for the children
    LINK       the root, asked for its model: f = (S.c − last)/B, at most 1;
               f > 0: DESCEND(S.g/S.w, f, τ = P − S.V/S.w), last ← S.c
    RECV W     take the model up; news for the children

So one descent serves every link and all that was heard since the last. A report leaves C after the last if everybody
who is prompt has been heard since, else after 2 C; a leaf is sent no model while it would not use it. Each bucket goes
down and up a tree of its own, where the topology gives several.

In phase, which is where the busiest line takes longer for a model than an eighth of a round, and so sets C::

    LINK       the root, asked for its model within .5 C after another link was: the same, without a step (a wave)
    RECV W     pass it on now.  A leaf reports ``answer`` C after the first that came since its last report
    RECV A     all prompt children have answered the same models: report now; else 1.3 C after the last report
    the root   answer ← answer + (what the last reports waited for the models to leave − .05 C)/5, round the clock of C

No edge speaks before .5 C since it last did, nor early.

A child whose c has not moved for K = 10 rounds of P is set aside: its g, w and V leave the sum until it moves. So is
the node's own record.
DESCEND is :mod:`rfast_zmq.core.descent`.

Source: ``docs/algorithm.md``, changes 1 to 10; Algorithm 1: arXiv 2307.11617.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import inf
from typing import Any, ClassVar

import torch
from torch import Tensor

from rfast_zmq.algorithms.tree_records import AT_ONCE, PATIENT_IN_PHASE, TreeBucket
from rfast_zmq.core.control import COUNT_MOST, Phase, bounded
from rfast_zmq.core.descent import Descent, Norm
from rfast_zmq.core.events import (
    Action,
    CountsAgain,
    Edge,
    GradientReady,
    Graph,
    Message,
    Number,
    Ready,
    RunGradient,
    SetAside,
)
from rfast_zmq.core.interface import NodeConfig
from rfast_zmq.core.skeleton import SCALE_LEAST, Skeleton
from rfast_zmq.core.slots import EARLY, PATIENT
from rfast_zmq.settings import WIRES
from rfast_zmq.task.finite import is_finite

WEIGHT_LEAST = 1e-9
"""A record of less weight is none."""
PACE_OF_ROUND = 1 / 8
"""C, as a part of a round's time."""
LINE_SLACK = 1.05
"""A line is given so many times what it carries a model in."""
LINES_ALIKE = 2.0
"""One that takes longer than so many times the root's does not set the pace of all."""
LEAF_AHEAD = 0.5
"""A leaf of the pull tree is sent no model in this part of the time until it wants one (but in the last C always)."""
PROMPT = 1.1
"""Whoever is heard within so many times the patience of the time before was prompt: a tenth is for the way."""
ALONE_PACES = 4.0
"""The root descends when a link asks for the model; if none does for so many C, whenever it hears something."""
ROUND_UNASKED = 0.5
"""The same where so much of a round has come in."""
AHEAD_MOST = 1 / 16
"""The root begins its next gradient before it descends along its last, where that is so small a part of a round."""
IDLE_PACES, IDLE_LEAST_S = 2.0, 1e-3
"""τ_idle, as a multiple of C; and at least."""
IDLE_UNKNOWN = 1 / 8
"""τ_idle as a part of the time since the start, until a round's time is known: gradients may take long."""


class RFastTree(Skeleton):
    """One node of ``rfast-tree``. See the module.

    The arithmetic and the state are per bucket; an optimiser's state is held by the root only.
    """

    name: ClassVar[str] = "rfast-tree"
    optimizers: ClassVar[tuple[str, ...]] = ("nadam", "adam", "sgd", "momentum", "nesterov")
    clips: ClassVar[bool] = True
    packs: ClassVar[tuple[str, ...]] = WIRES[1:]

    def __init__(self, config: NodeConfig) -> None:
        layout, rank = config.layout, config.rank
        self._along, into = _edges(config)
        super().__init__(config, self._along, into)
        self._expected = [{edge for edge, along in into.items() if b in along} for b in range(self.buckets)]
        self._state = [TreeBucket(self.push_tree(b).children[rank]) for b in range(self.buckets)]
        self._descent: list[Descent | None] = [None] * self.buckets
        clipped = [bucket.size if bucket.kind == "parameters" else 0 for bucket in layout.buckets]
        self._norm = None if config.clip_norm is None else Norm(config.clip_norm, clipped)
        self._aside: tuple[int, ...] = ()
        """As it was told last; and as it is, while that is known."""
        self._aside_now: tuple[int, ...] = ()
        self._aside_known = True
        self._listens = [bool(self.pull_tree(b).children[rank]) for b in range(self.buckets)]
        """Per bucket, whether somebody takes its models from this node."""
        self._waves = True
        """The root says that models go in waves (where its line is what C is made of)."""
        self._hold_s: dict[int, float] = {}
        """Per child that is a leaf of the pull tree: until when it computes at the model it has."""
        self._broken = False
        """The root's step gave a model that is not finite: it takes no more, and the model of before is kept."""
        self._own_every_s = 0.0
        self._own_samples = float(self.config.global_batch)
        """In its last gradient."""
        self._gradient_at_s: float | None = None
        if self.is_root:
            assert config.initial is not None, "the root starts from a model"
            for state, x in zip(self._state, config.initial, strict=True):
                state.x = x
            self._descent = [
                Descent(
                    bucket,
                    rule=config.optimizer,
                    momentum=config.momentum,
                    beta2=config.beta2,
                    eps=config.eps,
                )
                if bucket.kind == "parameters"
                else None
                for bucket in layout.buckets
            ]

    @classmethod
    def numbers(cls, graph: Graph) -> Mapping[str, type]:
        own: dict[str, type] = (
            {"P": float, "answer": float}
            if graph == "W"
            else {"w": float, "wV": float, "c": int, "next_s": float, "answers": float}
        )
        return {**super().numbers(graph), **own}

    def buckets_along(self, edge: Edge) -> tuple[int, ...]:
        return self._along[edge]

    # ------------------------------------------------------------------------------------ events

    def _started(self, now: float) -> list[Action]:
        return super()._started(now) + self._mark("W") if self.is_root else []

    def _ready(self) -> bool:
        return all(state.x is not None for state in self._state)

    def fed_by_reports(self) -> tuple[Edge, ...]:
        return tuple(edge for edge in self.out_edges if edge.graph == ("W" if self.is_root else "A"))

    @property
    def models_can_wait(self) -> bool:
        return not any(self._listens)

    @property
    def gradient_makes_model(self) -> bool:
        return self.is_root and (not any(self._listens) or self._own_samples > AHEAD_MOST * self.config.global_batch)

    def not_before(self, edge: Edge) -> float:
        return self._hold_s.get(edge.dst, -inf) if edge.graph == "W" and self._closing.running else -inf

    def _models(self, now: float) -> list[Action]:
        model = tuple(state.x for state in self._state if state.x is not None)
        if len(model) < self.buckets:
            return []
        return [RunGradient(model, tuple(state.rounds for state in self._state))]

    def _gradient(self, event: GradientReady) -> list[Action]:
        w, actions = self.config.weight, []
        if event.first == 0:
            self._own_samples = event.samples / event.steps
            if not any(self._listens):
                self._note_interval(event.now)
        for b, g in enumerate(event.gradient, event.first):
            state = self._state[b]
            own = state.own
            self._aside_known &= not own.aside
            own.moved_at, own.aside = state.rounds, False
            own.came(event.now, PROMPT * self._patience * self.pace_s)
            own.add(
                g if w == 1.0 else w * g,
                w,
                w * event.rounds[b],
                own.c + event.samples,
                size=float(event.samples),
            )
            actions += self._up(b, event.now)
        return self._told_aside() + actions

    def _note_interval(self, now: float) -> None:
        """How often this node, a leaf of the pull tree, takes a model: the shorter intervals count at once, longer
        ones by and by."""
        if self._gradient_at_s is not None:
            took_s, known_s = now - self._gradient_at_s, self._own_every_s
            self._own_every_s = min(took_s, known_s + 0.1 * (took_s - known_s)) if known_s else took_s
        self._gradient_at_s = now

    def _next_s(self, now: float) -> float:
        """Seconds until this node will want a model; 0.0 where models are passed on, or it is not known."""
        return 0.0 if self._gradient_at_s is None else max(self._gradient_at_s + self._own_every_s - now, 0.0)

    def _stop(self, now: float) -> None:
        if self.is_root:
            for b in range(self.buckets):
                self._take_step(b, now)

    def _received(self, message: Message, now: float) -> list[Action]:
        b, numbers = message.bucket, message.numbers
        state = self._state[b]
        if message.edge not in self._expected[b]:  # it is along another tree that this bucket goes
            return []
        if message.edge.graph == "W":
            had = self._ready()
            state.x, state.rounds = message.payload, bounded(numbers["P"])
            answer = bounded(numbers["answer"], -1.0)
            self._waves, state.answer = answer >= 0.0, min(max(answer, 0.0), 1.0)
            actions: list[Action] = [] if had or not self._ready() else [Ready()]
            actions += self._mark("W", b, paces=AT_ONCE if self._in_phase else 1.0)
            if state.answer_s is None:
                state.answer_s, state.asked = now + state.answer * self.pace_s, state.rounds
                if self._in_phase and state.news():
                    actions += self._mark("A", b, paces=state.answer_paces(self.pace_s))
            if self._look(state, now):
                actions += self._told_aside() + self._mark("A", b)
            return actions
        child, w, c = state.children[message.edge.src], bounded(numbers["w"]), int(numbers["c"])  # type: ignore[arg-type]
        if self.pace_s > 0.0 and (next_s := bounded(numbers["next_s"])):
            self._hold_s[message.edge.src] = now + next_s - max(self.pace_s, LEAF_AHEAD * next_s)
        if w < WEIGHT_LEAST:
            return []
        alone = child.final = bool(numbers["final"])
        if c > child.c or child.g is None:
            self._aside_known &= not child.aside
            child.came(now, PROMPT * self._patience * self.pace_s)
            alone = alone or child.aside  # what it said while it was set aside is no part of what it says now
            child.moved_at, child.aside = state.rounds, False
        child.answers = max(child.answers, bounded(numbers["answers"], -1.0))
        said = max(c, child.c), w, bounded(numbers["wV"])
        if alone or child.left or said != child.said:  # a repetition must not weigh twice in the window's mean
            child.add(message.payload, w, said[2], said[0], alone=alone)
        child.said = said
        return self._told_aside() + self._up(b, now)

    def _look(self, state: TreeBucket, now: float) -> bool:
        """Set aside whoever does not move; True if there were such."""
        found = state.look(now, self.pace_s)
        self._aside_known &= not found
        return found

    def _told_aside(self) -> list[Action]:
        """Who was set aside, or counts again, since this was last said: once a node, however many its buckets."""
        now, before = self._set_aside(), self._aside
        self._aside = now
        aside: list[Action] = [SetAside(rank) for rank in now if rank not in before]
        return aside + [CountsAgain(rank) for rank in before if rank not in now]

    def _up(self, b: int, now: float) -> list[Action]:
        state = self._state[b]
        in_phase, patience = self._in_phase, self._patience
        if in_phase:
            paces = 1.0 if self.is_root else state.answer_paces(self.pace_s)
        elif state.all_heard(now, PROMPT * patience * self.pace_s):
            paces = 1.0
        else:
            paces = patience
        if not self.is_root:
            return self._mark("A", b, paces=paces)
        if not self._closing.running:
            return []
        if in_phase and (answered := state.all_answered()) > state.answered:
            state.answered, state.answered_s = answered, now
        actions = self._told_aside() if self._look(state, now) else []
        if state.count() <= state.last:
            return actions
        much = state.count() - state.last >= ROUND_UNASKED * self.config.global_batch  # more than a round would be lost
        if not self._listens[b] or now >= state.alone_s or much:
            self._take_step(b, now)
        return actions + self._mark("W", b, paces=paces)

    def _take_step(self, b: int, now: float) -> None:
        """The root: descend along what has been heard since the last descent, if anything was."""
        state = self._state[b]
        if self._broken or state.count() <= state.last:
            return
        g, w, wv, c = state.total()
        f = min((c - state.last) / self.config.global_batch, 1.0)
        if g is None or w <= 0.0:
            return
        state.last = c
        state.report_left()
        self._descend(b, g / w, f, max(state.rounds - wv / w, 0.0))
        state.meter.descended(now, f)
        if b == 0:
            self.round_s = state.meter.round_s
            self.root_pace_s = self._chosen_pace_s() if self.config.pace_s is None else self.config.pace_s
        state.alone_s = now + ALONE_PACES * self.root_pace_s

    def _chosen_pace_s(self) -> float:
        """C, at the root: a part of a round, or the cycle of the busiest line if that is longer. But a line far slower
        than the root's own is the matter of its own node (:attr:`line_pace_s`): where the root's line is never busy,
        nobody is in phase."""
        busiest_s = min(self.census().cycle_s, LINES_ALIKE * self._line.cycle_s)
        return max(PACE_OF_ROUND * self.round_s, LINE_SLACK * busiest_s if self.round_s else 0.0)

    @property
    def _patience(self) -> float:
        """So many C after its last report a node reports again although not everybody has been heard since."""
        return PATIENT_IN_PHASE if self._in_phase else PATIENT

    @property
    def _in_phase(self) -> bool:
        """Whether C is what the busiest line takes for a model, and not a part of a round, nor what the root was
        given."""
        chosen = self.config.pace_s is None and self._waves
        return chosen and self.pace_s > 1.01 * PACE_OF_ROUND * self.round_s

    @property
    def early(self) -> float:
        return 0.0 if self._in_phase else EARLY

    def _answer_to_tell(self, state: TreeBucket) -> float:
        """So many C after a model came a leaf is to report; −1.0: as it likes."""
        in_phase = self._in_phase if self.is_root else self._waves
        return state.answer if in_phase else -1.0

    @property
    def line_pace_s(self) -> float:
        if self.config.pace_s is not None or not self._closing.running:
            return self.pace_s
        cycle_s = self._line.cycle_s
        return self.pace_s if cycle_s <= LINES_ALIKE * self.pace_s else LINE_SLACK * cycle_s

    def _descend(self, b: int, d: Tensor, f: float, tau: float) -> None:
        """DESCEND, or, for running averages, take the mean as it is."""
        state, descent = self._state[b], self._descent[b]
        assert state.x is not None
        if descent is None:
            state.x = d
        else:
            state.staleness = tau
            clip = None if self._norm is None else partial(self._norm.shrink, b)
            following = descent.step(state.x, d, f, tau, self.config.rates(self.root_rounds), clip)
            if not is_finite(following):  # nobody would take it, nor the stop that rides with it
                self._broken, self._descent[b] = True, None
                self._in_trouble()
                return
            state.x = following
        state.rounds += f
        self.root_rounds = min(s.rounds for s in self._state)

    def _link(self, edge: Edge, bucket: int, now: float) -> list[Action]:
        """The root steps when a link asks for the model, so that one step serves all links and all that was heard."""
        state = self._state[bucket]
        before = state.rounds
        if self.is_root and self._closing.running and not (self._in_phase and state.same_wave(now, self.pace_s)):
            self._take_step(bucket, now)
        stepped = state.rounds > before
        paces = AT_ONCE if self._in_phase else 1.0
        return super()._link(edge, bucket, now) + (self._mark("W", bucket, paces=paces, but=edge) if stepped else [])

    def _payload(self, edge: Edge, bucket: int, now: float) -> tuple[Tensor, dict[str, Number]] | None:
        state = self._state[bucket]
        if edge.graph == "W":
            return None if state.x is None else (state.x, {"P": state.rounds, "answer": self._answer_to_tell(state)})
        g, w, wv, c = state.total()
        if g is None:
            if self._closing.phase is Phase.RUN:
                return None
            g = torch.zeros(self.config.layout.buckets[bucket].size, dtype=self.config.layout.dtype)
        state.report_left()
        state.answered = state.answers()
        state.said_s, state.answer_s = now, None
        numbers: dict[str, Number] = {
            "w": w,
            "wV": wv,
            "c": min(c, COUNT_MOST),
            "next_s": self._next_s(now),
            "answers": state.answered,
        }
        return g, numbers

    # ------------------------------------------------------------------------------------ what others ask

    def _set_aside(self) -> tuple[int, ...]:
        if self._aside_known:
            return self._aside_now
        own = (self.rank,) if any(state.own.aside for state in self._state) else ()
        self._aside_now = own + tuple(
            {j: None for state in self._state for j, child in state.children.items() if child.aside}
        )
        self._aside_known = True
        return self._aside_now

    def _staleness(self) -> float:
        descended = [s.staleness for s, d in zip(self._state, self._descent, strict=True) if d is not None]
        return sum(descended) / max(len(descended), 1)

    def _idle_s(self) -> float:
        if self.pace_s > 0.0:
            return max(IDLE_PACES * self.pace_s, IDLE_LEAST_S)
        if self.round_s > 0.0:
            return max(IDLE_PACES * PACE_OF_ROUND * self.round_s, IDLE_LEAST_S)
        return max(IDLE_UNKNOWN * self.waited_s, IDLE_LEAST_S)

    def export(self) -> tuple[Tensor, ...] | None:
        """At the root θ, the plain iterate; elsewhere the newest model heard."""
        if not self._ready():
            return None
        return tuple(
            descent.plain(state.x) if descent is not None else state.x
            for state, descent in zip(self._state, self._descent, strict=True)
            if state.x is not None
        )

    def snapshot(self) -> dict[str, Any]:
        """At the root: what :meth:`restore` needs to go on from here; numbers and fresh tensors, by bucket."""
        return {
            str(b): {"x": state.x, "rounds": state.rounds, **(descent.state() if descent is not None else {})}
            for b, (state, descent) in enumerate(zip(self._state, self._descent, strict=True))
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """At the root, before the first event: go on from a :meth:`snapshot`. Samples are counted anew."""
        for b, (state, descent) in enumerate(zip(self._state, self._descent, strict=True)):
            of_bucket = saved[str(b)]
            state.x, state.rounds = of_bucket["x"], float(of_bucket["rounds"])
            if descent is not None and "theta" in of_bucket:
                descent.restore(of_bucket)
        self.root_rounds = min(state.rounds for state in self._state)

    def last_record(self) -> Mapping[str, Tensor | float]:
        """``own``: this node's last record w·g (zeros if it has none), and what rounding made of its last message;
        ``sum``: S, of the subtree; ``samples``: own."""
        zero = [torch.zeros(bucket.size, dtype=self.config.layout.dtype) for bucket in self.config.layout.buckets]
        own = [z if s.own.g is None else s.own.g for s, z in zip(self._state, zero, strict=True)]
        if self._packer is not None:
            said = {b: edge for edge, along in self._along.items() if edge.graph == "A" for b in along}
            own = [g + self._packer.off.get((said.get(b), b), 0.0) for b, g in enumerate(own)]
        totals = [z if (t := s.total()[0]) is None else t for s, z in zip(self._state, zero, strict=True)]
        return {"own": torch.cat(own), "sum": torch.cat(totals), "samples": float(self._own.samples)}

    @staticmethod
    def identity_error(records: Mapping[int, Mapping[str, Any]], root: int) -> float:
        """|S at the root − Σ of the nodes' own last records| ÷ the largest |g| (float64 sums; max over coordinates)."""
        own = [torch.as_tensor(r["own"]).double() for r in records.values()]
        total = torch.as_tensor(records[root]["sum"]).double()
        scale = max(float(g.abs().max()) for g in own)
        return float((total - sum(own)).abs().max()) / max(scale, SCALE_LEAST)


def _edges(config: NodeConfig) -> tuple[dict[Edge, tuple[int, ...]], dict[Edge, tuple[int, ...]]]:
    """A node's out-edges and its in-edges, with the buckets that travel along each."""
    out: dict[Edge, tuple[int, ...]] = {}
    into: dict[Edge, tuple[int, ...]] = {}
    topology, rank = config.topology, config.rank
    for b in range(len(config.layout.buckets)):
        pull = topology.pull_trees[b % len(topology.pull_trees)]
        push = topology.push_trees[b % len(topology.push_trees)]
        away = [Edge("W", rank, j) for j in pull.children[rank]]
        here = [Edge("A", j, rank) for j in push.children[rank]]
        away += [Edge("A", rank, parent) for parent in (push.parent[rank],) if parent is not None]
        here += [Edge("W", parent, rank) for parent in (pull.parent[rank],) if parent is not None]
        for edges, found in ((out, away), (into, here)):
            for edge in found:
                edges[edge] = (*edges.get(edge, ()), b)
    return out, into
