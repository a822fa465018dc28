"""Jobs in processes of one thread each; what is done is kept, whatever happens to the rest."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event

from p4torch.experiments.patches.config import Job
from p4torch.experiments.patches.job import Row, run_job
from p4torch.jobs import Interrupted, JobError

_stop: Event | None = None


def rows_of(jobs: list[Job], workers: int) -> Iterator[tuple[Job, Row]]:
    """The rows of all jobs, as they come in.

    Raises:
        Interrupted: after Ctrl-C, when all processes have stopped, at the end of their intervals.
        JobError: a process has ended by itself.
    """
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    stop, count = context.Event(), 0
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(stop,)) as pool:
        try:
            futures = {pool.submit(_work, job): job for job in jobs}
            for future in as_completed(futures):
                row = future.result()
                assert row is not None  # only stopped jobs have none
                count += 1
                yield futures[future], row
        except KeyboardInterrupt as error:
            raise Interrupted(f"stopped, {count} of {len(jobs)} jobs done; go on with --resume") from error
        except BrokenProcessPool as error:
            raise JobError(f"a process ended before its training, {count} of {len(jobs)} jobs done") from error
        finally:  # also when whoever asked for rows goes away
            stop.set()
            pool.shutdown(cancel_futures=True)


def _start(stop: Event) -> None:
    """In a new process: Ctrl-C reaches the whole group, but is the parent's to handle."""
    global _stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _stop = stop


def _work(job: Job) -> Row | None:
    return run_job(job, _stopped)


def _stopped() -> bool:
    """Whether the parent wants it, or has gone."""
    parent = multiprocessing.parent_process()
    return (_stop is not None and _stop.is_set()) or (parent is not None and not parent.is_alive())
