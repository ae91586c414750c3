"""The command line: one file a verb; parses, calls, prints.

A verb is a function whose parameters are its flags (cyclopts reads them) and which returns its exit status. It is
imported when it is called for, so that ``rfast topology`` does not wait for torch.

Exit status: 0 done; 1 something failed (also, silently: nobody reads the output any more); 2 the user's to mend: bad
input, a task that raises, a loss that is not finite; 130 ended by Ctrl-C.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from difflib import get_close_matches
from pathlib import Path

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError

from rfast_zmq.errors import RfastError, TaskError, UsageError

FAILED, USAGE, INTERRUPTED = 1, 2, 130
PACKAGE = str(Path(__file__).resolve().parents[1])

VERBS = {
    "run": "Train a task with one process a node on this machine.",
    "node": "Run one node on this host, of a run over several hosts.",
    "simulate": "The same run in virtual time: the same seed gives the same bytes.",
    "topology": "Check, describe and draw the two graphs of a topology.",
    "replay": "Run Algorithm 1 of the paper, in float64, on a schedule from a file.",
    "plot": "Draw the pictures of a run from what it left in its folder.",
    "bench": "The algorithms side by side; the node beside plain PyTorch and ZeroMQ.",
}

command_line: ContextVar[tuple[str, ...] | None] = ContextVar("command_line", default=None)
"""What the user typed, without the program's name; None outside of :func:`main`."""


def main(argv: Sequence[str] | None = None) -> None:
    """The console script ``rfast``.

    Args:
        argv: the words after the program's name; None: those of this process.

    Raises:
        SystemExit: with the exit status, unless it is 0.
    """
    words = tuple(sys.argv[1:] if argv is None else argv)
    token = command_line.set(words)
    try:
        status = _status(words)
    finally:
        command_line.reset(token)
    if status:
        raise SystemExit(status)


def _status(words: tuple[str, ...]) -> int:
    try:
        status = _app()(words, exit_on_error=False, print_error=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except CycloptsError as error:
        return _say(_parse_error(error, words), USAGE)
    except UsageError as error:
        return _say(str(error), USAGE)
    except TaskError as error:
        print(_users_part(error.traceback), file=sys.stderr)
        return _say(str(error).removeprefix("rank -1: "), USAGE)
    except RfastError as error:
        summary, _, detail = str(error).partition("\n")
        if detail:  # a defect of ours: whoever mends it wants to see where
            print(detail, file=sys.stderr)
        return _say(summary, FAILED)
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except BrokenPipeError:  # `rfast … | head`: Python would complain once more when it flushes at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _app() -> App:
    app = App(
        name="rfast",
        help="One model, many uneven machines, nobody waits: asynchronous training over ZeroMQ.",
        version=_version,
        default_parameter=Parameter(negative=()),
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for verb, help_ in VERBS.items():
        app.command(f"rfast_zmq.cli.{verb}:{verb}", name=verb, help=help_)
    return app


def _version() -> str:
    from importlib.metadata import version

    return version("rfast-zmq")


def _say(line: str, status: int) -> int:
    print(f"rfast: {' '.join(line.split())}", file=sys.stderr)
    return status


def _parse_error(error: CycloptsError, words: tuple[str, ...]) -> str:
    """Cyclopts' own message; but an option that the verb does not have lacks no argument."""
    text = str(error)
    if isinstance(error, UnusedCliTokensError):
        text = f"{' '.join(error.unused_tokens or ())}: not expected here."
    from rfast_zmq.cli.flags import no_such_option, own_options

    verb = next((word for word in words if word in VERBS), None)
    missing = re.search(r"parameter --?(\S+) requires an argument", text)
    if verb in ("run", "node", "simulate") and missing and verb not in own_options().get(missing[1], ()):
        return no_such_option(missing[1], None)
    unknown = re.search(r'Unknown option: "--?([^"=]+)', text)
    if unknown and "Did you mean" not in text and (near := get_close_matches(unknown[1], own_options(), 1)):
        text += f' Did you mean "--{near[0]}"?'
    return f"{text} See rfast {verb or ''} --help." if verb else text


def _users_part(traceback: str) -> str:
    """A formatted traceback without the frames of this package and of importlib, if any other is left."""
    kept: list[str] = []
    frames, ours, others = 0, False, 0
    for line in traceback.rstrip().splitlines():
        if line.startswith('  File "'):
            frames += 1
            ours = line.startswith((f'  File "{PACKAGE}', '  File "<frozen importlib'))
            others += not ours
        elif not line.startswith("    "):
            ours = False
        if not ours:
            kept.append(line)
    return "\n".join(kept) if others else traceback.rstrip()
