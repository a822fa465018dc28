"""e3nn's irreps as representations, against its own matrices, layers and checks."""

from __future__ import annotations

import builtins
import importlib
import sys
import warnings
from typing import Any

import pytest
import torch

import p4torch as p4
from p4torch.representations import same_elements
from p4torch.testing import check_equivariance

e3nn_o3 = pytest.importorskip("e3nn.o3")

from p4torch.interop.e3nn import representation  # noqa: E402

#: e3nn makes its matrices from tables in float64 and products of a few of them.
EXACT = 1e-10
#: The same in float32.
SINGLE = 1e-5

IRREPS = ["2x0e+1x1o", "1x1e+1x1o+3x0o", "2x2e+1x3o", "1o+0e+1o", "0x1e+1x4e"]


@pytest.fixture(autouse=True)
def double() -> Any:
    """e3nn computes in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("irreps", IRREPS)
def test_elements_are_the_matrices_of_e3nn(irreps: str) -> None:
    ours = [representation("1x1o"), representation(e3nn_o3.Irreps(irreps))]
    for motion, expected in zip(*same_elements(ours, 8, torch.Generator().manual_seed(0)), strict=True):
        got = e3nn_o3.Irreps(irreps).D_from_matrix(motion)
        torch.testing.assert_close(got, expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize(("inputs", "outputs"), [(one, other) for one in IRREPS[:4] for other in IRREPS[:4]])
def test_linear_layers_have_the_same_space(inputs: str, outputs: str) -> None:
    """As many weights, and every matrix of e3nn's layer in ours."""
    layer = e3nn_o3.Linear(inputs, outputs)
    ours, base = (
        (representation(outputs), representation(inputs)),
        torch.zeros(layer.irreps_out.dim, layer.irreps_in.dim),
    )
    if layer.weight_numel == 0:
        with pytest.raises(p4.ArgumentError, match="one that some matrix but 0 commutes with"):
            p4.LinearSubspace(base, representation=ours)
        return
    perturbation = p4.LinearSubspace(base, representation=ours)
    assert perturbation.intertwiners.dimension == layer.weight_numel
    matrices = []
    for weight in torch.eye(layer.weight_numel):
        with torch.no_grad():
            layer.weight.copy_(weight)
        matrices.append(layer(torch.eye(layer.irreps_in.dim)).mT.detach())
    assert torch.linalg.matrix_rank(torch.stack(matrices).flatten(1)) == layer.weight_numel
    for matrix in matrices:
        assert float(perturbation.defect(matrix)) <= EXACT


def test_a_layer_of_e3nn_becomes_one_of_ours_and_trains() -> None:
    layer = e3nn_o3.Linear("3x0e+2x1o", "2x0e+2x1o")
    plain = torch.nn.Linear(layer.irreps_in.dim, layer.irreps_out.dim)
    with torch.no_grad():
        plain.weight.copy_(layer(torch.eye(layer.irreps_in.dim)).mT)
        plain.bias.zero_()
    inputs, outputs = representation(layer.irreps_in), representation(layer.irreps_out)
    with warnings.catch_warnings():
        warnings.simplefilter("error", p4.ProjectionWarning)
        p4.perturb(plain, "weight", p4.LinearSubspace, representation=(outputs, inputs))
    x = torch.randn(4, layer.irreps_in.dim)
    torch.testing.assert_close(plain(x), layer(x), rtol=0, atol=EXACT)
    assert check_equivariance(plain, inputs, outputs) < EXACT


@pytest.mark.slow
def test_the_check_of_whole_networks_agrees_with_that_of_e3nn() -> None:
    """A tensor product of e3nn between layers of ours."""
    from e3nn.util.test import assert_equivariant

    irreps = e3nn_o3.Irreps("2x0e+2x1o")
    product = e3nn_o3.FullTensorProduct(irreps, irreps)
    inputs, outputs = representation(irreps), representation(product.irreps_out)
    assert check_equivariance(lambda x: product(x, x), inputs, outputs, dtype=torch.float64, tolerance=EXACT) < EXACT
    assert_equivariant(lambda x: product(x, x), irreps_in=[irreps], irreps_out=product.irreps_out)


@pytest.mark.parametrize("irreps", ["nonsense", None, "0x1o", ""])
def test_what_are_no_irreps(irreps: Any) -> None:
    with pytest.raises(p4.ArgumentError, match="`irreps` must be"):
        representation(irreps)


def test_without_e3nn_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "e3nn":
            raise ModuleNotFoundError(f"No module named {name!r}", name="e3nn")
        return real(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "p4torch.interop.e3nn")
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r'pip install "p4torch\[flows\]"'):
        importlib.import_module("p4torch.interop.e3nn")
