"""Linear layers of a flow: P4Inv, or any other property of matrices with an inverse and a determinant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from p4torch import linalg
from p4torch.core.blocks import default_block
from p4torch.core.perturbation import Perturbation
from p4torch.errors import ArgumentError
from p4torch.flows._conditioner import conditioner
from p4torch.flows._context import check_context_features, shown, spread
from p4torch.flows._fused.run import Kind, Step
from p4torch.flows._logabsdet import affine_logabsdet, solve_logabsdet
from p4torch.flows.bijection import Bijection, check_event, check_features
from p4torch.linalg.tracked_inverse import TrackedInverse
from p4torch.parametrize.lookup import perturbation_of
from p4torch.parametrize.sites import perturb
from p4torch.properties import Invertible
from p4torch.properties._math.invertible_shapes import BlockInvertible, LowRankInvertible
from p4torch.properties.invertible import Form

Init = Literal["identity", "reverse", "orthogonal", "scattered"] | Tensor


def initial_matrix(features: int, init: Init, dtype: torch.dtype | None = None) -> Tensor:
    """`(n, n)`: the identity, the features reversed, a random orthogonal (unitary) matrix, or the tensor given."""
    if isinstance(init, Tensor):
        if init.shape[-2:] != (features, features):
            raise ArgumentError.of("init", f"of shape (..., {features}, {features})", tuple(init.shape))
        if not (init.is_floating_point() or init.is_complex()):
            raise ArgumentError.of("init", "of a floating-point dtype", init.dtype)
        return init.detach().clone().to(dtype or init.dtype)
    expected = "identity, reverse, orthogonal or a tensor (n, n)"
    if not isinstance(init, str):
        raise ArgumentError.of("init", expected, type(init).__name__)
    if init == "identity":
        return torch.eye(features, dtype=dtype)
    if init == "reverse":
        return torch.eye(features, dtype=dtype).flip(0)
    if init == "orthogonal":
        empty = torch.empty(features, features, dtype=dtype)
        return torch.linalg.qr(torch.randn_like(empty))[0] if empty.is_complex() else nn.init.orthogonal_(empty)
    raise ArgumentError.of("init", expected, repr(init))


def default_form(features: int, rank: int | None, options: Mapping[str, Any]) -> Form | None:
    """The form of an invertible matrix in a flow: triangular, so that log|det| is a sum, if B is to move it as a whole;
    else that of `p4torch.Invertible` itself."""
    shaped = rank is not None or any(options.get(name) is not None for name in ("block", "side"))
    return None if shaped or default_block(features) != "all" else "triangular"


class InvertibleLinear(Bijection):
    """z = W x + b with W = R_B(A); both directions and log|det W| cost O(n²) a point, O(n²k) a batch.

    By default W is invertible (P4Inv); `property` keeps more than that:

        InvertibleLinear(n)                                                 any invertible W
        InvertibleLinear(n, property=p4.Orthogonal)                         rotations: log|det| = 0
        InvertibleLinear(n, property=p4.UnitDeterminant)                    volume preserving: log|det| = 0
        InvertibleLinear(n, property=p4.LinearSubspace, kind="circulant")   convolutions on a ring, O(n log n) a point
        InvertibleLinear(n, property=p4.LinearSubspace, kind="lower")       triangular W

    A property of square matrices whose inverse has no closed form works, too, by LAPACK, at O(n³) a batch. Where a
    property allows singular matrices, nothing but the loss keeps W from them.

    Complex layers map complex points; log|det| is that of the real map of 2n numbers, 2 log|det_C W|.

    With a context c it is another map for each, z = W(c) x + b(c), with what a network computes from c:

        b(c) = b + h(c),   W(c) = W exp(U(c) V(c)ᵀ),   log|det W(c)| = log|det W| + tr V(c)ᵀU(c)

    W is merged as ever, and its tracked inverse serves all contexts: W(c)⁻¹ = exp(-U(c) V(c)ᵀ) W⁻¹. No context makes
    W(c) singular; of the property, it keeps that alone. h and U are zero at the start.

    Args:
        features: n.
        bias: whether there is a b.
        rank: k of the perturbation; None for the property's own default, mostly 1.
        form: see `p4torch.Invertible`. None: triangular, if W is to be invertible and is moved as a whole (neither
            `rank` nor `block` nor `side` are given, n <= 512); else the property's own default.
        init: of A.
        property: what W keeps: a class such as `p4torch.Orthogonal`, see `p4torch.perturb`.
        dtype: of the layer; that of `init`, if it is a tensor, or torch's default one otherwise.
        context: how many features the context has, 0 for none; for real layers.
        context_rank: columns of U(c) and V(c). 0: only b depends on c.
        context_hidden: widths of the hidden layers of the network; () for a linear map of c.
        options: of the property.
    """

    def __init__(
        self,
        features: int,
        bias: bool = True,
        rank: int | None = None,
        form: Form | None = None,
        init: Init = "identity",
        *,
        property: Callable[..., Perturbation] = Invertible,
        dtype: torch.dtype | None = None,
        context: int = 0,
        context_rank: int = 0,
        context_hidden: Sequence[int] = (32,),
        **options: Any,
    ) -> None:
        super().__init__()
        self.features = check_features(features)
        self.context_features = check_context_features(context)
        matrix = initial_matrix(features, init, dtype)
        if matrix.dim() != 2:
            raise ArgumentError.of("init", f"of shape ({features}, {features})", tuple(matrix.shape))
        self.weight = nn.Parameter(matrix)
        self.bias = nn.Parameter(self.weight.new_zeros(features)) if bias else None
        if form is None and property is Invertible:
            form = default_form(features, rank, options)
        options |= {name: value for name, value in (("rank", rank), ("form", form)) if value is not None}
        perturb(self, "weight", property, **options)
        self.context_rank = context_rank
        self.conditioner = conditioner(features, bias, context, context_rank, context_hidden, matrix.dtype)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        perturbation, base = perturbation_of(self, "weight")
        check_event(x, self.features, base.dtype, complex=base.is_complex())
        if context is None or self.conditioner is None:
            z, logabsdet = affine_logabsdet(perturbation, base, x, self.bias)
            return z, _of_real_map(logabsdet, base)
        x = spread(x, context)[0]
        shift, u, v = self.conditioner(context)
        x, growth = linalg.exponential_rows(x, u, v)
        z, logabsdet = affine_logabsdet(perturbation, base, x, self.bias)
        return z + shift, logabsdet + growth

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        perturbation, base = perturbation_of(self, "weight")
        check_event(z, self.features, base.dtype, complex=base.is_complex(), name="z")
        y = z if self.bias is None else z - self.bias
        if context is None or self.conditioner is None:
            x, logabsdet = solve_logabsdet(perturbation, base, y)
            return x, -_of_real_map(logabsdet, base)
        y = spread(y, context)[0]
        shift, u, v = self.conditioner(context)
        y, logabsdet = solve_logabsdet(perturbation, base, y - shift)
        x, growth = linalg.exponential_rows(y, -u, v)
        return x, growth - logabsdet

    def step(self, inverse: bool = False) -> Step | None:
        if self.context_features:
            return None
        perturbation, base = perturbation_of(self, "weight")
        if base.requires_grad:
            return None
        kind: Kind
        if type(perturbation) is LowRankInvertible and perturbation.form == "additive" and perturbation.sketch is None:
            kind, gain = "linear_inverse" if inverse else "linear", 1.0
            own = [perturbation.scaled_u, perturbation._parameters["v"]]  # by attribute it takes ten times as long
        elif type(perturbation) is BlockInvertible and perturbation.form == "triangular" and perturbation.single_block:
            right = cast(Tensor, perturbation._parameters["right"])
            kind, gain = "triangular_inverse" if inverse else "triangular", perturbation._gain(right)
            own = [right.squeeze(-3)]
        else:  # with a sketch it looks at the gradient of this layer
            return None
        tracked, bias = (
            cast(TrackedInverse, perturbation._modules["tracked"]).current(base),
            self._parameters.get("bias"),
        )
        tensors = [base, tracked._parameters["inverse"], *own, *([] if bias is None else [bias])]
        logabsdet = cast(Tensor, tracked._buffers["logabsdet"])
        constant = -logabsdet if inverse else logabsdet
        return Step(kind, self.features, tuple(cast("list[Tensor]", tensors)), constant, gain)

    def extra_repr(self) -> str:
        return f"features={self.features}, bias={self.bias is not None}{shown(self.context_features)}"


def _of_real_map(logabsdet: Tensor, base: Tensor) -> Tensor:
    """log|det| of a complex matrix as a map of twice as many real numbers."""
    return 2 * logabsdet.real if base.is_complex() else logabsdet
