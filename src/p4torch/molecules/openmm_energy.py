"""The potential energy of an OpenMM System as a function of PyTorch tensors, computed by OpenMM itself."""

from __future__ import annotations

import copy
import multiprocessing
import os
import threading
from typing import Any

import numpy as np
import openmm
import torch
from torch import Tensor

from p4torch._options import check_integer
from p4torch.errors import ArgumentError
from p4torch.linalg.reference import once_differentiable
from p4torch.molecules.checks import check_finite, check_shape
from p4torch.molecules.openmm_workers import EnergyError, Evaluator, Workers, frame_error

_ONCE = "OpenMMEnergy can be differentiated once, not twice: OpenMM has no second derivatives"


class OpenMMEnergy:
    """U(x) in kJ/mol of any OpenMM System, by OpenMM, in parallel processes; differentiable once.

    Batches of more than `chunk` frames are shared among the workers, which start at the first such batch and end with
    `close()`, as a context manager, or with the program. Smaller batches, and all with `workers=0`, are computed in
    this process. The number of workers does not change a bit of the results.

    Args:
        openmm_system: any System; what it means to move its atoms is the caller's affair.
        workers: how many processes; None for one a core (none in a process that may not start any).
        platform: of OpenMM. "Reference" computes in double precision, and is the fastest for small molecules.
        chunk: how many frames a worker gets at once.

    Raises:
        ArgumentError: an unknown platform, or one that cannot run this System; numbers out of range.
    """

    def __init__(
        self, openmm_system: openmm.System, workers: int | None = None, platform: str = "Reference", chunk: int = 128
    ) -> None:
        if not isinstance(openmm_system, openmm.System):
            raise ArgumentError.of("openmm_system", "an openmm.System", type(openmm_system).__name__)
        self.workers = check_integer("workers", _cores() if workers is None else workers, 0)
        if self.workers > 0 and multiprocessing.current_process().daemon:
            raise ArgumentError.of("workers", "0 in a daemonic process, which may not start others", self.workers)
        self.chunk = check_integer("chunk", chunk, 1)
        self.platform = platform
        self.openmm_system = copy.deepcopy(openmm_system)
        self.atoms: int = openmm_system.getNumParticles()
        self._here = Evaluator(self.openmm_system, platform)
        self._there = Workers(self.openmm_system, platform, self.workers, self.chunk)
        self._lock = threading.Lock()

    def energy(self, x: Tensor) -> Tensor:
        """U(x) in kJ/mol, `(...)`, of positions `(..., atoms, 3)` in nm, in their dtype and on their device.

        Computed in float64. Infinite or NaN where OpenMM says so (atoms on top of each other).

        Raises:
            ArgumentError: another shape, or positions that are not finite; the first such frame is named.
            EnergyError: OpenMM failed at a frame, which is named, or a worker died; the next call works again. Also
                on differentiating twice.
        """
        energy, _ = _Energy.apply(x, self)  # type: ignore[no-untyped-call]
        return energy

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """U(x) `(...)` in kJ/mol and ∂U/∂x `(..., atoms, 3)` in kJ/mol/nm, both without a graph; errors as `energy`."""
        check_shape(x, self.atoms)
        check_finite(x)
        frames = x.detach().to("cpu", torch.float64).reshape(-1, self.atoms, 3).contiguous()
        values = torch.from_numpy(self._compute(frames.numpy())).to(x.device, x.dtype)
        return values[:, 0].reshape(x.shape[:-2]), values[:, 1:].reshape(x.shape)

    def close(self) -> None:
        """End the workers; the next call that needs them starts new ones."""
        with self._lock:
            self._there.close()

    @property
    def processes(self) -> list[int]:
        """The process ids of the workers that run."""
        return self._there.processes

    def _compute(self, frames: np.ndarray) -> np.ndarray:
        if len(frames) == 0:
            return np.empty((0, 1 + 3 * self.atoms))
        with self._lock:
            if self.workers > 0 and len(frames) > self.chunk:
                return self._there(frames)
            values, failure = self._here(frames)
        if failure is not None:
            raise frame_error(*failure)
        return values

    def __enter__(self) -> OpenMMEnergy:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenMMEnergy, (self.openmm_system, self.workers, self.platform, self.chunk)

    def __repr__(self) -> str:
        return f"OpenMMEnergy(atoms={self.atoms}, workers={self.workers}, platform={self.platform!r})"


class _Energy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, potential: OpenMMEnergy) -> tuple[Tensor, Tensor]:
        energy, gradient = potential.energy_and_gradient(x)
        ctx.save_for_backward(x, gradient)
        ctx.mark_non_differentiable(gradient)
        return energy, gradient

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor, None]:
        x, gradient = ctx.saved_tensors
        return once_differentiable(upstream[..., None, None] * gradient, EnergyError(_ONCE), upstream, x), None


def _cores() -> int:
    if multiprocessing.current_process().daemon:
        return 0
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
