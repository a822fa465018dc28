"""Convolutions of bounded norm: Lipschitz layers of images."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from p4torch._options import check_choice, check_number
from p4torch.core.perturbation import Perturbation
from p4torch.core.transaction import Proposal
from p4torch.core.validation import check_base
from p4torch.errors import ArgumentError
from p4torch.properties._math.certificate import Certificate
from p4torch.properties._math.kernels import Padding, Sizes, convolution, layer_options


class ConvolutionBound(Perturbation):
    """S = {K `(out, in / groups, *positions)` : ‖conv_K‖₂ <= c}, the norm of the convolution as a map of whole images:

        R_B(K) = min(1, c / s) M,   M = K + B,   s >= ‖conv_M‖₂ certified,   B₀ = 0,   B as K

        p4.perturb(conv, "weight", p4.ConvolutionBound, bound=1.0)              # images of any size
        p4.perturb(conv, "weight", p4.ConvolutionBound, bound=1.0, size=8)      # 8 x 8: closer to the norm

    That of the kernel as a matrix, which `SpectralBound` sees, is up to √J smaller, J the number of positions. A step
    that would leave S is scaled back onto it, and the gradient passes through s. A merge puts the scaled kernel into
    the base and leaves the effective weight unchanged.

    s is the largest norm of the matrices `(out, in)` that the convolution is, frequency by frequency, see
    `p4torch.properties._math.convolution`. It is exact for circular padding, if the size is given. For zero padding and
    images of any size it is at most 1 % above their supremum for kernels of two axes and up to 32 channels (4 % up to
    64, 17 % beyond): O(F p³) a step with F = 544 frequencies for 3 x 3, p the fewer of the channels. With a size it is
    closer to the norm, and F about half the number of pixels.

    With `at="merge"` a step costs nothing: R_B(K) = K + B, which may leave S between merges. A merge then divides by
    the norm, and so changes the effective weight where it was outside.

    Args:
        base: `(out, in / groups, *positions)`, the kernel as it is stored.
        bound: c > 0; None for the (certified) norm of each given kernel, which keeps it.
        at: "step" or "merge": where the bound holds.
        size: of the images, (height, width), or an integer for both; None for any. With zero padding smaller ones are
            certified, too; larger ones are not.
        stride, dilation, groups, padding, padding_mode: of the layer, from which `p4torch.perturb` takes them. Padding
            "zeros", or "circular" by less than the kernel's extent.

    Raises:
        ArgumentError: for a base that is not a real, finite kernel; for options out of range; for a convolution whose
            norm is not known, by the option that is in the way.

    Source: Sedghi, Gupta and Long (2019); Pfister and Bresler (2019); Araujo et al. (2021); Gouk et al. (2021).
    """

    event_dim = 3

    def __init__(
        self,
        base: Tensor,
        bound: float | None = None,
        *,
        at: Literal["step", "merge"] = "step",
        size: Sizes | None = None,
        stride: Sizes = 1,
        dilation: Sizes = 1,
        groups: int = 1,
        padding: Padding = 0,
        padding_mode: str = "zeros",
    ) -> None:
        check_base(base)
        self.event_dim = max(3, base.dim())
        super().__init__(base)
        if base.is_complex():
            raise ArgumentError.of("base", "real", base.dtype)
        check_choice("at", at, ("step", "merge"), "one of step, merge")
        if bound is not None:
            bound = check_number("bound", bound, 1e-30)
        elif not bool(base.any()):
            raise ArgumentError.of("bound", "a number for a kernel of zeros", "None")
        self.at, self.bound = at, bound
        self.convolution = convolution(
            tuple(base.shape), size, stride, dilation, groups, padding=padding, padding_mode=padding_mode
        )
        self.b = nn.Parameter(torch.zeros_like(base, memory_format=torch.contiguous_format))
        norm, shift = self.convolution.norm_bound(base)
        self.register_buffer("shift", shift)
        self.certificate = Certificate(base, norm if bound is None else torch.full_like(norm, bound))
        self.refresh(base)

    shift: Tensor

    @classmethod
    def options_of(cls, module: nn.Module, tensor_name: str) -> dict[str, Any]:
        return layer_options(module, tensor_name)

    # --- every step ---------------------------------------------------------------------------------------------------

    def forward(self, base: Tensor) -> Tensor:
        updated = base + self.b
        return updated if self.at == "merge" else updated * self._scaling(base, self._norm(updated))

    def norm(self, base: Tensor) -> Tensor:
        """A certified upper bound of ‖conv‖ of R_B(K), `()` in float64."""
        norm = self._norm(base + self.b)
        return norm if self.at == "merge" else torch.minimum(norm, self.certificate.bound)

    def norm_of(self, tensor: Tensor) -> Tensor:
        """A certified upper bound of ‖conv‖ of a kernel, `()` in float64: the least that is known."""
        return self.convolution.norm_bound(tensor)[0]

    def rounding(self, tensor: Tensor) -> float:
        """By which share of itself rounding the entries may change ‖conv‖, twice."""
        return torch.finfo(tensor.dtype).eps * self.convolution.rounding

    def _norm(self, updated: Tensor) -> Tensor:
        """s >= ‖conv_M‖. Near B₀ it is ‖conv_K‖ + 2 √J ‖B‖_F, without a gradient, as in `SpectralBound`."""
        length = torch.linalg.vector_norm(self.b.detach().double()) * self.convolution.positions**0.5
        return torch.minimum(self.convolution.norm_above(updated, self.shift), self.certificate.norm + 2 * length)

    def _scaling(self, base: Tensor, norm: Tensor) -> Tensor:
        """min(1, c / s) in the dtype of the base; below that by what rounding R_B(K) may add."""
        bound = self.certificate.bound
        inside = bound / (torch.maximum(norm, bound) * (1 + self.rounding(base)))
        return torch.where(norm <= bound, 1.0, inside).to(base.dtype)

    # --- merges -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None) -> None:
        self.b.zero_()

    def defect(self, tensor: Tensor) -> Tensor:
        """max(0, ‖conv‖ / c - 1), certified."""
        return (self.norm_of(tensor) / self.certificate.bound - 1).clamp_min(0)

    def project(self, tensor: Tensor) -> Tensor:
        return self.inside(tensor.double(), tensor.dtype, self.certificate.bound + torch.inf)[0]

    @torch.no_grad()
    def refresh(self, base: Tensor) -> None:
        norm, shift = self.convolution.norm_bound(base)
        self.certificate.norm.copy_(norm)
        self.shift.copy_(shift)

    @torch.no_grad()
    def correct(self, base: Tensor) -> None:
        if bool(self.certificate.norm > self.certificate.bound):
            base.copy_(self.project(base))
            self.refresh(base)

    def inside(
        self, exact: Tensor, dtype: torch.dtype, norm: Tensor, bound: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """A kernel, rounded, and its certified norm: as it is where that is at most c (or another bound), else divided.

        Args:
            exact: the kernel in float64.
            dtype: of the result.
            norm: what is known of its norm: an upper bound, if only infinity.
            bound: another c than the own one.
        """
        bound = self.certificate.bound if bound is None else bound
        tensor = exact.to(dtype)
        if bool(norm <= bound):
            return tensor, norm
        norm = self.norm_of(tensor)
        if not bool(norm > bound):
            return tensor, norm
        return (tensor.double() * (bound / norm / (1 + self.rounding(tensor)))).to(dtype), bound.clone()

    def loose(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """K + B in float64, and a certified bound of its norm once it is rounded."""
        exact = base.double() + self.b.double()
        return exact, self.norm_of(exact.to(base.dtype))

    def scaled(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """R_B(K) of `at="step"`, and a certified bound of its norm."""
        updated = base + self.b
        norm = self._norm(updated)
        return updated * self._scaling(base, norm), torch.minimum(norm, self.certificate.bound)

    def propose(self, base: Tensor) -> Proposal:
        candidate, norm = self.scaled(base) if self.at == "step" else self._loose_inside(base)
        return Proposal(candidate, self.tracked(candidate, norm))

    def _loose_inside(self, base: Tensor) -> tuple[Tensor, Tensor]:
        exact, known = self.loose(base)
        return self.inside(exact, base.dtype, known)

    def tracked(self, candidate: Tensor, norm: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What becomes of what is tracked when a candidate of that norm is merged."""
        return [(self.certificate.norm, norm), (self.shift, self.convolution.norm_bound(candidate)[1])]

    def identity(self) -> str:
        bound = "" if self.bound is None else f", bound={self.bound:g}"
        return f"ConvolutionBound({self._map()}, at={self.at!r}{bound})"

    def _map(self) -> str:
        """What differs between convolutions of one kernel."""
        known = self.convolution
        sizes = "any size" if known.torus is None else f"torus={known.torus}{', twisted' if known.twisted else ''}"
        return f"stride={known.stride}, dilation={known.dilation}, groups={known.groups}, {sizes}"

    def extra_repr(self) -> str:
        return f"{self._map()}, at={self.at!r}"
