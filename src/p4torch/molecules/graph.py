"""The bond graph of a molecule, from an OpenMM or MDTraj topology."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from p4torch.errors import ArgumentError

#: How many names an error message lists.
LISTED = 6


@dataclass(frozen=True)
class BondGraph:
    """Atoms as vertices, bonds as edges.

    Attributes:
        names: of the atoms, as in "ALA2-CA".
        numbers: atomic numbers, 0 where the topology knows no element.
        neighbours: of every atom, ascending.
    """

    names: tuple[str, ...]
    numbers: tuple[int, ...]
    neighbours: tuple[tuple[int, ...], ...]

    @classmethod
    def from_topology(cls, topology: Any) -> BondGraph:
        """From an `openmm.app.Topology` or an `mdtraj.Topology`.

        Raises:
            ArgumentError: it is neither, has fewer than 3 atoms, or its bonds do not connect all atoms.
        """
        if not (hasattr(topology, "atoms") and hasattr(topology, "bonds")):
            raise ArgumentError.of("topology", "an OpenMM or MDTraj topology", type(topology).__name__)
        atoms = _listed(topology.atoms)
        if len(atoms) < 3:
            raise ArgumentError.of("topology", "of 3 atoms or more", len(atoms))
        neighbours: list[set[int]] = [set() for _ in atoms]
        for bond in _listed(topology.bonds):
            first, second = bond[0].index, bond[1].index
            neighbours[first].add(second)
            neighbours[second].add(first)
        graph = cls(
            tuple(_name(atom) for atom in atoms),
            tuple(_number(atom) for atom in atoms),
            tuple(tuple(sorted(near)) for near in neighbours),
        )
        graph._check_connected()
        return graph

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def distances(self) -> tuple[tuple[int, ...], ...]:
        """How many bonds lie between each two atoms; `len(self)` where no path does."""
        return tuple(self._distances(atom) for atom in range(len(self)))

    def _distances(self, start: int, without: int | None = None) -> tuple[int, ...]:
        """Bonds from one atom to all others, on paths that do not pass an excluded atom."""
        found = {start: 0}
        queue = deque([start])
        while queue:
            atom = queue.popleft()
            for other in self.neighbours[atom]:
                if other not in found and other != without:
                    found[other] = found[atom] + 1
                    queue.append(other)
        return tuple(found.get(atom, len(self)) for atom in range(len(self)))

    @property
    def bonds(self) -> list[tuple[int, int]]:
        """Each once, the lower atom first."""
        return [(i, j) for i, near in enumerate(self.neighbours) for j in near if i < j]

    def in_ring(self, i: int, j: int) -> bool:
        """Whether two bonded atoms stay connected without their bond."""
        reached, border = {i}, [near for near in self.neighbours[i] if near != j]
        while border:
            atom = border.pop()
            if atom not in reached:
                reached.add(atom)
                border.extend(self.neighbours[atom])
        return j in reached

    def importance(self, centre: int, neighbour: int) -> tuple[bool, int, int]:
        """Sorts the neighbours of an atom: heavy ones first, then those that carry the larger branch."""
        reached = sum(distance < len(self) for distance in self._distances(neighbour, without=centre))
        return self.numbers[neighbour] == 1, -reached, neighbour

    def centre(self) -> int:
        """The atom in the middle of the molecule, of those with four neighbours or, failing that, with the most."""
        most = min(4, max(len(near) for near in self.neighbours))
        candidates = [atom for atom, near in enumerate(self.neighbours) if len(near) >= most]
        return min(candidates, key=lambda atom: (max(self.distances[atom]), sum(self.distances[atom]), atom))

    @cached_property
    def colours(self) -> tuple[int, ...]:
        """Equal for atoms that the bond graph does not tell apart (colour refinement to a fixed point)."""
        colours: list[int] = list(self.numbers)
        while True:
            described = [
                (colours[atom], tuple(sorted(colours[other] for other in near)))
                for atom, near in enumerate(self.neighbours)
            ]
            order = {value: index for index, value in enumerate(sorted(set(described)))}
            refined = [order[value] for value in described]
            if len(order) == len(set(colours)):
                return tuple(refined)
            colours = refined

    def _check_connected(self) -> None:
        apart = [atom for atom, distance in enumerate(self._distances(0)) if distance == len(self)]
        if apart:
            came = f"no path of bonds from {self.names[0]} to {listed(self.names, apart)}"
            raise ArgumentError.of("topology", "one connected molecule", came)


def listed(names: tuple[str, ...], atoms: Iterable[int]) -> str:
    """The names of some atoms, the first few of them, for an error message."""
    atoms = list(atoms)
    more = f" and {len(atoms) - LISTED} more" if len(atoms) > LISTED else ""
    return ", ".join(names[atom] for atom in atoms[:LISTED]) + more


def _listed(items: Any) -> list[Any]:
    """OpenMM has methods where MDTraj has properties."""
    return list(items() if callable(items) else items)


def _name(atom: Any) -> str:
    residue = atom.residue
    return f"{residue.name}{getattr(residue, 'resSeq', getattr(residue, 'id', ''))}-{atom.name}"


def _number(atom: Any) -> int:
    element = atom.element
    return 0 if element is None else int(element.atomic_number)
