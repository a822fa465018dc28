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
from pathlib import Path
from typing import Any, Protocol

import torch

from p4torch.errors import P4Error
from p4torch.experiments.density.config import Job, Progress

_STOP = "stop"


class JobError(P4Error, RuntimeError):
    """A job failed in its process."""

    exit_code = 1


class Interrupted(P4Error):
    """The run was asked to stop, and every running job has left a checkpoint."""

    exit_code = 130  # what shells use for Ctrl-C


class Display(Protocol):
    """What shows how jobs are doing."""

    def started(self, job: Job) -> None:
        """A job begins or goes on."""

    def progressed(self, job: Job, progress: Progress) -> None:
        """A chunk of steps is done."""

    def finished(self, job: Job, row: dict[str, Any] | None) -> None:
        """A job has its row, or none because it was stopped."""

    def message(self, text: str) -> None:
        """Something for the reader."""


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    job: Job


class Pool:
    """Runs jobs, each in the folder that `folder_of` names, in at most `workers` processes.

    Processes are spawned, not forked: a fork of a process with threads may hang. SIGINT and SIGTERM ask all jobs to
    stop after their chunk, at a checkpoint; a second one ends them at once (the last checkpoint stays).
    """

    def __init__(self, workers: int, folder_of: Callable[[Job], Path], display: Display) -> None:
        self.workers, self.folder_of, self.display = workers, folder_of, display
        self._stopping = False
        self._told = False

    def run(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """The rows of all jobs, as they come in.

        Raises:
            Interrupted: after a signal, when all have stopped.
            JobError: when one has failed; the others have stopped at a checkpoint then.
        """
        queue, rows, failure = list(jobs), list[dict[str, Any]](), ""
        running: list[_Worker] = []
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

    def _start(self, job: Job) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs,), daemon=True)
        with _ignored(signal.SIGINT):  # inherited: Ctrl-C reaches the whole group, but is the parent's to handle
            process.start()
        theirs.close()
        worker = _Worker(process, ours, job)
        self._send(worker)
        return worker

    def _next(self, worker: _Worker, queue: list[Job]) -> bool:
        worker.job = queue.pop(0)
        self._send(worker)
        return True

    def _send(self, worker: _Worker) -> None:
        self.display.started(worker.job)
        worker.connection.send((worker.job, self.folder_of(worker.job)))

    def _ready(self, running: list[_Worker]) -> list[_Worker]:
        """Workers that have something to tell; after half a second none, so that signals are seen."""
        ready = wait([worker.connection for worker in running], timeout=0.5)
        return [worker for worker in running if worker.connection in ready]

    def _receive(self, worker: _Worker) -> tuple[str, Any]:
        try:
            message: tuple[str, Any] = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(5)
            return "failed", f"its process ended with exit code {worker.process.exitcode}"
        return message

    def _tell(self, running: list[_Worker]) -> None:
        if not self._told:
            self._told = True
            self.display.message("Stopping at the next checkpoint ...")
            for worker in running:
                try:
                    worker.connection.send(_STOP)
                except OSError:
                    continue  # it has gone; `_receive` says so

    def _dismiss(self, worker: _Worker) -> None:
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
def _ignored(number: signal.Signals) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


def _work(connection: Connection) -> None:
    """A worker process: jobs from the pipe, one after another, until it closes."""
    # Matrices of 2 x 2 and batches of 256 points are far too small to share: with two threads most of a step is spent
    # on handing out work. One thread is several times faster, steadier, and gives the same bits on any machine load.
    torch.set_num_threads(1)
    from p4torch.experiments.density.job import run_job  # Lightning: seconds that the parent need not wait for

    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            return
        if message == _STOP:  # came when there was nothing to stop
            continue
        job, path = message
        try:
            row = run_job(job, path, lambda progress: _report(connection, progress))
            connection.send(("row", row) if row is not None else ("stopped", None))
        except P4Error as error:
            connection.send(("failed", str(error)))
        except Exception:
            connection.send(("failed", traceback.format_exc()))


def _report(connection: Connection, progress: Progress) -> bool:
    """Tell the parent; stop if it says so, or has gone."""
    try:
        connection.send(("progress", progress))
        return connection.poll()
    except OSError:
        return True
