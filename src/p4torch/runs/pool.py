"""Jobs in parallel processes that can be stopped at a checkpoint."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, Protocol, TypeVar

import torch

from p4torch.errors import P4Error

_STOP = "stop"


class Titled(Protocol):
    """A job: it can be pickled and has a title for people."""

    @property
    def title(self) -> str:
        """What messages call it."""


J = TypeVar("J", bound=Titled)
P = TypeVar("P")
J_contra = TypeVar("J_contra", bound=Titled, contravariant=True)
P_contra = TypeVar("P_contra", contravariant=True)
Row = dict[str, Any]


@dataclass(frozen=True)
class Progress:
    """How far a job is, and what else there is to say to people."""

    step: int
    note: str = ""


#: Called by a running job after each chunk; true asks it to stop.
Report = Callable[[P], bool]
#: What a process does with a job: a row, or None if it was asked to stop and has left a checkpoint.
Work = Callable[[J, Report[P]], Row | None]


class JobError(P4Error, RuntimeError):
    """A job failed in its process."""

    exit_code = 1


class Interrupted(P4Error):
    """The run was asked to stop, and every running job has left a checkpoint."""

    exit_code = 130  # what shells use for Ctrl-C


class Display(Protocol[J_contra, P_contra]):
    """What shows how jobs are doing."""

    def started(self, job: J_contra) -> None:
        """A job begins or goes on."""

    def progressed(self, job: J_contra, progress: P_contra) -> None:
        """A chunk of steps is done."""

    def finished(self, job: J_contra, row: Row | None) -> None:
        """A job has its row, or none because it was stopped."""

    def message(self, text: str) -> None:
        """Something for the reader."""


@dataclass
class _Worker(Generic[J]):
    process: SpawnProcess
    connection: Connection
    job: J


class Pool(Generic[J, P]):
    """Does jobs by `work(job, report)`, in at most `workers` processes of one thread each.

    Processes are spawned, not forked: a fork of a process with threads may hang; `work` must be importable (a function
    of a module, or a `functools.partial` of one). SIGINT and SIGTERM ask all jobs to stop after their chunk, at a
    checkpoint; a second one ends them at once (the last checkpoint stays).
    """

    def __init__(self, workers: int, work: Work[J, P], display: Display[J, P]) -> None:
        self.workers, self.work, self.display = workers, work, display
        self._stopping = False
        self._stop_sent = False

    def run(self, jobs: Sequence[J]) -> list[Row]:
        """The rows of all jobs, as they come in.

        Raises:
            Interrupted: after a signal, when all have stopped.
            JobError: when one has failed; the others have stopped at a checkpoint then.
        """
        queue, rows, failure = list(jobs), list[Row](), ""
        running: list[_Worker[J]] = []
        try:
            with self._signals():
                while queue or running:
                    if self._stopping or failure:
                        queue.clear()
                        self._tell(running)
                    while queue and len(running) < self.workers:
                        running.append(self._start(queue.pop(0)))
                    for worker in self._ready(running):
                        kind, value = self._receive(worker)
                        if kind == "progress":
                            self.display.progressed(worker.job, value)
                            continue
                        self.display.finished(worker.job, value if kind == "row" else None)
                        if kind == "row":
                            rows.append(value)
                        elif kind == "failed":
                            failure = failure or f"{worker.job.title}: {value}"
                        if not (queue and kind == "row" and not self._stopping and self._next(worker, queue)):
                            self._dismiss(worker)
                            running.remove(worker)
        finally:
            for worker in running:
                worker.process.kill()
        if failure:
            raise JobError(failure)
        if self._stopping and len(rows) < len(jobs):
            raise Interrupted(f"stopped, {len(rows)} of {len(jobs)} jobs done; go on with --resume")
        return rows

    # --- processes ------------------------------------------------------------------------------------------------

    def _start(self, job: J) -> _Worker[J]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self.work), daemon=True)
        with ignored(signal.SIGINT):  # inherited: Ctrl-C reaches the whole group, but is the parent's to handle
            process.start()
        theirs.close()
        worker = _Worker(process, ours, job)
        self._send(worker)
        return worker

    def _next(self, worker: _Worker[J], queue: list[J]) -> bool:
        worker.job = queue.pop(0)
        self._send(worker)
        return True

    def _send(self, worker: _Worker[J]) -> None:
        self.display.started(worker.job)
        worker.connection.send(worker.job)

    def _ready(self, running: list[_Worker[J]]) -> list[_Worker[J]]:
        """Workers that have something to tell; after half a second none, so that signals are seen."""
        ready = wait([worker.connection for worker in running], timeout=0.5)
        return [worker for worker in running if worker.connection in ready]

    def _receive(self, worker: _Worker[J]) -> tuple[str, Any]:
        try:
            message: tuple[str, Any] = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(5)
            return "failed", f"its process ended with exit code {worker.process.exitcode}"
        return message

    def _tell(self, running: list[_Worker[J]]) -> None:
        if not self._stop_sent:
            self._stop_sent = True
            self.display.message("Stopping at the next checkpoint ...")
            for worker in running:
                try:
                    worker.connection.send(_STOP)
                except OSError:
                    continue  # it has gone; `_receive` says so

    def _dismiss(self, worker: _Worker[J]) -> None:
        worker.connection.close()
        worker.process.join(10)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(number: int, frame: object) -> None:
            if self._stopping:
                raise KeyboardInterrupt
            self._stopping = True

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def ignored(number: signal.Signals) -> Iterator[None]:
    """A signal is ignored meanwhile, also by the processes that are started."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


def _work(connection: Connection, work: Work[Any, Any]) -> None:
    """A worker process: jobs from the pipe, one after another, until it closes."""
    # What jobs compute is small: with two threads most of the time is spent on handing out work. One thread is several
    # times faster, steadier, and gives the same bits on any machine load.
    torch.set_num_threads(1)
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        if job == _STOP:  # sent when there was nothing left to stop
            continue
        try:
            row = work(job, lambda progress: _report(connection, progress))
            connection.send(("row", row) if row is not None else ("stopped", None))
        except P4Error as error:
            connection.send(("failed", str(error)))
        except Exception:
            connection.send(("failed", traceback.format_exc()))


def _report(connection: Connection, progress: object) -> bool:
    """Tell the parent; stop if it says so, or has gone."""
    try:
        connection.send(("progress", progress))
        return connection.poll()
    except OSError:
        return True
