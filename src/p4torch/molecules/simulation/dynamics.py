"""Langevin dynamics of one molecule by OpenMM, under a bias on torsions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import openmm
import torch
from torch import Tensor

from p4torch.errors import P4Error
from p4torch.molecules.simulation.bias import GROUP, TorsionBias
from p4torch.molecules.units import GAS_CONSTANT

#: Hydrogens are made this heavy, in Da: 2 fs without constraints. Masses leave the distribution of positions alone.
HYDROGEN_MASS = 3.0


class SimulationError(P4Error, RuntimeError):
    """A simulation has failed, for instance by an energy that is not finite."""

    exit_code = 1


@dataclass(frozen=True)
class Thermostat:
    """Langevin dynamics (middle scheme): temperature in K, friction in 1/ps, time step in fs; OpenMM's platform."""

    temperature: float
    friction: float = 1.0
    step_fs: float = 2.0
    platform: str = "Reference"

    @property
    def kT(self) -> float:
        """In kJ/mol."""
        return GAS_CONSTANT * self.temperature

    def at(self, temperature: float) -> Thermostat:
        """The same at another temperature in K."""
        return replace(self, temperature=temperature)


class Dynamics:
    """A running simulation.

    Args:
        system: an `openmm.System` as XML.
        positions: `(atoms, 3)` in nm; from there the energy is minimised, and velocities are drawn.
        seed: of the noise; a positive integer.
        bias: added to the energy, in a force group of its own.
    """

    def __init__(
        self, system: str, positions: Tensor, thermostat: Thermostat, seed: int, bias: TorsionBias | None = None
    ) -> None:
        model = openmm.XmlSerializer.deserialize(system)
        for index in range(model.getNumParticles()):
            mass = model.getParticleMass(index).value_in_unit(openmm.unit.dalton)
            model.setParticleMass(index, max(mass, HYDROGEN_MASS))
        self._force = None if bias is None else bias.force()
        if self._force is not None:
            model.addForce(self._force)
        self.thermostat = thermostat
        self._integrator = openmm.LangevinMiddleIntegrator(
            thermostat.temperature, thermostat.friction, thermostat.step_fs * 1e-3
        )
        self._integrator.setRandomNumberSeed(seed)
        platform = openmm.Platform.getPlatformByName(thermostat.platform)
        self.context = openmm.Context(model, self._integrator, platform)
        self.context.setPositions(positions.double().numpy())
        openmm.LocalEnergyMinimizer.minimize(self.context)
        self.context.setVelocitiesToTemperature(thermostat.temperature, seed)

    def advance(self, steps: int) -> None:
        """Raises SimulationError if positions or energies stop being finite."""
        try:
            self._integrator.step(steps)
        except openmm.OpenMMException as error:
            raise SimulationError(f"the simulation has failed: {error}; {self._hint}") from error

    @property
    def _hint(self) -> str:
        return f"a time step below {self.thermostat.step_fs:g} fs may help"

    def frames(self, count: int, every: int) -> Iterator[tuple[np.ndarray, float]]:
        """Positions `(atoms, 3)` in nm and the unbiased energy in kJ/mol, every so many steps."""
        for _ in range(count):
            self.advance(every)
            yield self.positions(), self.energy()

    def sampled(self, count: int, every: int) -> Tensor:
        """Positions alone: `(count, atoms, 3)` in nm."""
        frames = []
        for _ in range(count):
            self.advance(every)
            frames.append(self.positions())
        return torch.from_numpy(np.stack(frames))

    def positions(self) -> np.ndarray:
        """`(atoms, 3)` in nm, the mean at the origin: far from it single precision would lose what matters.

        Raises SimulationError if they are not finite.
        """
        state = self.context.getState(getPositions=True)
        values: np.ndarray = state.getPositions(asNumpy=True).value_in_unit(openmm.unit.nanometer)
        if not np.isfinite(values).all():
            raise SimulationError(f"the simulation has failed: positions are not finite; {self._hint}")
        return values - values.mean(0)

    def energy(self) -> float:
        """Without the bias, in kJ/mol."""
        state = self.context.getState(getEnergy=True, groups=set(range(GROUP)))
        return float(state.getPotentialEnergy().value_in_unit(openmm.unit.kilojoule_per_mole))

    def set_bias(self, bias: TorsionBias) -> None:
        """Go on under other coefficients."""
        assert self._force is not None
        bias.apply(self._force, self.context)

    def set_temperature(self, temperature: float) -> None:
        """Go on at another temperature in K, with velocities that suit it."""
        state = self.context.getState(getVelocities=True)
        scale = (temperature / self._integrator.getTemperature().value_in_unit(openmm.unit.kelvin)) ** 0.5
        self._integrator.setTemperature(temperature)
        self.context.setVelocities(scale * state.getVelocities(asNumpy=True))

    def save(self) -> Tensor:
        """The exact state, random numbers included, as bytes."""
        return torch.frombuffer(bytearray(self.context.createCheckpoint()), dtype=torch.uint8)

    def load(self, state: Tensor) -> None:
        """Go on from a saved state, exactly."""
        self.context.loadCheckpoint(bytes(state.numpy()))
