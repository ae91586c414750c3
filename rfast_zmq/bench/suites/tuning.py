"""The best lr, and the best B with it, by search on grids whose ends are never the best. Whoever asks does the runs.

Few seeds cannot tell neighbours apart that lie a few hundredths from each other, and beyond the last good lr is often a
cliff. So of neighbours as good as the best, the one in their middle is taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import inf, isfinite, sqrt

EXTENSIONS_MOST = 8
"""So often a grid is made longer at an end that was best."""

AS_GOOD = 1.05
"""Times that differ by less than this factor are alike."""

HOPELESS = 2 * AS_GOOD
"""A run that has taken so many times the best time so far may be broken off, and counts as never there. A median over
seeds is at least half of the upper of the two in their middle: if that one is broken off, this lr is neither the best
nor as good as the best."""

Score = tuple[float, float]
"""(seconds to the target, minus the accuracy at the end): the smaller the better; never reached is infinite."""
Ask = Callable[[int, float, float], Awaitable[Score]]
"""(B, lr, the seconds after which a run may be broken off) to its score."""


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        batch, lr: the best.
        score: of them.
        tried: every (B, lr) with its score.
        open_end: the best lr or B is at the end of its grid, which was made as long as it may get.
    """

    batch: int
    lr: float
    score: Score
    tried: dict[tuple[int, float], Score]
    open_end: bool


async def best_lr(ask: Ask, batch: int, start: float, best_s: float = inf) -> Tuned:
    """Factors of two around ``start``, more of them while the best is at an end; then √2 to both sides of the best.

    Args:
        ask: scores a B and lr.
        batch: B.
        start: lr to begin with.
        best_s: the best time of what else is searched (seconds); whatever is hopeless beside that may be broken off.
    """
    tried_s = [best_s]

    async def at(lr: float) -> Score:
        score = await ask(batch, lr, HOPELESS * min(tried_s))
        tried_s.append(score[0])
        return score

    found, open_end = await _climb(at, {start: await at(start)}, 2.0)  # by itself: it tells how long the others have
    if isfinite(best_s) and not any(isfinite(s) for s, _ in found.values()):
        # They were judged by where they stood as they were broken off: better look one further to either side.
        found, open_end = await _climb(at, found, 2.0)
    best = min(found, key=found.__getitem__)
    near = [best / sqrt(2), best * sqrt(2)]
    found |= dict(zip(near, await asyncio.gather(*map(at, near)), strict=True))
    best = _middle_of_the_best(found)
    return Tuned(batch, best, found[best], {(batch, lr): score for lr, score in sorted(found.items())}, open_end)


async def best_batch(ask: Ask, first: Tuned, least: int, best_s: float = inf) -> Tuned:
    """Factors of two in B from where ``first`` found the best lr, each B at its own best lr.

    Args:
        ask: scores a B and lr.
        first: of the B to begin with.
        least: no B is smaller.
        best_s: as of :func:`best_lr`.
    """
    found = {first.batch: first}

    async def at(wanted: float) -> Score:
        batch = int(wanted)
        if batch < least:
            return inf, inf
        if batch not in found:
            near = min(found, key=lambda b: (abs(b - batch), b))
            so_far_s = min(best_s, *(tuned.score[0] for tuned in found.values()))
            found[batch] = await best_lr(ask, batch, found[near].lr, so_far_s)
        return found[batch].score

    scores, open_end = await _climb(at, {first.batch: first.score}, 2.0)
    best = found[int(min(scores, key=scores.__getitem__))]
    tried = {pair: score for tuned in found.values() for pair, score in tuned.tried.items()}
    return Tuned(best.batch, best.lr, best.score, tried, open_end or best.open_end)


def _middle_of_the_best(scores: dict[float, Score]) -> float:
    """The best, or the middle of its neighbours that are as good (of an even number the lower middle)."""
    grid = sorted(scores)
    first = last = grid.index(min(grid, key=scores.__getitem__))
    most_s = AS_GOOD * scores[grid[first]][0]

    def as_good(i: int) -> bool:
        return 0 <= i < len(grid) and isfinite(most_s) and scores[grid[i]][0] <= most_s

    while as_good(first - 1):
        first -= 1
    while as_good(last + 1):
        last += 1
    return grid[(first + last) // 2]


async def _climb(
    at: Callable[[float], Awaitable[Score]], scores: dict[float, Score], factor: float
) -> tuple[dict[float, Score], bool]:
    """Scores of a geometric grid, one longer to either side and then made longer until no end is the best; whether one
    still is."""
    sides = [min(scores) / factor, max(scores) * factor]
    scores = scores | dict(zip(sides, await asyncio.gather(*map(at, sides)), strict=True))
    for _ in range(EXTENSIONS_MOST):
        best = min(scores, key=scores.__getitem__)
        if min(scores) < best < max(scores):
            return scores, False
        further = best / factor if best == min(scores) else best * factor
        scores[further] = await at(further)
    best = min(scores, key=scores.__getitem__)
    return scores, not min(scores) < best < max(scores)
