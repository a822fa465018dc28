"""A flow: a bijection from data to a latent distribution that is easy to sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from p4torch._options import check_indices, check_integer, check_tensor
from p4torch.errors import ArgumentError
from p4torch.flows._context import check_context, joint_batch, mapped
from p4torch.flows._precision import in_full_precision
from p4torch.flows.bijection import Bijection, check_event, check_features, check_is_bijection
from p4torch.flows.distribution import FlowDistribution, flow_distribution
from p4torch.flows.latent import (
    Distribution,
    base_features,
    base_log_prob,
    base_sample,
    check_base,
    data_features,
    latent_features,
)
from p4torch.flows.structure import Structured


class StandardNormal(nn.Module):
    """N(0, I) in n dimensions: log p(z) = -(|z|² + n log 2π)/2.

    With a complex `dtype`, n complex numbers of mean square 1: log p(z) = -|z|² - n log π, the density of their 2n real
    parts.
    """

    zero: Tensor

    def __init__(self, features: int, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.features = check_features(features)
        self.register_buffer("zero", torch.zeros((), dtype=dtype), persistent=False)  # dtype and device of the samples

    @in_full_precision
    def log_prob(self, z: Tensor) -> Tensor:
        check_event(z, self.features, complex=self.zero.is_complex())
        if z.is_complex():
            return -(torch.view_as_real(z).square().sum((-2, -1)) + self.features * math.log(math.pi))
        return -(z.square().sum(-1) + self.features * math.log(2 * math.pi)) / 2

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        device = self.zero.device if generator is None else generator.device
        drawn = torch.randn(count, self.features, generator=generator, dtype=self.zero.dtype, device=device)
        return drawn.to(self.zero.device)

    def extra_repr(self) -> str:
        return f"features={self.features}"


class NormalAndUniform(Structured):
    """N(0, 1) for each feature on the line, uniform on [-π, π) for each on the circle; all independent.

    log p(z) = -(Σ_line z² + l log 2π)/2 - c log 2π, with l features on the line and c on the circle, and -∞ for angles
    beyond [-π, π]: it integrates to 1.

    Args:
        features: n.
        circular: which of them are angles.

    Raises:
        ArgumentError: for features that do not exist, or repeat.
    """

    structure = ("angle",)
    angle: Tensor

    def __init__(self, features: int, circular: Sequence[int]) -> None:
        super().__init__()
        self.features = check_features(features)
        circular = check_indices("circular", circular, self.features)
        angle = torch.zeros(features)
        angle[circular] = 1
        self.register_buffer("angle", angle)

    @in_full_precision
    def log_prob(self, z: Tensor) -> Tensor:
        check_event(z, self.features)
        logarithm = (self.features + self.angle.sum()) * (math.log(2 * math.pi) / 2)
        beyond = (z.abs() > math.pi) & self.angle.bool()
        log_prob = -(z.square() * (1 - self.angle)).sum(-1) / 2 - logarithm
        return log_prob.masked_fill(beyond.any(-1), -math.inf)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        kind: dict[str, Any] = {
            "dtype": self.angle.dtype,
            "device": self.angle.device if generator is None else generator.device,
        }
        normal = torch.randn(count, self.features, generator=generator, **kind)
        uniform = (2 * torch.rand(count, self.features, generator=generator, **kind) - 1) * math.pi
        return torch.where(self.angle.bool(), uniform.to(self.angle.device), normal.to(self.angle.device))

    def extra_repr(self) -> str:
        return f"features={self.features}, circular={self.angle.nonzero().flatten().tolist()}"


class Flow(Structured):
    """log p(x) = log p_Z(f(x)) + log|det ∂f/∂x|, samples x = f⁻¹(z) with z ~ p_Z.

    Densities have the dtype of the parameters, float32 say, under autocast, too.

    The latent distribution is a `StandardNormal`, another module with `log_prob(z)` and `sample(count, generator)`,
    or a `torch.distributions` one over vectors: event shape (n,), batch shape ().

    A flow with conditional layers is a density for each context, log p(x|c). Contexts are `(..., c)` and their batch
    broadcasts: with that of the points in `log_prob`, with `(count,)` in `sample`. So

        context              sample(count, context)
        (c,)                 (count, n), all of this context
        (count, c)           (count, n), one sample a row
        (rows, 1, c)         (rows, count, n), `count` samples of each row

    and `log_prob` of such samples takes the same context. All samples are independent.

    `sample` returns numbers without a graph. For training on samples (KL(q‖p) of energies, say), `rsample` and
    `sample_with_log_prob` are differentiable with respect to the parameters, of a torch distribution's own, too, where
    it has `rsample`; under `torch.no_grad` they have no graph either.

    Raises:
        ArgumentError: a latent distribution of another size than the bijection's, or of no vectors.

    Example:
        >>> import torch
        >>> from p4torch.flows import Flow, InvertibleMLP, StandardNormal
        >>> flow = Flow(InvertibleMLP(2, depth=4), StandardNormal(2))
        >>> flow.log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(self, bijection: Bijection, base: Distribution | torch.distributions.Distribution) -> None:
        super().__init__()
        self.bijection = bijection
        check_is_bijection(bijection)
        check_base(base, latent_features(bijection))
        self.base = base

    @torch.no_grad()
    def fit_scale(self, x: Tensor, context: Tensor | None = None) -> None:
        """Fit layers that are set by data, not trained, to points `(..., n)`: mean and scale of each `Standardize`. A
        conditional flow is given the context of the points, too.

        Raises:
            ArgumentError: points outside of the support (`check`), or that are not finite; constant features.
        """
        self.check(x, context)
        self.bijection.fit_scale(x, context)

    @torch.no_grad()
    def check(self, x: Tensor, context: Tensor | None = None) -> None:
        """That points are finite and have a density. `log_prob` itself gives -∞ outside of the support, without looking
        at numbers on the host, so that no training step waits for a device.

        Raises:
            ArgumentError: naming the feature, the value, and what to do.
        """
        check_tensor("x", x)
        if not bool(x.isfinite().all()):
            raise ArgumentError.of("x", "finite", f"{int((~x.isfinite()).sum())} infinities or NaN")
        check_context(self, context)
        self.bijection.check_support(x, context)

    @property
    def context_features(self) -> int:
        """c, 0 without conditional layers."""
        return self.bijection.context_features

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """log p(x|c) in nats, `(..., n)` and `(..., c)` -> `(...)`."""
        check_tensor("x", x)
        check_context(self, context)
        z, logabsdet = mapped(self.bijection, x, context)
        return base_log_prob(self.base, z) + logabsdet

    @torch.no_grad()
    def sample(self, count: int, context: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """`(count, n)`, without a graph."""
        return self.rsample(count, context, generator)

    def rsample(self, count: int, context: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """`(count, n)`, differentiable with respect to the parameters and the context."""
        return self._sample(count, context, generator)[1]

    def sample_with_log_prob(
        self, count: int, context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Samples `(count, n)` and their log p `(count,)`, in one pass, both differentiable as `rsample` is."""
        z, x, logabsdet = self._sample(count, context, generator)
        return x, base_log_prob(self.base, z) - logabsdet

    def _sample(
        self, count: int, context: Tensor | torch.Generator | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """z, x and log|det ∂x/∂z|. A generator may stand second, as where there is no context."""
        if isinstance(context, torch.Generator):
            context, generator = None, context
        check_context(self, context)
        batch: tuple[int, ...] = (check_integer("count", count, 1),)
        if context is not None:
            hint = "the `count` of samples (`context.unsqueeze(-2)` is for so many of each row)"
            batch = joint_batch(batch, context, hint)
        return self._drawn(batch, context, generator)

    def _drawn(
        self, batch: tuple[int, ...], context: Tensor | None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """z `(batch..., n)`, x and log|det ∂x/∂z|, for a context whose batch broadcasts to that."""
        z = base_sample(self.base, math.prod(batch), generator)
        z = z.reshape(*batch, *z.shape[1:])
        return z, *mapped(self.bijection, z, context, inverse=True)

    def distribution(self, context: Tensor | None = None, validate_args: bool | None = None) -> FlowDistribution:
        """This flow as a `torch.distributions` one, for a context `(..., c)`: event shape (n,), batch shape that of the
        context.

        Raises:
            ArgumentError: a context that is missing, superfluous or of another size; n is not known.
        """
        check_context(self, context)
        features = data_features(self.bijection) or base_features(self.base)
        return flow_distribution(self, context, features, validate_args)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The same as `log_prob`, so that wrappers which call modules (compile, distributed) work."""
        return self.log_prob(x, context)
