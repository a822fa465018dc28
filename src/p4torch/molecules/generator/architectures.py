"""Flows between a latent distribution and mixed coordinates, by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import torch

from p4torch.errors import ArgumentError
from p4torch.flows import (
    AffineCoupling,
    Bijection,
    Chain,
    Flow,
    InvertibleLinear,
    NormalAndUniform,
    Partial,
    SplineCoupling,
    StandardNormal,
    Swap,
)
from p4torch.molecules.standard import Layout, Torsions
from p4torch.molecules.system import MolecularSystem
from p4torch.molecules.zmatrix import ZMatrix

#: Couplings of the paper's flows, and of spline flows.
AFFINE, SPLINE = 50, 12
#: Rank of the mixing layers of spline flows: of 43 coordinates, on top of couplings that move random halves.
MIXING_RANK = 8


@dataclass(frozen=True)
class Architecture:
    """A kind of flow.

    Attributes:
        name: that commands know.
        title: for people.
        torsions: as `MixedCoordinates` is to leave them.
        build: of a layout; draws from torch's global generator.
        rank: of the perturbed layers, if it has any; None for whole matrices.
    """

    name: str
    title: str
    torsions: Torsions
    build: Callable[[Layout], Flow]
    rank: int | None = 1


def architecture(name: str) -> Architecture:
    """The kind of flow of that name.

        rnvp            50 affine couplings, each followed by a swap of the halves; latent normal distribution
        p4inv           the swaps replaced by `InvertibleLinear` of rank 1 that starts as the swap
        p4inv-rank8     the same of rank 8; or of any other rank
        p4inv-whole     the same, with triangular factors that move whole matrices
        spline          12 rational-quadratic couplings that move random halves, on the circle for torsions; latent
                        distribution normal, but uniform for torsions
        spline-p4inv    the same, with `InvertibleLinear` of rank 8 between couplings that mixes all but the torsions

    Raises:
        ArgumentError: for another name.

    Source: rnvp and p4inv: Krämer, Köhler and Noé (2020), section 4.2; at 60 coordinates they have 735,050 and 744,050
    parameters.
    """
    rank = re.fullmatch(r"p4inv(?:-rank([1-9]\d*))?", name)
    if rank:
        k = int(rank[1] or 1)
        title = "P4Inv" if k == 1 else f"P4Inv, rank {k}"
        return Architecture(name, title, "standard", lambda layout: affine(layout, rank=k, scale=1.0), k)
    if name == "p4inv-whole":
        return Architecture(name, "P4Inv, whole", "standard", lambda layout: affine(layout, form="triangular"), None)
    if name == "rnvp":
        return Architecture(name, "RNVP", "standard", affine)
    if name == "spline":
        return Architecture(name, "spline", "circle", lambda layout: spline(layout, mixing=False))
    if name == "spline-p4inv":
        mixed = partial(spline, mixing=True)
        return Architecture(name, "spline, P4Inv", "circle", mixed, MIXING_RANK)
    raise ArgumentError.of("model", "rnvp, p4inv, p4inv-rank<k>, p4inv-whole, spline or spline-p4inv", repr(name))


def affine(layout: Layout, couplings: int = AFFINE, **options: Any) -> Flow:
    """Affine couplings with swaps, or with linear layers of these options in their place, which start as swaps."""

    def layers() -> Iterator[Bijection]:
        swap = Swap(layout.size)
        matrix = swap(torch.eye(layout.size))[0].T
        for _ in range(couplings):
            yield AffineCoupling(layout.size)
            yield InvertibleLinear(layout.size, init=matrix, **options) if options else swap

    return Flow(Chain(layers()), StandardNormal(layout.size))


def spline(layout: Layout, mixing: bool, couplings: int = SPLINE, hidden: int = 128) -> Flow:
    """Spline couplings; every second one moves what the one before has left. With or without mixing between them.

    The halves are random, but the same ones for every seed: older files of weights do not hold them.
    """

    def layers() -> Iterator[Bijection]:
        line, order, shuffler = range(layout.torsions.start), list(range(layout.size)), Random(0)
        for index in range(couplings):
            if index % 2 == 0:
                shuffler.shuffle(order)
            half = order[::2] if index % 2 == 0 else order[1::2]
            yield SplineCoupling(layout.size, sorted(half), layout.torsions, hidden=(hidden, hidden))
            if mixing and index < couplings - 1:
                mixed = InvertibleLinear(len(line), rank=min(MIXING_RANK, len(line)), scale=1.0)
                yield Partial(layout.size, line, mixed)

    return Flow(Chain(layers()), NormalAndUniform(layout.size, layout.torsions))


def seeded(build: Callable[[], Flow], seed: int) -> Flow:
    """Build something that draws from torch's global generator, and leave that as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def default_zmatrix(system: MolecularSystem) -> ZMatrix:
    """The published one for alanine dipeptide in Amber's order of atoms, else one made from the bonds."""
    published = ZMatrix.alanine_dipeptide()
    names = tuple(f"{atom.residue.name}{atom.residue.index + 1}-{atom.name}" for atom in system.topology.atoms())
    return published if names == published.names else ZMatrix.from_topology(system.topology)
