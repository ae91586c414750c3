"""What a node of ``rfast-tree`` knows of one bucket: records of itself and its children, the waves, a round's time.

What a node does with it is :mod:`~rfast_zmq.algorithms.rfast_tree`.
"""

from __future__ import annotations

from math import exp, inf

import torch
from torch import Tensor

ASIDE_ROUNDS = 10.0
"""K: a child whose count has not moved for so many rounds is set aside."""
ASIDE_PACES, ASIDE_LEAST_S = 4.0, 0.25
"""Nor before it could have been heard (so many C), nor in a moment in which a machine may be busy with other things."""
PROMPT_LEAST, PROMPT_STEP = 0.75, 0.1
"""A report waits a little for a child that has been so prompt of late: for no slow one, and hardly at all where much is
lost."""
PATIENT_IN_PHASE, AT_ONCE = 1.3, 0.5
"""The patience where lines are busy and set the pace: a turn that is missed would be a long one. And what is passed on
there is passed on in the moment that it came, if so much of C has passed."""
ANSWER_MARGIN, ANSWER_LATE, ANSWER_GAIN = 0.05, 0.75, 0.2
"""In phase: reports should reach the root so many C before the models leave that are made of them; one that waited for
more came too late for those before; and so much of what is amiss is mended in one C."""


class Record:
    """What a node says of its subtree: a running mean of what was heard since the last report left.

    Attributes:
        g: sum over the subtree of weight times gradient, 1-D; None before the first.
        w: sum of weights.
        wv: sum of weight times version.
        c: samples counted (newest, never a mean).
        left: a report left since; the next entry begins a new window.
        prompt: which part of its last entries came within the patience of the one before.
    """

    __slots__ = ("_entered_s", "_n", "_own_memory", "c", "g", "left", "prompt", "w", "wv")

    def __init__(self) -> None:
        self.g: Tensor | None = None
        self.w = self.wv = self._n = 0.0
        self.c = 0
        self.left = self._own_memory = False
        self.prompt = 1.0
        self._entered_s = -inf

    def add(self, g: Tensor, w: float, wv: float, c: int, size: float = 1.0, alone: bool = False) -> None:
        """Take one more into the window's mean, with weight ``size`` (``alone``: forget the window first)."""
        if self.g is None or self.left or alone or self._n == 0.0:
            self.g, self.w, self.wv, self._n = g, w, wv, size
            self.left = self._own_memory = False
        else:
            self._n += size
            t = size / self._n
            # The first entry is somebody else's tensor; what has left begins a new window, and is not written to.
            self.g = self.g.lerp_(g, t) if self._own_memory else torch.lerp(self.g, g, t)
            self._own_memory = True
            self.w += t * (w - self.w)
            self.wv += t * (wv - self.wv)
        self.c = c

    def came(self, now: float, patience_s: float) -> None:
        """Something new was counted at ``now``."""
        if patience_s > 0.0:
            self.prompt += PROMPT_STEP * ((now - self._entered_s <= patience_s) - self.prompt)
        self._entered_s = now

    def silent_s(self, now: float) -> float:
        """How long ago something new was counted."""
        return now - self._entered_s

    def awaited(self, now: float, patience_s: float) -> bool:
        """Nothing was heard since the last report left, but probably soon will be."""
        return self.left and self.prompt >= PROMPT_LEAST and now - self._entered_s <= patience_s


class Child(Record):
    """A child's record, and whether it moves (after its last word it need not)."""

    __slots__ = ("answers", "aside", "final", "moved_at", "said")

    def __init__(self) -> None:
        super().__init__()
        self.answers = -1.0
        """P of the models that its newest report answers, in phase."""
        self.said = (0, 0.0, 0.0)
        """c, w and w·V of its newest report."""
        self.moved_at = 0.0
        self.aside = self.final = False


class PaceMeter:
    """Seconds of a round, from the root's descents; the last two rounds or so count."""

    def __init__(self) -> None:
        self._seconds = self._rounds = 0.0
        self._before_s: float | None = None

    def descended(self, now: float, f: float) -> None:
        """A descent of ``f`` rounds happened at ``now``; where that is earlier than the last, no time has passed."""
        if self._before_s is not None:
            keep = exp(-f / 2)
            self._seconds = keep * self._seconds + max(now - self._before_s, 0.0)
            self._rounds = keep * self._rounds + f
        self._before_s = now

    @property
    def round_s(self) -> float:
        """Seconds of a round. 0.0 until one was seen: the first reports of all come in one burst."""
        return self._seconds / self._rounds if self._rounds > 1.0 else 0.0


