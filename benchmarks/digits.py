"""Accuracy and the identity on digits: 5 topologies × drop 0, .3, .6, 7 nodes, label split, one 5× straggler.

Beside each the accuracy of one machine at the same hyper-parameters and seed. With --real one process a node, else in
virtual time (the same core and codec).

    python benchmarks/digits.py [--real] [--topologies line ring]
"""

from __future__ import annotations

from typing import Any

from common import DIGITS, arguments, last_line, middle, one_machine, real, seeds_of, simulated, spread, table, tell

TOPOLOGIES = ("binary-tree", "line", "ring", "exponential", "mesh")


def main() -> None:
    parser = arguments(__doc__, 5, data=False)
    parser.add_argument("--real", action="store_true", help="one process a node")
    parser.add_argument("--topologies", nargs="+", default=TOPOLOGIES, help="these only")
    parser.add_argument("--samples", type=int, default=30_000)
    args = parser.parse_args()
    base: dict[str, Any] = {
        "nodes": 7, "split": "label", "straggler": ("6:5",), "samples": args.samples, "compute": "constant:0.07",
        "report_batch": 2, "evaluate_every": 10.0,
    }  # fmt: skip
    alone = [one_machine(DIGITS, **base, seed=seed).result.accuracy for seed in seeds_of(args)]
    tell(f"one machine: {alone}")
    rows, found = [], []
    for topology in args.topologies:
        for drop in (0.0, 0.3, 0.6):
            results = []
            for seed in seeds_of(args):
                settings = {**base, "topology": topology, "drop": drop, "seed": seed}
                results.append((real(DIGITS, **settings) if args.real else simulated(DIGITS, **settings)).result)
            accuracies = [r.accuracy for r in results]
            identity = max(float("inf") if r.identity_error is None else r.identity_error for r in results)
            tell(f"{topology} drop {drop}: {accuracies}, identity {identity:.2g}")
            rows.append((topology, drop, spread(accuracies), f"{identity:.1e}"))
            found.append({"topology": topology, "drop": drop, "accuracy": accuracies, "identity_error": identity})
    table(["topology", "drop", "accuracy", "worst identity error"], rows)
    every = [a for row in found for a in row["accuracy"]]  # type: ignore[union-attr]
    print(f"\nall: {spread(every)}; one machine: {spread(alone)}")
    last_line(rows=found, least=min(every), median=middle(every), one_machine=middle(alone), real=args.real)


if __name__ == "__main__":
    main()
