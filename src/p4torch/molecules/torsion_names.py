"""Torsions by name, and those worth biasing when nobody names any."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from p4torch.errors import ArgumentError
from p4torch.molecules.graph import BondGraph

Torsion = tuple[int, int, int, int]

#: Atomic numbers.
HYDROGEN, NITROGEN = 1, 7
#: Backbone torsions: atom names, and the step along the chain of each atom's residue.
_BACKBONE = {
    "phi": (("C", -1), ("N", 0), ("CA", 0), ("C", 0)),
    "psi": (("N", 0), ("CA", 0), ("C", 0), ("N", 1)),
}


def parse_torsions(topology: Any, text: str) -> tuple[Torsion, ...]:
    """Torsions from "phi", "phi:2" (in residue 2; "phi:2A" with its insertion code, "phi:B:2" with its chain) or
    "4-6-8-14" (atoms, from 0), with commas between them.

    Raises:
        ArgumentError: a name that is unknown, missing in the molecule or found in several residues; atoms out of range.
    """
    return tuple(_parse(topology, part.strip()) for part in text.split(","))


def default_torsions(topology: Any) -> tuple[Torsion, ...]:
    """phi if the molecule is a dipeptide (one phi, in no ring); else one torsion about every rotatable bond: phi or psi
    where the bond has one, else through its first heavy neighbours.

    Rotatable is a bond between two heavy atoms that both have other heavy neighbours, in no ring, and not between
    two planar centres of which one is nitrogen (amides).

    Raises:
        ArgumentError: there is none.
    """
    graph = BondGraph.from_topology(topology)
    phi, psi = ([named.atoms for named in _named(topology, kind)] for kind in _BACKBONE)
    if len(phi) == 1 and not graph.in_ring(phi[0][1], phi[0][2]):
        return (phi[0],)
    backbone = {frozenset(torsion[1:3]): torsion for torsion in (*phi, *psi)}
    bonds = (bond for bond in graph.bonds if _rotatable(graph, *bond))
    result = tuple(backbone.get(frozenset(bond)) or _about(graph, *bond) for bond in bonds)
    if not result:
        raise ArgumentError.of("torsions", "given: the molecule has no rotatable bond", "none")
    return result


def torsion_label(topology: Any, torsion: Torsion) -> str:
    """ "phi:2" where it has a name that no other torsion has ("phi:B:2" where chains are numbered alike), else
    "4-6-8-14"."""
    for kind in _BACKBONE:
        named = _named(topology, kind)
        for one in named:
            if torsion in (one.atoms, one.atoms[::-1]):
                alone = (name for name in one.names if _with_name(named, name) == [one])
                return next((f"{kind}:{name}" for name in alone), "-".join(map(str, torsion)))
    return "-".join(map(str, torsion))


@dataclass(frozen=True)
class _Named:
    """A backbone torsion, its chain, and its residue with the insertion code."""

    chain: str
    residue: str
    atoms: Torsion

    @property
    def names(self) -> tuple[str, str]:
        """Of its residue, without and with the chain."""
        return self.residue, f"{self.chain}:{self.residue}"


def _parse(topology: Any, text: str) -> Torsion:
    kind, _, residue = text.partition(":")
    if kind in _BACKBONE:
        named = _named(topology, kind)
        chosen = _with_name(named, residue) if residue else named
        if len(chosen) != 1:
            names = ", ".join(dict.fromkeys(torsion_label(topology, one.atoms) for one in named)) or "none"
            raise ArgumentError.of("torsions", f"one {kind} of the molecule, which has {names}", repr(text))
        return chosen[0].atoms
    parts = text.split("-")
    if len(parts) != 4 or not all(part.isdecimal() for part in parts):
        known = ", ".join(_BACKBONE)
        raise ArgumentError.of("torsions", f"{known}, one with its residue (phi:2), or atoms (4-6-8-14)", repr(text))
    i, j, k, m = (int(part) for part in parts)
    count = topology.getNumAtoms()
    if len({i, j, k, m}) < 4 or max(i, j, k, m) >= count:
        raise ArgumentError.of("torsions", f"four different atoms from 0 to {count - 1}", repr(text))
    return i, j, k, m


def _with_name(named: Iterable[_Named], residue: str) -> list[_Named]:
    return [one for one in named if residue in one.names]


def _named(topology: Any, kind: str) -> list[_Named]:
    """In the order of the residues, each of which may have one."""
    residues = {residue.index: residue for residue in topology.residues()}
    near = BondGraph.from_topology(topology).neighbours
    result = []
    for index, residue in residues.items():
        atoms = []
        for name, step in _BACKBONE[kind]:
            other = residues.get(index + step)
            atoms += [atom.index for atom in other.atoms() if atom.name == name] if other is not None else []
        if len(atoms) == 4 and all(b in near[a] for a, b in itertools.pairwise(atoms)):
            i, j, k, m = atoms
            number = f"{residue.id}{residue.insertionCode}".strip()
            result.append(_Named(residue.chain.id.strip(), number, (i, j, k, m)))
    return result


def _rotatable(graph: BondGraph, i: int, j: int) -> bool:
    if any(graph.numbers[atom] == HYDROGEN or len(_heavy(graph, atom)) < 2 for atom in (i, j)) or graph.in_ring(i, j):
        return False
    planar = all(len(graph.neighbours[atom]) == 3 for atom in (i, j))
    return not (planar and NITROGEN in (graph.numbers[i], graph.numbers[j]))


def _about(graph: BondGraph, j: int, k: int) -> Torsion:
    """Through the bond's first heavy neighbours."""
    i = next(atom for atom in _heavy(graph, j) if atom != k)
    m = next(atom for atom in _heavy(graph, k) if atom != j)
    return i, j, k, m


def _heavy(graph: BondGraph, atom: int) -> list[int]:
    return [near for near in graph.neighbours[atom] if graph.numbers[near] != HYDROGEN]
