"""Mirror forms: on which side of a chiral centre its neighbours stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.molecules.checks import check_shape
from p4torch.molecules.frames import normalize_weights
from p4torch.molecules.graph import BondGraph

CARBON = 6

#: Neighbours of an amino acid's CA, in the order whose signed volume is positive for L.
AMINO_ACID = ("N", "C", "CB")


@dataclass(frozen=True)
class ChiralCentre:
    """An atom, three of its neighbours, and the sign of (a - c)·((b - c) x (d - c)) in the form that is wanted."""

    centre: int
    neighbours: tuple[int, int, int]
    sign: int


def chiral_centres(topology: Any, reference: Tensor | None = None) -> tuple[ChiralCentre, ...]:
    """Carbons with four neighbours that the bond graph tells apart; none in many a molecule, such as butane.

    Args:
        topology: an `openmm.app.Topology` or an `mdtraj.Topology`, with hydrogens.
        reference: a frame `(atoms, 3)` in the form that is wanted. Without it, only the CA of amino acids are
            returned, and L is the form that is wanted.

    Raises:
        ArgumentError: the topology is not one connected molecule, or the reference is not a frame of it.
    """
    graph = BondGraph.from_topology(topology)
    result = [atom for atom in range(len(graph)) if _asymmetric(graph, atom)]
    if reference is None:
        acids = ((atom, _amino_acid(graph, atom)) for atom in result)
        return tuple(ChiralCentre(atom, neighbours, 1) for atom, neighbours in acids if neighbours is not None)
    check_shape(reference, len(graph), "reference")
    if reference.dim() != 2:
        raise ArgumentError.of("reference", f"of shape ({len(graph)}, 3)", tuple(reference.shape))
    if not result:
        return ()
    triples = [graph.neighbours[atom][:3] for atom in result]
    volumes = _signed_volumes(reference, result, triples).tolist()
    return tuple(
        ChiralCentre(atom, (triple[0], triple[1], triple[2]), 1 if volume > 0 else -1)
        for atom, triple, volume in zip(result, triples, volumes, strict=True)
    )


def inverted(x: Tensor, centres: Sequence[ChiralCentre]) -> Tensor:
    """Which centres are in the form that is not wanted, `(..., atoms, 3)` -> bool `(..., centres)`.

    A frame that is not finite counts as inverted.
    """
    if not centres:
        raise ArgumentError.of("centres", "one or more chiral centres", "none")
    volumes = _signed_volumes(x, [c.centre for c in centres], [c.neighbours for c in centres])
    return ~(volumes * torch.tensor([c.sign for c in centres], dtype=x.dtype, device=x.device) > 0)


def has_wrong_chirality(x: Tensor, centres: Sequence[ChiralCentre]) -> Tensor:
    """Whether any centre is in the form that is not wanted, bool `(...)`."""
    return inverted(x, centres).any(-1)


def wrong_chirality_share(x: Tensor, centres: Sequence[ChiralCentre], weights: Tensor | None = None) -> float:
    """The (weighted) share of frames `(frames, atoms, 3)` with any centre in the mirror form: D, for amino acids."""
    flags = has_wrong_chirality(x, centres)
    if flags.dim() != 1 or not len(flags):
        raise ArgumentError.of("x", "of shape (one or more, atoms, 3)", tuple(x.shape))
    return float(normalize_weights(weights, len(flags), x) @ flags.double())


def _asymmetric(graph: BondGraph, atom: int) -> bool:
    near = graph.neighbours[atom]
    return graph.numbers[atom] == CARBON and len(near) == 4 and len({graph.colours[other] for other in near}) == 4


def _amino_acid(graph: BondGraph, atom: int) -> tuple[int, int, int] | None:
    """N, C and CB, if the atom is the CA of an amino acid."""
    short = {graph.names[other].rsplit("-", 1)[1]: other for other in graph.neighbours[atom]}
    if not graph.names[atom].endswith("-CA") or not all(name in short for name in AMINO_ACID):
        return None
    n, c, beta = (short[name] for name in AMINO_ACID)
    return n, c, beta


def _signed_volumes(x: Tensor, centres: Sequence[int], neighbours: Sequence[Sequence[int]]) -> Tensor:
    edges = x[..., torch.tensor(neighbours).T, :] - x[..., torch.tensor(centres), :].unsqueeze(-3)
    a, b, d = edges.unbind(-3)
    return (a * torch.linalg.cross(b, d)).sum(-1)
