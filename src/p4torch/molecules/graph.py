"""The bond graph of a molecule, from an OpenMM or MDTraj topology."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import networkx

from p4torch.errors import ArgumentError

#: How many names an error message lists.
LISTED = 6


@dataclass(frozen=True)
class BondGraph:
    """Atoms as vertices, bonds as edges.

    Attributes:
        names: of the atoms, as in "ALA2-CA".
        numbers: atomic numbers, 0 where the topology knows no element.
        bonds: each once, the lower atom first, ascending.
    """

    names: tuple[str, ...]
    numbers: tuple[int, ...]
    bonds: tuple[tuple[int, int], ...]

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
        bonds = {tuple(sorted((bond[0].index, bond[1].index))) for bond in _listed(topology.bonds)}
        graph = cls(
            tuple(_name(atom) for atom in atoms),
            tuple(_number(atom) for atom in atoms),
            tuple((i, j) for i, j in sorted(bonds)),
        )
        graph._check_connected()
        return graph

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def graph(self) -> networkx.Graph:
        """For networkx."""
        graph = networkx.Graph(self.bonds)
        graph.add_nodes_from(range(len(self)))
        return graph

    @cached_property
    def neighbours(self) -> tuple[tuple[int, ...], ...]:
        """Of every atom, ascending."""
        return tuple(tuple(sorted(self.graph[atom])) for atom in range(len(self)))

    @cached_property
    def distances(self) -> dict[int, dict[int, int]]:
        """How many bonds lie between each two atoms."""
        return dict(networkx.all_pairs_shortest_path_length(self.graph))

    @cached_property
    def bridges(self) -> frozenset[tuple[int, int]]:
        """Bonds without which the molecule falls apart, the lower atom first."""
        return frozenset((min(bond), max(bond)) for bond in networkx.bridges(self.graph))

    def in_ring(self, i: int, j: int) -> bool:
        """Whether two bonded atoms stay connected without their bond."""
        return (min(i, j), max(i, j)) not in self.bridges

    def importance(self, centre: int, neighbour: int) -> tuple[bool, int, int]:
        """Sorts the neighbours of an atom: heavy ones first, then those that carry the larger branch."""
        branch = networkx.node_connected_component(networkx.restricted_view(self.graph, [centre], []), neighbour)
        return self.numbers[neighbour] == 1, -len(branch), neighbour

    def centre(self) -> int:
        """The atom in the middle of the molecule, of those with four neighbours or, failing that, with the most."""
        most = min(4, max(len(near) for near in self.neighbours))
        candidates = [atom for atom, near in enumerate(self.neighbours) if len(near) >= most]
        far = {atom: self.distances[atom].values() for atom in candidates}
        return min(candidates, key=lambda atom: (max(far[atom]), sum(far[atom]), atom))

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
        apart = sorted(set(self.graph) - networkx.node_connected_component(self.graph, 0))
        if apart:
            got = f"no path of bonds from {self.names[0]} to {listed(self.names, apart)}"
            raise ArgumentError.of("topology", "one connected molecule", got)


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
