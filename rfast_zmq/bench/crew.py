"""Processes that do what they are told, each on a core of its own where there are enough."""

from __future__ import annotations

import asyncio
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

import torch

from rfast_zmq.errors import RfastError
from rfast_zmq.launch.loopback import process_context, without_main
from rfast_zmq.launch.memory import keep_freed_memory

ANSWER_S = 600.0
"""A process that has not answered for so long hangs."""
ENDING_S = 2.0

Job = Callable[..., Any]
Cores = int | Sequence[int] | None


def cores() -> list[int]:
    """The cores that this process may use; empty where the platform does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def pin(core: Cores) -> None:
    """This process, and every thread that it starts from now on, to a core or some (None: to none)."""
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core} if isinstance(core, int) else set(core))


def spread_over_cores(count: int) -> list[Cores]:
    """A core for each of so many processes, in turn; None where processes cannot be pinned."""
    found = cores()
    return [found[i % len(found)] if found else None for i in range(count)]


def share_out_cores(count: int) -> list[Cores]:
    """An even share of the cores for each of so many processes, if there are at least two for each (so that ZeroMQ's
    thread has one to itself); else a core, in turn."""
    found, each = cores(), len(cores()) // count
    return [found[i * each : (i + 1) * each] for i in range(count)] if each > 1 else spread_over_cores(count)


@contextmanager
def told(pipe: Connection, loop: asyncio.AbstractEventLoop) -> Iterator[asyncio.Future[Any]]:
    """For a job that has a loop: what it is told next through its pipe."""
    word: asyncio.Future[Any] = loop.create_future()

    def hear() -> None:
        loop.remove_reader(pipe.fileno())
        try:
            word.set_result(pipe.recv())
        except (EOFError, OSError) as error:
            word.set_exception(error)

    loop.add_reader(pipe.fileno(), hear)
    try:
        yield word
    finally:
        loop.remove_reader(pipe.fileno())
        os.set_blocking(pipe.fileno(), True)  # uvloop turned that off


class Crew:
    """So many processes, with one torch thread each. A context manager: at its end none is left.

    A job is a function of this package; it is called with the pipe to this process before its own arguments, so that it
    may be told more while it works.

    Args:
        pinned: of each process the core, or the cores, that it is kept on; None: any.
        preloaded: modules that its jobs need and that take long to import.
    """

    def __init__(self, pinned: Sequence[Cores], *preloaded: str) -> None:
        context = process_context(*preloaded)
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        for i, core in enumerate(pinned):
            ours, theirs = context.Pipe()
            process = context.Process(  # type: ignore[attr-defined]
                target=_serve, args=(theirs, core), name=f"rfast bench {i}", daemon=True
            )
            with without_main():
                process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def start(self, member: int, job: Job, *arguments: object) -> None:
        """Have a process do a job; :meth:`result` awaits it."""
        self.tell(member, (job, arguments))

    def tell(self, member: int, word: object) -> None:
        """Say something to the job that a process is at."""
        try:
            self._pipes[member].send(word)
        except OSError:
            raise self._died(member) from None

    def result(self, member: int, seconds: float = ANSWER_S) -> Any:
        """What a job gave, or said through its pipe.

        Raises:
            RfastError: it raised, its process died, or it did not answer.
        """
        pipe, until = self._pipes[member], time.monotonic() + seconds
        while not pipe.poll(min(1.0, max(0.0, until - time.monotonic()))):
            if time.monotonic() >= until:
                raise RfastError(f"benchmark process {member} has not answered for {seconds:g} s")
            for other, process in enumerate(self._processes):
                if not process.is_alive() and not pipe.poll():
                    raise self._died(other)
        try:
            kind, content = pipe.recv()
        except (EOFError, OSError):
            raise self._died(member) from None
        if kind == "error":
            raise RfastError(f"benchmark process {member} failed; this is a defect of rfast_zmq:\n{content}")
        return content

    def all(self, jobs: Sequence[tuple[Any, ...]]) -> list[Any]:
        """One (job, argument, …) for each process, all at once; what they gave."""
        for member, (job, *arguments) in enumerate(jobs):
            self.start(member, job, *arguments)
        return [self.result(member) for member in range(len(jobs))]

    def pid(self, member: int) -> int:
        """Of a process."""
        pid = self._processes[member].pid
        assert pid is not None
        return pid

    def _died(self, member: int) -> RfastError:
        self._processes[member].join(ENDING_S)
        return RfastError(f"benchmark process {member} died (exit status {self._processes[member].exitcode})")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            pipe.close()  # whoever waits for a job ends
        until = time.monotonic() + ENDING_S
        for process in self._processes:
            process.join(max(0.0, until - time.monotonic()) if kind is None else 0.0)
            if process.is_alive():
                process.kill()
            process.join()
            process.close()


def _serve(pipe: Connection, core: Cores) -> None:
    """The process: one job after the other."""
    pin(core)
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        while True:
            job, arguments = pipe.recv()
            try:
                pipe.send(("done", job(pipe, *arguments)))
            except (EOFError, BrokenPipeError):
                raise
            except Exception:
                pipe.send(("error", traceback.format_exc()))
    except (EOFError, OSError, KeyboardInterrupt):
        os._exit(0)  # without awaiting what a thread of a job may still do
