"""The ways to keep a recurrent matrix orthogonal that `examples.recurrent` compares, and the controls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.peers import load
from torch.nn.utils import parametrizations

import p4torch as p4
from examples.recurrent_network import Network


@dataclass(frozen=True)
class Method:
    """One way. `rank` and what follows are P4's alone, whose default shape is used without a rank; `peer` is a package
    that may be missing."""

    name: str
    title: str
    peer: str | None = None
    rank: int | None = None
    every: int = 0
    directions: str = ""
    optimizer_state: Any = "reset_directions"

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
        if self.merges and self.rank is None:
            p4.perturb(network, "recurrent", p4.Orthogonal)
        elif self.rank is not None:
            p4.perturb(
                network,
                "recurrent",
                p4.Orthogonal,
                rank=self.rank,
                scale=self.rank**-0.5,
                directions=self.directions,
            )
        elif self.name in ("matrix_exp", "cayley"):
            parametrizations.orthogonal(network, "recurrent", orthogonal_map=self.name)
        elif self.name == "geotorch":
            load("geotorch").orthogonal(network, "recurrent")
            network.recurrent = start  # type: ignore[assignment]  # it begins at a random matrix else
        elif self.name == "frozen":
            network.recurrent.requires_grad_(False)


METHODS = (
    Method("p4", "P4, all of so(n), N = 50", every=50),
    Method("p4-informed", "P4, rank 32, informed, N = 10", None, 32, 10, "informed", "transport"),
    Method("p4-random", "P4, rank 8, random, N = 50", None, 8, 50, "random"),
    Method("geotorch", "geotorch.orthogonal", "geotorch"),
    Method("matrix_exp", "torch, matrix exponential"),
    Method("cayley", "torch, Cayley map"),
    Method("free", "unconstrained"),
    Method("frozen", "not trained"),
)
