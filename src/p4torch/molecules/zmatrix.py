"""Z-matrices: in which order, and seen from which other atoms, the atoms of a molecule are placed."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from p4torch.errors import ArgumentError
from p4torch.molecules.graph import BondGraph, listed

#: (atom, bond partner, angle partner, torsion partner)
Row = tuple[int, int, int, int]


@dataclass(frozen=True)
class ZMatrix:
    """A block of atoms to start from, and a row (atom, bond, angle, torsion partner) for each other atom.

    Rows are kept in an order in which partners come first; `levels` groups rows that can be placed together.

    Attributes:
        block: three atoms or more, placed first.
        rows: one for each other atom.
        names: of the atoms, for messages; "atom 0", ... by default.

    Raises:
        ArgumentError: an atom is missing or placed twice, a row names an atom twice or one that does not exist, or a
            partner is not placed before.

    Example:
        >>> from p4torch.molecules.zmatrix import ZMatrix
        >>> zmatrix = ZMatrix(block=(0, 1, 2), rows=((4, 3, 2, 1), (3, 2, 1, 0)))
        >>> zmatrix.rows
        ((3, 2, 1, 0), (4, 3, 2, 1))
    """

    block: tuple[int, ...]
    rows: tuple[Row, ...]
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "block", tuple(self.block))
        object.__setattr__(self, "names", tuple(self.names) or tuple(f"atom {i}" for i in range(len(self))))
        if len(self.block) < 3:
            raise ArgumentError.of("block", "three atoms or more", self.block)
        _check_once(self.block, self.rows, self.names)
        if len(self.names) != len(self):
            raise ArgumentError.of("names", f"as many as atoms, {len(self)}", len(self.names))
        levels = _levels(self.block, self.rows, self.names)
        object.__setattr__(self, "rows", tuple(row for level in levels for row in level))

    @classmethod
    def from_topology(cls, topology: Any, block: str | Sequence[int] = "centre") -> ZMatrix:
        """From the bonds of an OpenMM or MDTraj topology; rings are cut where two walks along bonds meet.

        An atom is bonded to the placed atom that it is reached from. Where that one has further placed neighbours, the
        torsion is measured from one of those (an improper: the hydrogens of a methyl group lie at ±120° of the first,
        an amide's oxygen at 180° of its nitrogen), so that one torsion only carries each rotation about a bond.
        Three atoms in a line, as in a nitrile, leave torsions undefined: give rows of your own for those.

        Args:
            topology: the molecule.
            block: "centre" for the atom in the middle with all its neighbours, "chain" for it between two of its
                neighbours, or the atoms themselves.

        Raises:
            ArgumentError: the molecule has fewer than 3 atoms or several parts, or the block is none of the above.
        """
        graph = BondGraph.from_topology(topology)
        start = _start(graph, block) if isinstance(block, str) else tuple(block)
        if len(start) < 3 or len(set(start)) < len(start) or not set(start) <= set(range(len(graph))):
            raise ArgumentError.of("block", f"three or more different atoms of {len(graph)}", start)
        return cls(start, tuple(_grow(graph, start)), graph.names)

    @classmethod
    def alanine_dipeptide(cls) -> ZMatrix:
        """The published one: N, CA, HA, CB, C as the block; φ and ψ are the torsions of atoms 4 and 16.

        Source: the test case of Dibak, Klein and Noé, Temperature-steerable flows, Machine Learning and the Physical
        Sciences (NeurIPS workshop), 2020; atoms in Amber's order.
        """
        return cls(ALANINE_BLOCK, ALANINE_ROWS, ALANINE_NAMES)

    def __len__(self) -> int:
        """The number of atoms."""
        return len(self.block) + len(self.rows)

    @property
    def order(self) -> tuple[int, ...]:
        """All atoms as they are placed."""
        return self.block + tuple(row[0] for row in self.rows)

    @cached_property
    def levels(self) -> tuple[tuple[Row, ...], ...]:
        """Groups of rows; all partners of a group lie in earlier groups or the block."""
        return _levels(self.block, self.rows, self.names)


def _check_once(block: Sequence[int], rows: Iterable[Row], names: tuple[str, ...]) -> None:
    rows = tuple(rows)
    for row in rows:
        if len(row) != 4 or len(set(row)) < 4 or not all(0 <= atom < len(names) for atom in row):
            raise ArgumentError.of("rows", f"of four different atoms below {len(names)}", row)
    count = Counter([*block, *(row[0] for row in rows)])
    twice = [atom for atom in sorted(count) if count[atom] > 1 and atom < len(names)]
    if twice:
        raise ArgumentError.of("rows", "such that every atom is placed once", f"{listed(names, twice)} twice")
    missing = [atom for atom in range(len(names)) if atom not in count]
    if missing:
        raise ArgumentError.of("rows", "such that every atom is placed", f"none for {listed(names, missing)}")


def _levels(block: Iterable[int], rows: Iterable[Row], names: tuple[str, ...]) -> tuple[tuple[Row, ...], ...]:
    placed, waiting = set(block), list(rows)
    levels: list[tuple[Row, ...]] = []
    while waiting:
        ready = tuple(row for row in waiting if placed.issuperset(row[1:]))
        if not ready:
            raise ArgumentError.of(
                "rows",
                "such that partners are placed before",
                f"{listed(names, (row[0] for row in waiting))} seen from atoms that are not",
            )
        levels.append(ready)
        placed.update(row[0] for row in ready)
        waiting = [row for row in waiting if row[0] not in placed]
    return tuple(levels)


def _start(graph: BondGraph, block: str) -> tuple[int, ...]:
    centre = graph.centre()
    if block == "centre":
        return tuple(sorted((centre, *graph.neighbours[centre])))
    if block == "chain":
        first, second = sorted(graph.neighbours[centre], key=lambda atom: graph.importance(centre, atom))[:2]
        return first, centre, second
    raise ArgumentError.of("block", '"centre", "chain" or a list of atoms', repr(block))


def _grow(graph: BondGraph, block: tuple[int, ...]) -> list[Row]:
    """Rows for all atoms beyond the block, walking along bonds, breadth first."""
    parent = {atom: _nearest(graph, atom, [other for other in block if other != atom]) for atom in block}
    rows: list[Row] = []
    queue = deque(block)
    while queue:
        centre = queue.popleft()
        new = [atom for atom in graph.neighbours[centre] if atom not in parent]
        for atom in sorted(new, key=lambda atom: graph.importance(centre, atom)):
            rows.append((atom, centre, parent[centre], _torsion_partner(graph, centre, parent)))
            parent[atom] = centre
            queue.append(atom)
    return rows


def _torsion_partner(graph: BondGraph, centre: int, parent: dict[int, int]) -> int:
    """The first placed neighbour of the bond partner, else the most important one of the angle partner."""
    before = parent[centre]
    siblings = [atom for atom in parent if atom in graph.neighbours[centre] and atom != before]
    if siblings:
        return siblings[0]
    beyond = [atom for atom in graph.neighbours[before] if atom in parent and atom != centre]
    if beyond:
        return min(beyond, key=lambda atom: graph.importance(before, atom))
    return _nearest(graph, before, [atom for atom in parent if atom not in (centre, before)])


def _nearest(graph: BondGraph, atom: int, others: list[int]) -> int:
    return min(others, key=lambda other: (graph.distances[atom][other], *graph.importance(atom, other)))


ALANINE_BLOCK = (6, 8, 9, 10, 14)
ALANINE_ROWS: tuple[Row, ...] = (
    (0, 1, 4, 6),
    (1, 4, 6, 8),
    (2, 1, 4, 0),
    (3, 1, 4, 0),
    (4, 6, 8, 14),
    (5, 4, 6, 8),
    (7, 6, 8, 4),
    (11, 10, 8, 6),
    (12, 10, 8, 11),
    (13, 10, 8, 11),
    (15, 14, 8, 16),
    (16, 14, 8, 6),
    (17, 16, 14, 15),
    (18, 16, 14, 8),
    (19, 18, 16, 14),
    (20, 18, 16, 19),
    (21, 18, 16, 19),
)
ALANINE_NAMES = (
    *("ACE1-H1", "ACE1-CH3", "ACE1-H2", "ACE1-H3", "ACE1-C", "ACE1-O"),
    *("ALA2-N", "ALA2-H", "ALA2-CA", "ALA2-HA", "ALA2-CB", "ALA2-HB1", "ALA2-HB2", "ALA2-HB3", "ALA2-C", "ALA2-O"),
    *("NME3-N", "NME3-H", "NME3-C", "NME3-H1", "NME3-H2", "NME3-H3"),
)
