"""What packed payloads cost in samples, and save in bytes: float32, bf16 and int8, simulated, paired seeds.

8 nodes on a binary tree, MNIST, label split, one 5× straggler, NAdam lr .008, B 256, reports of 8, to .93.

    python benchmarks/packed.py --data mnist10k.npz
"""

from __future__ import annotations

from typing import Any

from common import MNIST, arguments, last_line, middle, ratio, seeds_of, simulated, spread, table, tell

from rfast_zmq.settings import WIRES


def main() -> None:
    args = arguments(__doc__, 5).parse_args()
    samples: dict[str, list[float]] = {wire: [] for wire in WIRES}
    moved: dict[str, list[float]] = {wire: [] for wire in WIRES}
    identity = dict.fromkeys(WIRES, 0.0)
    for seed in seeds_of(args):
        for wire in WIRES:
            settings: dict[str, Any] = {
                "nodes": 8, "split": "label", "global_batch": 256, "report_batch": 8, "optimizer": "nadam",
                "lr": 0.008, "compute": "constant:0.1", "straggler": ("5:5",), "target": 0.93, "samples": 90_000,
                "wire": wire, "data": args.data, "seed": seed,
            }  # fmt: skip
            run = simulated(MNIST, **settings).result
            samples[wire].append(run.target_samples or float("inf"))
            moved[wire].append(run.bytes_sent / 1e6)
            identity[wire] = max(identity[wire], run.identity_error or 0.0)
            tell(f"{wire}, seed {seed}: {run.target_samples} samples, {run.bytes_sent / 1e6:.0f} MB")
    rows, found = [], []
    for wire in WIRES:
        more = [ratio(a, b) for a, b in zip(samples[wire], samples["float32"], strict=True)]
        less = [ratio(a, b) for a, b in zip(moved[wire], moved["float32"], strict=True)]
        rows.append((wire, spread(samples[wire]), spread(more), spread(moved[wire]), spread(less), identity[wire]))
        found.append({"wire": wire, "samples": middle(more), "bytes": middle(less)})
    table(["wire", "samples to .93", "÷ float32", "MB until then", "÷ float32", "worst identity error"], rows)
    last_line(rows=found)


if __name__ == "__main__":
    main()
