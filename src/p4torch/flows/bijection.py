"""Bijections: the protocol of every layer of a flow, and how they combine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from p4torch._options import check_integer, check_tensor, is_integer
from p4torch.errors import ArgumentError
from p4torch.flows._context import given, joint_context_features, mapped, takes_context
from p4torch.flows._fused.run import Step, fusable, fused_run
from p4torch.flows._precision import in_full_precision
from p4torch.flows.structure import Structured
from p4torch.linalg.reference import transformed


class Bijection(Structured):
    """A differentiable, invertible map of `(..., n)`, from data to latent.

    `forward(x)` returns (z, log|det ∂z/∂x|), `inverse(z)` returns (x, log|det ∂x/∂z|). The log-determinant is `(...)`,
    or `()` where it does not depend on the point: it broadcasts.

    Points are tensors of the dtype of the parameters, and so are results; ours refuse others, by an ArgumentError.
    Bijections without parameters take any floating-point dtype. Under autocast they compute in that dtype, too, as does
    a bijection of your own: `forward`, `inverse` and `moves` are called with autocast off.

    A conditional bijection is another map of the points for each context `(..., c)`: it has `context_features` = c > 0,
    `forward(x, context)` and `inverse(z, context)`. The batches of points and context broadcast. All others are called
    without a context, and may be defined so. That there is one of the right size where it is needed, and none
    elsewhere, is checked before they are called.

    Attributes:
        context_features: c, 0 for a bijection that is not conditional.
    """

    context_features: int = 0

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("forward", "inverse", "moves"):
            if name in cls.__dict__:
                setattr(cls, name, in_full_precision(takes_context(cls.__dict__[name])))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Data to latent."""
        raise NotImplementedError

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latent to data."""
        raise NotImplementedError

    def fit_scale(self, x: Tensor, context: Tensor | None = None) -> None:
        """Fit to points `(..., n)` what is set by data and not trained, as the mean and the scale of `Standardize`."""

    def check_support(self, x: Tensor, context: Tensor | None = None) -> None:
        """Raise an ArgumentError for points `(..., n)` where the density is 0 by construction, or that stand for others
        (angles beyond [-π, π)). It looks at numbers on the host: call it before training, not in each step."""

    def step(self, inverse: bool = False) -> Step | None:
        """What `forward` does, or `inverse`, if a `Chain` can do it together with its neighbours, faster. The context
        of a conditional one is added by the `Chain`."""
        return None


class Coupling(Bijection):
    """Moves some features, each by a monotone function of it that the others set: ∂z/∂x is triangular.

    Attributes:
        place: which features move, `(m,)`.
    """

    place: Tensor

    def moves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z `(..., n)` and log ∂zᵢ/∂xᵢ of the features that move, `(..., m)`: what `forward` adds up."""
        raise NotImplementedError

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, slopes = self.moves(x, *given(context))
        return z, slopes.sum(-1)


