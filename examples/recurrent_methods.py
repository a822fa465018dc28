"""The ways to keep a recurrent matrix orthogonal that `examples.recurrent` compares, and the controls."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.peers import load
from torch.nn.utils import parametrizations

import p4torch as p4
from examples.recurrent_network import Network


@dataclass(frozen=True)
class Method:
    """One way. `block` and `every` are P4's alone: the size of its blocks, by default the library's, and the merge
    interval. `peer` is a package that may be missing; `tuned_as` names a way that computes the same, whose rates it
    takes."""

    name: str
    title: str
    peer: str | None = None
    tuned_as: str = ""
    block: int | None = None
    every: int = 0

    @property
    def merges(self) -> bool:
        """Whether it is P4's."""
        return self.every > 0

    @property
    def trains(self) -> bool:
        """Whether the recurrent matrix does."""
        return self.name != "frozen"

    def apply(self, network: Network) -> None:
        """Constrain `network.recurrent`, which stays as it is."""
        start = network.recurrent.detach().clone()
        if self.merges:
            p4.perturb(network, "recurrent", p4.Orthogonal, block=self.block)
        elif self.name in ("matrix_exp", "cayley"):
            parametrizations.orthogonal(network, "recurrent", orthogonal_map=self.name)
        elif self.name == "geotorch":
            load("geotorch").orthogonal(network, "recurrent")
            network.recurrent = start  # type: ignore[assignment]  # it begins at a random matrix else
        elif self.name == "frozen":
            network.recurrent.requires_grad_(False)


METHODS = (
    Method("p4", "P4, its defaults", every=50),
    Method("p4-32", "P4, blocks of 32, N = 50", block=32, every=50),
    Method("p4-blocks", "P4, blocks of 64, N = 5", block=64, every=5),
    Method("geotorch", "geotorch.orthogonal", "geotorch", tuned_as="matrix_exp"),
    Method("matrix_exp", "torch, matrix exponential"),
    Method("cayley", "torch, Cayley map"),
    Method("free", "unconstrained"),
    Method("frozen", "not trained"),
)
