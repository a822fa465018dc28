"""One check for every bijection, ours or yours."""

from __future__ import annotations

import io
from collections.abc import Callable

import torch
from torch import Tensor, nn

from p4torch.flows.bijection import Bijection
from p4torch.linalg import in_double

#: `forward` or `inverse`, of points and perhaps a context.
Direction = Callable[..., tuple[Tensor, Tensor]]

#: Round trips and log-determinants in float64: far above rounding in a chain of some ten layers, far below any mistake.
TOLERANCE = 1e-9

#: Eager and compiled float64 agree up to the order of sums.
COMPILE_TOLERANCE = 1e-10

#: How far parameters are moved from their initial values, which often are special (zero, identity).
MOVE = 0.1


def check_bijection(
    factory: Callable[[], Bijection],
    features: int,
    *,
    points: int = 5,
    sample: Callable[[torch.Generator], Tensor] | None = None,
    compile: bool | str = True,
    seed: int = 0,
) -> None:
    """Run every check on a bijection, with random parameters and points, in float64.

    Round trips in both directions; the log-determinant against the Jacobian by autograd in both directions; shapes with
    other leading dimensions; a gradient to every trainable parameter; saving and loading; `compile(fullgraph=True)`.
    A conditional bijection gets a random context for each point, and is also checked for contexts of other batches and
    for a gradient to the context.

        >>> from p4torch.flows import AffineCoupling
        >>> from p4torch.testing import check_bijection
        >>> check_bijection(lambda: AffineCoupling(4, hidden=(8,)), features=4, compile=False)

    Args:
        factory: makes the bijection.
        features: n, the size of a point.
        points: how many points to check.
        sample: draws points `(points, n)` from a generator; standard normal by default. Complex ones are for a
            bijection that the factory makes in complex128; log-determinants are of the real map of 2n numbers.
        compile: whether to compile; True only looks for graph breaks (backend "aot_eager"), or name a backend.
        seed: of everything random.

    Raises:
        AssertionError: a check failed; the message starts with its name.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        bijection = factory().double()
        x = in_double(sample(generator) if sample else torch.randn(points, features, generator=generator))
        context = _contexts(bijection, len(x), generator)
        _move(bijection, generator)
        _check_shapes(bijection, x, *context)
        _check_direction("forward", bijection.forward, bijection.inverse, x, *context)
        _check_direction("inverse", bijection.inverse, bijection.forward, bijection(x, *context)[0].detach(), *context)
        _check_gradients(bijection, x, generator, *context)
        _check_save(bijection, factory, x, *context)
        if compile:
            _check_compile(bijection, x, compile if isinstance(compile, str) else "aot_eager", *context)


def _contexts(bijection: Bijection, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """A context for each point `(points, c)`, if it takes one: the arguments that follow the points."""
    size = bijection.context_features
    return (torch.randn(count, size, generator=generator, dtype=torch.float64),) if size else ()


@torch.no_grad()
def _move(bijection: nn.Module, generator: torch.Generator) -> None:
    for value in bijection.parameters():
        if value.requires_grad:
            value.add_(MOVE * torch.randn(value.shape, generator=generator, dtype=in_double(value).dtype))


def _close(name: str, left: Tensor, right: Tensor, tolerance: float) -> None:
    error = float((left - right).detach().abs().max())
    assert error <= tolerance, f"{name}: off by {error:.3g}, at most {tolerance:.3g} expected"


def _check_shapes(bijection: Bijection, x: Tensor, *context: Tensor) -> None:
    for direction in (bijection.forward, bijection.inverse):
        y, logabsdet = direction(x, *context)
        stacked_y, stacked = direction(x.expand(2, *x.shape), *context)
        single_y, single = direction(x[0], *(value[0] for value in context))
        assert y.shape == x.shape, f"shape: {tuple(x.shape)} became {tuple(y.shape)}"
        assert logabsdet.shape in ((), x.shape[:-1]), f"shape: log-determinant is {tuple(logabsdet.shape)}"
        _close("leading dimensions", stacked_y, y.expand_as(stacked_y), TOLERANCE)
        _close("leading dimensions, log-determinant", stacked, logabsdet, TOLERANCE)
        _close("a single point", single_y, y[0], TOLERANCE)
        _close("a single point, log-determinant", single, logabsdet.expand(len(x))[0], TOLERANCE)
        for value in context:
            _check_batches(direction, x, value)


def _check_batches(direction: Direction, x: Tensor, context: Tensor) -> None:
    """Contexts of other batches than the points'."""
    y, logabsdet = direction(x, context[0].expand_as(context))
    for name, value in (("a single context", context[0]), ("a context for all points", context[:1])):
        again, same = direction(x, value)
        assert again.shape == y.shape, f"{name}: shape {tuple(x.shape)} became {tuple(again.shape)}"
        _close(name, again, y, TOLERANCE)
        _close(f"{name}, log-determinant", same, logabsdet, TOLERANCE)
    many, _ = direction(x[0], context)
    assert many.shape == x.shape, f"contexts of a single point: shape {tuple(x[0].shape)} became {tuple(many.shape)}"
    _close("contexts of a single point", many, direction(x[:1].expand_as(x), context)[0], TOLERANCE)


