"""Maximum likelihood with the score of the data: gradients without noise where the flow is right."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from p4torch._options import check_tensor
from p4torch.errors import ArgumentError, P4Error
from p4torch.flows._context import check_context, given, joint_batch, mapped
from p4torch.flows.bijection import Bijection, Chain, Coupling
from p4torch.flows.flow import Flow
from p4torch.flows.latent import base_log_prob
from p4torch.linalg.reference import once_differentiable


def path_loss(
    flow: Flow,
    x: Tensor,
    score: Tensor,
    weights: Tensor | None = None,
    *,
    context: Tensor | None = None,
    bound: float = math.inf,
) -> Tensor:
    """The mean of -log q(x) over points of p, `()`; its gradient is the path gradient of KL(p‖q), given ∇ log p.

    With z = f(x), p as a density of z is as far from the latent one as p is from q, and

        ∂KL/∂θ = E_p[v · ∂f(x)/∂θ],   v = J⁻ᵀ (∇ log p(x) - ∇ log q(x)),   J = ∂f/∂x.

    Its expectation is that of the gradient of -log q, but v is 0 where q = p: so is the variance, while that of
    -log q stays. A step costs less than twice as much: one backward sweep through the layers, for ∇ log q, and one
    forward sweep that carries v; the gradient of a layer's parameters needs v behind it only.

    It is the gradient of the expectation alone, of no loss of the points. Where q is small, v is large and noisy: flows
    with many parameters may leave the optimum for good, within some hundred steps on few points that are used again
    and again, after thousands on many. Weighted samples of the flow itself are always new, and rarely lie there.

        loss = path_loss(flow, x, score)    # in place of -flow.log_prob(x).mean()
        loss.backward()

    Args:
        flow: whose parameters get the gradient; x and score get none.
        x: points of p, `(..., n)`.
        score: ∇ log p there, of the same shape; where it is not finite, a point adds nothing to the gradient.
        weights: of the points, `(...)`, ∝ p / their density, for points of another one, such as q. Default: equal.
        context: of a conditional flow, `(..., c)`; its batch broadcasts to that of the points. It gets a gradient as
            the parameters do; the scores are ∇ₓ log p(x|c).
        bound: |v| is clipped to this, behind every layer. Where a coupling is steep, few points may have a large one,
            and dominate the gradient.

    Raises:
        ArgumentError: a score, or weights, of another shape; a context that does not fit the flow, or the points.
        P4Error: where its gradient is differentiated.

    Source: Roeder, Wu and Duvenaud (2017) for the reverse divergence; Vaitl, Nicoli, Nakajima and Kessel (2022) for
    this one, and Vaitl, Winkler, Richter and Kessel (2024) for the recursion.
    """
    for name, value in (("x", x), ("score", score), *((("weights", weights),) if weights is not None else ())):
        check_tensor(name, value)
    if score.shape != x.shape:
        raise ArgumentError.of("score", f"of the shape of x, {tuple(x.shape)}", tuple(score.shape))
    if weights is not None and weights.shape != x.shape[:-1]:
        raise ArgumentError.of("weights", f"one a point, {tuple(x.shape[:-1])}", tuple(weights.shape))
    check_context(flow, context)
    if context is not None and joint_batch(x.shape[:-1], context) != x.shape[:-1]:
        raise ArgumentError.of("context", f"of one batch with the points, {tuple(x.shape[:-1])}", tuple(context.shape))
    parameters = [value for value in flow.parameters() if value.requires_grad]
    points = x.detach(), score.detach(), _shares(x, weights)
    return cast(Tensor, _PathLoss.apply(flow, *points, bound, context, *parameters))  # type: ignore[no-untyped-call]


def path_loss_reference(
    flow: Flow, x: Tensor, score: Tensor, weights: Tensor | None = None, context: Tensor | None = None
) -> Tensor:
    """The same from two passes through the whole flow."""
    shares = _shares(x, weights)
    x = x.detach().requires_grad_()
    z, logabsdet = mapped(flow.bijection, x, context)
    log_prob = flow.base.log_prob(z) + logabsdet
    flow_score = torch.autograd.grad(log_prob.sum(), x, retain_graph=True)[0]
    covector = _inverse_transposed(flow.bijection, z, _difference(score, flow_score), context)
    surrogate = (shares[..., None] * covector * z).sum()
    return surrogate - surrogate.detach() - (shares * log_prob.detach()).sum()


class _PathLoss(torch.autograd.Function):
    """Gradients are there when the value is: they are kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        flow: Flow,
        x: Tensor,
        score: Tensor,
        shares: Tensor,
        bound: float,
        context: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor:
        leaf = None if context is None else context.detach().requires_grad_(context.requires_grad)
        with torch.enable_grad():
            log_prob, gradients = _sweep(flow, x, score, shares, bound, leaf)
        ctx.gradients = [None if value is None else gradients.get(value) for value in (leaf, *parameters)]
        ctx.save_for_backward(*given(context), *parameters)
        return -(shares * log_prob).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        sources = gradient, *(ctx.saved_tensors if torch.is_grad_enabled() else ())
        error = P4Error("path_loss can be differentiated once, not twice: its gradient is that of no function")
        gradients = (
            None if value is None else once_differentiable(gradient * value, error, *sources) for value in ctx.gradients
        )
        return None, None, None, None, None, *gradients


