"""One machine at the same hyper-parameters, simulated: what a run is held against."""

from __future__ import annotations

from dataclasses import replace

from rfast_zmq.algorithms import ALGORITHMS
from rfast_zmq.assembly import Plan
from rfast_zmq.cli.outcome import Outcome
from rfast_zmq.simulate import Simulation, Simulator

EVALUATIONS = 100
DEFAULT_ALGORITHM = "rfast-tree"
"""On one machine it is the textbook's optimiser."""


def add_baseline(outcome: Outcome) -> None:
    """Train on one machine what the run trained, unless that broke off. Ctrl-C leaves it out; the run is kept."""
    if outcome.run.result.trouble is not None or outcome.interrupted:
        return
    try:
        outcome.baseline = one_machine(outcome.plan, outcome.run.result.samples)
    except KeyboardInterrupt:
        outcome.interrupted = True


def one_machine(plan: Plan, samples: int) -> Simulation:
    """Train the same task on a single node: all data, whole batches, no faults, as fast as the run's fastest node.

    Learning rate, optimizer, batch, seed and samples are the run's. Evaluations are about :data:`EVALUATIONS`.

    Args:
        plan: the run to compare with.
        samples: how many the run did.
    """
    s = plan.settings
    assert s.global_batch is not None
    rate = max(plan.speeds.mean_rate(rank, s.share) for rank in range(plan.topology.nodes))  # inf: not emulated
    alone = replace(
        s,
        nodes=1,
        topology="binary-tree",
        algorithm=s.algorithm if s.algorithm in ALGORITHMS else DEFAULT_ALGORITHM,
        algorithm_option=s.algorithm_option if s.algorithm in ALGORITHMS else (),
        split="iid",
        samples=max(samples, 1),
        target=None,
        report_batch=s.global_batch,
        compute=f"constant:{s.global_batch / rate if plan.speeds.emulated else 0.1}",
        straggler=(),
        pace=None,
        resend=None,
        drop=0.0,
        duplicate=0.0,
        reorder=0.0,
        evaluate_every=max(s.evaluate_every, samples / s.global_batch / EVALUATIONS),
    )
    return Simulator(Plan.make(plan.task, alone)).run()
