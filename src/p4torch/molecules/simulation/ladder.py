"""Parallel tempering: replicas at several temperatures that exchange them, without any bias."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from p4torch.molecules.simulation.dynamics import Dynamics, SimulationError
from p4torch.molecules.simulation.parts import CHUNK, Start
from p4torch.molecules.simulation.store import State, Store
from p4torch.molecules.units import GAS_CONSTANT
from p4torch.runs.pool import Progress, Report, Row


@dataclass(frozen=True, eq=False)
class Ladder:
    """One replica at each temperature, advanced `every` time steps between two exchanges; kept in `folder`.

    Neighbours k, k + 1 exchange temperatures with probability min(1, exp((β_k - β_{k+1}) (U_k - U_{k+1}))), even and
    odd pairs in turn (Sugita and Okamoto, Chemical Physics Letters 314, 1999). A record is a frame of each
    temperature, in their order, after the exchange.

    Args:
        temperatures: in K, ascending.
        equilibration: exchanges before the first record.
        records: exchanges that are kept.
    """

    title: str
    start: Start
    temperatures: tuple[float, ...]
    seed: int
    equilibration: int
    records: int
    every: int
    folder: Path

    @property
    def steps(self) -> int:
        """Time steps of each replica."""
        return (self.equilibration + self.records) * self.every

    def run(self, report: Report[Progress]) -> Row | None:
        """Goes on from the last checkpoint in the folder."""
        store = Store(self.folder, len(self.start.positions), len(self.temperatures))
        done, state = store.resume()
        started = time.monotonic()
        replicas = _Replicas(self)
        if state is None:
            for _ in range(self.equilibration):
                replicas.exchange()
        else:
            replicas.load(state)
        while done < self.records:
            count = min(CHUNK // 5, self.records - done)
            frames, energies = zip(*(replicas.exchange() for _ in range(count)), strict=True)
            done += count
            store.append(np.stack(frames), np.stack(energies), replicas.save(), done)
            note = f"{100 * replicas.accepted:.0f} % of exchanges accepted"
            if report(Progress((self.equilibration + done) * self.every, note)) and done < self.records:
                return None
        return {
            "records": done,
            "accepted": replicas.accepted,
            "round_trips": replicas.round_trips,
            "seconds": time.monotonic() - started,
        }


class _Replicas:
    """Simulations, and which of them has which temperature: `order[k]` is at `temperatures[k]`."""

    def __init__(self, ladder: Ladder) -> None:
        self._ladder = ladder
        count = len(ladder.temperatures)
        self._members = [
            Dynamics(
                ladder.start.system,
                ladder.start.positions,
                ladder.start.thermostat.at(temperature),
                ladder.seed * count + index,
            )
            for index, temperature in enumerate(ladder.temperatures)
        ]
        self._inverse = 1 / (GAS_CONSTANT * np.array(ladder.temperatures))
        self._order = torch.arange(count)
        #: Of each replica: 1 if it was last at the top, -1 at the bottom, 0 at neither; and its whole trips.
        self._last_end = torch.zeros(count, dtype=torch.int64)
        self._counts = torch.zeros(4, dtype=torch.int64)  # parity, tried, accepted, halves of round trips
        self._generator = torch.Generator().manual_seed(ladder.seed)

    @property
    def accepted(self) -> float:
        """The share of exchanges that were."""
        return int(self._counts[2]) / max(1, int(self._counts[1]))

    @property
    def round_trips(self) -> int:
        """Of all replicas, from the bottom to the top and back."""
        return int(self._counts[3]) // 2

    def exchange(self) -> tuple[np.ndarray, np.ndarray]:
        """Advance all, exchange neighbours; frames `(temperatures, atoms, 3)` in nm and energies in kJ/mol."""
        for member in self._members:
            member.advance(self._ladder.every)
        energies = np.array([member.energy() for member in self._members])
        if not np.isfinite(energies).all():
            raise SimulationError(f"{self._ladder.title}: an energy is not finite")
        for k in range(int(self._counts[0]), len(self._members) - 1, 2):
            self._counts[1] += 1
            low, high = self._order[k : k + 2].tolist()
            log_ratio = (self._inverse[k] - self._inverse[k + 1]) * (energies[low] - energies[high])
            if math.log(torch.rand((), generator=self._generator).item() or 1e-30) < log_ratio:
                self._swap(k)
        self._counts[0] = 1 - self._counts[0]
        self._count_trips()
        order = self._order.tolist()
        return np.stack([self._members[index].positions() for index in order]), energies[order]

    def save(self) -> State:
        """Exactly where they are."""
        return {
            "order": self._order,
            "came": self._last_end,
            "counts": self._counts,
            "noise": self._generator.get_state(),
            "contexts": [member.save() for member in self._members],
        }

    def load(self, state: State) -> None:
        """Go on from there."""
        self._order, self._last_end, self._counts = state["order"], state["came"], state["counts"]
        self._generator.set_state(state["noise"])
        for index, temperature in zip(self._order.tolist(), self._ladder.temperatures, strict=True):
            self._members[index].set_temperature(temperature)
        for member, context in zip(self._members, state["contexts"], strict=True):
            member.load(context)

    def _swap(self, k: int) -> None:
        self._counts[2] += 1
        self._order[[k, k + 1]] = self._order[[k + 1, k]]
        for place in (k, k + 1):
            self._members[int(self._order[place])].set_temperature(self._ladder.temperatures[place])

    def _count_trips(self) -> None:
        for replica, end in ((int(self._order[0]), -1), (int(self._order[-1]), 1)):
            self._counts[3] += int(self._last_end[replica] == -end)
            self._last_end[replica] = end


def geometric(lowest: float, highest: float, count: int) -> tuple[float, ...]:
    """Temperatures in K at equal ratios: equal acceptance where the heat capacity is constant."""
    steps: Tensor = torch.linspace(math.log(lowest), math.log(highest), count, dtype=torch.float64).exp()
    return tuple(round(value, 3) for value in steps.tolist())
