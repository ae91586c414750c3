"""``hivemind``: hivemind's own ``Optimizer``, what one would take today for volunteers' machines.

Everybody adds up gradients of its own at the present model; when all together have B samples, an *epoch* ends: the
nodes find each other in a distributed hash table (matchmaking), average what they have added up, each weighed by its
samples, and take the same step::

    d = Σ_i Σ_s ∇f_i(x; ζ_is) / Σ_i samples_i        x ← optimiser(x, d)        and, beside it, x ← mean of the nodes' x

A fast node gives more of the B samples, so nobody waits for a slow one's gradient, but for the matchmaking; on uneven
data it ends at the optimum weighted by speeds. A node that was late takes the others' state, and what it was computing
is lost.

None of it is ours: no state machine stands behind the name, and no ZeroMQ. So it is not in the simulator, nor under
``rfast node``; ``rfast_zmq/launch/hivemind.py`` runs it (``rfast run``), where the package of that name is installed
(``pip install 'rfast-zmq[hivemind]'``).

``matchmaking_s`` is hivemind's ``matchmaking_time``, the seconds in which a group comes together (theirs: 15; here 1,
for epochs of a tenth of a second); ``averaging_timeout_s`` its ``averaging_timeout``; ``refresh_s`` the least seconds
between two looks at how far the others are (theirs: .5). Gradients are not averaged while the next are computed, which
hivemind offers (``delay_grad_averaging``).

Source: Ryabinin et al., "Moshpit SGD" (arXiv 2103.03239) and Diskin et al., "Distributed deep learning in open
collaborations" (arXiv 2106.10207); https://github.com/learning-at-home/hivemind.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, ClassVar

from rfast_zmq.algorithms.ddp import Ddp, check_foreign
from rfast_zmq.core.interface import Method
from rfast_zmq.errors import UsageError
from rfast_zmq.settings import BUCKET_BYTES, Settings


class Hivemind(Method):
    """What is known of it beforehand. See the module."""

    name: ClassVar[str] = "hivemind"
    optimizers: ClassVar[tuple[str, ...]] = Ddp.optimizers
    bears_loss: ClassVar[bool] = False
    cpu_only: ClassVar[bool] = True
    alike: ClassVar[str] = "rennala, whose batches are of whoever is fast, too"
    options: ClassVar[Mapping[str, float]] = {
        "matchmaking_s": 1.0,
        "averaging_timeout_s": 10.0,
        "refresh_s": 0.1,
    }

    @classmethod
    def check_options(cls, options: Mapping[str, float]) -> None:
        for name in ("matchmaking_s", "averaging_timeout_s", "refresh_s"):
            if options[name] <= 0:
                raise UsageError(f"--algorithm-option {name}={options[name]:g}: must be above 0 seconds")

    @classmethod
    def check_settings(cls, settings: Settings) -> None:
        if find_spec("hivemind") is None:
            raise UsageError(
                "--algorithm hivemind: the package of that name is not installed; pip install 'rfast-zmq[hivemind]'"
            )
        if settings.bucket_bytes != BUCKET_BYTES:
            raise UsageError(
                f"--bucket-bytes {settings.bucket_bytes}: --algorithm hivemind cuts tensors its own way; leave it out"
            )
        check_foreign(settings, cls.name)
        if settings.device not in ("auto", "cpu"):
            raise UsageError(
                f"--device {settings.device}: --algorithm {cls.name} runs on the CPU alone; take --device cpu"
            )

    @staticmethod
    def identity_error(records: Mapping[int, Mapping[str, Any]], root: int) -> None:
        """It has none: who was late has another model."""
        return
