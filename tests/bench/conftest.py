"""A toy suite that has been run, and its name among the suites."""

from __future__ import annotations

from pathlib import Path

import pytest

from rfast_zmq.bench.suites import catalogue

from .toy import BLOCK, simulate, toy


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a toy suite that has been run."""
    folder = tmp_path_factory.mktemp("toy")
    simulate(folder)
    return folder


@pytest.fixture(autouse=True)
def toy_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalogue.SUITES, "toy", toy(BLOCK))
