"""``runs.jsonl`` and ``tuned.jsonl`` in the folder of a suite: one JSON object a line, appended once it is known."""

from __future__ import annotations

import json
from collections.abc import Iterable
from math import inf
from pathlib import Path
from typing import Any

from rfast_zmq.errors import RfastError, UsageError

Row = dict[str, Any]
RUNS, TUNED, SUITE = "runs.jsonl", "tuned.jsonl", "suite.json"


class Store:
    """The results of a suite, old and new.

    Args:
        folder: made if it is not there.
        suite: name of the suite; None: whatever lies there.

    Attributes:
        runs: by key.
        suite: its name.

    Raises:
        UsageError: the folder holds another suite, or none where one is wanted, or cannot be written.
    """

    def __init__(self, folder: Path, suite: str | None) -> None:
        self.folder = folder
        there = folder / SUITE
        if there.is_file():
            try:
                self.suite = str(json.loads(there.read_text(encoding="utf-8"))["suite"])
            except (OSError, ValueError, KeyError, TypeError):
                raise UsageError(f"{there}: does not say which suite it is of; give another --out") from None
            if suite not in (None, self.suite):
                raise UsageError(f"--out {folder}: holds the suite {self.suite}; give {suite} a folder of its own")
        elif suite is None:
            raise UsageError(f"{folder}: holds no suite; make one with rfast bench run SUITE --out {folder}")
        else:
            self.suite = suite
            try:
                folder.mkdir(parents=True, exist_ok=True)
                there.write_text(json.dumps({"suite": suite}) + "\n", encoding="utf-8")
            except OSError as error:
                raise UsageError(f"--out {folder}: cannot be written: {error.strerror}") from None
        self.runs: dict[str, Row] = {}
        for row in _lines(folder / RUNS):
            self._keep(row)

    def add(self, row: Row) -> None:
        """Note a run.

        Raises:
            RfastError: it cannot be written (a full disk).
        """
        self._keep(row)
        _append(self.folder / RUNS, row)

    def _keep(self, row: Row) -> None:
        """The newest of equal runs, but for one that was broken off sooner than the other, by the same code."""
        there = self.runs.get(row["key"])
        if there is None or there.get("code") != row.get("code") or there.get("cut_s", inf) <= row.get("cut_s", inf):
            self.runs[row["key"]] = row

    def tuned(self) -> list[Row]:
        """What was found to be best, oldest first."""
        return list(_lines(self.folder / TUNED))

    def add_tuned(self, row: Row) -> None:
        """Note what was found to be best.

        Raises:
            RfastError: as :meth:`add`.
        """
        _append(self.folder / TUNED, row)


def _append(path: Path, row: Row) -> None:
    """A line of its own even after one that was cut short."""
    text = json.dumps(row, allow_nan=False) + "\n"
    try:
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    text = "\n" + text
            file.write(text.encode())
    except OSError as error:
        raise RfastError(
            f"{path}: {error.strerror}; what was done before is kept, and the same command goes on from there"
        ) from None


def _lines(path: Path) -> Iterable[Row]:
    """Every whole line; one that was cut short is as if it had not been written."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row
