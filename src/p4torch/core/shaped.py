"""Properties that a group acts on: they have two shapes of B, and pick one."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from p4torch._options import check_choice
from p4torch.core.blocks import Block, Blocks, BlockSide
from p4torch.core.low_rank import Directions, LowRank, Side
from p4torch.core.perturbation import Perturbation
from p4torch.errors import ArgumentError


class Shaped(Perturbation):
    """A property with a low-rank and a block shape. The class that a user names makes an instance of one of its two
    subclasses, by its options:

        Orthogonal(base, rank=2)                  low rank, see `p4torch.core.low_rank.LowRank`
        Orthogonal(base, block=32, side="both")   blocks, see `p4torch.core.blocks.Blocks`
        Orthogonal(base)                          blocks: of all coordinates up to n = 512, else of 32

    The class itself defines S; a subclass says how B moves within it, and is listed in `shapes`. `shape_of` picks.

    Args:
        base: `(..., n, m)`.
        rank: k of the low-rank shape, from 1 to the number of coordinates on the side where it acts.
        block: b of the block shape, or "all".
        side: of the block shape: "left", "right" or "both".
        scale: of a step, for either shape.
        directions, train_directions: of the low-rank shape.

    Raises:
        ArgumentError: for `rank` and `block` together; for an option that the other shape has.
    """

    stackable = True
    shapes: ClassVar[tuple[type[Perturbation], ...]] = ()

    def __new__(cls, base: Any = None, rank: int | None = None, *args: Any, **options: Any) -> Shaped:
        if "shapes" not in cls.__dict__:  # one of the shapes, or a copy being made
            return super().__new__(cls)
        block = options.get("block")
        if rank is not None and block is not None:
            raise ArgumentError.of("rank, block", "one of them at most", f"rank={rank!r} and block={block!r}")
        return super().__new__(cls.shape_of(base, rank, *args, **options))  # type: ignore[return-value]

    @classmethod
    def shape_of(cls, base: Any, rank: int | None, *args: Any, **options: Any) -> type[Perturbation]:
        """The one of `shapes` that these options ask for."""
        for shape in cls.shapes:
            if issubclass(shape, Blocks if rank is None else LowRank):
                return shape
        raise ArgumentError.of("rank", f"None: {cls.__name__} has block shapes only", repr(rank))

    def __init__(
        self,
        base: Tensor,
        rank: int | None = None,
        *,
        block: Block | None = None,
        side: BlockSide | None = None,
        scale: float | None = None,
        directions: Directions = "random",
        train_directions: bool = True,
    ) -> None:
        if isinstance(self, Blocks):
            check_choice("directions", directions, ("random",), "'random', unless `rank` is given")
            if not train_directions:
                raise ArgumentError.of("train_directions", "True, unless `rank` is given", repr(train_directions))
            super().__init__(base, block=block, side=side, scale=scale)  # type: ignore[call-arg]
        else:
            if side is not None:
                raise ArgumentError.of("side", "None, unless `block` is given", repr(side))
            super().__init__(  # type: ignore[call-arg]
                base,
                rank,
                scale=scale,
                directions=directions,
                train_directions=train_directions,
                side=self.factors_act(base),
            )

    def factors_act(self, base: Tensor) -> Side:
        """Where low-rank factors act."""
        return "add"


def check_block(property: Any, options: dict[str, Any]) -> None:
    """Refuse a `block` for a class without block shapes. Functions that make a perturbation see to it themselves."""
    if options.get("block") is not None and isinstance(property, type) and not issubclass(property, (Shaped, Blocks)):
        names = ", ".join(sorted(kind.__name__ for kind in _subclasses(Shaped) if kind.__dict__.get("shapes")))
        got = f"{options['block']!r} with {property.__name__}"
        raise ArgumentError.of("block", f"given with a property that a group acts on: {names}", got)


def _subclasses(kind: type[Shaped]) -> set[type[Shaped]]:
    """All of them, whatever is between."""
    children = set(kind.__subclasses__())
    return children.union(*(_subclasses(child) for child in children))


def check_one_side(options: dict[str, Any], what: str) -> None:
    """Refuse a `side` where a property has one only."""
    if options.get("side") is not None:
        raise ArgumentError.of("side", f"None: B {what}", repr(options["side"]))
