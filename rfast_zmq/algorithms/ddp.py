"""``ddp``: torch's own ``DistributedDataParallel`` over gloo, what one would take today without this package.

Synchronous SGD: in every step each node takes the gradient over its share of B, torch averages it bucket by bucket
while the backward pass still goes on, and each node's optimiser takes the same step::

    d = Σ w_i g_i / Σ w        x ← optimiser(x, d)        2 (n − 1)/n models out of each node in a step

None of it is ours: no state machine stands behind the name, and no ZeroMQ. So it is not in the simulator, nor under
``rfast node``; ``ring-allreduce`` is the same mathematics there. ``rfast_zmq/launch/ddp.py`` runs it (``rfast run``).

``bucket_mb`` is torch's ``bucket_cap_mb`` (25: its default, whose first bucket is of 1 MB); ``find_unused_parameters``
(0 or 1) torch's flag of that name, for models of which a step may leave a parameter unused. ``--wire bf16`` does what
torch's ``bf16_compress_hook`` does: gradients are summed as bf16, with no feedback of what rounding loses.

Source: Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", arXiv 2006.15704.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rfast_zmq.algorithms.ring_allreduce import RingAllReduce
from rfast_zmq.core.interface import Method
from rfast_zmq.errors import UsageError
from rfast_zmq.settings import BUCKET_BYTES, Settings


class Ddp(Method):
    """What is known of it beforehand. See the module."""

    name: ClassVar[str] = "ddp"
    optimizers: ClassVar[tuple[str, ...]] = ("sgd", "momentum", "nesterov", "adam", "nadam")
    clips: ClassVar[bool] = True
    packs: ClassVar[tuple[str, ...]] = ("bf16",)
    bears_loss: ClassVar[bool] = False
    alike: ClassVar[str] = "ring-allreduce --topology ring, which is the same mathematics"
    options: ClassVar[Mapping[str, float]] = {"bucket_mb": 25.0, "find_unused_parameters": 0.0}
    switches: ClassVar[tuple[str, ...]] = ("find_unused_parameters",)

    @classmethod
    def check_options(cls, options: Mapping[str, float]) -> None:
        if options["bucket_mb"] <= 0:
            raise UsageError(f"--algorithm-option bucket_mb={options['bucket_mb']:g}: must be above 0, such as 25")

    @classmethod
    def check_settings(cls, settings: Settings) -> None:
        if settings.bucket_bytes != BUCKET_BYTES:
            raise UsageError(
                f"--bucket-bytes {settings.bucket_bytes}: --algorithm ddp has torch's buckets; take --algorithm-option"
                " bucket_mb=25"
            )
        check_foreign(settings, cls.name)
        report, share = settings.report_batch, max(1, round(settings.share))
        if report is not None and report != share:
            raise UsageError(
                f"--report-batch {report} (given, or the task's own): a step of --algorithm ddp is a node's whole share"
                f" of B; take --report-batch {share}"
            )

    @staticmethod
    def identity_error(records: Mapping[int, Mapping[str, Any]], root: int) -> float:
        """As of ``ring-allreduce``: how far the nodes' models differ after equally many steps: 0."""
        return RingAllReduce.identity_error(records, root)


def check_foreign(settings: Settings, name: str) -> None:
    """What means nothing where somebody else's code trains, and sends no messages of this package's.

    Raises:
        UsageError: it was given all the same.
    """
    for flag, value in (("pace", settings.pace), ("resend", settings.resend)):
        if value is not None:
            raise UsageError(f"--{flag} {value:g}: --algorithm {name} has no messages to pace; leave it out")
