"""How long a gradient takes on each node, where a machine is emulated."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from rfast_zmq.conditions.draws import uniform
from rfast_zmq.errors import UsageError

COMPUTE_FORMS = "none, constant:S, uniform:A:B or lognormal:MEDIAN:SIGMA, in seconds"
MAX_SIGMA = 10.0


@dataclass(frozen=True, slots=True)
class Distribution:
    """Of the seconds that a node's share takes.

    Attributes:
        quantile: the seconds below which a fraction u of the draws lies, 0 < u < 1.
        mean_s: expectation, in seconds.
    """

    quantile: Callable[[float], float]
    mean_s: float


class Speeds:
    """The emulated speed of every node: seconds for a gradient, one draw for each share of each node.

    A node's share is b = B/n samples of a round. The k-th share of a node takes a drawn time; a gradient over part of
    it takes that part of the time, and one that reaches over several shares the sum of the parts. So every algorithm
    and every report size meets the same speeds at the same point of a node's work.

    Args:
        distribution: of the seconds for one share; None: nothing is emulated.
        factors: rank to the factor that its times are multiplied by; 1 where missing.
        seed: of the draws, ≥ 0.
    """

    def __init__(self, distribution: Distribution | None, factors: Mapping[int, float], seed: int) -> None:
        self._distribution = distribution
        self._factors = dict(factors)
        self._seed = seed

    @classmethod
    def parse(cls, compute: str, stragglers: Sequence[str], nodes: int, seed: int) -> Speeds:
        """As given to ``--compute``, ``--straggler`` and ``--seed``.

        Args:
            compute: ``none``, ``constant:S``, ``uniform:A:B`` or ``lognormal:MEDIAN:SIGMA``, in seconds for a gradient
                over a node's share.
            stragglers: ``RANK:FACTOR`` each.
            nodes: number of nodes.
            seed: of the draws.

        Raises:
            UsageError: a value that is none of these; the text names it and what would do.
        """
        if seed < 0:
            raise UsageError(f"--seed {seed}: must be 0 or more")
        distribution = _distribution(compute)
        factors = _factors(stragglers, nodes)
        if factors and distribution is None:
            raise UsageError(
                f"--straggler {stragglers[0]}: has nothing to slow down without emulated times; "
                f"give --compute {COMPUTE_FORMS.removeprefix('none, ')}"
            )
        return cls(distribution, factors, seed)

    @property
    def emulated(self) -> bool:
        """Whether gradients take drawn times; if not, they take what they take."""
        return self._distribution is not None

    def seconds(self, rank: int, done: int, samples: int, share: float) -> float:
        """How long a gradient takes.

        Args:
            rank: the node.
            done: samples the node has computed before.
            samples: samples of this gradient.
            share: b = B/n, in samples.

        Returns:
            Seconds; 0.0 where nothing is emulated.
        """
        if self._distribution is None:
            return 0.0
        begin, end = done / share, (done + samples) / share
        total = 0.0
        for k in range(math.floor(begin), math.ceil(end)):
            share_s = self._distribution.quantile(uniform(self._seed, "compute", rank, k))
            total += (min(end, k + 1) - max(begin, k)) * share_s
        return total * self._factor(rank)

    def mean_rate(self, rank: int, share: float) -> float:
        """Samples per second in the long run, for the limit in which no node ever waits.

        Args:
            rank: the node.
            share: b = B/n, in samples.

        Returns:
            Samples per second; ``inf`` where nothing is emulated.
        """
        if self._distribution is None:
            return math.inf
        return share / (self._distribution.mean_s * self._factor(rank))

    def _factor(self, rank: int) -> float:
        return self._factors.get(rank, 1.0)


def _distribution(compute: str) -> Distribution | None:
    match [part.strip() for part in compute.split(":")]:
        case ["none"]:
            return None
        case ["constant", s]:
            seconds = _number(s)
            if 0 < seconds < math.inf:
                return Distribution(lambda u: seconds, seconds)
            raise UsageError(f"--compute {compute}: constant:S needs a number of seconds S above 0")
        case ["uniform", a, b]:
            low, high = _number(a), _number(b)
            if 0 <= low <= high < math.inf and high > 0:
                return Distribution(lambda u: low + (high - low) * u, (low + high) / 2)
            raise UsageError(f"--compute {compute}: uniform:A:B needs seconds 0 ≤ A ≤ B with B above 0")
        case ["lognormal", m, s]:
            median, sigma = _number(m), _number(s)
            if 0 < median < math.inf and 0 <= sigma <= MAX_SIGMA:
                normal = NormalDist()
                return Distribution(
                    lambda u: median * math.exp(sigma * normal.inv_cdf(u)), median * math.exp(sigma * sigma / 2)
                )
            raise UsageError(
                f"--compute {compute}: lognormal:MEDIAN:SIGMA needs a median of seconds above 0 "
                f"and a sigma from 0 to {MAX_SIGMA:g}"
            )
    raise UsageError(f"--compute {compute}: one of {COMPUTE_FORMS}")


def _factors(stragglers: Sequence[str], nodes: int) -> dict[int, float]:
    factors: dict[int, float] = {}
    for straggler in stragglers:
        rank_text, _, factor_text = straggler.partition(":")
        try:
            rank = int(rank_text)
        except ValueError:
            raise UsageError(f"--straggler {straggler}: must be RANK:FACTOR, as 0:5") from None
        factor = _number(factor_text)
        if not 0 <= rank < nodes:
            raise UsageError(f"--straggler {straggler}: there is no rank {rank}; valid ranks are 0..{nodes - 1}")
        if not 0 < factor < math.inf:
            raise UsageError(f"--straggler {straggler}: the factor must be a number above 0, as {rank}:5")
        if rank in factors:
            raise UsageError(f"--straggler {straggler}: rank {rank} already has the factor {factors[rank]:g}; give one")
        factors[rank] = factor
    return factors


def _number(text: str) -> float:
    """The number, or nan, which is in no range, where there is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
