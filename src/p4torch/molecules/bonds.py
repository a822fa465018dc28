"""The bond graph of a molecule."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class BondGraph:
    """Atoms by index, with their elements, names ("ALA2:CA") and bonded neighbours in ascending order."""

    elements: tuple[str, ...]
    names: tuple[str, ...]
    neighbours: tuple[tuple[int, ...], ...]

    @classmethod
    def from_topology(cls, topology: Any) -> BondGraph:
        """Of an `openmm.app.Topology`."""
        atoms = list(topology.atoms())
        neighbours: list[set[int]] = [set() for _ in atoms]
        for one, other in topology.bonds():
            neighbours[one.index].add(other.index)
            neighbours[other.index].add(one.index)
        return cls(
            tuple(atom.element.symbol if atom.element is not None else "" for atom in atoms),
            tuple(f"{atom.residue.name}{atom.residue.id}:{atom.name}" for atom in atoms),
            tuple(tuple(sorted(near)) for near in neighbours),
        )

    def __len__(self) -> int:
        return len(self.elements)

    @cached_property
    def molecules(self) -> tuple[tuple[int, ...], ...]:
        """The connected components."""
        left, found = set(range(len(self))), list[tuple[int, ...]]()
        while left:
            part = self._reached(min(left), without=None)
            left -= part
            found.append(tuple(sorted(part)))
        return tuple(found)

    @cached_property
    def bonds(self) -> tuple[tuple[int, int], ...]:
        """Each once, the lower index first."""
        return tuple((i, j) for i, near in enumerate(self.neighbours) for j in near if i < j)

    def in_ring(self, i: int, j: int) -> bool:
        """Whether the bond is part of a ring: its ends stay connected without it."""
        return j in self._reached(i, without=(i, j))

    def _reached(self, start: int, without: tuple[int, int] | None) -> set[int]:
        reached, border = {start}, [start]
        while border:
            atom = border.pop()
            for near in self.neighbours[atom]:
                if near not in reached and without not in ((atom, near), (near, atom)):
                    reached.add(near)
                    border.append(near)
        return reached
