"""A first layer fitted to data: features of any scale get mean 0 and standard deviation 1, and lose correlations."""

from __future__ import annotations

import torch
from torch import Tensor

from p4torch import linalg
from p4torch.errors import ArgumentError
from p4torch.flows.bijection import Bijection, check_event, check_features


class Standardize(Bijection):
    """z = (x - m) / s, feature by feature, or z = C^(-1/2) (x - m) / s with the correlation matrix C.

    m, s and C are buffers: optimizers leave them alone, checkpoints bring them along. They start as 0, 1 and I;
    `fit_scale(x)`, or that of the flow around, sets them to those of points. C is shrunk towards I, by as much as the
    number of points asks for: (1 - λ) C + λ I with the λ of Ledoit and Wolf. So a table of few rows, or with features
    that depend on each other, can be whitened, too.

    Args:
        features: n.
        whiten: whether there is a C.

    Source: Ledoit and Wolf (2004), a well-conditioned estimator for large-dimensional covariance matrices.
    """

    mean: Tensor
    scale: Tensor
    root: Tensor
    inverse_root: Tensor
    logabsdet: Tensor

    def __init__(self, features: int, whiten: bool = False) -> None:
        super().__init__()
        self.features, self.whiten = check_features(features), whiten
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        if whiten:
            self.register_buffer("root", torch.eye(features))  # C^(1/2) and its inverse
            self.register_buffer("inverse_root", torch.eye(features))
            self.register_buffer("logabsdet", torch.zeros(()))  # of C^(1/2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_event(x, self.features)
        mean, scale = self.mean.to(x.dtype), self.scale.to(x.dtype)
        z, logabsdet = (x - mean) / scale, -scale.log().sum()
        if not self.whiten:
            return z, logabsdet
        return linalg.rows_times(z, self.inverse_root.to(x.dtype)), logabsdet - self.logabsdet.to(x.dtype)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        check_event(z, self.features, name="z")
        mean, scale = self.mean.to(z.dtype), self.scale.to(z.dtype)
        logabsdet = scale.log().sum()
        if self.whiten:
            z, logabsdet = linalg.rows_times(z, self.root.to(z.dtype)), logabsdet + self.logabsdet.to(z.dtype)
        return z * scale + mean, logabsdet

    @torch.no_grad()
    def fit_scale(self, x: Tensor, context: Tensor | None = None) -> None:
        """m, s and C of points `(..., n)`, at least two.

        Raises:
            ArgumentError: for fewer points, values that are not finite, or features that are constant.
        """
        check_event(x, self.features)
        points = x.reshape(-1, self.features).double()
        if len(points) < 2:
            raise ArgumentError.of("x", "at least two points", tuple(x.shape))
        if not bool(points.isfinite().all()):
            raise ArgumentError.of("x", "finite", "infinities, or what is not a number")
        mean, scale = points.mean(0), points.std(0)
        smallest = torch.finfo(x.dtype).eps * points.abs().amax(0)
        constant = (scale <= smallest).nonzero().flatten().tolist()
        if constant:
            expected = "of features that vary (leave out those that do not; whole numbers need Dequantize)"
            raise ArgumentError.of("x", expected, f"constant features {constant}")
        self.mean.copy_(mean)
        self.scale.copy_(scale)
        if self.whiten:
            values, vectors = torch.linalg.eigh(shrunk_correlation((points - mean) / scale))
            self.root.copy_(vectors * values.sqrt() @ vectors.mT)
            self.inverse_root.copy_(vectors * values.rsqrt() @ vectors.mT)
            self.logabsdet.copy_(values.log().sum() / 2)

    def extra_repr(self) -> str:
        return f"features={self.features}, whiten={self.whiten}"


def shrunk_correlation(z: Tensor) -> Tensor:
    """(1 - λ) C + λ I of standardised points `(m, n)`, λ = E|C' - C|² / |C - I|² with C' of other m points, estimated:
    of m⁻² Σᵢ |zᵢ zᵢᵀ - C|² the squares are |zᵢ|⁴ - 2 zᵢᵀ C zᵢ + |C|²."""
    count, features = z.shape
    correlation = z.mT @ z / count
    identity = torch.eye(features, dtype=z.dtype, device=z.device)
    spread = z.square().sum(-1).square().mean() - correlation.square().sum()
    distance = (correlation - identity).square().sum()
    share = (spread / count / distance.clamp_min(torch.finfo(z.dtype).tiny)).clamp(0, 1)
    # where features depend on each other rounding alone would decide, so a little is always left
    share = share.clamp_min(features * torch.finfo(torch.float32).eps)
    return correlation.mul_(1 - share).add_(identity, alpha=float(share))
