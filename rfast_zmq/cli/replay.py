"""``rfast replay``: Algorithm 1 on an explicit schedule."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rfast_zmq.errors import UsageError


def replay(file: Annotated[str, Parameter(allow_leading_hyphen=True)], /) -> int:
    """Run Algorithm 1 of the paper, in float64, on a schedule of steps and deliveries; print one JSON object.

    Parameters
    ----------
    file
        The schedule as JSON (the format: docs/algorithm.md); - for standard input.
    """
    text = _read(file)
    from rfast_zmq.simulate.replay import replay as replayed

    try:
        print(json.dumps(replayed(text)))
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None
    return 0


def _read(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{file}: no such file; give the path of a schedule as JSON") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: not UTF-8 text at byte {error.start}; give a schedule as JSON") from None
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from None
