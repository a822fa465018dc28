"""P4: a frozen base A in a feasible set S, a cheap trainable perturbation R_B, and the merge A <- R_B(A), B <- B₀.

    frozen A in S --> R_B(A) --> the network's weight          every step: the optimizer moves B only
         ^               |
         +--- merge <----+       every N steps: A <- R_B(A), B <- B₀, the effective weight unchanged

Source: Krämer, Köhler and Noé (2020), section 3.1, equations 1 and 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from p4torch import linalg
from p4torch._eager import eager
from p4torch.core import transaction
from p4torch.core.identity import Identified
from p4torch.core.masks import assign
from p4torch.core.transaction import AllReduce, Member, MergeReport, Proposal
from p4torch.core.validation import check_base, check_fits
from p4torch.errors import ArgumentError, ProjectionWarning, warn

#: Methods that had another name: one that overrides them would never be called.
_RENAMED = {
    "adapt": "_redraw",
    "candidate": "propose",
    "commit": "after_commit",
    "concern": "warning_for",
    "limit": "after_step",
    "set_gain": "after_admission",
}


class Perturbation(Identified):
    """R_B: its own parameters are B, its `forward(base)` returns R_B(base). It is a torch parametrization.

    A property of your own overrides `forward`, `reset` and `defect` (and `project`, if its perturbation may leave S
    between merges). Everything else has a general, exact implementation here; a fast one may override it and is then
    compared with this one by `p4torch.testing.check_perturbation`.

    Class attributes: `directions` names the parameters that `reset` redraws at random (the others go to a fixed
    value); `permuted` those whose coordinates it redraws, as a random permutation does, so that the same entry means
    something else afterwards; `event_dim` is how many trailing dimensions make one element of S: 2 for matrices, so
    that a stack `(..., n, n)` is merged or skipped matrix by matrix; `interval` after how many optimizer steps a
    `MergeScheduler` without `every` merges, which an instance may set for itself.
    """

    directions: ClassVar[tuple[str, ...]] = ()
    permuted: tuple[str, ...] = ()
    event_dim: int = 2
    interval: int = 50

    attempts: Tensor
    skips: Tensor
    trainable: bool = True
    #: What warnings call the tensor: its path, once `p4torch.perturb` has put the perturbation there.
    tensor_name: str = "tensor"
    #: Parameters of B that do not train by design, whatever `requires_grad_(True)` says. `perturb` notes them.
    untrained: tuple[str, ...] = ()
    #: Whether perturbations of several sites that are alike merge as one of a stack of matrices.
    stackable: ClassVar[bool] = False
    #: `attempts` as a number, with the version of the tensor that it was read from.
    _read: tuple[int, int] | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for old in cls.__dict__.keys() & _RENAMED.keys():
            raise TypeError(f"{cls.__name__}: `{old}` is now `{_RENAMED[old]}`")

    def __init__(self, base: Tensor) -> None:
        super().__init__()
        check_base(base)
        if base.dim() < self.event_dim:
            raise ArgumentError.of("base", f"of at least {self.event_dim} dimensions", tuple(base.shape))
        self.base_shape: torch.Size = base.shape
        batch = base.shape[: base.dim() - self.event_dim]
        self.register_buffer("attempts", torch.zeros((), dtype=torch.int64, device=base.device))
        self.register_buffer("skips", torch.zeros(batch, dtype=torch.int64, device=base.device))

    @property
    def merge_index(self) -> int:
        """`attempts` as a number. The device is asked only after somebody else has written to it."""
        if self._read is None or self._read[1] != self.attempts._version:
            self._read = int(self.attempts), self.attempts._version
        return self._read[0]

    def count_merge(self) -> None:
        """One more attempt."""
        index = self.merge_index + 1
        self.attempts += 1
        self._read = index, self.attempts._version

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Perturbation:
        self._read = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *state: Any) -> None:
        self._read = None
        super()._load_from_state_dict(*state)

    # --- what a property must define --------------------------------------------------------------------------------

    def forward(self, base: Tensor) -> Tensor:
        """R_B(A), differentiable with respect to B."""
        raise NotImplementedError(f"{type(self).__name__} must define `forward(base)`")

    def reset(self, generator: torch.Generator | None) -> None:
        """B <- B₀, in place. `directions` are redrawn from the generator (a CPU one), or kept if it is None."""
        raise NotImplementedError(f"{type(self).__name__} must define `reset(generator)`")

    def defect(self, tensor: Tensor) -> Tensor:
        """How far a tensor is from S: non-negative, 0 on S. `(...)`, one number an element of S."""
        raise NotImplementedError(f"{type(self).__name__} must define `defect(tensor)`")

    # --- what it may define: the set and merges ---------------------------------------------------------------------

    def project(self, tensor: Tensor) -> Tensor:
        """A tensor of S near the one given."""
        raise NotImplementedError(f"{type(self).__name__} has no `project(tensor)`: it admits elements of S only")

    def nearest(self, tensor: Tensor) -> Tensor:
        """A tensor to be admitted for a mean of elements of S: by default the mean itself, which admission projects.
        Where admission begins another S, an element of this one."""
        return tensor

    def refresh(self, base: Tensor) -> None:
        """Recompute exactly whatever is tracked beside the base. Nothing by default."""

    def correct(self, base: Tensor) -> None:
        """Undo rounding drift, of the base (in place) or of what is tracked. Nothing by default. Called when a base is
        admitted, too."""

    def propose(self, base: Tensor) -> Proposal:
        """The candidate of a merge with its vetoes, and what becomes of what is tracked. By default R_B(A) in float64,
        projected back onto S where it left it, and rounded."""
        return Proposal(self._candidate(base))

    def penalty(self, base: Tensor) -> Tensor:
        """A non-negative term `()` for the loss that keeps the optimizer where merges succeed. 0 by default."""
        return base.new_zeros(())

    def identity(self) -> str:
        """The property and its options, as every state says them: a state of others is refused. By default the name of
        the class with its `extra_repr()`; a property whose options do not all define S, or what B means, names those
        that do."""
        return f"{property_name(self)}({self.extra_repr()})"

    def warning_for(self, module: nn.Module, tensor_name: str) -> str | None:
        """What keeps a module from having the property of its tensor, in a sentence that `perturb` warns of. None by
        default: nothing does."""
        return None

    def companions(self, module: nn.Module, tensor_name: str) -> dict[str, Callable[[Tensor], Perturbation]]:
        """Other tensors of a module, vectors, that `perturb` puts a perturbation on, too, and which one: the module has
        the property only with them. None by default. Raises ArgumentError where there is none that they could keep."""
        return {}

    @classmethod
    def options_of(cls, module: nn.Module, tensor_name: str) -> dict[str, Any]:
        """What a module says of its tensor, as options that `perturb` adds to those given: the stride of a convolution,
        say. None by default."""
        return {}

    # --- what it may define: hooks that do nothing by default -------------------------------------------------------

    def after_admission(self, base: Tensor) -> None:
        """A base was admitted: for what depends on it, such as the size of a step."""

    @property
    def limits_steps(self) -> bool:
        """Whether `after_step` does anything."""
        return type(self).after_step is not Perturbation.after_step

    def after_step(self) -> None:
        """The optimizer has made a step: pull B back, in place, where that led too far."""

    def after_commit(self, base: Tensor, report: MergeReport) -> None:
        """A merge is done, whether it was accepted or not."""

    def discard_sketch(self) -> None:
        """What was recorded for the next directions is void: the schedule jumped (a resume), or B was not finite."""

    # --- what it may define: matrices. Here they are dense and exact ------------------------------------------------

    def matmul(self, base: Tensor, x: Tensor) -> Tensor:
        """x R_B(A)ᵀ for rows x `(..., m, n)`."""
        return linalg.rows_times(x, self(base))

    def affine(self, base: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        """x R_B(A)ᵀ + b, what a linear layer computes."""
        y = self.matmul(base, x)
        return y if bias is None else y + bias.to(y.dtype)

    def solve(self, base: Tensor, y: Tensor) -> Tensor:
        """y R_B(A)⁻ᵀ, the rows x with x R_B(A)ᵀ = y. `(..., m, n)`."""
        with linalg.full_precision(base.device):
            return linalg.solve_rows(self(base), y.to(base.dtype))

    def inverse(self, base: Tensor) -> Tensor:
        """R_B(A)⁻¹, `(..., n, n)`."""
        with linalg.full_precision(base.device):
            return linalg.unbatched(torch.linalg.inv, linalg.at_least_single(self(base))).to(base.dtype)

    def logabsdet(self, base: Tensor) -> Tensor:
        """log|det R_B(A)|, `(...)`."""
        with linalg.full_precision(base.device):
            return linalg.slogdet(self(base))[1].to(base.dtype)

    def sign(self, base: Tensor) -> Tensor:
        """sign det R_B(A), `(...)`."""
        with linalg.full_precision(base.device):
            return linalg.slogdet(self(base))[0].to(base.dtype)

    # --- what the library calls -------------------------------------------------------------------------------------

    @eager
    @torch.no_grad()
    def right_inverse(self, tensor: Tensor) -> Tensor:
        """Admit a tensor: the base for which R_B₀ gives it back. Projects it (with a warning) if it is not in S,
        resets B (directions stay), and refreshes what is tracked. Called by `layer.weight = tensor`."""
        check_fits(tensor, "tensor", self.base_shape, self.own_parameters())
        check_base(tensor, "tensor")
        defect = float(self.defect(tensor).nan_to_num(nan=torch.inf, posinf=torch.inf).max())
        if not defect <= torch.finfo(tensor.dtype).eps ** 0.5:
            tensor, what = self._projected(tensor), f"the set of {property_name(self)} (defect {defect:.3g})"
            warn(f"`{self.tensor_name}` does not lie in {what}: projected onto it", ProjectionWarning)
        base = tensor.clone(memory_format=torch.contiguous_format)  # merges write into it
        self.refresh(base)
        self.after_admission(base)
        self.reset(None)
        self.correct(base)  # what is nearly in S gets the precision of its dtype
        return base

    def merge(
        self,
        base: Tensor,
        generator: torch.Generator | None = None,
        *,
        force: bool = False,
        all_reduce_min: AllReduce | None = None,
    ) -> MergeReport:
        """A <- R_B(A), B <- B₀, see `p4torch.core.transaction.merge`."""
        member = Member("", self, base, generator or torch.default_generator)
        return transaction.merge([member], lambda: [self.propose(base)], force=force, all_reduce_min=all_reduce_min)[0]

    def reset_where(self, where: Tensor, base: Tensor, generator: torch.Generator) -> None:
        """Reset B for the elements given, a mask `(...)`; for the rest of the stack it stays as it was."""
        if not bool(where.any()):
            return
        before: list[tuple[Tensor, Tensor]] = []
        if not bool(where.all()):
            tensors = (*self.parameters(recurse=False), *self.buffers(recurse=False))
            before = [(value, value.clone()) for value in tensors if value.shape[: where.dim()] == where.shape]
        self._redraw(base, generator)
        for value, old in before:
            assign(value, old, ~where)

    def own_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """B: the parameters of this module itself. What is tracked lives in child modules."""
        return self.named_parameters(recurse=False)

    def training_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """B, as far as it trains."""
        for name, value in self.own_parameters():
            if value.requires_grad and name not in self.untrained:
                yield name, value

    # --- pieces -----------------------------------------------------------------------------------------------------

    def _candidate(self, base: Tensor) -> Tensor:
        """R_B(A) for a merge: in float64, projected back onto S where it left it, and rounded."""
        exact = torch.func.functional_call(
            self, {name: linalg.in_double(value) for name, value in self.own_parameters()}, (linalg.in_double(base),)
        )
        candidate = exact.to(base.dtype)
        if not bool((self.defect(candidate) <= torch.finfo(base.dtype).eps ** 0.5).all()):
            candidate = self.project(exact).to(base.dtype)
        return candidate

    def _redraw(self, base: Tensor, generator: torch.Generator) -> None:
        """B <- B₀ with new directions, which may be fitted to the base."""
        self.reset(generator)

    def _projected(self, tensor: Tensor) -> Tensor:
        projected = self.project(tensor)
        if bool(self.defect(projected).isnan().any()) or not bool(projected.isfinite().all()):
            got = f"entries up to {float(tensor.abs().max()):.3g}, with which the projection overflows"
            raise ArgumentError.of("tensor", f"one that can be projected onto the set of {property_name(self)}", got)
        return projected


def property_name(perturbation: Perturbation) -> str:
    """The name of the property, for messages: of its class, or of the one whose shape of B it is."""
    kinds = type(perturbation).__mro__
    return next((kind.__name__ for kind in kinds if "shapes" in kind.__dict__), kinds[0].__name__)
