"""What a network is made of, and its Lipschitz constant as a function of its layers' norms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from p4torch._options import check_number
from p4torch.errors import ArgumentError
from p4torch.networks.constants import lipschitz_constant

Weighted = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d

#: Halvings of an interval of numbers, down to the last digit of float64.
HALVINGS = 60


class Residual(nn.Module):
    """x -> α x + f(x), a layer around a branch f that keeps shapes. Its Lipschitz constant is at most α + L(f), which
    `p4torch.LipschitzNetwork` counts; a branch is what a network may be.

        nn.Sequential(nn.Linear(2, 64), p4.Residual(nn.Sequential(nn.Linear(64, 64), nn.ReLU()), alpha=0.5), ...)

    Args:
        branch: f.
        alpha: α >= 0, the weight of the skip.

    Raises:
        ArgumentError: α out of range; in a forward pass, a branch that changes the shape.
    """

    def __init__(self, branch: nn.Module, alpha: float = 1.0) -> None:
        super().__init__()
        check_number("alpha", alpha, 0)
        self.branch, self.alpha = branch, float(alpha)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.branch(x)
        if y.shape != x.shape:
            raise ArgumentError.of("branch", f"a module that keeps the shape {tuple(x.shape)}", tuple(y.shape))
        return self.alpha * x + y

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}"


@dataclass(frozen=True)
class Chain:
    """L(s) = κ Π_i s_i Π_j (α_j + L_j(s)): layers i with weights, by their number in the network, of norms s_i;
    residual branches j; κ the constants of all else."""

    constant: float
    layers: tuple[int, ...]
    branches: tuple[tuple[float, Chain], ...]

    def value(self, norms: Sequence[Any]) -> Any:
        """L(s) of numbers or tensors."""
        product = self.constant
        for layer in self.layers:
            product = product * norms[layer]
        for alpha, branch in self.branches:
            product = product * (alpha + branch.value(norms))
        return product

    def factor(self, norms: Sequence[float], bound: float) -> float:
        """The largest t with L(t s) <= c, to the last digits, from below; infinite where L(t s) is 0 for all t, and 0
        where a norm is not finite."""

        def inside(t: float) -> bool:
            return bool(self.value([t * norm for norm in norms]) <= bound)

        low, high = 1.0, 1.0
        while inside(high):
            low, high = high, 2 * high
            if math.isinf(high):
                return high
        while low and not inside(low):
            low, high = low / 2, low
        return _bisect(inside, low, high)

    def shares(self, norms: Sequence[float], bound: float) -> list[float]:
        """Bounds for all layers in the ratios of their norms, for which L is c. Layers of zeros, which have no ratio to
        others, count as their geometric mean, or as what these leave."""
        logarithms = [math.log(norm) for norm in norms if norm > 0]
        mean = math.exp(sum(logarithms) / len(logarithms)) if logarithms else 1.0
        filled = [norm or mean for norm in norms]
        t = self.factor(filled, bound)
        if t >= 1 or all(norms):
            return [t * norm for norm in filled]
        share = _bisect(lambda t: bool(self.value([norm or t * mean for norm in norms]) <= bound), 0.0, 1.0)
        return [norm or share * mean for norm in norms]


def _bisect(inside: Callable[[float], bool], low: float, high: float) -> float:
    """The largest number from `low` on that is inside, to the last digit of float64, from below."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) else (low, middle)
    return low


def read(model: nn.Module) -> tuple[dict[str, Weighted], Chain]:
    """The layers with weights by path, and the network's constant as a function of their norms.

    Raises:
        ArgumentError: a module whose constant is not known; one layer or weight twice; no layer with weights.
    """
    weighted: dict[str, Weighted] = {}
    chain = _chain(model, "", weighted)
    if not weighted:
        raise ArgumentError.of("model", "a chain with at least one nn.Linear or nn.Conv", type(model).__name__)
    return weighted, chain


def _chain(module: nn.Module, path: str, weighted: dict[str, Weighted]) -> Chain:
    constant, layers, branches = 1.0, list[int](), list[tuple[float, Chain]]()
    for name, layer in _parts(module, path):
        if type(layer) is Residual:
            branches.append((layer.alpha, _chain(layer.branch, f"{name}.branch" if name else "branch", weighted)))
            continue
        factor = _weighted_constant(layer) if isinstance(layer, Weighted) else lipschitz_constant(layer)
        if factor is None:
            expected = "made of nn.Sequential, nn.Linear, nn.Conv and layers whose Lipschitz constant is known"
            raise ArgumentError.of("model", expected, f"{name or 'itself'}: {type(layer).__name__}")
        if isinstance(layer, Weighted):
            _check_new(name, layer, weighted)
            layers.append(len(weighted))
            weighted[name] = layer
        constant *= factor
    return Chain(constant, tuple(layers), tuple(branches))


def _check_new(path: str, layer: Weighted, weighted: dict[str, Weighted]) -> None:
    for other_path, other in weighted.items():
        if layer.weight is other.weight or layer.weight.data_ptr() == other.weight.data_ptr() != 0:
            twice = f"one layer twice: {path}" if layer is other else f"one weight in two: {other_path}, {path}"
            raise ArgumentError.of("model", "a chain of different layers", twice)


def _weighted_constant(layer: Weighted) -> float | None:
    """1 of a layer whose norm is that of its perturbation; None if it is another kind."""
    if isinstance(layer, nn.Linear):
        return 1.0 if type(layer) is nn.Linear else None
    plain = type(layer) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and layer.padding_mode in ("zeros", "circular")
    return 1.0 if plain else None


@torch.no_grad()
def image_sizes(
    model: nn.Module, layers: Mapping[str, Weighted], input_shape: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    """The sizes of the images that convolutions see when the model is given an input of this shape, by path.

    Raises:
        ArgumentError: no shape of an input.
    """
    sizes: dict[str, tuple[int, ...]] = {}

    def note(path: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sizes[path] = tuple(inputs[0].shape[2:])

    handles = [
        layer.register_forward_pre_hook(partial(note, path))
        for path, layer in layers.items()
        if not isinstance(layer, nn.Linear)
    ]
    first = next(iter(layers.values())).weight
    try:
        model(first.new_zeros(1, *input_shape))
    except (RuntimeError, TypeError, ValueError) as error:
        raise ArgumentError.of(
            "input_shape", "the shape of an input of the model", f"{input_shape}: {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return sizes


def _parts(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    if type(module) is not nn.Sequential:
        yield path, module
        return
    for name, child in module._modules.items():
        if child is not None:
            yield from _parts(child, f"{path}.{name}" if path else name)