class Chain(Bijection):
    """Several bijections in a row; log-determinants add up. A context goes to all that are conditional.

    Couplings with SiLU networks, additively perturbed linear layers and swaps that follow each other are one node of
    the autograd graph where gradients are asked for, on a CPU: `p4torch.flows._fused` draws how.
    """

    def __init__(self, bijections: Iterable[Bijection]) -> None:
        super().__init__()
        self.bijections = nn.ModuleList(bijections)
        joint_context_features(self.bijections)

    @property
    def context_features(self) -> int:  # type: ignore[override]
        """c of the members that are conditional."""
        return joint_context_features(self.bijections)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_tensor("x", x)
        return self._transform(x, context, inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_tensor("z", z)
        return self._transform(z, context, inverse=True)

    @torch.no_grad()
    def fit_scale(self, x: Tensor, context: Tensor | None = None) -> None:
        """Each member, to what the earlier ones make of the points."""
        for bijection in self.bijections:
            bijection.fit_scale(x, context)  # type: ignore[operator]
            x = mapped(bijection, x, context)[0]

    @torch.no_grad()
    def check_support(self, x: Tensor, context: Tensor | None = None) -> None:
        """Each member, of what the earlier ones make of the points."""
        for bijection in self.bijections:
            bijection.check_support(x, context)  # type: ignore[operator]
            x = mapped(bijection, x, context)[0]

    def _transform(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        total = x.real.new_zeros(())
        for steps, members in self._runs(context, inverse):
            if steps and fusable(steps, x):
                x, logabsdet = fused_run(x, steps)
                total = total + logabsdet
                continue
            for bijection in members:
                x, logabsdet = mapped(bijection, x, context, inverse)
                total = total + logabsdet
        return x, total

    def _runs(self, context: Tensor | None, inverse: bool) -> list[tuple[list[Step], list[nn.Module]]]:
        """The bijections in groups: runs that may be fused, with their steps, and all others, without."""
        members = list(reversed(self.bijections)) if inverse else list(self.bijections)
        if transformed() or not torch.is_grad_enabled():
            return [([], members)]
        planned = [(_planned(one, context, inverse), one) for one in members]
        runs = [list(run) for _, run in groupby(planned, key=lambda pair: pair[0] is not None)]
        return [([step for step, _ in run if step is not None], [one for _, one in run]) for run in runs]

    def __len__(self) -> int:
        return len(self.bijections)


class Inverse(Bijection):
    """A bijection turned around."""

    def __init__(self, bijection: Bijection) -> None:
        super().__init__()
        self.bijection = bijection

    @property
    def context_features(self) -> int:  # type: ignore[override]
        """That of the bijection."""
        return self.bijection.context_features

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return mapped(self.bijection, x, context, inverse=True)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return mapped(self.bijection, z, context)


class Swap(Bijection):
    """Exchanges the two parts of the features, [a, b] -> [b, a], where a has ⌈n/2⌉. Volume preserving."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = check_features(features, least=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_event(x, self.features)
        return self._exchange(x, self.features - self.features // 2)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        check_event(z, self.features, name="z")
        return self._exchange(z, self.features // 2)

    def step(self, inverse: bool = False) -> Step | None:
        return None if self.features % 2 else Step("swap", self.features)

    def _exchange(self, x: Tensor, first: int) -> tuple[Tensor, Tensor]:
        a, b = x.split([first, self.features - first], dim=-1)
        return torch.cat([b, a], dim=-1), x.new_zeros(())

    def extra_repr(self) -> str:
        return f"features={self.features}"


def _planned(bijection: Any, context: Tensor | None, inverse: bool) -> Step | None:
    """The step of a bijection that a run may have, with the context."""
    step = None if _has_hooks(bijection) else bijection.step(inverse)
    return step._replace(context=context) if step is not None and bijection.context_features else step


def _has_hooks(module: nn.Module) -> bool:
    """Whether calling a module does more than its `forward`."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def check_is_bijection(bijection: object) -> None:
    """Refuse anything but a bijection."""
    if not isinstance(bijection, Bijection):
        raise ArgumentError.of("bijection", "a Bijection", type(bijection).__name__)


def check_features(features: int, least: int = 1) -> int:
    """The number of features, or an ArgumentError."""
    return check_integer("features", features, least)


def check_coupled(features: int, least: int = 2) -> int:
    """The number of features of a coupling, or an ArgumentError that says what to use for a single one."""
    if least > 1 and is_integer(features) and features == 1:
        expected = "an integer >= 2: a coupling moves some features as others say (for one, p4torch.flows.Spline(1))"
        raise ArgumentError.of("features", expected, features)
    return check_features(features, least)


def check_hidden(hidden: Sequence[int], name: str = "hidden") -> list[int]:
    """The widths of hidden layers, or an ArgumentError."""
    if not isinstance(hidden, Iterable) or any(not is_integer(width) or width < 1 for width in hidden):
        raise ArgumentError.of(name, "a sequence of integers >= 1", hidden)
    return [int(width) for width in hidden]


def check_dtype(x: Tensor, dtype: torch.dtype | None = None, complex: bool = False, name: str = "x") -> None:
    """Refuse points of integers; complex ones where real ones are mapped, and the reverse; and those of another dtype
    than the parameters', if that is given."""
    check_tensor(name, x)
    if not (x.is_complex() if complex else x.is_floating_point()):
        raise ArgumentError.of(name, f"of a {'complex' if complex else 'floating-point'} dtype", x.dtype)
    if dtype is not None and x.dtype != dtype:
        raise ArgumentError.of(name, f"of the parameters' dtype, {dtype}", x.dtype)


def check_event(
    x: Tensor, features: int, dtype: torch.dtype | None = None, *, complex: bool = False, name: str = "x"
) -> None:
    """The same, and points of another size."""
    check_dtype(x, dtype, complex, name)
    if x.dim() < 1 or x.shape[-1] != features:
        raise ArgumentError.of(name, f"of shape (..., {features})", tuple(x.shape))
