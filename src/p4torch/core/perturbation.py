"""P4: a frozen base A in a feasible set S, a cheap trainable perturbation R_B, and the merge A <- R_B(A), B <- B₀.

    frozen A in S --> R_B(A) --> the network's weight          every step: the optimizer moves B only
         ^               |
         +--- merge <----+       every N steps: A <- R_B(A), B <- B₀, the effective weight unchanged

Source: Krämer, Köhler and Noé (2020), section 3.1, equations 1 and 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from p4torch import linalg
from p4torch.core.transaction import Agreement, Cleared, Decision, MergeReport, Proposal, Veto, assign, finite
from p4torch.core.validation import check_base, check_fits
from p4torch.errors import ArgumentError, ProjectionWarning, warn


class Perturbation(nn.Module):
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

    def __init__(self, base: Tensor) -> None:
        super().__init__()
        check_base(base)
        if base.dim() < self.event_dim:
            raise ArgumentError.of("base", f"of at least {self.event_dim} dimensions", tuple(base.shape))
        self.base_shape = base.shape
        batch = base.shape[: base.dim() - self.event_dim]
        self.register_buffer("attempts", torch.zeros((), dtype=torch.int64, device=base.device))
        self.register_buffer("skips", torch.zeros(batch, dtype=torch.int64, device=base.device))

    # --- what a property defines ------------------------------------------------------------------------------

    def forward(self, base: Tensor) -> Tensor:
        """R_B(A), differentiable with respect to B."""
        raise NotImplementedError(f"{type(self).__name__} must define `forward(base)`")

    def reset(self, generator: torch.Generator | None) -> None:
        """B <- B₀, in place. `directions` are redrawn from the generator (a CPU one), or kept if it is None."""
        raise NotImplementedError(f"{type(self).__name__} must define `reset(generator)`")

    def defect(self, tensor: Tensor) -> Tensor:
        """How far a tensor is from S: non-negative, 0 on S. `(...)`, one number an element of S."""
        raise NotImplementedError(f"{type(self).__name__} must define `defect(tensor)`")

    def project(self, tensor: Tensor) -> Tensor:
        """A tensor of S near the one given."""
        raise NotImplementedError(f"{type(self).__name__} has no `project(tensor)`: it admits elements of S only")

    def refresh(self, base: Tensor) -> None:
        """Recompute exactly whatever is tracked beside the base. Nothing by default."""

    def correct(self, base: Tensor) -> None:
        """Undo rounding drift, of the base (in place) or of what is tracked. Nothing by default."""

    def penalty(self, base: Tensor) -> Tensor:
        """A non-negative term `()` for the loss that keeps the optimizer where merges succeed. 0 by default."""
        return base.new_zeros(())

    def transport(self, previous: dict[str, Tensor]) -> dict[str, Tensor]:
        """For the optimizer-state option "transport": given the directions before the merge, the `(..., k, k)`
        matrices that map the momentum of the other parameters (by name) onto the new directions."""
        return {}

    def adapt(self, base: Tensor) -> None:
        """After directions were redrawn: fit them to the base, in place, if they depend on it. Nothing by default."""

    def set_gain(self, base: Tensor) -> None:
        """Called when a base is admitted, for a step size that depends on it. Nothing by default."""

    def limit(self) -> None:
        """Called after each optimizer step: pull B back, in place, where a step has led too far. Nothing by default."""

    def watch(self, generator: torch.Generator, average: Callable[[Tensor], Tensor] | None = None) -> None:
        """Called before the last step that precedes a merge, for directions that depend on the gradient. Nothing by
        default. `average` is over the ranks of a distributed run."""

    def forget(self) -> None:
        """Called when the schedule jumps (a resume): what `watch` began is void. Nothing by default."""

    # --- matrices: dense and exact; fast perturbations override these --------------------------------------------

    def matmul(self, base: Tensor, x: Tensor) -> Tensor:
        """x R_B(A)ᵀ for rows x `(..., m, n)`."""
        return linalg.rows_times(x, self(base))

    def affine(self, base: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        """x R_B(A)ᵀ + b, what a linear layer computes."""
        y = self.matmul(base, x)
        return y if bias is None else y + bias.to(y.dtype)

    def affine_logabsdet(self, base: Tensor, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x R_B(A)ᵀ + b and log|det R_B(A)|, where both are wanted."""
        return self.affine(base, x, bias), self.logabsdet(base)

    def with_logabsdet(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """R_B(A) and log|det R_B(A)|, where both are wanted."""
        return self(base), self.logabsdet(base)

    def solve_logabsdet(self, base: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """y R_B(A)⁻ᵀ and log|det R_B(A)|, where both are wanted."""
        return self.solve(base, y), self.logabsdet(base)

    def solve(self, base: Tensor, y: Tensor) -> Tensor:
        """y R_B(A)⁻ᵀ, the rows x with x R_B(A)ᵀ = y. `(..., m, n)`."""
        return linalg.solve_rows(self(base), y)

    def inverse(self, base: Tensor) -> Tensor:
        """R_B(A)⁻¹, `(..., n, n)`."""
        return linalg.one_by_one(torch.linalg.inv, linalg.at_least_single(self(base))).to(base.dtype)

    def logabsdet(self, base: Tensor) -> Tensor:
        """log|det R_B(A)|, `(...)`."""
        return linalg.slogdet(self(base))[1].to(base.dtype)

    def sign(self, base: Tensor) -> Tensor:
        """sign det R_B(A), `(...)`."""
        return linalg.slogdet(self(base))[0].to(base.dtype)

    @classmethod
    def property_name(cls) -> str:
        """The name of the property, for messages."""
        return cls.__name__

    # --- admission ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def right_inverse(self, tensor: Tensor) -> Tensor:
        """Admit a tensor: the base for which R_B₀ gives it back. Projects it (with a warning) if it is not in S,
        resets B (directions stay), and refreshes what is tracked. Called by `layer.weight = tensor`."""
        check_fits(tensor, "tensor", self.base_shape, self.own_parameters())
        check_base(tensor, "tensor")
        defect = float(self.defect(tensor).nan_to_num(nan=torch.inf, posinf=torch.inf).max())
        if not defect <= torch.finfo(tensor.dtype).eps ** 0.5:
            tensor, what = self._projected(tensor), f"the set of {self.property_name()} (defect {defect:.3g})"
            warn(f"`{self.tensor_name}` does not lie in {what}: projected onto it", ProjectionWarning)
        tensor = tensor.clone(memory_format=torch.contiguous_format)  # merges write into it
        self.refresh(tensor)
        self.set_gain(tensor)
        self.reset(None)
        return tensor

    def _projected(self, tensor: Tensor) -> Tensor:
        projected = self.project(tensor)
        if bool(self.defect(projected).isnan().any()) or not bool(projected.isfinite().all()):
            came = f"entries up to {float(tensor.abs().max()):.3g}, with which the projection overflows"
            raise ArgumentError.of("tensor", f"one that can be projected onto the set of {self.property_name()}", came)
        return projected

    def concern(self, module: nn.Module, tensor_name: str) -> str | None:
        """What keeps a module from having the property of its tensor, in a sentence that `perturb` warns of. None by
        default: nothing does."""
        return None

    # --- the merge ------------------------------------------------------------------------------------------------

    def propose(self, base: Tensor) -> Proposal:
        """The candidate of a merge with its vetoes, and what becomes of what is tracked."""
        return Proposal(self.candidate(base))

    def candidate(self, base: Tensor) -> Tensor:
        """R_B(A) for a merge: in float64, projected back onto S where it left it, and rounded."""
        exact = torch.func.functional_call(
            self, {name: linalg.in_double(value) for name, value in self.own_parameters()}, (linalg.in_double(base),)
        )
        candidate = exact.to(base.dtype)
        if not bool((self.defect(candidate) <= torch.finfo(base.dtype).eps ** 0.5).all()):
            candidate = self.project(exact).to(base.dtype)
        return candidate

    @torch.no_grad()
    def merge(
        self,
        base: Tensor,
        generator: torch.Generator | None = None,
        *,
        force: bool = False,
        agree: Agreement | None = None,
    ) -> MergeReport:
        """A <- R_B(A), B <- B₀, as a transaction: the candidate is built and checked first, and then written, or
        left with a reason. Elements with non-finite B are not merged; their B is reset.

        `force` overrides the soft vetoes (bounds), never the hard ones (finiteness, residual).
        """
        agree, generator = agree or (lambda mask: mask), generator or torch.default_generator
        cleared = self.clear(base, generator, agree)
        with linalg.full_precision(base.device):
            decision = self.judge(self.propose(base), cleared, force=force)
        return self.commit(base, decision, agree(decision.accepted), generator)

    # The four steps of a merge. Several sites that merge together take each of them in turn.

    @torch.no_grad()
    def clear(self, base: Tensor, generator: torch.Generator, agree: Agreement) -> Cleared:
        """Reset B where it is not finite on some rank."""
        check_fits(base, "base", self.base_shape, self.own_parameters())
        bad = ~agree(self._finite())
        if not bool(bad.any()):
            return Cleared(bad, ())
        names = tuple(name for name, value in self.own_parameters() if not bool(finite(value, 0)))
        if not names:  # on another rank
            names = tuple(name for name, _ in self.own_parameters())
        self._reset_where(bad, base, generator)
        return Cleared(bad, names)

    def judge(self, proposal: Proposal, cleared: Cleared, *, force: bool = False) -> Decision:
        """All vetoes, and what they leave on this rank."""
        vetoes = [
            Veto("B was not finite and has been reset", cleared.where),
            *(veto for veto in proposal.vetoes if not (force and veto.soft)),
        ]
        if proposal.base is not None:
            vetoes.append(Veto("R_B(A) is not finite", ~finite(proposal.base, self.skips.dim())))
        accepted = ~torch.stack([veto.mask.expand_as(self.skips) for veto in vetoes]).any(0)
        return Decision(proposal, vetoes, cleared.names, accepted)

    @torch.no_grad()
    def commit(
        self,
        base: Tensor,
        decision: Decision,
        accepted: Tensor,
        generator: torch.Generator,
        otherwise: str = "another rank refused",
    ) -> MergeReport:
        """Write what was `accepted` `(...)`, in the end and on all ranks, and reset B there; leave the rest.
        `otherwise` is the reason to report where the decision itself has none."""
        proposal = decision.proposal
        if proposal.base is not None:
            assign(base, proposal.base, accepted)
        if proposal.write is not None and bool(accepted.any()):
            proposal.write(accepted)
        for tensor, value in proposal.tracked:
            assign(tensor, value, accepted)
        self._reset_where(accepted, base, generator)
        self.skips.copy_(torch.where(accepted, 0, self.skips + 1))
        self.attempts += 1
        merged = int(accepted.sum())
        reasons = {veto.reason: int(veto.mask.sum()) for veto in decision.vetoes if bool(veto.mask.any())}
        if merged < accepted.numel() and not reasons:
            reasons = {otherwise: accepted.numel() - merged}
        return MergeReport(int(self.attempts), merged, accepted.numel() - merged, reasons, decision.nonfinite)

    def own_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """B: the parameters of this module itself. What is tracked lives in child modules."""
        return self.named_parameters(recurse=False)

    def training_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """B, as far as it trains."""
        for name, value in self.own_parameters():
            if value.requires_grad and name not in self.untrained:
                yield name, value

    def _finite(self) -> Tensor:
        """Where all of B is finite, `(...)`. Parameters that do not carry the stack's shape count for all of it."""
        mask, batch = torch.ones_like(self.skips, dtype=torch.bool), self.skips.dim()
        for _, value in self.own_parameters():
            mask = mask & finite(value, batch if value.shape[:batch] == self.skips.shape else 0)
        return mask

    def _reset_where(self, where: Tensor, base: Tensor, generator: torch.Generator) -> None:
        """Reset B for the elements given; for the rest of the stack it stays as it was."""
        if not bool(where.any()):
            return
        if bool(where.all()):
            self.reset(generator)
            self.adapt(base)
            return
        before = [(value, value.clone()) for _, value in self.own_parameters()]
        self.reset(generator)
        self.adapt(base)
        for value, old in before:
            if value.shape[: where.dim()] == where.shape:
                assign(value, old, ~where)


class Unperturbed(Perturbation):
    """The identity perturbation, without any B: what a plain tensor has. All its answers are dense and exact."""

    def forward(self, base: Tensor) -> Tensor:
        return base

    def reset(self, generator: torch.Generator | None) -> None:
        """Nothing to reset."""

    def defect(self, tensor: Tensor) -> Tensor:
        return torch.zeros_like(self.skips)
