"""Jobs in parallel processes: each row is given back as it comes, and Ctrl-C loses no row that is there."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from typing import Any

import torch
from rich.console import Console

from p4torch.display import duration
from p4torch.experiments.linear.config import Job
from p4torch.experiments.linear.job import run_job
from p4torch.jobs import Interrupted, JobError

Row = dict[str, Any]

_stop: Event | None = None


def rows_of(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Row]]:
    """Each job with its row, in the order of arrival.

    Processes are spawned, with one thread each: matrices this small are not worth sharing.

    Raises:
        Interrupted: after Ctrl-C; jobs under way stop within a few steps.
        JobError: when a job has failed.
    """
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(stop,)) as pool:
        waiting: dict[Future[Row | None], Job] = {pool.submit(_work, job): job for job in jobs}
        try:
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    job = waiting.pop(future)
                    row = _result(job, future)
                    if row is not None:
                        yield job, row
        except KeyboardInterrupt as error:
            raise Interrupted("stopped; rows that were done are kept, go on with --resume") from error
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _result(job: Job, future: Future[Row | None]) -> Row | None:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise JobError(f"{job.name}: a process ended unexpectedly") from error
    except Exception as error:
        raise JobError(f"{job.name}: {type(error).__name__}: {error}") from error


def _begin(stop: Event) -> None:
    """Of a process. Ctrl-C reaches the whole group, but is the parent's to handle."""
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _work(job: Job) -> Row | None:
    return run_job(job, _asked_to_stop)


def _asked_to_stop() -> bool:
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)  # nobody is left to hand a row to
    return _stop is not None and _stop.is_set()


class Lines:
    """A line for each job that is done, with the time left."""

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total, self._done, self._started = console, total, 0, time.monotonic()

    def done(self, job: Job, row: Row) -> None:
        """Say how it ended."""
        self._done += 1
        left = (time.monotonic() - self._started) / self._done * (self._total - self._done)
        how = {"reached": f"{row['steps_made']} steps", "limit": f"loss {row['loss']:.1e} at the limit"}
        ended = how.get(row["status"], row["status"])
        text = f"{job.title}: {ended}  ({self._done}/{self._total} jobs, about {duration(left)} left)"
        self._console.print(text, highlight=False, soft_wrap=True)
