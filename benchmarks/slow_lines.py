"""Slow lines in virtual time: a line on which a float32 Ring-AllReduce takes as long as the gradient.

8 nodes on a double tree, MNIST, NAdam, B 256, reports of 4, to .93; float32 and int8. A node has one outgoing and one
incoming line, which its edges share, and a message occupies them for its size. The synchronous run that it is held
against computes a round as long as its slowest node takes, then sends 2 (n − 1)/n float32 models along each line, one
after the other. Each at its best lr of a grid, tuned on a seed apart.

    python benchmarks/slow_lines.py --data mnist10k.npz
"""

from __future__ import annotations

from itertools import product
from typing import Any

from common import MNIST, arguments, last_line, middle, one_machine, ratio, seeds_of, simulated, spread, table, tell

from rfast_zmq.simulate import Simulation

NODES, BATCH, TARGET, GRADIENT_S = 8, 256, 0.93, 0.1
MODEL_BYTES = 101_770 * 4
GRID = {"synchronous": (0.008, 0.012, 0.016, 0.024), "rfast-tree": (0.008, 0.012, 0.016)}
RING_MODELS = 2 * (NODES - 1) / NODES
"""So many models a Ring-AllReduce sends along each line."""


def settings_of(data: str, seed: int, lr: float, **more: Any) -> dict[str, Any]:
    return {
        "nodes": NODES, "global_batch": BATCH, "report_batch": 4, "optimizer": "nadam", "lr": lr, "samples": 90_000,
        "compute": f"constant:{GRADIENT_S}", "target": TARGET, "data": data, "seed": seed, **more,
    }  # fmt: skip


def synchronous_rounds(data: str, seed: int, lr: float) -> float | None:
    samples = one_machine(MNIST, **settings_of(data, seed, lr)).result.target_samples
    return samples / BATCH if samples else None


def on_slow_lines(args: Any, ring_s: float, seed: int, lr: float, **more: Any) -> Simulation:
    settings = settings_of(
        args.data, seed, lr, topology=args.topology, bucket_bytes=args.bucket, evaluate_every=1.0, **more
    )
    return simulated(MNIST, bytes_per_s=RING_MODELS * MODEL_BYTES / ring_s, **settings)


def best_lr(what: str, times: dict[float, float | None]) -> float:
    tell(f"{what}: {times}")
    return min(times, key=lambda lr: times[lr] or float("inf"))


def main() -> None:
    parser = arguments(__doc__, 5)
    parser.add_argument("--topology", default="double-tree")
    parser.add_argument("--bucket", type=int, default=25_600, help="bytes (default 25600: 16 buckets)")
    parser.add_argument("--ring", type=float, default=1.0, help="time of the Ring-AllReduce ÷ that of the gradient")
    parser.add_argument("--splits", nargs="+", default=["label", "iid"])
    parser.add_argument("--wires", nargs="+", default=["float32", "int8"])
    args = parser.parse_args()
    apart, ring_s = args.first_seed + 1000, args.ring * GRADIENT_S
    lr = best_lr("synchronous", {lr: synchronous_rounds(args.data, apart, lr) for lr in GRID["synchronous"]})
    rounds = [synchronous_rounds(args.data, seed, lr) for seed in seeds_of(args)]
    rows: list[tuple[object, ...]] = []
    found = []
    for factor, split, wire in product((1, 5), args.splits, args.wires):
        speeds = f"one {factor}× straggler" if factor > 1 else "even"
        slow = [r and r * (factor * GRADIENT_S + ring_s) for r in rounds]
        fixed = {"split": split, "wire": wire, "straggler": (f"5:{factor}",) if factor > 1 else ()}
        tuned = {at: on_slow_lines(args, ring_s, apart, at, **fixed).result.target_s for at in GRID["rfast-tree"]}
        at = best_lr(f"{speeds}, {split}, {wire}", tuned)
        runs = [on_slow_lines(args, ring_s, seed, at, **fixed) for seed in seeds_of(args)]
        times = [run.result.target_s for run in runs]
        faster = [ratio(a, b) for a, b in zip(slow, times, strict=True)]
        staleness = [run.points[-2].staleness_rounds for run in runs]
        models = [run.result.bytes_sent / MODEL_BYTES / run.result.rounds / NODES for run in runs]
        identity = max(run.result.identity_error or 0.0 for run in runs)
        rows.append(
            (speeds, split, wire, at, spread(times), spread(slow), spread(faster), spread(models), spread(staleness))
        )
        found.append(
            {"speeds": speeds, "split": split, "wire": wire, "lr": at, "speedup": middle(faster), "identity": identity}
        )
        tell(f"{rows[-1]}")
    table(
        ["speeds", "split", "wire", "lr", f"seconds to {TARGET}", f"synchronous (lr {lr})", "synchronous ÷ it",
         "float32 models a round and node", "staleness in rounds"],
        rows,
    )  # fmt: skip
    last_line(ring=args.ring, topology=args.topology, rows=found)


if __name__ == "__main__":
    main()
