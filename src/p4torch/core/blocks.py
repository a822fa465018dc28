"""Block perturbations: elements of a matrix group that act on blocks of coordinates. A property says which group."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from p4torch import linalg
from p4torch._options import check_choice, is_integer
from p4torch.core.perturbation import Perturbation
from p4torch.core.step_size import block_gain, check_scale, scale_repr
from p4torch.errors import ArgumentError
from p4torch.linalg.block_diagonal import BlockDiagonal
from p4torch.linalg.matrix_groups import Algebra
from p4torch.linalg.reference import exporting

Block = int | Literal["all"]
BlockSide = Literal["left", "right", "both"]

#: Largest n for which the default is one block of all coordinates; beyond, blocks of `DEFAULT_BLOCK`.
ALL_SIZE, DEFAULT_BLOCK = 512, 32

#: Multiply-adds that cost as much as gathering one number of the activations, on a CPU.
GATHER = 40


def moves_whole(base: Tensor, block: Any) -> bool:
    """Whether a block shape of these options has one block of all n coordinates of a square base."""
    size = base.shape[-1] if isinstance(base, Tensor) and base.dim() > 0 else 0
    block = default_block(size) if block is None else block
    return block == "all" if isinstance(block, str) else bool(block == size)


def default_block(size: int) -> Block:
    """The block that is used for n = `size` coordinates if none is asked for."""
    return "all" if size <= ALL_SIZE else DEFAULT_BLOCK


class Blocks(Perturbation):
    """R_B(A) = L(B') A R(B), block-diagonal elements of a matrix group in a random order of the coordinates:

        R(B) = P blockdiag(r(g B_1), ..., r(g B_m)) Pᵀ,   B `(..., m, b, b)`,   m = n // b,   B₀: B = 0

    L acts on the outputs `(..., n, .)` of A, R on its inputs; `side` says which of them there are. Each block is taken
    to the Lie algebra of the property and mapped to its group by r, see `p4torch.linalg.matrix_groups`: R_B(A) stays in
    S, exactly, for every B, and log|det| and the inverse follow block by block. P is a permutation, the identity at
    first and redrawn at each merge; n - m b coordinates wait for another draw. With one block of all coordinates there
    is no P.

    Args:
        base: `(..., n, n')`.
        block: b, 1 <= b <= n, or "all" for b = n. None: "all" up to n = 512, else 32.
        side: "right", "left" or "both"; None for the longer one.
        scale: g, or None for the one of `p4torch.core.step_size`, with which a rate moves A by the same relative
            amount at every n and b.

    A property sets `algebra` (and `left_algebra`, if B is shared: L and R are then made of different parts of one B, in
    the same order of the coordinates), and defines `defect`, `project`, and what it knows of the base's inverse and
    determinant: `base_inverse`, `base_logabsdet`, `base_sign`.
    """

    algebra: Algebra
    left_algebra: Algebra | None = None
    left: nn.Parameter | None
    right: nn.Parameter | None

    def __init__(
        self,
        base: Tensor,
        *,
        block: Block | None = None,
        side: BlockSide | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__(base)
        self.scale = check_scale(scale)
        if side is not None:
            check_choice("side", side, get_args(BlockSide), "left, right or both")
        self.side = "both" if self.left_algebra is not None else side or self.natural_side(base)
        sizes = {"left": base.shape[-2], "right": base.shape[-1]}
        for name, size in sizes.items():
            used = name == "right" if self.left_algebra is not None else self.side in (name, "both")
            self.register_parameter(name, self._blocks_of(base, size, block) if used else None)
            self.register_buffer(f"{name}_order", self._initial_order(name, size))

    def _blocks_of(self, base: Tensor, size: int, block: Block | None) -> nn.Parameter:
        """B = 0 for one side of n = `size` coordinates."""
        block = default_block(size) if block is None else block
        step, least = (2 if self.algebra.paired else 1), self.algebra.least
        whole = isinstance(block, str) and block == "all"
        if not whole and not (is_integer(block) and least <= int(block) <= size and int(block) % step == 0):
            kind = "an even number" if step == 2 else "an integer"
            raise ArgumentError.of("block", f"{kind} from {least} to n = {size}, or 'all'", repr(block))
        b = size if whole else int(block)
        return nn.Parameter(base.new_zeros(*base.shape[:-2], size // b, b, b))

    def _initial_order(self, name: str, size: int) -> Tensor | None:
        value = getattr(self, name)
        if value is None or value.shape[-1] == size:
            return None
        self.permuted = (*self.permuted, name)
        order = self._block_order(torch.arange(size // (2 if self.algebra.paired else 1)), value.shape[-1])
        return order.expand(*value.shape[:-3], 2, size).contiguous().to(value.device)

    def _block_order(self, drawn: Tensor, size: int) -> Tensor:
        """The order `(2, n)` of drawn coordinates; of drawn pairs i, i + n/2, first and second ones block by block."""
        if self.algebra.paired:
            half, count = size // 2, len(drawn)
            inside = drawn[: count // half * half].view(-1, half)
            rest = drawn[count // half * half :]
            drawn = torch.cat([torch.cat([inside, inside + count], -1).flatten(), rest, rest + count])
        return torch.stack([drawn, drawn.argsort()])

    # --- what a property defines ------------------------------------------------------------------------------------

    def natural_side(self, base: Tensor) -> BlockSide:
        """The side that is used if none is asked for: the longer one."""
        return "left" if base.shape[-2] > base.shape[-1] else "right"

    def base_inverse(self, base: Tensor) -> Tensor:
        """A⁻¹ `(..., n, n)`; by LAPACK, unless the property knows better."""
        return linalg.unbatched(torch.linalg.inv, linalg.at_least_single(base)).to(base.dtype)

    def base_logabsdet(self, base: Tensor) -> Tensor:
        """log|det A| `(...)`."""
        return linalg.slogdet(base)[1].to(base.dtype)

    def base_sign(self, base: Tensor) -> Tensor:
        """sign det A `(...)`."""
        return linalg.slogdet(base)[0].to(base.dtype)

    # --- R_B --------------------------------------------------------------------------------------------------------

    def element(self, name: str, dtype: torch.dtype | None = None, inverse: bool = False) -> BlockDiagonal | None:
        """L or R, or its inverse, in the dtype of the base or another one; None where it is the identity."""
        x, algebra = self.algebra_blocks(name, dtype), self._algebra_of(name)
        if x is None:
            return None
        with linalg.full_precision(x.device):
            blocks = algebra.element(x)
            if inverse:
                blocks = algebra.inverse(x, blocks)
        return BlockDiagonal(blocks, getattr(self, f"{self._stored_side(name)}_order"))

    def algebra_blocks(self, name: str, dtype: torch.dtype | None = None) -> Tensor | None:
        """g B of one side in the Lie algebra, `(..., m, b, b)`."""
        value = getattr(self, self._stored_side(name))
        if value is None:
            return None
        value = value if dtype is None else value.to(dtype)
        return self._algebra_of(name).project(value) * self._gain(value)

    def _gain(self, value: Tensor) -> float:
        """g of a side."""
        return self.scale or block_gain(value.shape[-1])

    def _stored_side(self, name: str) -> str:
        """The side whose B and order of the coordinates a side has."""
        return name if self.left_algebra is None else "right"

    def _algebra_of(self, name: str) -> Algebra:
        return self.algebra if self.left_algebra is None or name == "right" else self.left_algebra

    def forward(self, base: Tensor) -> Tensor:
        if self.algebra.product is not None and self._single(base):
            assert self.right is not None
            return self.algebra.product(base, self.right.squeeze(-3), self._gain(self.right))
        return self._product(base, self.element("left"), self.element("right"))

    def _single(self, base: Tensor) -> bool:
        """Whether all that moves A is one block of all its inputs."""
        return self.side == "right" and self.right_order is None and base.dim() == 2

    @staticmethod
    def _product(base: Tensor, left: BlockDiagonal | None, right: BlockDiagonal | None) -> Tensor:
        if right is not None:
            base = right.right_multiply(base)
        return base if left is None else left.left_multiply(base)

    def _candidate(self, base: Tensor) -> Tensor:
        """R_B(A) for a merge, in the base's own dtype, or single precision: of group elements in double precision."""
        exact = linalg.at_least_single(base)
        left, right = (self.element(name, linalg.double_of(base.dtype)) for name in ("left", "right"))
        left, right = (part if part is None else part.to(exact.dtype) for part in (left, right))
        return self._product(exact, left, right).to(base.dtype)

    def exact_candidate(self, base: Tensor) -> Tensor:
        """R_B(A) in double precision."""
        exact = linalg.in_double(base)
        return self._product(exact, self.element("left", exact.dtype), self.element("right", exact.dtype))

    def matmul(self, base: Tensor, x: Tensor) -> Tensor:
        return self.affine(base, x, None)

    def affine(self, base: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        if self._dense_is_cheaper(base, x):
            return linalg.rows_times(x, self.forward(base), bias)
        left, right = self.element("left"), self.element("right")
        if right is not None:
            x = right.apply_to_rows(x)
        if left is None:
            return linalg.rows_times(x, base, bias)
        y = left.apply_to_rows(linalg.rows_times(x, base))
        return y if bias is None else y + bias.to(y.dtype)

    def _dense_is_cheaper(self, base: Tensor, x: Tensor) -> bool:
        """Whether forming R_B(A) and its gradient takes less than moving the activations: always for one block of all
        coordinates, which costs as much as a layer either way; else, in multiply-adds, m n n' for the gradient and
        3 n n' b for R_B(A) against 3 m n b and the gathers of the activations."""
        sizes = [value.shape[-1] for _, value in self.own_parameters()] * (1 if self.left_algebra is None else 2)
        if base.dim() > 2 or (self.left_order is None and self.right_order is None):
            return True
        if exporting():
            return False
        outputs, inputs = base.shape
        count, b = x.numel() // max(inputs, 1), max(sizes)
        dense = (count + 3 * b * len(sizes)) * inputs * outputs + 2 * GATHER * inputs * outputs
        return dense <= count * (inputs + outputs) / 2 * len(sizes) * (3 * b + 4 * GATHER)

    # --- inverse and determinant --------------------------------------------------------------------------------------

    def solve(self, base: Tensor, y: Tensor) -> Tensor:
        with linalg.full_precision(base.device):
            inverse, y = self.base_inverse(base), y.to(base.dtype)
            left, right = self.element("left", inverse=True), self.element("right", inverse=True)
            if left is not None:
                y = left.apply_to_rows(y)
            x = linalg.rows_times(y, inverse)
            return x if right is None else right.apply_to_rows(x)

    def inverse(self, base: Tensor) -> Tensor:
        with linalg.full_precision(base.device):
            left, right = self.element("left", inverse=True), self.element("right", inverse=True)
            return self._product(self.base_inverse(base), right, left)

    def logabsdet(self, base: Tensor) -> Tensor:
        return self.base_logabsdet(base) + self.determinant_change(base)[1].to(base.dtype)

    def sign(self, base: Tensor) -> Tensor:
        return self.base_sign(base) * self.determinant_change(base)[0].to(base.dtype).detach()

    def determinant_change(self, base: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """sign and log|det R_B(A) / det A|, `(...)`."""
        sign, logabsdet = torch.ones_like(self.skips), torch.zeros_like(self.skips)
        with linalg.full_precision(base.device):
            for name in ("left", "right"):
                logabsdet_of, x = self._algebra_of(name).logabsdet, self.algebra_blocks(name, dtype)
                if logabsdet_of is not None and x is not None:
                    signs, parts = logabsdet_of(x)
                    sign, logabsdet = sign * signs.prod(-1), logabsdet + parts.sum(-1)
        return sign, logabsdet

    # --- B ----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None) -> None:
        for _, value in self.own_parameters():
            value.zero_()
        if generator is not None:
            for name in self.permuted:
                order, size = getattr(self, f"{name}_order"), getattr(self, name).shape[-1]
                count = order.shape[-1] // (2 if self.algebra.paired else 1)
                for part in order.view(-1, *order.shape[-2:]):
                    part.copy_(self._block_order(torch.randperm(count, generator=generator), size))

    @property
    def limits_steps(self) -> bool:
        return self.algebra.largest_norm is not None

    @torch.no_grad()
    def after_step(self) -> None:
        """Shorten the blocks whose image in the Lie algebra is longer than its map to the group allows."""
        if self.algebra.largest_norm is not None:
            for name, value in self.own_parameters():
                x = self.algebra_blocks(name)
                assert x is not None
                size = torch.linalg.matrix_norm(linalg.at_least_single(x), keepdim=True)
                value.mul_((self.algebra.largest_norm / size).clamp(max=1.0).to(value.dtype))

    def extra_repr(self) -> str:
        sizes = {name: value.shape[-1] for name, value in self.own_parameters()}
        return f"block={max(sizes.values())}, side={self.side!r}{scale_repr(self.scale)}"
