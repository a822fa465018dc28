"""Rotations of the plane and of space, and SU(2): bases of their Lie algebras in real matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from p4torch._options import check_integer
from p4torch.errors import ArgumentError
from p4torch.representations.representation import Representation


def rotations2d(frequencies: int | Sequence[int]) -> Representation:
    """SO(2): a turn by t turns the pair of features of frequency k by k t; a feature of frequency 0 is invariant.

    dρ = [[0, -k], [k, 0]] for each k, and [0] for k = 0
    """
    listed = [frequencies] if isinstance(frequencies, int) else list(frequencies)
    known = [check_integer("frequencies", frequency, 0) for frequency in listed]
    if not known:
        raise ArgumentError.of("frequencies", "one at least", "none")
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    blocks = [frequency * turn if frequency else turn.new_zeros(1, 1) for frequency in known]
    return Representation(algebra=[torch.block_diag(*blocks)])


def so3(degree: int) -> Representation:
    """SO(3) on the 2l + 1 real spherical harmonics of degree l, about the axes x, y and z.

    Degree 0 is invariant, degree 1 the vector (x, y, z). The polar axis is y, and orders run from -l to l, as in e3nn.
    """
    degree = check_integer("degree", degree, 0)
    to_real = _real_harmonics(degree)
    about_y, about_z, about_x = ((to_real @ matrix @ to_real.mH).real for matrix in _spin(2 * degree))
    return Representation(algebra=[about_x, about_y, about_z])


def o3(degree: int, parity: int) -> Representation:
    """O(3): `so3(degree)`, and the inversion of space, which multiplies by the parity. Vectors are `o3(1, -1)`.

    Raises:
        ArgumentError: for another degree or parity.
    """
    if parity not in (1, -1):
        raise ArgumentError.of("parity", "1 or -1", repr(parity))
    algebra = so3(degree).algebra
    return Representation(parity * torch.eye(algebra.shape[-1], dtype=torch.float64).unsqueeze(0), algebra)


def su2(spin: float) -> Representation:
    """SU(2) on the 2j + 1 complex components of spin j = 0, 1/2, 1, ...: the 4j + 2 features are their real parts and
    then their imaginary parts.

    Raises:
        ArgumentError: for a spin that is no multiple of 1/2.
    """
    if not isinstance(spin, (int, float)) or spin < 0 or 2 * spin != int(2 * spin):
        raise ArgumentError.of("spin", "0, 1/2, 1, 3/2, ...", repr(spin))
    about_z, about_x, about_y = _spin(int(2 * spin))
    return Representation(algebra=[_real_form(matrix) for matrix in (about_x, about_y, about_z)])


def _spin(twice: int) -> tuple[Tensor, Tensor, Tensor]:
    """-i J_z, -i J_x, -i J_y `(2j + 1, 2j + 1)` in complex128, in the states m = -j, ..., j."""
    j = twice / 2
    m = torch.arange(twice + 1, dtype=torch.float64) - j
    up = torch.diag(((j - m[:-1]) * (j + m[:-1] + 1)).sqrt(), -1).to(torch.complex128)  # J₊ |m> = ... |m + 1>
    about_x, about_y = (up + up.mT) / 2, (up - up.mT) / 2j
    return -1j * torch.diag(m).to(torch.complex128), -1j * about_x, -1j * about_y


def _real_harmonics(degree: int) -> Tensor:
    """The unitary matrix from coefficients of complex spherical harmonics, with the phases of Condon and Shortley, to
    those of real ones."""
    size, half = 2 * degree + 1, math.sqrt(0.5)
    real, imaginary = torch.zeros(2, size, size, dtype=torch.float64)
    real[degree, degree] = 1
    for m in range(1, degree + 1):
        sign = (-1) ** m
        real[degree + m, degree + m], real[degree + m, degree - m] = sign * half, half
        imaginary[degree - m, degree + m], imaginary[degree - m, degree - m] = sign * half, -half
    return torch.complex(real, imaginary)


def _real_form(matrix: Tensor) -> Tensor:
    """A complex matrix as it acts on real and imaginary parts."""
    return torch.cat([torch.cat([matrix.real, -matrix.imag], -1), torch.cat([matrix.imag, matrix.real], -1)])
