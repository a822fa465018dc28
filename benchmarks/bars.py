"""The bars that p4torch sets itself, as data. Families of rows name the bar that they are held to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Bar:
    """A bound on a ratio of two sides."""

    what: str
    sides: str
    sense: Literal["at most", "at least"]
    value: float

    def met(self, ratio: float) -> bool:
        return ratio <= self.value if self.sense == "at most" else ratio >= self.value

    def __str__(self) -> str:
        return f"{'≤' if self.sense == 'at most' else '≥'} {self.value:g}"


_LINEAR, _SOLVE = "training step of a perturbed nn.Linear", "the same through `solve`, with log|det|"
_ORTHOGONAL, _INVERTIBLE = "training step, orthogonal, n = 512", "training step, invertible with log|det|, n = 512"
_PASS = "inverse pass with log|det|, no gradient, n = 1024"

BARS: dict[str, Bar] = {
    "linear 512": Bar(f"{_LINEAR}, n = 512", "p4torch / nn.Linear", "at most", 0.95),
    "linear 1024": Bar(f"{_LINEAR}, n = 1024", "p4torch / nn.Linear", "at most", 0.90),
    "linear 2048": Bar(f"{_LINEAR}, n = 2048", "p4torch / nn.Linear", "at most", 0.85),
    "linear small": Bar(f"{_LINEAR}, n = 32 to 64", "p4torch / nn.Linear", "at most", 1.5),
    "solve 512": Bar(f"{_SOLVE}, n = 512", "p4torch / nn.Linear", "at most", 0.95),
    "solve 1024": Bar(f"{_SOLVE}, n = 1024", "p4torch / nn.Linear", "at most", 0.90),
    "solve 2048": Bar(f"{_SOLVE}, n = 2048", "p4torch / nn.Linear", "at most", 0.85),
    "geotorch": Bar(_ORTHOGONAL, "geotorch / p4torch", "at least", 100),
    "matrix_exp": Bar(_ORTHOGONAL, "torch matrix_exp / p4torch", "at least", 100),
    "cayley": Bar(_ORTHOGONAL, "torch Cayley / p4torch", "at least", 9),
    "lu": Bar(f"{_INVERTIBLE}, both directions", "nflows LULinear / p4torch", "at least", 1.8),
    "dense": Bar(f"{_INVERTIBLE}, both directions", "dense slogdet, solve / p4torch", "at least", 2.5),
    "pass 1": Bar(f"{_PASS}, 1 vector", "dense slogdet, solve / p4torch", "at least", 100),
    "pass 32": Bar(f"{_PASS}, 32 vectors", "dense slogdet, solve / p4torch", "at least", 25),
    "deep chain": Bar("InvertibleMLP(2, 200)", "p4torch / 200 nn.Linear(2, 2)", "at most", 0.15),
    "mixing": Bar("50 x (AffineCoupling + mixing), 60 features", "InvertibleLinear / Swap", "at most", 1.15),
    "realnvp": Bar("50 x (AffineCoupling + Swap), 60 features", "p4torch / written out", "at most", 0.6),
    "merge": Bar("merge of one 1024 x 1024 site", "merge / training step", "at most", 1.0),
    "stagger": Bar("staggered merges, 4 sites of 1024 x 1024", "slowest / median step", "at most", 1.5),
    "memory": Bar("memory of a training step with Adam, n = 2048", "p4torch / nn.Linear", "at most", 0.6),
    "energies": Bar(
        "energies and gradients, 4,000 frames of 22 atoms, all cores", "OpenMM processes / p4torch", "at least", 2
    ),
}
