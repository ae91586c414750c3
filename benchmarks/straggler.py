"""Time to .93 on MNIST with one 5× straggler, real processes, over the no-wait limit; and what communicating costs.

8 nodes on a binary tree, label split, NAdam lr .008, B 256, reports of 8, 0.1 s emulated for a share of 32 samples,
node 5 five times slower. The no-wait limit is the samples that one machine alone needs at the same lr and B (same
seed), divided by the sum of the nodes' rates.

    python benchmarks/straggler.py --data mnist10k.npz
"""

from __future__ import annotations

from typing import Any

from bare import cpu_s_per_message
from common import (
    MNIST,
    arguments,
    last_line,
    middle,
    one_machine,
    ratio,
    real,
    seeds_of,
    simulated,
    spread,
    table,
    tell,
    total_rate,
)


def main() -> None:
    parser = arguments(__doc__, 5)
    parser.add_argument("--pace", type=float, default=None, help="C in seconds (default: the algorithm's own)")
    parser.add_argument("--split", default="label")
    parser.add_argument("--straggler", default="5:5", help="RANK:FACTOR, or none")
    parser.add_argument("--optimizer", default="nadam")
    parser.add_argument("--lr", type=float, default=0.008)
    args = parser.parse_args()
    rows = []
    for seed in seeds_of(args):
        settings: dict[str, Any] = {
            "nodes": 8, "topology": "binary-tree", "split": args.split, "global_batch": 256, "report_batch": 8,
            "optimizer": args.optimizer, "lr": args.lr, "compute": "constant:0.1", "target": 0.93, "samples": 120_000,
            "straggler": () if args.straggler == "none" else (args.straggler,), "data": args.data, "seed": seed,
        }  # fmt: skip
        alone = one_machine(MNIST, **settings).result
        limit_s = ratio(alone.target_samples, total_rate(MNIST, **settings))
        virtual = simulated(MNIST, **settings, pace=args.pace).result
        run = real(MNIST, **settings, pace=args.pace).result
        assert run.cpu_s is not None
        assert run.communication_cpu_s is not None
        rows.append(
            {
                "seed": seed,
                "limit_s": limit_s,
                "target_s": run.target_s,
                "over_limit": ratio(run.target_s, limit_s),
                "samples_over_one_machine": ratio(run.target_samples, alone.target_samples),
                "samples_over_simulated": ratio(run.target_samples, virtual.target_samples),
                "communication_cores": run.communication_cpu_s / run.wall_s,
                "cores": run.cpu_s / run.wall_s,
                "communication_us_per_message": run.communication_cpu_s / run.messages_sent * 1e6,
                "bare_us_per_message": cpu_s_per_message(run.bytes_sent // run.messages_sent, 100.0) * 1e6,
                "messages_s": run.messages_sent / run.wall_s,
                "megabytes_s": run.bytes_sent / run.wall_s / 1e6,
                "staleness_rounds": run.staleness_rounds,
                "identity_error": run.identity_error,
            }
        )
        tell(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()))
    names = [name for name in rows[0] if name != "seed"]
    table(["figure", "median (least to most)"], [(name, spread(row[name] for row in rows)) for name in names])  # type: ignore[misc]
    last_line(rows=rows, **{name: middle(row[name] for row in rows) for name in names})  # type: ignore[misc]


if __name__ == "__main__":
    main()
