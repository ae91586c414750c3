"""``local-sgd`` and ``diloco`` do what their papers say: to the digit on quadratics, and end where they must."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from rfast_zmq import Plan, Settings, Simulator
from rfast_zmq.algorithms import ALGORITHMS, NodeConfig, options_of
from rfast_zmq.core.events import GradientReady, LinkReady, ModelWanted, Received, Send, Started, Stopping, Transmit
from rfast_zmq.errors import UsageError
from rfast_zmq.task.layout import Entry, Group, Layout
from rfast_zmq.topology import build
from tests.loopback.tasks import Line

from .network import Network, Quadratic, topology_of
from .test_rivals import lockstep, models

BOTH = ["local-sgd", "diloco"]
H, MEANS, LR = 3, 4, 0.2
UNEVEN = [0.5, 1.5, 1.0, 1.2, 0.8]
OUTER = {"outer_lr": 0.7, "outer_momentum": 0.9}


def started(name: str, steps: int = H, weights: Any = None, outer: Any = OUTER, **more: Any) -> Network:
    options = {"local_steps": float(steps), **(outer if name == "diloco" else {})}
    problem = Quadratic(5, 7, weights=weights)
    chosen = {"lr": LR, "bucket": 2, "options": options, "every_initial": False, **more}
    return Network(name, topology_of("ring", 5), problem, **chosen)


def everybody(x: np.ndarray) -> np.ndarray:
    return np.tile(x, (5, 1))


def local_steps(problem: Quadratic, x: np.ndarray, steps: int) -> np.ndarray:
    """Where each node is after so many plain steps of its own from x."""
    each = everybody(x)
    for _ in range(steps):
        each = each - LR * problem.H * (each - problem.b)
    return each


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weights", [None, UNEVEN])
def test_local_sgd_is_its_recursion(weights: Any, seed: int) -> None:
    net = started("local-sgd", weights=weights)
    lockstep(net, H * MEANS, seed)
    x, w = np.linspace(-1, 1, 7), net.problem.weights
    for _ in range(MEANS):
        x = w @ local_steps(net.problem, x, H) / w.sum()
    np.testing.assert_allclose(models(net), everybody(x), rtol=1e-12)
    net.check_nothing_was_written_to()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weights", [None, UNEVEN])
def test_diloco_is_its_recursion(weights: Any, seed: int) -> None:
    net = started("diloco", weights=weights)
    lockstep(net, H * MEANS, seed)
    x, w, m = np.linspace(-1, 1, 7), net.problem.weights, np.zeros(7)
    for _ in range(MEANS):
        change = w @ (x - local_steps(net.problem, x, H)) / w.sum()
        m = 0.9 * m + change
        x = x - 0.7 * (change + 0.9 * m)
    np.testing.assert_allclose(models(net), everybody(x), rtol=1e-12)
    net.check_nothing_was_written_to()


INNER = {
    "sgd": lambda x, lr, decay: torch.optim.SGD([x], lr=lr),
    "momentum": lambda x, lr, decay: torch.optim.SGD([x], lr=lr, momentum=0.9),
    "nesterov": lambda x, lr, decay: torch.optim.SGD([x], lr=lr, momentum=0.9, nesterov=True),
    "adam": lambda x, lr, decay: torch.optim.AdamW([x], lr=lr, betas=(0.9, 0.999), weight_decay=decay),
}


@pytest.mark.parametrize("optimizer", INNER)
@pytest.mark.parametrize("name", BOTH)
def test_it_is_what_torchs_own_optimisers_make_of_it(name: str, optimizer: str) -> None:
    """One inner optimiser a node that lives as long as the run, and, for ``diloco``, one outer ``torch.optim.SGD``."""
    lr, decay = 0.05, 0.1 if optimizer == "adam" else 0.0
    net = started(name, weights=UNEVEN, optimizer=optimizer, lr=lr, weight_decay=decay)
    lockstep(net, H * MEANS)
    weights = torch.tensor(UNEVEN, dtype=torch.float64) / sum(UNEVEN)
    x = torch.linspace(-1, 1, 7, dtype=torch.float64)
    outer = torch.optim.SGD([x], lr=0.7, momentum=0.9, nesterov=True)
    locals_ = [x.clone() for _ in range(5)]
    inner = [INNER[optimizer](local, lr, decay) for local in locals_]
    for _ in range(MEANS):
        for rank, (local, rule) in enumerate(zip(locals_, inner, strict=True)):
            local.copy_(x)
            for _ in range(H):
                local.grad = net.problem.gradient(rank, local)
                rule.step()
        mean = weights @ torch.stack(locals_)
        if name == "diloco":
            x.grad = x - mean
            outer.step()
        else:
            x.copy_(mean)
    np.testing.assert_allclose(models(net), everybody(x.numpy()), rtol=1e-9)


@pytest.mark.parametrize("weights", [None, UNEVEN])
def test_local_sgd_of_one_step_is_ring_allreduce(weights: Any) -> None:
    nets = [started("local-sgd", 1, weights), started("ring-allreduce", weights=weights)]
    for net in nets:
        lockstep(net, 12)
    np.testing.assert_allclose(models(nets[0]), models(nets[1]), rtol=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "nadam"])
def test_diloco_with_a_plain_outer_step_is_local_sgd(optimizer: str) -> None:
    outer = {"outer_lr": 1.0, "outer_momentum": 0.0}
    nets = [started(name, weights=UNEVEN, outer=outer, optimizer=optimizer) for name in BOTH]
    for net in nets:
        lockstep(net, H * MEANS)
    np.testing.assert_allclose(models(nets[0]), models(nets[1]), rtol=1e-12)


@pytest.mark.parametrize("weights", [None, UNEVEN])
@pytest.mark.parametrize(("name", "steps", "means"), [("local-sgd", 5, 40), ("local-sgd", 1, 200), ("diloco", 5, 60)])
def test_on_uneven_data_it_ends_beside_the_optimum_where_the_closed_form_says(
    name: str, steps: int, means: int, weights: Any
) -> None:
    """x* = Σ w (1 − q) b / Σ w (1 − q), q = (1 − γ h)^H; for H = 1 that is the optimum."""
    net = started(name, steps, weights, {"outer_lr": 0.7, "outer_momentum": 0.5})
    lockstep(net, steps * means)
    left = net.problem.weights[:, None] * (1 - (1 - LR * net.problem.H) ** steps)
    expected = (left * net.problem.b).sum(0) / left.sum(0)
    np.testing.assert_allclose(models(net), everybody(expected), rtol=1e-6, atol=1e-9)
    bias = abs(expected - net.problem.optimum()).max()
    assert bias > 0.01 if steps > 1 else bias < 1e-12


@pytest.mark.parametrize("name", BOTH)
def test_after_a_mean_all_have_the_same_bits_and_keep_that_model_until_the_next(name: str) -> None:
    net = started(name, weights=UNEVEN)
    lockstep(net, H)
    after = models(net)
    assert (after == after[0]).all()
    assert (after[0] != np.linspace(-1, 1, 7)).any()
    lockstep(net, H - 1)
    np.testing.assert_array_equal(models(net), after)
    at = [np.concatenate([t.numpy() for t in node.algorithm._at()]) for node in net.nodes]
    assert all((x != y).any() for x, y in pairwise(at)), "each goes on from there by itself"


@pytest.mark.parametrize("name", BOTH)
def test_between_two_means_nobody_sends_and_nobody_waits(name: str) -> None:
    """A node takes all its steps alone, and stands still after the last."""
    net = started(name, bucket=1, every_initial=True)
    net.dirty.clear()  # the first model
    for rank in range(5):
        for step in range(H):
            net.compute(rank)
            assert net.nodes[rank].computing
            net.finish(rank)
            assert bool(net.dirty) == (step == H - 1), "it speaks after the last"
        net.compute(rank)
        assert not net.nodes[rank].computing
        assert net.nodes[rank].algorithm.status().waited_s == 0.0
        net.dirty.clear()


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("nodes", [2, 3, 5])
def test_it_moves_each_model_nearly_twice_in_so_many_rounds_as_it_has_steps(name: str, nodes: int, steps: int) -> None:
    """2 (n − 1)/(n H) models out of each node in a round."""
    options = {**ALGORITHMS[name].options, "local_steps": float(steps)}
    net = Network(name, build("ring", nodes), Quadratic(nodes, 2 * nodes), bucket=2, lr=LR, options=options)
    sent = [0] * nodes

    class Counted(list[Any]):
        def append(self, item: Any) -> None:
            edge, frames = item
            sent[edge.src] += len(frames[1]) * (edge.graph == "A")
            super().append(item)

    net.flying = Counted(net.flying)
    rounds, model_bytes = 8, 2 * nodes * 8
    lockstep(net, rounds)
    assert sent == [rounds * 2 * (nodes - 1) * model_bytes // (nodes * steps)] * nodes


@pytest.mark.parametrize("name", BOTH)
def test_progress_is_told_and_the_run_ends_when_the_samples_are_in_the_model(name: str) -> None:
    """B is 10 and a gradient is of 2: 30 samples make a mean. Asked for 40, it ends at the second, with 60."""
    net = started(name, samples=2, stop_samples=40)
    root, seen = net.nodes[0].algorithm, []
    for turn in range(1000):
        net.now += 0.01
        for rank in range(5):
            net.compute(rank)
            net.finish(rank)
        while net.dirty or net.flying:
            for edge, bucket in list(net.dirty):
                net.speak(edge, bucket)
            while net.flying:
                before = net.model()
                net.deliver(0)
                if root.rounds > len(seen) * H:
                    seen.append(root.rounds)
                    assert (net.model() != before).all(), "the model and the progress come together"
        if any(isinstance(action, Stopping) for action in net.nodes[0].said):
            break
        assert turn < 100
    assert seen == [3.0, 6.0]
    assert root.status().samples == 60
    assert root.last_record()["steps"] == 2, "the second mean was not thrown away"


@pytest.mark.parametrize("name", BOTH)
def test_of_running_averages_the_mean_of_the_newest_is_kept_whatever_the_outer_step(name: str) -> None:
    entries = [Entry("w", (3,), "parameter", 0, 0), Entry("mean", (2,), "mean", -1, 3)]
    layout = Layout.build(entries, [Group(decay=False)], torch.float32, 1, 3)
    options = {**ALGORITHMS[name].options, "local_steps": 2.0}
    weights = [1.0, 2.0, 1.0]
    nodes: list[Any] = [
        ALGORITHMS[name](
            NodeConfig(
                rank=r,
                topology=build("ring", 3),
                layout=layout,
                initial=layout.split(torch.zeros(5)),
                weight=weights[r],
                options=options,
            )
        )
        for r in range(3)
    ]

    def carry(queue: list[Any]) -> None:
        while queue:
            send = queue.pop(0)
            for action in nodes[send.edge.src].handle(LinkReady(0.0, send.edge, send.bucket)):
                if isinstance(action, Transmit) and send.edge.graph == "A":
                    told = nodes[send.edge.dst].handle(Received(0.0, action.message))
                    queue += [a for a in told if isinstance(a, Send)]
                elif isinstance(action, Send):
                    queue.append(action)

    for node in nodes:
        node.handle(Started(0.0))
    for round_ in range(6):
        queue: list[Any] = []
        own = [torch.tensor([float(10 * r + round_), 1.0]) for r in range(3)]
        for r, node in enumerate(nodes):
            node.handle(ModelWanted(0.0))
            gradient = layout.split(torch.cat([torch.ones(3), own[r]]))
            queue += [
                a
                for a in node.handle(GradientReady(0.0, gradient, 1, 0.0, (0.0,) * len(gradient), 0.1))
                if isinstance(a, Send)
            ]
        carry(queue)
        if round_ % 2:
            expected = sum((w * o for w, o in zip(weights, own, strict=True)), torch.zeros(2)) / 4
            for node in nodes:
                torch.testing.assert_close(layout.join(node.export())[3:], expected)


def wall_s(name: str, **more: Any) -> float:
    settings = Settings(
        nodes=4,
        algorithm=name,
        topology="ring",
        optimizer="sgd",
        lr=0.05,
        compute="uniform:0.05:0.15",
        samples=4096,
        **more,
    )
    return Simulator(Plan.make(Line, settings)).run().result.wall_s


def test_who_is_slow_by_chance_is_waited_for_less_with_more_steps() -> None:
    """A round of B = 32 takes .1 s in the mean: with a barrier in each, the mean of the largest of 4 draws, .13 s; with
    one in 64, little more than the mean."""
    ring = wall_s("ring-allreduce") / 128
    assert ring == pytest.approx(0.13, rel=0.03)
    rare = wall_s("local-sgd", algorithm_option=("local_steps=64",)) / 128
    assert 0.1 < rare < 0.106
    assert wall_s("local-sgd", algorithm_option=("local_steps=1",)) / 128 == pytest.approx(ring, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("local-sgd", "local_steps=0", "local_steps=0: must be a whole number, 1 or more"),
        ("local-sgd", "local_steps=2.5", "local_steps=2.5: must be a whole number"),
        ("diloco", "local-steps=-1", "local_steps=-1: must be a whole number"),
        ("diloco", "outer_lr=0", "outer_lr=0: must be more than 0"),
        ("diloco", "outer_momentum=1", "outer_momentum=1: must be 0 or more, and less than 1"),
        ("local-sgd", "outer_lr=1", "--algorithm local-sgd has local_steps .default 8."),
    ],
)
def test_what_will_not_do_is_refused(name: str, given: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        options_of(ALGORITHMS[name], (given,))


def test_its_defaults_are_the_papers_where_they_are_said_to_be() -> None:
    assert options_of(ALGORITHMS["diloco"], ()) == {"local_steps": 32, "outer_lr": 0.7, "outer_momentum": 0.9}
