"""Symplectic matrices: what is admitted, poles, drift, directions. The general checks are in the table."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn

import p4torch as p4
from p4torch.linalg import symplectic_form
from p4torch.parametrize.sites import counter_based_generator
from p4torch.properties._math.phase_space import DRIFT, form_error, minimum_norm_step, resymplectified

#: Float64 products of matrices of norm about 1.
ROUNDING = 1e-12


def random_symplectic(size: int, steps: int = 4) -> Tensor:
    """A product of exponentials of Hamiltonian matrices J S, float64."""
    matrix = torch.eye(size, dtype=torch.float64)
    for _ in range(steps):
        symmetric = torch.randn(size, size, dtype=torch.float64) / size
        matrix = matrix @ torch.linalg.matrix_exp(symplectic_form(symmetric + symmetric.mT) / 2)
    return matrix


def squeezing(size: int, norm: float) -> Tensor:
    """A symplectic matrix of that spectral norm, float64: a squeeze between two rotations of phase space."""
    half = size // 2
    values = norm ** torch.linspace(0, 1, half, dtype=torch.float64)

    def rotation() -> Tensor:
        unitary = torch.linalg.qr(torch.randn(half, half, dtype=torch.complex128))[0]
        return torch.cat([torch.cat([unitary.real, -unitary.imag], 1), torch.cat([unitary.imag, unitary.real], 1)])

    return rotation() @ torch.diag(torch.cat([values, 1 / values])) @ rotation()


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**16))
def test_symplectic_whatever_b_is(half: int, rank: int, seed: int) -> None:
    torch.manual_seed(seed)
    base = random_symplectic(2 * half)
    perturbation = p4.Symplectic(base, rank=min(rank, 2 * half))
    with torch.no_grad():
        perturbation.u.copy_(3 * torch.randn(perturbation.u.shape))
    perturbation.after_step()
    moved = perturbation(base)
    size = float(torch.linalg.matrix_norm(moved.detach()).square())
    assert form_error(moved.detach()).abs().max() <= ROUNDING * size
    product = perturbation.inverse(base) @ moved
    torch.testing.assert_close(product, torch.eye(2 * half, dtype=torch.float64), rtol=0, atol=ROUNDING * size)


def test_steps_end_before_a_pole() -> None:
    base = torch.eye(6, dtype=torch.float64)
    perturbation = p4.Symplectic(base, rank=2, scale=1.0)
    with torch.no_grad():
        perturbation.u.copy_(1e3 * torch.randn(6, 2))
    perturbation.after_step()
    hamiltonian = symplectic_form((perturbation.u @ perturbation.v.mT + perturbation.v @ perturbation.u.mT).mT).mT
    assert torch.linalg.eigvals(hamiltonian).abs().max() <= 1 + ROUNDING


def test_a_candidate_at_a_pole_is_refused() -> None:
    base = torch.eye(2, dtype=torch.float64)
    perturbation = p4.Symplectic(base, rank=1, scale=1.0)
    with torch.no_grad():  # uᵀJv = 2 up to rounding
        perturbation.v.copy_(torch.tensor([[0.0], [1.0]]))
        perturbation.u.copy_(torch.tensor([[2.0 + 1e-14], [0.0]]))
    kept = base.clone()
    report = perturbation.merge(base)
    assert not report.ok and report.reason is not None
    assert torch.equal(base, kept)


def test_a_base_nearby_is_corrected() -> None:
    exact = random_symplectic(8)
    layer = nn.Linear(8, 8, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(exact + 1e-3 * torch.randn(8, 8, dtype=torch.float64))
    with pytest.warns(p4.ProjectionWarning, match="Symplectic"):
        p4.perturb(layer, "weight", p4.Symplectic)
    (site,) = p4.sites(layer)
    assert site.perturbation.defect(site.base) <= ROUNDING
    assert (site.base - exact).abs().max() <= 2e-2  # some times the noise


def test_a_base_from_afar_becomes_a_rotation_of_phase_space() -> None:
    layer = nn.Linear(8, 8, bias=False).double()
    with pytest.warns(p4.ProjectionWarning, match=r"defect \d"):
        p4.perturb(layer, "weight", p4.Symplectic)
    (site,) = p4.sites(layer)
    assert site.perturbation.defect(site.base) <= ROUNDING
    eye = torch.eye(8, dtype=torch.float64)
    torch.testing.assert_close(site.base.mT @ site.base, eye, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (torch.eye(3), r"`base` must be of even size, \(..., 2n, 2n\), got \(3, 3\)"),
        (torch.zeros(4, 2), "square"),
        (torch.eye(2, dtype=torch.complex64), "`base` must be real, got torch.complex64"),
        (torch.full((2, 2), torch.nan), "`base` must be finite"),
    ],
)
def test_bad_bases(base: Tensor, message: str) -> None:
    with pytest.raises(p4.ArgumentError, match=message):
        p4.Symplectic(base)


def test_what_no_projection_mends() -> None:
    layer = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor([1.0, 1.0, -1.0, -1.0])))  # turns J around
    with pytest.raises(p4.ArgumentError, match="singular"):
        p4.perturb(layer, "weight", p4.Symplectic)


def test_large_matrices_are_corrected_when_a_probe_says_so() -> None:
    base = random_symplectic(96).float()
    perturbation = p4.Symplectic(base, rank=2)
    with torch.no_grad():
        base += 1e-4 * torch.randn_like(base)
    assert perturbation.defect(base) > DRIFT * torch.finfo(torch.float32).eps
    with torch.no_grad():
        perturbation.u.copy_(0.01 * torch.randn_like(perturbation.u))
    assert perturbation.merge(base).ok
    assert perturbation.defect(base) <= DRIFT * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [4, 64, 128])
def test_what_is_near_stays_near(size: int, dtype: torch.dtype) -> None:
    near = (squeezing(size, 2.0) + 1e-6 * torch.randn(size, size, dtype=torch.float64)).to(dtype)
    perturbation = p4.Symplectic(squeezing(size, 2.0).to(dtype))
    result = perturbation.project(near)
    assert perturbation.defect(result) <= DRIFT * torch.finfo(dtype).eps
    assert torch.linalg.matrix_norm(result - near) <= 2 * 1e-6 * size  # about the noise


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", [10.0, 1e3, 1e6])
@pytest.mark.parametrize("noise", [1e-6, 1e-3])
def test_columns_of_all_lengths_move_by_about_their_noise(noise: float, norm: float, dtype: torch.dtype) -> None:
    values = norm ** torch.linspace(0, 1, 4, dtype=torch.float64)
    exact = random_symplectic(8) @ torch.diag(torch.cat([values, 1 / values]))
    lengths = torch.linalg.vector_norm(exact, dim=0)
    near = (exact + noise * lengths * torch.randn(8, 8, dtype=torch.float64)).to(dtype)
    perturbation = p4.Symplectic(exact.to(dtype))
    result = perturbation.project(near)
    assert perturbation.defect(result) <= DRIFT * torch.finfo(dtype).eps
    assert bool((torch.linalg.vector_norm(result - near, dim=0) <= 2 * noise * 8**0.5 * lengths).all())


@pytest.mark.parametrize("norm", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("size", [16, 96])
def test_merges_of_large_matrices_change_nothing(size: int, norm: float) -> None:
    base = squeezing(size, norm).float()
    perturbation = p4.Symplectic(base, rank=2)
    base = perturbation.right_inverse(base)
    for _ in range(5):
        with torch.no_grad():
            perturbation.u.copy_(1e-3 * torch.randn_like(perturbation.u))
        before = perturbation(base).detach()
        assert perturbation.merge(base).ok
        change = (perturbation(base).detach() - before).abs().max() / before.abs().max()
        assert change <= DRIFT * torch.finfo(torch.float32).eps


#: |det M - 1| where entries of E = MᵀJM - J up to 0.1 are not worth a word: det² = det(I + J⁻¹E), and ‖E‖ <= 0.4 here.
DETERMINANT = 0.5


def admitted(base: Tensor) -> tuple[Tensor, list[str]]:
    """The weight that a layer starts from, and what was warned of."""
    layer = nn.Linear(*base.shape, bias=False, dtype=base.dtype)
    layer.weight = nn.Parameter(base.clone())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        p4.perturb(layer, "weight", p4.Symplectic)
    return layer.weight.detach().double(), [type(warning.message).__name__ for warning in caught]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [10.0, 1e2, 1e3, 3e3, 1e4, 1e5, 1e6, 1e8, 1e12, 1e20, 1e30, 1e200])
def test_a_dilation_of_one_coordinate_is_never_moved_or_kept_in_silence(
    size: float, dtype: torch.dtype, turned: bool
) -> None:
    if size > torch.finfo(dtype).max:
        return
    base = torch.diag(torch.tensor([size, 1.0, 1.0, 1.0], dtype=torch.float64))
    base = squeezing(4, 1.0) @ base @ squeezing(4, 1.0) if turned else base
    try:
        weight, said = admitted(base.to(dtype))
    except p4.ArgumentError as error:
        assert "symplectic" in str(error)
        return
    if not said:  # what is rounding to 8 bits, and by column
        moved = torch.linalg.vector_norm(weight - base, dim=0) / torch.linalg.vector_norm(base, dim=0)
        assert float(moved.max()) <= 2 * torch.finfo(dtype).eps ** 0.5
    if "PropertyWarning" not in said:
        assert abs(float(torch.linalg.det(weight)) - 1) <= DETERMINANT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [10.0, 1e4, 1e8, 1e20, 1e30, 1e200])
def test_a_squeeze_along_the_axes_is_kept(size: float, dtype: torch.dtype) -> None:
    if size <= torch.finfo(dtype).max:
        base = torch.diag(torch.tensor([size, 1.0, 1 / size, 1.0], dtype=dtype))
        weight, said = admitted(base)
        assert not said
        torch.testing.assert_close(weight, base.double(), rtol=DRIFT * torch.finfo(dtype).eps, atol=0)


def test_what_rounding_makes_of_a_large_matrix_is_said() -> None:
    weight, said = admitted(squeezing(8, 1e5).float())
    assert said == ["PropertyWarning"] and bool(weight.isfinite().all())


def test_the_least_step_is_that_of_least_squares() -> None:
    exact = squeezing(4, 3.0)
    near = exact + 1e-3 * torch.randn(4, 4, dtype=torch.float64)
    error = form_error(near)

    def change(x: Tensor) -> Tensor:
        return near.mT @ symplectic_form(x) + x.mT @ symplectic_form(near)

    columns = [change(unit).flatten() for unit in torch.eye(16, dtype=torch.float64).reshape(16, 4, 4)]
    expected = torch.linalg.pinv(torch.stack(columns, 1)) @ -error.flatten()
    torch.testing.assert_close(minimum_norm_step(near, error).flatten(), expected, rtol=0, atol=ROUNDING)


def test_a_stack_is_corrected_where_it_can_be() -> None:
    near, afar = squeezing(4, 1e4).float().double(), torch.randn(4, 4, dtype=torch.float64)
    stack = torch.stack([near, afar, torch.full((4, 4), torch.nan, dtype=torch.float64)])
    result = resymplectified(stack.clone())
    assert form_error(result[0]).abs().max() <= 1e-6 * form_error(near).abs().max()
    torch.testing.assert_close(result[1:], stack[1:], rtol=0, atol=0, equal_nan=True)


def test_the_correction_squares_the_error() -> None:
    exact = random_symplectic(6)
    near = exact + 1e-2 * torch.randn(6, 6, dtype=torch.float64)
    assert form_error(resymplectified(near)).abs().max() <= ROUNDING


@pytest.mark.parametrize("through", ["forward", "matmul", "solve"])
def test_gradient_directions_see_what_moves_the_matrix(through: str) -> None:
    """At B₀ and V = I, ∂L/∂U = H + Hᵀ with H = ∂L/∂Q Jᵀ: the sketch multiplies by the same matrix."""
    base, x = random_symplectic(6), torch.randn(5, 6, dtype=torch.float64)
    perturbation = p4.Symplectic(base, rank=6, scale=1.0, directions="gradient")
    perturbation.start_sketch(counter_based_generator(0, "test", 0))
    with torch.no_grad():
        perturbation.v.copy_(torch.eye(6))
    result = perturbation(base) if through == "forward" else getattr(perturbation, through)(base, x)
    (result * torch.randn_like(result)).sum().backward()
    assert perturbation.sketch is not None and perturbation.u.grad is not None
    (maps,) = perturbation.sketch.parts
    eye = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(maps.times(eye), perturbation.u.grad, rtol=0, atol=ROUNDING * 1e2)
    torch.testing.assert_close(maps.transposed(eye), perturbation.u.grad.mT, rtol=0, atol=ROUNDING * 1e2)
