"""An OpenMM System as batched, differentiable PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import openmm
import torch
from torch import Tensor, nn

from p4torch._options import check_tensor
from p4torch.errors import ArgumentError
from p4torch.linalg.reference import reference_gradients, transformed
from p4torch.molecules.checks import check_shape
from p4torch.molecules.forces.reading import read_terms
from p4torch.molecules.threads import map_on_threads

#: Numbers that one array over all pairs holds, on a CPU and elsewhere: small enough for caches, large enough that
#: threads seldom wait for Python. One size for any number of threads: they see the same chunks and give the same bits.
CHUNK, DEVICE_CHUNK = 2**18, 2**24


class ForceField(nn.Module):
    """E(x) in kJ/mol for x `(..., atoms, 3)` in nm: the energy `(...)` that OpenMM's Reference platform gives.

        force_field = ForceField(openmm_system)
        energy = force_field.energy(x)                         # differentiable, twice, too
        energy, gradient = force_field.energy_and_gradient(x)  # without autograd, gradient dE/dx in kJ/mol/nm

    Supported: HarmonicBondForce, HarmonicAngleForce, PeriodicTorsionForce, RBTorsionForce, NonbondedForce without
    cutoff, GBSAOBCForce, and the CustomGBForce of OpenMM's implicit/obc1, obc2, gbn and gbn2; CMMotionRemover has no
    energy. Everything else raises ArgumentError, naming the force and the reason.

    x is float32 or float64 and decides the precision: the constants are kept in float64, `.to(dtype)` leaves them so.
    Energy and first derivatives are hand-written; they go through the batch in chunks that fit into a cache, on
    `torch.get_num_threads()` threads, whose number does not change the result. Second derivatives, `torch.compile` and
    `torch.func` use `energy_reference`, the same formulas in plain operations.
    A frame without a finite energy (coinciding atoms) leaves the other frames' values and gradients alone.
    """

    def __init__(self, system: openmm.System) -> None:
        super().__init__()
        self.terms = nn.ModuleList(read_terms(system))
        self.atoms = system.getNumParticles()
        self._in_dtype: dict[torch.dtype, nn.ModuleList] = {}

    def forward(self, x: Tensor) -> Tensor:
        """The same as `energy`."""
        return self.energy(x)

    def energy(self, x: Tensor) -> Tensor:
        """E `(...)` in kJ/mol for x `(..., atoms, 3)` in nm. Raises ArgumentError for another shape or dtype."""
        self._check(x)
        if transformed():
            return self.energy_reference(x)
        energy: Tensor = _Energy.apply(x, self)  # type: ignore[no-untyped-call]
        return energy

    def energy_reference(self, x: Tensor) -> Tensor:
        """E in plain, differentiable operations, all frames at once: the reference implementation of `energy`."""
        self._check(x)
        total = x.new_zeros(x.shape[:-2])
        for term in self.terms:
            total = total + term.energy(x)  # type: ignore[operator]
        return total

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E `(...)` in kJ/mol and dE/dx `(..., atoms, 3)` in kJ/mol/nm, without autograd."""
        self._check(x)
        frames = x.detach().reshape(-1, self.atoms, 3)
        if len(frames) == 0:
            return x.new_zeros(x.shape[:-2]), torch.zeros_like(x, requires_grad=False)
        chunks = frames.split(self._frames_a_chunk(frames))
        work = partial(_evaluate, self._constants(x.dtype))
        result = map_on_threads(work, chunks) if x.is_cpu else [work(chunk) for chunk in chunks]
        energies, gradients = zip(*result, strict=True)
        return torch.cat(energies).view(x.shape[:-2]), torch.cat(gradients).view(x.shape)

    def _check(self, x: Tensor) -> None:
        check_tensor("x", x)
        if x.dtype not in (torch.float32, torch.float64):
            raise ArgumentError.of("x", "of dtype float32 or float64", x.dtype)
        check_shape(x, self.atoms)

    def _frames_a_chunk(self, frames: Tensor) -> int:
        pairs = max(1, self.atoms * (self.atoms - 1) // 2)
        return max(16, (CHUNK if frames.is_cpu else DEVICE_CHUNK) // pairs)

    def _constants(self, dtype: torch.dtype) -> nn.ModuleList:
        if dtype == torch.float64:
            return self.terms
        if dtype not in self._in_dtype:
            self._in_dtype[dtype] = copy.deepcopy(self.terms).to(dtype)
        return self._in_dtype[dtype]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ForceField:
        """Moves to another device; dtypes stay."""
        self._in_dtype.clear()
        return super()._apply(lambda value: value.to(fn(value).device), recurse)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        return f"atoms={self.atoms}"


@torch.no_grad()
def _evaluate(terms: Iterable[nn.Module], frames: Tensor) -> tuple[Tensor, Tensor]:
    """E and dE/dx of a chunk, `(frames,)` and `(frames, atoms, 3)`."""
    positions = frames.permute(1, 2, 0).contiguous()
    gradient = torch.zeros_like(positions)
    energy = positions.new_zeros(len(frames))
    for term in terms:
        energy += term.add(positions, gradient)  # type: ignore[operator]
    return energy, gradient.permute(2, 0, 1)


class _Energy(torch.autograd.Function):
    """The energy, with its gradient at hand where it will be asked for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, force_field: ForceField) -> Tensor:
        energy, gradient = force_field.energy_and_gradient(x)
        ctx.force_field = force_field
        ctx.save_for_backward(x, gradient)
        return energy

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, None]:
        x, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():
            (result,) = reference_gradients(ctx.force_field.energy_reference, (True,), (x,), (slope,))
            return result, None
        return slope[..., None, None] * gradient, None
