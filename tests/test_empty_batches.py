"""No rows at all: every property, bijection and module answers with an empty result of the right shape, and zero
gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tests.constructors import PERTURBATIONS, Row
from tests.flows.bijections import BIJECTIONS
from tests.modules import MODULES
from torch import Tensor, nn

import p4torch as p4
from p4torch.flows._logabsdet import affine_logabsdet, solve_logabsdet
from p4torch.testing import _cases

ROWS: dict[str, Row] = PERTURBATIONS | {
    f"{kind}-fft": Row(partial(p4.LinearSubspace, kind=kind), {"shape": (260, 260)})
    for kind in ("circulant", "toeplitz")
}


def zero_gradients(output: Tensor, *inputs: Tensor) -> None:
    for value in torch.autograd.grad(output, inputs, torch.zeros_like(output), allow_unused=True):
        assert value is None or not bool(value.any())


@pytest.mark.parametrize("lead", [(0,), (0, 3)])
@pytest.mark.parametrize("name", ROWS)
def test_properties(name: str, lead: tuple[int, ...]) -> None:
    row = ROWS[name]
    shape = row.options.get("shape", (6, 6))
    make = row.options.get("sample") or _cases.default_sample(row.factory, shape)
    base = make(torch.Generator().manual_seed(0))
    if base.dim() < 2:
        pytest.skip("no matrix")
    perturbation = row.factory(base)
    batch = (*base.shape[:-2], 0) if base.dim() > 2 else lead
    x = torch.zeros(*batch, base.shape[-1], dtype=base.dtype, requires_grad=True)
    parameters = [x, *(value for value in perturbation.parameters() if value.requires_grad)]
    results = [perturbation.affine(base, x, None), perturbation.matmul(base, x)]
    if base.shape[-1] == base.shape[-2]:
        results += [
            perturbation.solve(base, x),
            affine_logabsdet(perturbation, base, x, None)[0],
            solve_logabsdet(perturbation, base, x)[0],
        ]
    for result in results:
        assert result.shape == (*x.shape[:-1], base.shape[-2]) and result.dtype == base.dtype
        zero_gradients(result, *parameters)


@pytest.mark.parametrize("lead", [(0,), (2, 0), (0, 3)])
@pytest.mark.parametrize("name", BIJECTIONS)
def test_bijections(name: str, lead: tuple[int, ...]) -> None:
    factory, features = BIJECTIONS[name]
    bijection = factory()
    x = torch.zeros(*lead, features, dtype=torch.complex128 if "complex" in name else None, requires_grad=True)
    for function in (bijection.forward, bijection.inverse):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                result, logabsdet = function(x)
            assert result.shape == x.shape
            assert torch.broadcast_shapes(logabsdet.shape, lead) == lead
        zero_gradients(result, x, *(value for value in bijection.parameters() if value.requires_grad))


@pytest.mark.parametrize("name", [name for name, row in MODULES.items() if len(row.inputs()) == 1])
def test_modules(name: str) -> None:
    """As their plain ones do, in each dimension in which those take none."""
    row = MODULES[name]
    plain, perturbed = row.make(), row.perturbed()
    (x,) = row.inputs()
    for dim in range(x.dim() - 1):
        empty = x.narrow(dim, 0, 0)
        expected = _result(plain, empty)
        if expected is not None:
            got = _result(perturbed, empty)
            assert got is not None and got.shape == expected.shape
            if got.requires_grad:
                zero_gradients(got, *(value for value in perturbed.parameters() if value.requires_grad))


def _result(module: nn.Module, x: Tensor) -> Tensor | None:
    """None where a module takes no such input."""
    try:
        result = module(x)
    except (RuntimeError, ValueError):
        return None
    return result[0] if isinstance(result, tuple) else result
