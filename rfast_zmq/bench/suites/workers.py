"""Simulated runs side by side: processes that each do one at a time, and end with whoever started them.

``concurrent.futures.ProcessPoolExecutor`` would do, but for Ctrl-C: it has no way to end what is under way, and hung
where its processes were ended for it.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

from rfast_zmq.bench.suites.ground import Job
from rfast_zmq.bench.suites.perform import Row, perform
from rfast_zmq.errors import RfastError
from rfast_zmq.launch.loopback import process_context, signals_held, without_main

RUNS_MOST = 20
"""So many runs a process does before another takes its place: what each leaves behind adds up over hundreds."""


class Workers:
    """So many processes, for as long as the ``with`` lasts; at its end, however it is reached, they are killed.

    Args:
        count: of processes; one is started when there is nobody idle.
    """

    def __init__(self, count: int) -> None:
        self._context = process_context()
        self._free = asyncio.Semaphore(count)
        self._idle: list[Connection] = []
        self._all: list[tuple[object, Connection]] = []
        self._runs: dict[Connection, int] = {}
        self._threads = ThreadPoolExecutor(count)

    async def perform(self, job: Job) -> Row:
        """:func:`~rfast_zmq.bench.suites.perform.perform`, in one of the processes.

        Raises:
            RfastError: whatever it raises; or the process was killed.
        """
        async with self._free:
            pipe = self._idle.pop() if self._idle else self._start()
            loop = asyncio.get_running_loop()
            try:
                pipe.send(job)
                found = await loop.run_in_executor(self._threads, pipe.recv)
            except (EOFError, OSError):
                raise RfastError(f"{job.title}: its process was killed; if memory was short, try --jobs 1") from None
            self._runs[pipe] += 1
            if self._runs[pipe] < RUNS_MOST:
                self._idle.append(pipe)
            else:
                await loop.run_in_executor(self._threads, self._retire, pipe)
        if isinstance(found, BaseException):
            raise found
        assert isinstance(found, dict)
        return found

    def _start(self) -> Connection:
        with signals_held():
            ours, theirs = self._context.Pipe()
            if sys.platform == "linux":
                forkserver.ensure_running()
            process = self._context.Process(target=_serve, args=(theirs,), daemon=True)  # type: ignore[attr-defined]
            with without_main():
                process.start()
            theirs.close()
            self._all.append((process, ours))
            self._runs[ours] = 0
        return ours

    def _retire(self, pipe: Connection) -> None:
        process = next(process for process, of_it in self._all if of_it is pipe)
        pipe.close()  # with nobody to ask it, it ends
        process.join()  # type: ignore[attr-defined]
        self._all.remove((process, pipe))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        there = list(self._all)  # a thread may be taking one that is retired out of it
        for process, _ in there:
            process.kill()  # type: ignore[attr-defined]
        for process, _ in there:
            process.join()  # type: ignore[attr-defined]
        self._threads.shutdown()  # whoever waits for a word has heard that there will be none
        for _, pipe in there:
            pipe.close()


def _serve(pipe: Connection) -> None:
    """Do what is asked until nobody is there who could ask."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started this process to answer
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer: Row | Exception = perform(job)
        except Exception as error:
            answer = error
        gc.collect()  # a simulation's nodes refer to one another, and nobody sees how much memory their tensors hold
        try:
            pipe.send(answer)
        except OSError:
            return