class TreeBucket:
    """One bucket's instance of the algorithm at one node."""

    def __init__(self, children: tuple[int, ...]) -> None:
        self.x: Tensor | None = None
        self.rounds = 0.0
        """P of x."""
        self.last = 0
        """S.c at the last descent."""
        self.meter = PaceMeter()
        """The root's, and so is:"""
        self.alone_s = -inf
        """From when on it descends although no link has asked for the model."""
        self.handed_s = -inf
        """At the root, in phase: when the model was handed out, to the first of those that take it."""
        self.staleness = 0.0
        self.said_s = -inf
        """When its last report left."""
        self.answer = 0.5
        """In phase: so many C after a model came a leaf reports, as the root has it."""
        self.answer_s: float | None = None
        """In phase: when the next is to leave, if nobody is waited for (None: no model came since)."""
        self.asked = self.answered = -1.0
        """P of the model that came first since then, and of the one that the last report answers (at the root: of the
        newest that all have answered)."""
        self.answered_s = -inf
        """At the root: when they had."""
        self.own = Child()
        self.children = {j: Child() for j in children}

    def total(self) -> tuple[Tensor | None, float, float, int]:
        """S: (w·g, w, w·V, c) of the subtree, the set-aside children only by their c. ``g`` is never written to once
        the report has left."""
        records = [record for record in self._records() if not record.aside]
        said = [r for r in records if r.g is not None]
        c = self.count()
        if not said:
            return None, 0.0, 0.0, c
        parts = [r.g for r in said if r.g is not None]
        g = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        for part in parts[2:]:
            g.add_(part)
        return g, sum(r.w for r in said), sum(r.wv for r in said), c

    def count(self) -> int:
        """S.c."""
        return self.own.c + sum(k.c for k in self.children.values())

    def all_heard(self, now: float, patience_s: float) -> bool:
        """Has everybody who can be counted on said something since the last report left?"""
        return not any(record.awaited(now, patience_s) for record in self._records() if not record.aside)

    def look(self, now: float, pace_s: float) -> bool:
        """Set aside those that do not move (which takes some C to be seen), this node itself among them; True if there
        were such."""
        still = [
            child
            for child in self._records()
            if child.g is not None
            and not (child.aside or child.final)
            and self.rounds - child.moved_at > ASIDE_ROUNDS
            and child.silent_s(now) >= max(ASIDE_PACES * pace_s, ASIDE_LEAST_S)
        ]
        for child in still:
            child.aside = True
        return bool(still)

    def _records(self) -> tuple[Child, ...]:
        """Its own, and its children's."""
        return (self.own, *self.children.values())

    def all_answered(self) -> float:
        """P of the newest model that all those have answered who can be counted on; at a leaf, of the one that came
        first since its last report."""
        prompt = self.prompt()
        return min(child.answers for child in prompt) if prompt else self.asked

    def answers(self) -> float:
        """The same, of a report that leaves now; if they have answered none since the last one left: P of the newest
        model that anybody has."""
        all_have = self.all_answered()
        return all_have if all_have > self.answered else max([self.answered, *(k.answers for k in self.prompt())])

    def prompt(self) -> list[Child]:
        """The children that are mostly heard in every C."""
        return [child for child in self.children.values() if not child.aside and child.prompt >= PROMPT_LEAST]

    def news(self) -> bool:
        """Did anything come in since the last report left?"""
        return any(record.g is not None and not record.left for record in self._records())

    def report_left(self) -> None:
        """What is in the windows was said: the next entry begins new ones."""
        self.own.left = True
        for child in self.children.values():
            child.left = True

    def answer_paces(self, pace_s: float) -> float:
        """In phase: so many C after its last report the next is to leave: at once, when all that can be counted on have
        answered the same models; where there are none, as long after a model as the root has it."""
        if self.prompt():
            return AT_ONCE if self.all_answered() > self.answered else PATIENT_IN_PHASE
        if self.answer_s is None or pace_s <= 0.0:
            return PATIENT_IN_PHASE
        return min(max((self.answer_s - self.said_s) / pace_s, AT_ONCE), PATIENT_IN_PHASE)

    def same_wave(self, now: float, pace_s: float) -> bool:
        """The root, in phase, as a link asks for a model: is it to be the one that another link was just given? If
        not, were the reports here in time, and not long before? Leaves are told to report later or sooner after a model
        came. (To their own gradients that is all one: what a longer wait makes of some older, it spares the others,
        that are then of a newer model.)"""
        if now < self.handed_s + AT_ONCE * pace_s:
            return True
        waited = (now - self.answered_s) / pace_s
        if waited <= PATIENT_IN_PHASE:
            amiss = waited if waited < ANSWER_LATE else waited - 1.0  # they just missed the models before
            self.answer = (self.answer + ANSWER_GAIN * (amiss - ANSWER_MARGIN)) % 1.0
        self.handed_s = now
        return False
