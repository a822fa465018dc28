"""Superposition, and the whole volume element with its constants: log Z of a network of springs is known exactly."""

import math
from collections.abc import Callable

import pytest
import torch
from tests.molecules.coordinates import md_frames, moved, pairwise
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.molecules.internal import InternalCoordinates
from p4torch.molecules.mixed import MixedCoordinates
from p4torch.molecules.rigid import superpose
from p4torch.molecules.shape import ShapeCoordinates
from p4torch.molecules.zmatrix import ZMatrix

#: Superposition in double precision of coordinates of order 1 nm; Eckart's conditions in nm².
ROUNDING = 1e-12

#: Derivatives of superposed points against finite differences of step 1e-6.
DIFFERENCES = 1e-6

#: Spring constants in kT/nm², so that atoms are some 0.1 nm apart, from none at rest to several times that.
STIFFNESS = 20.0

SAMPLES = 200_000

#: Standard errors that a right result may be off by, and a wrong one must be.
RIGHT, WRONG = 5.0, 12.0

#: Enough samples for the above to mean something.
LEAST_ESS = 1000

REFERENCE = torch.tensor(
    [[0.0, 0.0, 0.0], [0.15, 0.0, 0.0], [0.0, 0.14, 0.0], [0.05, 0.06, 0.13], [0.1, 0.15, 0.1]], dtype=torch.float64
)


def test_superposed_points_satisfy_eckarts_conditions_best() -> None:
    x = md_frames("alanine-dipeptide")[:20]
    reference = x[0] - x[0].mean(0)
    s = superpose(moved(x), reference)
    assert float(torch.linalg.cross(reference.expand_as(s), s).sum(-2).abs().max()) < ROUNDING
    assert float(s.mean(-2).abs().max()) < ROUNDING
    torch.testing.assert_close(superpose(x, reference), s, atol=ROUNDING, rtol=0)
    for _ in range(10):
        other = moved(s)
        other = other - other.mean(-2, keepdim=True)
        fit, worse = ((points - reference).square().sum((-2, -1)) for points in (s, other))
        assert bool((fit <= worse + ROUNDING).all())


def test_superposition_has_its_derivative() -> None:
    x = md_frames("alanine-dipeptide")[:2, :6]
    reference = x[0] - x[0].mean(0)
    assert torch.autograd.gradcheck(
        lambda points: superpose(points, reference), moved(x).requires_grad_(), atol=DIFFERENCES
    )


def test_superposition_has_its_second_and_third_derivatives() -> None:
    x = md_frames("alanine-dipeptide")[:2, :4]
    reference = x[0] - x[0].mean(0)
    points = moved(x).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda value: superpose(value, reference), points, atol=DIFFERENCES)

    direction, weights = torch.randn_like(x), torch.randn_like(x)

    def along(value: Tensor) -> Tensor:
        """d²/dt² of a weighted sum at value + t direction."""
        first = torch.autograd.grad((superpose(value, reference) * weights).sum(), value, create_graph=True)[0]
        return (torch.autograd.grad((first * direction).sum(), value, create_graph=True)[0] * direction).sum()

    assert torch.autograd.gradcheck(along, points, atol=DIFFERENCES)


def test_superposed_points_keep_their_distances() -> None:
    x = md_frames("alanine-dipeptide")[:20]
    s = superpose(moved(x), x[0] - x[0].mean(0))
    torch.testing.assert_close(pairwise(s), pairwise(x), atol=ROUNDING, rtol=0)


def test_a_symmetric_block_has_a_finite_derivative() -> None:
    corners = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64) / 10
    x = moved(corners.expand(3, 4, 3)).requires_grad_()
    s = superpose(x, corners)
    torch.testing.assert_close(s, corners.expand_as(s), atol=ROUNDING, rtol=0)
    (gradient,) = torch.autograd.grad(s.square().sum(), x)
    assert bool(gradient.isfinite().all())
    assert torch.autograd.gradgradcheck(lambda value: superpose(value, corners), x, atol=DIFFERENCES)


def test_a_block_in_a_line_is_refused_as_reference_and_flagged_in_frames() -> None:
    zmatrix = ZMatrix((0, 1, 2), ((3, 2, 1, 0), (4, 3, 2, 1)))
    line = REFERENCE.clone()
    line[2] = -line[1]
    with pytest.raises(ArgumentError, match=r"`reference`.*line"):
        MixedCoordinates(zmatrix, reference=line)
    coordinates = MixedCoordinates(zmatrix, reference=REFERENCE)
    x = moved(torch.stack([REFERENCE, line])).requires_grad_()
    assert coordinates.degenerate(x).tolist() == [False, True]
    z, logabsdet = coordinates(x)
    (gradient,) = torch.autograd.grad(z.sum() + logabsdet.sum(), x)
    assert all(bool(value.isfinite().all()) for value in (z, logabsdet, gradient))


