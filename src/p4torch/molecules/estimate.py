"""What a run will cost, from a short measurement: time, memory, disk."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import openmm

from p4torch.molecules.simulation.dynamics import Dynamics
from p4torch.molecules.simulation.method import Method
from p4torch.molecules.system import MolecularSystem
from p4torch.runs.progress import duration

#: Seconds that dynamics is measured for, after as many steps as one look at the clock takes.
MEASURED, LOOK = 0.5, 200
#: Bytes of a frame on the disk and in memory, beside 12 for each atom: weight, energy, trajectory, a record's head.
RECORD = 32
#: Copies of all frames that are in memory at once when they are looked at: as they are, both parts joined, in double
#: precision (two).
COPIES = 4
#: From here on a run says at once how long it takes, in seconds.
LONG = 600.0


@dataclass(frozen=True)
class Cost:
    """Of a run: `seconds` with `workers` processes, bytes of memory of all processes, bytes on the disk."""

    seconds: float
    memory: float
    disk: float
    workers: int

    def __add__(self, other: Cost) -> Cost:
        """One after the other, with what the first leaves on the disk."""
        memory, workers = max(self.memory, other.memory), max(self.workers, other.workers)
        return Cost(self.seconds + other.seconds, memory, self.disk + other.disk, workers)

    @property
    def text(self) -> str:
        """In one line."""
        processes = "1 process" if self.workers == 1 else f"{self.workers} processes"
        memory, disk = _size(self.memory), _size(self.disk)
        return f"about {duration(self.seconds)} with {processes}, {memory} of memory, {disk} of disk"


def simulation_cost(system: MolecularSystem, method: Method, workers: int) -> Cost:
    """Of a simulation, from half a second of its dynamics."""
    seconds = sum(in_turns(stage, workers) for stage in method.stages) / steps_per_second(system, method)
    frames = frame_bytes(system, method.records)
    busy = min(workers, max(map(len, method.stages)))
    return Cost(seconds, (1 + busy) * process_bytes() + COPIES * frames, 2 * frames, busy)


def in_turns(lengths: Sequence[int], workers: int) -> int:
    """How long jobs of these lengths take, the next one started when one ends."""
    ends = [0] * max(1, workers)
    for length in lengths:
        ends[ends.index(min(ends))] += length
    return max(ends)


def frame_bytes(system: MolecularSystem, frames: int) -> float:
    """Of weighted frames in single precision."""
    return frames * (12.0 * system.atoms + RECORD)


def steps_per_second(system: MolecularSystem, method: Method) -> float:
    """Of dynamics on one core."""
    xml = openmm.XmlSerializer.serialize(system.openmm_system)
    dynamics = Dynamics(xml, system.positions, method.thermostat(system), seed=1)
    dynamics.advance(LOOK)
    steps, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < MEASURED:
        dynamics.advance(LOOK)
        steps += LOOK
    return steps / passed


def process_bytes() -> float:
    """The most memory that this process has had so far; NaN where the system does not tell."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _size(count: float) -> str:
    if math.isnan(count):
        return "an unknown amount"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{math.ceil(count / 1e6)} MB"
