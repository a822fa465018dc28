"""Is a whole network equivariant? A check for models of any make, and for their merges."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from p4torch import linalg
from p4torch.errors import ArgumentError
from p4torch.merging.batch import merge
from p4torch.parametrize.sites import sites
from p4torch.representations.representation import Representation, same_elements

#: How far B moves before a merge: a step of Adam at a rate of 0.01.
MOVE = 1e-2
#: Machine epsilons of defect: rounding in ten layers or so.
ROUNDING = 100

#: Matrices of the elements of a group, `(g, n, n)`.
Elements = Tensor | Sequence[Tensor]


def check_equivariance(
    model: nn.Module | Callable[[Tensor], Tensor],
    inputs: Representation | Elements,
    outputs: Representation | Elements,
    *,
    elements: int = 16,
    points: int = 16,
    merges: int = 3,
    tolerance: float | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> float:
    """Whether f(ρ_in(g) x) = ρ_out(g) f(x), for elements g of a group and random points x, also after merges.

        >>> from p4torch.representations import so3
        >>> from p4torch.testing import check_equivariance
        >>> check_equivariance(lambda x: x * x.norm(dim=-1, keepdim=True), so3(1), so3(1)) < 1e-6
        True

    Of a representation by generators or a Lie algebra, the elements are all generators and random products of them and
    of exponentials. The global random state and the model are left as they are: what merges is a copy.

    Args:
        model: maps `(points, n)` to `(points, m)`.
        inputs: ρ_in, a `Representation`, or the matrices of all elements of a finite group `(g, n, n)`.
        outputs: ρ_out, of the same elements in the same order.
        elements: how many random elements; not for matrices of all.
        points: how many random points ~ N(0, I).
        merges: after how many merges, of B at random, a model with perturbed tensors is looked at again. 0: as it is.
        tolerance: of the defect; 100 machine epsilons by default.
        dtype: of the points; of the model's parameters by default, or torch's default dtype without any.
        seed: of everything random.

    Returns:
        the largest relative defect, max_g ‖f(ρ_in(g) x) - ρ_out(g) f(x)‖ / ‖f(x)‖ with norms over all points.

    Raises:
        AssertionError: it is larger than the tolerance, or no number.
        ArgumentError: for representations that do not fit each other or the model.
    """
    like = _parameter_of(model)
    dtype = dtype or like.dtype
    tolerance = ROUNDING * torch.finfo(dtype).eps if tolerance is None else tolerance
    generator = torch.Generator().manual_seed(seed)
    pairs = [part.to(like.device) for part in _pairs(inputs, outputs, elements, generator)]
    x = torch.randn(points, pairs[0].shape[-1], generator=generator, dtype=torch.float64).to(like.device, dtype)
    worst = 0.0
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        moved = copy.deepcopy(model) if merges and isinstance(model, nn.Module) and any(sites(model)) else model
        for index in range(merges + 1 if moved is not model else 1):
            if index and isinstance(moved, nn.Module):
                _move_and_merge(moved, generator)
            defect, element = _defect(moved, x, *pairs)
            when = f"after {index} merges" if index else "as it is"
            message = f"equivariance, {when}: off by {defect:.3g} for element {element}, allowed are {tolerance:.3g}"
            assert defect <= tolerance, f"{message} ({dtype})"
            worst = max(worst, defect)
    return worst


def _pairs(
    inputs: Representation | Elements, outputs: Representation | Elements, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """ρ_in(g) and ρ_out(g) in float64."""
    if isinstance(inputs, Representation) and isinstance(outputs, Representation):
        one, other = same_elements([inputs, outputs], count, generator)
        return one, other
    if isinstance(inputs, Representation) or isinstance(outputs, Representation):
        raise ArgumentError.of("inputs, outputs", "both a Representation, or both matrices", "one of each")
    first, second = (Representation(part).generators for part in (inputs, outputs))
    if len(first) != len(second):
        raise ArgumentError.of("outputs", f"of {len(first)} elements, as inputs", len(second))
    return first, second


def _defect(
    model: nn.Module | Callable[[Tensor], Tensor], x: Tensor, inputs: Tensor, outputs: Tensor
) -> tuple[float, int]:
    """The largest one, and for which element."""
    y = linalg.in_double(model(x))
    if y.shape != (len(x), outputs.shape[-1]):
        raise ArgumentError.of(
            "outputs", f"a representation on {y.shape[-1]} features, as the model has", outputs.shape[-1]
        )
    turned = torch.stack([linalg.in_double(model((x.double() @ one.mT).to(x.dtype))) for one in inputs])
    size = y.norm().clamp_min(torch.finfo(x.dtype).tiny)
    defects = (turned - y @ outputs.mT).flatten(1).norm(dim=-1) / size
    defects = defects.nan_to_num(nan=torch.inf)
    return float(defects.max()), int(defects.argmax())


def _move_and_merge(model: nn.Module, generator: torch.Generator) -> None:
    """As a step of an optimizer in a random direction, and a merge."""
    for site in sites(model):
        for value in site.trainable().values():
            value.add_(torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value), alpha=MOVE)
    merge(model)


def _parameter_of(model: object) -> Tensor:
    """Its first one: points have its dtype and device. What perturbations keep in double precision comes later."""
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    return next((value for value in parameters if value.is_floating_point()), torch.empty(0))