def _check_direction(name: str, there: Direction, back: Direction, x: Tensor, *context: Tensor) -> None:
    y, logabsdet = there(x, *context)
    again, opposite = back(y, *context)
    _close(f"round trip ({name})", again, x, TOLERANCE * (1 + float(x.detach().abs().max())))
    _close(
        f"log-determinants of both directions ({name})", logabsdet + opposite, torch.zeros_like(logabsdet), TOLERANCE
    )
    for point, claimed, *given in zip(x, logabsdet.expand(len(x)), *context, strict=True):
        jacobian = _jacobian(lambda p, given=given: there(p, *given), point)
        _close(f"log-determinant ({name})", claimed, torch.linalg.slogdet(jacobian)[1], TOLERANCE)


def _jacobian(there: Direction, point: Tensor) -> Tensor:
    """Of a bijection at one point `(n,)`: `(n, n)`; where points are complex, of the map of their 2n numbers."""
    if not point.is_complex():
        return torch.autograd.functional.jacobian(lambda p: there(p.unsqueeze(0))[0].squeeze(0), point)

    def real_map(pairs: Tensor) -> Tensor:
        return torch.view_as_real(there(torch.view_as_complex(pairs).unsqueeze(0))[0].squeeze(0))

    pairs = torch.view_as_real(point)
    return torch.autograd.functional.jacobian(real_map, pairs).reshape(pairs.numel(), pairs.numel())


def _check_gradients(bijection: Bijection, x: Tensor, generator: torch.Generator, *context: Tensor) -> None:
    if not any(value.requires_grad for value in bijection.parameters()):
        return
    for name, direction in (("forward", bijection.forward), ("inverse", bijection.inverse)):
        bijection.zero_grad()
        given = [value.clone().requires_grad_() for value in context]
        y, logabsdet = direction(x.clone().requires_grad_(), *given)
        weights = torch.randn(y.shape, generator=generator, dtype=y.dtype)
        ((y * weights).sum().real + logabsdet.sum()).backward()
        for key, value in bijection.named_parameters():
            if value.requires_grad:
                reached = value.grad is not None and bool(value.grad.isfinite().all()) and bool(value.grad.any())
                assert reached, f"gradient ({name}): none, zero or not finite for {key}"
            else:
                assert value.grad is None, f"gradient ({name}): the frozen {key} received one"
        for condition in given:
            reached = condition.grad is not None and bool(condition.grad.any())
            assert reached, f"gradient ({name}): none or zero for the context"


def _check_save(bijection: Bijection, factory: Callable[[], Bijection], x: Tensor, *context: Tensor) -> None:
    file = io.BytesIO()
    torch.save(bijection.state_dict(), file)
    file.seek(0)
    other = factory().double()
    other.load_state_dict(torch.load(file, weights_only=True))
    for name in ("forward", "inverse"):
        for left, right in zip(getattr(other, name)(x, *context), getattr(bijection, name)(x, *context), strict=True):
            assert torch.equal(left, right), f"save and load: {name} differs"


def _check_compile(bijection: Bijection, x: Tensor, backend: str, *context: Tensor) -> None:
    for name in ("forward", "inverse"):
        torch.compiler.reset()
        direction: Direction = getattr(bijection, name)
        compiled = torch.compile(direction, fullgraph=True, backend=backend)
        for left, right in zip(compiled(x, *context), direction(x, *context), strict=True):
            _close(f"compile ({name})", left, right, COMPILE_TOLERANCE)