def _sweep(
    flow: Flow, x: Tensor, score: Tensor, shares: Tensor, bound: float, context: Tensor | None
) -> tuple[Tensor, dict[Tensor, Tensor]]:
    """log q `(...)`, and the path gradient of the mean by parameter, and by context. `flow_score` is ∇ log q at every
    layer of the backward sweep, `covector` the share of a point times v at every layer of the forward sweep."""
    records = []
    total = x.new_zeros(x.shape[:-1])
    for layer in _layers(flow.bijection):
        point = x.detach().requires_grad_()
        x, logabsdet, slopes = _forward(layer, point, context)
        records.append((layer, point, x, logabsdet, slopes))
        total = total + logabsdet.detach()
    latent = x.detach().requires_grad_()
    log_base = base_log_prob(flow.base, latent)
    flow_score = torch.autograd.grad(log_base.sum(), latent, allow_unused=True, materialize_grads=True)[0]
    for _, point, image, logabsdet, _ in reversed(records):
        outputs, cotangents = [image], [flow_score]
        if logabsdet.requires_grad:
            outputs.append(logabsdet.expand(total.shape))
            cotangents.append(torch.ones_like(total))
        flow_score = torch.autograd.grad(outputs, point, cotangents, retain_graph=True)[0]
    largest = bound * shares[..., None]
    covector = shares[..., None] * _difference(score, flow_score)
    covector = _clip_factor(covector, largest) * covector
    gradients: dict[Tensor, Tensor] = {}
    for layer, point, image, _, slopes in records:
        parameters = [value for value in (*layer.parameters(), *given(context)) if value.requires_grad]
        if isinstance(layer, Coupling) and slopes is not None:
            # J = D + M, M from kept features to moved ones: with w = D⁻¹ g on those, J⁻ᵀ g = w + g - Jᵀ w
            growth = (-slopes.detach()).exp()
            at_moved = covector[..., layer.place] * growth
            clip = _clip_factor(at_moved, largest)
            covector, at_moved = clip * covector, clip * at_moved
            moved = torch.zeros_like(covector).index_copy(-1, layer.place, at_moved)
            grad_point, *layer_gradients = _gradients(image, [point, *parameters], moved)
            covector = moved + covector - grad_point
        else:
            covector = _inverse_transposed(layer, image, covector, context)
            layer_gradients = _gradients(image, parameters, covector)
        covector = _clip_factor(covector, largest) * covector
        for value, gradient in zip(parameters, layer_gradients, strict=True):
            gradients[value] = gradients[value] + gradient if value in gradients else gradient
    return total + log_base.detach(), gradients


def _layers(bijection: Bijection) -> Iterator[Bijection]:
    if isinstance(bijection, Chain):
        for member in bijection.bijections:
            yield from _layers(cast(Bijection, member))
    else:
        yield bijection


def _forward(layer: Bijection, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """z, log|det|, and the logarithms of a coupling's slopes."""
    if isinstance(layer, Coupling):
        z, slopes = layer.moves(x, *(given(context) if layer.context_features else ()))
        return z, slopes.sum(-1), slopes
    return *mapped(layer, x, context), None


def _inverse_transposed(layer: Bijection, z: Tensor, covector: Tensor, context: Tensor | None) -> Tensor:
    """J⁻ᵀ g, by the inverse."""
    latent = z.detach().requires_grad_()
    return torch.autograd.grad(mapped(layer, latent, context, inverse=True)[0], latent, covector)[0]


def _gradients(value: Tensor, inputs: Sequence[Tensor], covector: Tensor) -> list[Tensor]:
    if not inputs:
        return []
    return list(torch.autograd.grad(value, inputs, covector, allow_unused=True, materialize_grads=True))


def _shares(x: Tensor, weights: Tensor | None) -> Tensor:
    """Weights that add up to one, `(...)`."""
    weights = x.new_ones(x.shape[:-1]) if weights is None else weights.detach().to(x.dtype)
    return weights / weights.sum()


def _clip_factor(covector: Tensor, largest: Tensor) -> Tensor:
    """min(1, largest / |covector|), `(..., 1)`."""
    norm = covector.norm(dim=-1, keepdim=True)
    return torch.where(norm > largest, largest / norm, torch.ones_like(norm))


def _difference(score: Tensor, flow_score: Tensor) -> Tensor:
    difference = score - flow_score
    return difference.where(difference.isfinite().all(-1, keepdim=True), torch.zeros_like(difference))
