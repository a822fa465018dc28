"""Every property of the table on huge and tiny entries, of which squares overflow or vanish, and on complex ones."""

from __future__ import annotations

import warnings

import pytest
import torch
from tests.constructors import PERTURBATIONS
from tests.properties.test_half import element, site_on
from torch import Tensor, nn

import p4torch as p4

#: Sets that hold all positive multiples of their elements.
CONES = ("invertible", "low-rank-update", "fixed-rank", "nonnegative", "positive-definite", "symmetric", "skew")
CONES = (*CONES, "circulant", "toeplitz", "lower", "upper", "masked", "equivariant", "intertwining")
CONES = (*CONES, "fixed-spectrum", "fixed-singular")
#: Of those, the ones of which only a share of all tensors is a part.
PROPER = CONES[2:-2]
SCALES = [
    *((torch.float32, scale) for scale in (1e20, 1e30, 1e-20, 1e-30)),
    *((torch.float64, scale) for scale in (1e200, 1e-200)),
]


#: Their bound is the norm of what is admitted.
OWN_NORM = ("spectral-bound", "spectral-bound-merge", "convolution-bound", "convolution-bound-merge")


def is_cone(name: str, scale: float) -> bool:
    bounded = name in ("spectral-bound-rank2", "spectral-bound-slack", "spectral-bound-merge-scale") and scale < 1
    return name.startswith(CONES) or name in OWN_NORM or bounded


def admitted(name: str, base: Tensor) -> tuple[p4.Site, bool]:
    """The site, and whether a base was projected with a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        site = site_on(PERTURBATIONS[name], base)
    return site, any(issubclass(warning.category, p4.ProjectionWarning) for warning in caught)


def in_dtype(base: Tensor, dtype: torch.dtype) -> Tensor:
    return base.to(dtype.to_complex() if base.is_complex() else dtype)


@pytest.mark.parametrize(("dtype", "scale"), SCALES)
@pytest.mark.parametrize("name", PERTURBATIONS)
def test_multiples_of_elements(name: str, dtype: torch.dtype, scale: float) -> None:
    base, tolerance = in_dtype(scale * element(PERTURBATIONS[name]), dtype), torch.finfo(dtype).eps ** 0.5
    if name.startswith("fixed-spectrum") and scale == 1e200:
        with pytest.raises(p4.ArgumentError, match=r"`base` must be small enough for tr A\^4"):
            site_on(PERTURBATIONS[name], base)
        return
    site, warned = admitted(name, base)
    assert warned is not is_cone(name, scale)
    assert float(site.perturbation.defect(site.base).max()) <= tolerance
    if not warned:
        assert bool(((site.base - base).abs() <= tolerance * base.abs().max()).all())


@pytest.mark.parametrize(("dtype", "scale"), SCALES)
@pytest.mark.parametrize("name", [name for name in PERTURBATIONS if name.startswith(PROPER)])
def test_multiples_of_others(name: str, dtype: torch.dtype, scale: float) -> None:
    """Which `fixed-rank` and the like must tell from elements, however small they are."""
    noise = torch.randn(element(PERTURBATIONS[name]).shape, dtype=torch.float64)
    assert admitted(name, (scale * noise).to(dtype))[1]


@pytest.mark.parametrize(("dtype", "scale"), [pair for pair in SCALES if pair[1] > 1])
@pytest.mark.parametrize("name", PERTURBATIONS)
def test_one_huge_entry(name: str, dtype: torch.dtype, scale: float) -> None:
    """It is kept, projected onto S with a warning, or refused: never admitted with a defect that is no number."""
    base = element(PERTURBATIONS[name])
    base[(0,) * base.dim()] = scale
    try:
        site, warned = admitted(name, in_dtype(base, dtype))
    except p4.ArgumentError:
        return
    assert warned or is_cone(name, scale)
    assert float(site.perturbation.defect(site.base).max()) <= torch.finfo(dtype).eps ** 0.5


def test_a_projection_that_overflows_is_refused() -> None:
    class Overflows(p4.LowRankUpdate):
        def defect(self, tensor: Tensor) -> Tensor:
            return (tensor.square().sum((-2, -1)) - 1).abs()

        def project(self, tensor: Tensor) -> Tensor:
            return tensor * tensor.square().sum() / tensor.square().sum()

    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, 1e30)
    with pytest.raises(p4.ArgumentError, match=r"`tensor` must be one that can be projected onto .* up to 1e\+30"):
        p4.perturb(layer, "weight", Overflows)


# --- complex tensors ----------------------------------------------------------------------------------------------

ANY_FIELD = ("unitary", "special-unitary", "low-rank-update")


@pytest.mark.parametrize("name", [name for name in PERTURBATIONS if not name.startswith(ANY_FIELD)])
def test_real_properties_refuse_complex_tensors(name: str) -> None:
    base = element(PERTURBATIONS[name]).to(torch.complex64)
    with pytest.raises(p4.ArgumentError, match=r"`base` must be real.*, got torch.complex64"):
        site_on(PERTURBATIONS[name], base)


def test_orthogonal_names_its_complex_counterpart() -> None:
    with pytest.raises(p4.ArgumentError, match=r"`base` must be real \(Unitary is the complex one\), got"):
        p4.Orthogonal(torch.eye(2, dtype=torch.complex64))
    with pytest.raises(p4.ArgumentError, match=r"`base` must be complex \(Orthogonal is the real one\), got"):
        p4.Unitary(torch.eye(2))
