"""Gradients that a loop of the user's own computes, in a thread of the user's own: what passes between it and the node.

Seen from the node it is what :class:`~rfast_zmq.node.gradients.Gradients` is: models are offered, gradients are done.
Seen from the user's loop: where there is :meth:`Steps.room`, :meth:`Steps.give` a gradient; :meth:`Steps.take` the
newest model. Only two things ever block there, and neither is another node: the first model of the run, and at a root
whose gradient makes the next model, the node's own step.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from torch import Tensor

from rfast_zmq.core.events import RunGradient
from rfast_zmq.node.gradients import RECENT, Gradient

UNSEEN_MOST = 1
"""So many gradients may lie here that the node has not taken yet; each has the size of a model."""


Bring = Callable[[Sequence[Tensor], Sequence[float], Callable[[], object]], bool]


class Steps:
    """One mailbox each way; of several models the newest counts.

    Args:
        bring: brings a model on offer near (:meth:`~rfast_zmq.task.flat.FlatModel.bring`); None: it is near.
    """

    def __init__(self, bring: Bring | None = None) -> None:
        self._bring = bring
        self._changed = threading.Condition()
        self._offered: RunGradient | None = None
        self._expected = 0
        """Gradients there is room for, that are on their way."""
        self._left_off = False
        self._done: deque[Gradient] = deque()
        self._recent_s: deque[float] = deque(maxlen=RECENT)
        self._taken: tuple[float, ...] | None = None
        self._soon: Callable[[Callable[[], None]], object] | None = None
        self._news: Callable[[], None] = lambda: None
        self.busy = False
        self.cpu_s = 0.0
        """What the user's thread takes is not known here."""
        self.over = False
        """No gradient is wanted any more."""

    # -------------------------------------------------------------------------------------- the node's side

    def attach(self, soon: Callable[[Callable[[], None]], object], news: Callable[[], None]) -> None:
        """The node is there.

        Args:
            soon: has a function called on its loop; from any thread.
            news: called on the loop when a gradient is done.
        """
        self._soon, self._news = soon, news

    @property
    def least_s(self) -> float | None:
        """The next gradient will probably take longer than this (None: there was none yet)."""
        return min(self._recent_s, default=None)

    async def first_batch(self) -> None:
        """The user's loop loads its own data."""

    def offer(self, model: RunGradient) -> None:
        """A model for the gradient after the present one."""
        self.busy = True
        if self._left_off:
            return
        if self._bring is None or self._bring(model.model, model.rounds, partial(self._near, model)):
            self._near(model)

    def _near(self, model: RunGradient) -> None:
        """It may be taken."""
        with self._changed:
            self._offered = model
            self._changed.notify_all()

    def done(self) -> Iterator[Gradient]:
        """The gradients that are done, oldest first; each is told once."""
        while self._done:
            with self._changed:
                found = self._done.popleft()
            self._recent_s.append(found.seconds / found.steps)
            yield found

    def halt(self) -> None:
        """No gradient is wanted any more: whoever waits for a model goes on without."""
        with self._changed:
            self.over = True
            self._changed.notify_all()

    def close(self, wait: bool) -> None:
        """The node is gone."""
        self.halt()

    # -------------------------------------------------------------------------------------- the user's loop

    def room(self, anyhow: bool = False) -> bool:
        """Whether the node can do with another gradient now. If so, it has to be given.

        Args:
            anyhow: it has to.
        """
        with self._changed:
            if self._expected + len(self._done) >= UNSEEN_MOST and not anyhow:
                return False
            self._expected += 1
            return True

    def give(self, gradient: Gradient) -> None:
        """A gradient is done; it is not written to any more. From any thread."""
        with self._changed:
            self._expected = max(0, self._expected - 1)
            if self.over or self._soon is None:
                return
            self._done.append(gradient)
        with contextlib.suppress(RuntimeError):  # the node's loop is closed: the run is over
            self._soon(self._tell)

    def none(self) -> None:
        """The one that was expected does not come."""
        with self._changed:
            self._expected = max(0, self._expected - 1)

    def leave_off(self) -> None:
        """The loop computes no more: no model is brought near."""
        self._left_off = True

    def _tell(self) -> None:
        """On the node's loop, which looks for a newer model now, though the user's loop may have gone on meanwhile."""
        self.busy = False
        self._news()

    def take(self, wait: bool) -> RunGradient | None:
        """The newest model, if it is another than the one that was taken last; else None.

        Args:
            wait: until there is one, or the run is over.
        """
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._offered is not None or self.over)
            model, self._offered = self._offered, None
        if model is None or model.rounds == self._taken:
            return None
        self._taken = model.rounds
        return model
