"""Samples to target against one machine at the same lr, batch and schedule (simulated, so no clock plays a part).

MNIST, 8 nodes on a binary tree, label split, B 256, reports of b/4; SGD, Nesterov and NAdam; without a straggler and
with node 5 five times slower. One machine takes the same seed, and steps with whole batches of all the data.

    python benchmarks/samples.py --data mnist10k.npz
"""

from __future__ import annotations

from typing import Any

from common import MNIST, arguments, last_line, middle, one_machine, ratio, seeds_of, simulated, spread, table, tell

RULES = (("sgd", 0.2, 0.90), ("nesterov", 0.05, 0.90), ("nadam", 0.008, 0.93))
"""Optimiser, lr, target accuracy."""


def main() -> None:
    args = arguments(__doc__, 10).parse_args()
    rows, found = [], []
    for optimizer, lr, target in RULES:
        alone: dict[int, int | None] = {}
        for straggler in ((), ("5:5",)):
            ratios = []
            for seed in seeds_of(args):
                settings: dict[str, Any] = {
                    "nodes": 8, "split": "label", "global_batch": 256, "report_batch": 8, "optimizer": optimizer,
                    "lr": lr, "target": target, "samples": 120_000, "compute": "constant:0.1",
                    "straggler": straggler, "data": args.data, "seed": seed,
                }  # fmt: skip
                if seed not in alone:
                    alone[seed] = one_machine(MNIST, **settings).result.target_samples
                ratios.append(ratio(simulated(MNIST, **settings).result.target_samples, alone[seed]))
                tell(f"{optimizer} {straggler} seed {seed}: {ratios[-1]}")
            what = "one 5× straggler" if straggler else "even"
            rows.append((optimizer, lr, target, what, spread(alone.values()), spread(ratios)))
            found.append({"optimizer": optimizer, "straggler": bool(straggler), "ratio": middle(ratios), "all": ratios})
    table(["optimiser", "lr", "target", "speeds", "samples, one machine", "samples ÷ one machine"], rows)
    last_line(rows=found)


if __name__ == "__main__":
    main()
