"""The fused row products against their reference implementations, in float64 and at sizes where they are taken."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from p4torch import linalg
from p4torch.linalg import fused_linear

#: Two orders of the same sums of 130 products, in float64.
ORDER = 1e-11
N, M, K = 130, 110, 3

Function = Callable[..., Tensor | tuple[Tensor, ...]]


def inputs(rank: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    base = torch.eye(N, dtype=torch.float64) + 0.3 / N**0.5 * normal(N, N)
    return {
        "x": normal(M, N).requires_grad_(),
        "base": base,
        "inverse": torch.linalg.inv(base),
        "p": (0.1 * normal(N, rank)).requires_grad_(),
        "q": (0.1 * normal(N, rank)).requires_grad_(),
        "bias": normal(N).requires_grad_(),
    }


CASES: dict[str, tuple[Function, Function, tuple[str, ...]]] = {
    "shift": (fused_linear.identity_plus_low_rank, fused_linear.identity_plus_low_rank_reference, ("x", "p", "q")),
    "affine": (fused_linear.affine, fused_linear.affine_reference, ("x", "base", "p", "q", "bias")),
    "change": (fused_linear.logabsdet_update, fused_linear.logabsdet_update_reference, ("inverse", "p", "q")),
    "solve": (fused_linear.solve, fused_linear.solve_reference, ("x", "inverse", "p", "q")),
}


def run(function: Function, values: list[Tensor], create_graph: bool = False) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and gradients of a loss that weighs all of them."""
    found = function(*values)
    outputs = list(found) if isinstance(found, tuple) else [found]
    loss = sum(((output + 1).square().sum() for output in outputs), torch.zeros((), dtype=torch.float64))
    wanted = [value for value in values if value.requires_grad]
    return outputs, list(torch.autograd.grad(loss, wanted, create_graph=create_graph))


@pytest.mark.parametrize("rank", [1, K])
@pytest.mark.parametrize("name", CASES)
def test_fused_is_the_readable_twin(name: str, rank: int) -> None:
    fused, readable, names = CASES[name]
    values = [inputs(rank)[key] for key in names]
    for got, expected in zip(run(fused, values), run(readable, values), strict=True):
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=ORDER, atol=ORDER)


@pytest.mark.parametrize("name", CASES)
def test_second_derivatives(name: str) -> None:
    fused, readable, names = CASES[name]
    found = []
    for function in (fused, readable):
        values = [inputs(K)[key] for key in names]
        gradients = run(function, values, create_graph=True)[1]
        wanted = [value for value in values if value.requires_grad]
        found.append(torch.autograd.grad(sum(g.square().sum() for g in gradients), wanted))  # type: ignore[arg-type]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=ORDER, atol=ORDER * float(b.abs().max()))


def test_dense_and_factored_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [inputs(K)[key] for key in ("x", "base", "p", "q", "bias")]
    factored = run(fused_linear.affine, values)
    monkeypatch.setattr(fused_linear, "CALLS", float("inf"))
    for got, expected in zip(run(fused_linear.affine, values), factored, strict=True):
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=ORDER, atol=ORDER)


@pytest.mark.parametrize("name", ["shift", "affine", "solve"])
@pytest.mark.parametrize("shape", [(N,), (5, 22, N), (0, N)])
def test_any_leading_shape(name: str, shape: tuple[int, ...]) -> None:
    fused, readable, names = CASES[name]
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    others = [inputs(K)[key] for key in names[1:]]
    got, expected = fused(x, *others), readable(x if x.dim() > 1 else x[None], *others)
    first, second = (found[0] if isinstance(found, tuple) else found for found in (got, expected))
    assert first.shape == shape
    torch.testing.assert_close(first, second.reshape(shape), rtol=ORDER, atol=ORDER)


def test_only_what_is_asked_for_is_computed() -> None:
    values = inputs(K)
    x, q = values["x"].detach(), values["q"].detach()
    y = fused_linear.affine(x, values["base"], values["p"], q, values["bias"])
    y.sum().backward()
    assert x.grad is None and q.grad is None and values["p"].grad is not None


def test_solve_without_its_determinant_or_without_its_rows() -> None:
    values = [inputs(K)[key] for key in ("x", "inverse", "p", "q")]
    wanted = [value for value in values if value.requires_grad]
    for index in (0, 1):
        got = torch.autograd.grad(fused_linear.solve(*values)[index].sum(), wanted, allow_unused=True)
        expected = torch.autograd.grad(fused_linear.solve_reference(*values)[index].sum(), wanted, allow_unused=True)
        for a, b in zip(got, expected, strict=True):
            zero = torch.zeros(())
            torch.testing.assert_close(
                zero if a is None else a.sum(),
                zero.double() if b is None else b.sum(),
                rtol=ORDER,
                atol=ORDER,
                check_dtype=False,
            )


def test_a_singular_capacitance_gives_minus_infinity_and_no_error() -> None:
    n = linalg.SMALL
    u, v = torch.zeros(n, 2), torch.zeros(n, 2)
    u[0, 0], v[0, 0] = -1.0, 1.0
    assert fused_linear.logabsdet_update(torch.eye(n), u, v) == -torch.inf


def test_mixed_dtypes_take_the_readable_path() -> None:
    values = inputs(K)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = fused_linear.identity_plus_low_rank(values["x"].float(), values["p"].float(), values["q"].float())
    assert y.dtype == torch.float32
