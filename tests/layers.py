"""Perturbed layers that several test files start from."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import p4torch as p4


def layer_of(width: int = 3, init: Callable[[Tensor], Tensor] = nn.init.orthogonal_, **options: Any) -> nn.Linear:
    """An `nn.Linear` under `Invertible`, the paper's unless the options say otherwise."""
    layer = nn.Linear(width, width)
    init(layer.weight)
    p4.perturb(layer, "weight", p4.Invertible, **{"rank": 1, "scale": 1.0} | options)
    return layer


def b_of(module: nn.Module) -> Any:
    """The perturbation of the first site."""
    return next(p4.sites(module)).perturbation


def trained_in(dtype: torch.dtype, property: type[p4.Perturbation], lr: float = 1e-2, **options: Any) -> nn.Linear:
    """An `nn.Linear` of a short dtype under a property, after six steps with three merges, all of which were made."""
    layer = nn.Linear(8, 8).to(dtype)
    with pytest.warns(p4.ProjectionWarning):
        p4.perturb(layer, "weight", property, **options)
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr)
    scheduler = p4.MergeScheduler(layer, optimizer, every=2)
    for _ in range(6):
        optimizer.zero_grad()
        layer(torch.randn(4, 8, dtype=dtype)).square().mean().backward()
        optimizer.step()
        scheduler.step()
    assert scheduler.merged == 3
    return layer


def path_gradients(perturbation: Any, base: Tensor, atol: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Compare the fast `matmul` and `solve` of low-rank factors, of few rows for a small base and of many for a large
    one, with those of a dense matrix; and yield the gradients of both, in pairs."""
    n = base.shape[-1]
    x = torch.randn(3 if n < 100 else 400, n, dtype=torch.float64, requires_grad=True)
    inputs = (x, perturbation.u, perturbation.v)
    for method in ("matmul", "solve"):
        got = getattr(perturbation, method)(base, x)
        expected = getattr(p4.Perturbation, method)(perturbation, base, x)
        torch.testing.assert_close(got, expected, rtol=0, atol=atol)
        gradients = (torch.autograd.grad(y.square().sum() + y[0].sum(), inputs) for y in (got, expected))
        yield from zip(*gradients, strict=True)


def hand_over(parts: Iterable[Any], others: Iterable[Any]) -> None:
    """The state of model, optimizer and scheduler, through a file, to others of the same kind."""
    file = io.BytesIO()
    torch.save([part.state_dict() for part in parts], file)
    file.seek(0)
    for part, state in zip(others, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
