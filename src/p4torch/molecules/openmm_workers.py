"""OpenMM in this process and in others: energies and gradients of many frames."""

from __future__ import annotations

import multiprocessing
import os
import signal
import weakref
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import numpy as np
import openmm
from openmm import unit

from p4torch.errors import ArgumentError, P4Error
from p4torch.runs.pool import ignored

_FORCE = unit.kilojoule_per_mole / unit.nanometer


class EnergyError(P4Error, RuntimeError):
    """An energy could not be computed, or not be differentiated."""


class Evaluator:
    """One OpenMM context: energies in kJ/mol and gradients in kJ/mol/nm, frame by frame.

    Raises:
        ArgumentError: the platform does not exist, or cannot run this System.
    """

    def __init__(self, system: openmm.System, platform: str) -> None:
        known = [openmm.Platform.getPlatform(index).getName() for index in range(openmm.Platform.getNumPlatforms())]
        if platform not in known:
            raise ArgumentError.of("platform", f"one of {', '.join(known)}", repr(platform))
        one_thread = {"Threads": "1"} if platform == "CPU" else {}
        try:
            self._context = openmm.Context(
                system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(platform), one_thread
            )
        except Exception as error:
            raise ArgumentError.of("openmm_system", f"one that platform {platform} can run", error) from error

    def __call__(self, frames: np.ndarray) -> tuple[np.ndarray, tuple[int, str] | None]:
        """Of float64 `(n, atoms, 3)`: `(n, 1 + 3 atoms)`, energy before gradient; and the first failure, if any."""
        results = np.zeros((len(frames), 1 + frames[0].size))
        context = self._context
        for index, frame in enumerate(frames):
            try:
                context.setPositions(frame)
                state = context.getState(energy=True, forces=True)
            except Exception as error:
                return results, (index, str(error))
            results[index, 0] = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
            np.negative(state.getForces(asNumpy=True).value_in_unit(_FORCE).ravel(), out=results[index, 1:])
        return results, None


@dataclass
class _Worker:
    name: str
    process: SpawnProcess
    connection: Connection
    start: int = 0  # of the frames that it computes


class Workers:
    """Processes with an `Evaluator` each, spawned when first needed.

    They end with `close`, with this object, with the program, and, as their pipe ends then, when it is killed. One that
    has died is named in an error and started again by the next call.
    """

    def __init__(self, system: openmm.System, platform: str, count: int, chunk: int) -> None:
        self.count, self.chunk = count, chunk
        self._arguments = (openmm.XmlSerializer.serialize(system), platform)
        self._workers: list[_Worker] = []
        self._process = os.getpid()
        weakref.finalize(self, _end, self._workers, self._process)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Of float64 `(n, atoms, 3)`: `(n, 1 + 3 atoms)`, energy before gradient.

        Raises:
            EnergyError: OpenMM failed at a frame, or a worker died.
        """
        self._start()
        results = np.empty((len(frames), 1 + frames[0].size))
        failures: dict[int, str] = {}
        dead: list[str] = []
        starts = iter(range(0, len(frames), self.chunk))
        idle, busy = list(self._workers), list[_Worker]()
        try:
            while True:
                while idle and not failures and not dead and (start := next(starts, None)) is not None:
                    worker = idle.pop()
                    if self._send(worker, frames, start):
                        busy.append(worker)
                    else:
                        dead.append(self._remove(worker))
                if not busy:
                    break
                ready = wait([worker.connection for worker in busy])
                for worker in [worker for worker in busy if worker.connection in ready]:
                    busy.remove(worker)
                    try:
                        values, failure = worker.connection.recv()
                    except (EOFError, OSError):
                        dead.append(self._remove(worker))
                        continue
                    idle.append(worker)
                    results[worker.start : worker.start + len(values)] = values
                    if failure is not None:
                        failures[worker.start + failure[0]] = failure[1]
        except BaseException:
            self.close()  # what the workers still compute is nobody's: the next call must not take it for its own
            raise
        if failures:
            raise frame_error(min(failures), failures[min(failures)])
        if dead:
            raise EnergyError(f"{'; '.join(dead)}; the next call starts it again")
        return results

    def close(self) -> None:
        """End the processes; the next call starts new ones."""
        _end(self._workers, self._process)

    @property
    def processes(self) -> list[int]:
        """The process ids of the workers that were started."""
        return [worker.process.pid or 0 for worker in self._workers]

    def _start(self) -> None:
        if self._process != os.getpid():  # a fork: the workers and their pipes belong to the parent
            self._workers, self._process = [], os.getpid()
            weakref.finalize(self, _end, self._workers, self._process)
        context = multiprocessing.get_context("spawn")
        taken = {worker.name for worker in self._workers}
        for name in (f"worker {index}" for index in range(self.count)):
            if name in taken:
                continue
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, *self._arguments), name=name, daemon=True)
            with ignored(signal.SIGINT):  # inherited: Ctrl-C reaches the whole group, but is the parent's to handle
                process.start()
            theirs.close()
            self._workers.append(_Worker(name, process, ours))

    def _send(self, worker: _Worker, frames: np.ndarray, start: int) -> bool:
        worker.start = start
        try:
            worker.connection.send(frames[start : start + self.chunk])
        except OSError:
            return False
        return True

    def _remove(self, worker: _Worker) -> str:
        """Give up a worker that has died, and say so."""
        self._workers.remove(worker)
        worker.connection.close()
        worker.process.join(5)
        code = worker.process.exitcode
        hint = '; a script that starts workers needs `if __name__ == "__main__":`' if code == 1 else ""
        return f"{worker.name} (process {worker.process.pid}) ended with exit code {code}{hint}"


def frame_error(index: int, reason: str) -> EnergyError:
    """What a frame that OpenMM cannot compute is reported as."""
    return EnergyError(f"OpenMM failed at frame {index}: {reason}")


def _end(workers: list[_Worker], owner: int) -> None:
    if owner == os.getpid():
        for worker in workers:
            worker.connection.close()
            worker.process.kill()  # it holds nothing that could be lost
        for worker in workers:
            worker.process.join(5)
    workers.clear()


def _serve(connection: Connection, system: str, platform: str) -> None:
    """A worker process: frames from the pipe, one batch after another, until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    evaluator = Evaluator(openmm.XmlSerializer.deserialize(system), platform)
    while True:
        try:
            connection.send(evaluator(connection.recv()))
        except (EOFError, OSError):
            return