def _stiffness() -> Tensor:
    """Springs between all pairs of five atoms, of different strength, `(5, 5)` in kT/nm²."""
    strength = STIFFNESS * (1 + torch.arange(25, dtype=torch.float64).reshape(5, 5) % 3)
    return (strength + strength.T).triu(1)


def _energy(x: Tensor) -> Tensor:
    """Σ_{i<j} k_ij |x_i - x_j|² / 2 in kT."""
    return (_stiffness() * (x.unsqueeze(-2) - x.unsqueeze(-3)).square().sum(-1)).sum((-2, -1)) / 2


def _exact() -> tuple[float, Tensor]:
    """log Z per unit of translation and rotation, Z = (2π)^{3(n-1)/2} det(L')^{-3/2} / 8π² with L' the Laplacian of the
    springs less one atom, and the mean squared distances 3 (P_ii + P_jj - 2 P_ij), P = L⁺, `(10,)` in nm²."""
    springs = _stiffness() + _stiffness().T
    laplacian = springs.sum(0).diag() - springs
    p = torch.linalg.pinv(laplacian)
    i, j = torch.triu_indices(5, 5, 1)
    log_z = 6 * math.log(2 * math.pi) - 1.5 * float(torch.logdet(laplacian[1:, 1:])) - math.log(8 * math.pi**2)
    return log_z, 3 * (p[i, i] + p[j, j] - 2 * p[i, j])


def _proposal(coordinates: ShapeCoordinates) -> tuple[Tensor, Tensor]:
    """Points and log-densities: Gaussian modes, bonds |N|, angles with density sin²/(π/2), uniform torsions."""
    layout, width = coordinates.layout, 0.065
    modes = width * torch.randn(SAMPLES, len(layout.block), dtype=torch.float64)
    bonds = 0.1 * torch.distributions.Gamma(torch.tensor(3.0, dtype=torch.float64), 3.0).sample(
        (SAMPLES, len(layout.bonds))
    )
    beta = torch.distributions.Beta(torch.tensor(2.0, dtype=torch.float64), 2.0)
    angles = beta.sample((SAMPLES, len(layout.angles)))
    torsions = math.pi * (2 * torch.rand(SAMPLES, len(layout.torsions), dtype=torch.float64) - 1)
    log_q = torch.distributions.Normal(0.0, width).log_prob(modes).sum(-1)
    log_q = log_q + (torch.distributions.Gamma(3.0, 3.0).log_prob(bonds / 0.1) - math.log(0.1)).sum(-1)
    log_q = log_q + (beta.log_prob(angles) - math.log(math.pi)).sum(-1) - len(layout.torsions) * math.log(2 * math.pi)
    return torch.cat([modes, bonds, math.pi * angles, torsions], -1), log_q


def _deviations(log_weights: Tensor, squares: Tensor) -> tuple[float, float]:
    """How many standard errors log Z, and the mean squared distance that is off most, are off."""
    log_z, exact = _exact()
    share = log_weights.softmax(0)
    means = share @ squares
    errors = (share.square() @ (squares - means).square()).sqrt()
    error = (share.square().sum() - 1 / len(share)).sqrt()
    result = log_weights.logsumexp(0) - math.log(len(log_weights))
    return float((result - log_z).abs() / error), float(((means - exact).abs() / errors).max())


def _mixed(block: tuple[int, ...], rows: tuple[tuple[int, int, int, int], ...]) -> MixedCoordinates:
    return MixedCoordinates(ZMatrix(block, rows), reference=REFERENCE)


KINDS: dict[str, Callable[[], ShapeCoordinates]] = {
    "internal": lambda: InternalCoordinates(ZMatrix((0, 1, 2), ((3, 2, 1, 0), (4, 1, 0, 3)))),
    "block of three": lambda: _mixed((0, 1, 2), ((3, 2, 1, 0), (4, 1, 0, 3))),
    "block of four": lambda: _mixed((3, 0, 1, 2), ((4, 1, 0, 3),)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_springs_have_their_partition_function_and_distances_with_the_whole_volume_only(kind: str) -> None:
    coordinates = KINDS[kind]()
    z, log_q = _proposal(coordinates)
    x, logabsdet = coordinates.inverse(z)
    i, j = torch.triu_indices(5, 5, 1)
    squares = (x[:, i] - x[:, j]).square().sum(-1)
    log_weights = (logabsdet - _energy(x) - log_q).masked_fill(coordinates.outside(z), -torch.inf)
    share = log_weights.softmax(0)
    assert float(1 / share.square().sum()) > LEAST_ESS
    assert max(_deviations(log_weights, squares)) < RIGHT
    of_block = coordinates.start(x[:, list(coordinates.zmatrix.block)].permute(2, 1, 0))[-1]
    for missing in (of_block, logabsdet - of_block):
        assert max(_deviations(log_weights - (missing - share @ missing), squares)) > WRONG
