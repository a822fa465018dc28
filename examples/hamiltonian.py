"""A Hamiltonian map: the time-one map of the Henon-Heiles system, learned by layers that are symplectic whatever they
learn, and by a network of as many parameters that knows nothing of it.

    python -m examples.hamiltonian --out runs/hamiltonian
    python -m examples.hamiltonian --short --out runs/hamiltonian-short    # seconds

    H(q, p) = |p|²/2 + |q|²/2 + q₁² q₂ - q₂³/3

Symplectic layers: linear maps kept in Sp(4) by `p4torch.Symplectic`, and shears by the gradient of a potential,
(q, p) -> (q, p + Kᵀ (a ⊙ tanh(K q + b))) and the same with q and p exchanged. All networks see the same pairs of
states in the same order; since the unconstrained one is cheaper, it also trains for 8 times as many steps, which takes
as long. Then each map is iterated 1,000 times.

Source: Hénon and Heiles (1964) for the system; Jin, Zhang, Zhu, Tang and Karniadakis (2020), SympNets, for networks of
linear and gradient modules.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn

import p4torch as p4
from examples.scaffold import Fit, Job, Row, run_setting, train
from p4torch.parametrize.sites import counter_based_generator
from p4torch.runs.runner import Results
from p4torch.training.steps import warmup_cosine

MODULE = "examples.hamiltonian"

#: Substeps of the leapfrog integrator that makes the data: its energy error is below 1e-7.
SUBSTEPS = 1000

#: What trains, and its colour. The last is the second one with `longer` times the steps.
LONGER = "unconstrained-longer"
KINDS = {"symplectic": "C0", "unconstrained": "C1", LONGER: "C2"}


@dataclass(frozen=True)
class Setting:
    """The size of everything. Energies of the data are in `energies`; orbits are bounded below 1/6."""

    blocks: int = 6
    width: int = 16
    hidden: int = 25
    rank: int = 1
    every: int = 50
    batch: int = 256
    steps: int = 6000
    longer: int = 8
    rate: float = 1e-2
    states: int = 4000
    energies: tuple[float, float] = (0.02, 0.12)
    orbits: int = 64
    iterations: int = 1000
    record: int = 200

    def steps_of(self, kind: str) -> int:
        return self.steps * (self.longer if kind == LONGER else 1)


SHORT = Setting(blocks=2, width=4, hidden=5, every=5, batch=16, steps=20, states=50, orbits=4, iterations=10, record=10)


def energy(x: Tensor) -> Tensor:
    """H of states (q, p) `(..., 4)`."""
    q1, q2, p1, p2 = x.unbind(-1)
    return (p1**2 + p2**2 + q1**2 + q2**2) / 2 + q1**2 * q2 - q2**3 / 3


def true_map(x: Tensor) -> Tensor:
    """The states one unit of time later, by leapfrog."""
    q, p = x.split(2, -1)
    h = 1 / SUBSTEPS
    for _ in range(SUBSTEPS):
        q = q + h / 2 * p
        p = p - h * torch.stack(
            [q[..., 0] + 2 * q[..., 0] * q[..., 1], q[..., 1] + q[..., 0] ** 2 - q[..., 1] ** 2], -1
        )
        q = q + h / 2 * p
    return torch.cat([q, p], -1)


def states(count: int, energies: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Random states `(count, 4)` with energies in the range: directions at random, scaled until H fits."""
    low, high = energies
    drawn = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    wanted = low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)
    drawn = drawn / drawn.norm(dim=-1, keepdim=True)
    shortest, longest = torch.zeros(count, 1).double(), torch.full((count, 1), 0.9).double()
    for _ in range(60):  # H rises along every ray up to |x| = 1
        middle = (shortest + longest) / 2
        below = energy(middle * drawn)[:, None] < wanted[:, None]
        shortest, longest = torch.where(below, middle, shortest), torch.where(below, longest, middle)
    return shortest * drawn


class Shear(nn.Module):
    """(q, p) -> (q, p + ∇V(q)), or with `first` (q + ∇V(p), p); V = Σ a log cosh(K q + b), elementwise in p."""

    def __init__(self, width: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.k, self.b = nn.Parameter(torch.randn(width, 2).double()), nn.Parameter(torch.zeros(width).double())
        self.a = nn.Parameter(torch.zeros(width).double())

    def forward(self, x: Tensor) -> Tensor:
        q, p = x.split(2, -1)
        if self.first:
            return torch.cat([q + self.gradient(p), p], -1)
        return torch.cat([q, p + self.gradient(q)], -1)

    def gradient(self, q: Tensor) -> Tensor:
        """∇V."""
        return (self.a * torch.tanh(q @ self.k.mT + self.b)) @ self.k


class Unconstrained(nn.Module):
    """x -> x + W₃ tanh(W₂ tanh(W₁ x)), with biases."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 4)
        ).double()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def symplectic(setting: Setting) -> nn.Sequential:
    """Linear maps in Sp(4) and two shears, in turn; a linear map at the end."""
    layers: list[nn.Module] = []
    for _ in range(setting.blocks):
        layers += [_linear(setting.rank), Shear(setting.width, False), Shear(setting.width, True)]
    return nn.Sequential(*layers, _linear(setting.rank))


def _linear(rank: int) -> nn.Module:
    layer = nn.Linear(4, 4).double()
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4))
        layer.bias.zero_()
    return p4.perturb(layer, "weight", p4.Symplectic, rank=rank, scale=1.0)


class Learner(Fit):
    """One network while it trains (`examples.scaffold.Training`)."""

    def __init__(self, kind: str, setting: Setting, seed: int) -> None:
        super().__init__()
        self.kind, self.setting, self.seed, self.steps = kind, setting, seed, setting.steps_of(kind)
        torch.manual_seed(seed)
        self.model = symplectic(setting) if kind == "symplectic" else Unconstrained(setting.hidden)
        self.x = states(setting.states, setting.energies, counter_based_generator(seed, "states", 0))
        self.y = true_map(self.x)
        self.optimizer = torch.optim.Adam(p4.parameter_groups(self.model), lr=setting.rate, foreach=True)
        if kind == "symplectic":
            self.scheduler = p4.MergeScheduler(
                self.model, self.optimizer, every=setting.every, optimizer_state="transport", seed=seed
            )

    @property
    def note(self) -> str:
        return f"loss {self.curve[-1][2]:.2e}" if self.curve else ""

    def advance(self) -> None:
        setting = self.setting
        chosen = torch.randint(
            setting.states, (setting.batch,), generator=counter_based_generator(self.seed, "batch", self.step)
        )
        for group in self.optimizer.param_groups:
            group["lr"] = setting.rate * warmup_cosine(self.step, self.steps)
        loss = self.update(lambda: (self.model(self.x[chosen]) - self.y[chosen]).square().mean())
        if self.step % setting.record == 0:
            self.curve.append((self.step, self.watch.seconds, float(loss)))

    def row(self) -> Row:
        """Errors on fresh states, and the energy along iterated maps."""
        setting = self.setting
        fresh = states(1000, setting.energies, counter_based_generator(self.seed, "test", 0))
        orbit = states(setting.orbits, setting.energies, counter_based_generator(self.seed, "orbits", 0))
        start, drifts = energy(orbit), []
        with torch.no_grad():
            error = (self.model(fresh) - true_map(fresh)).square().mean().sqrt()
            for _ in range(setting.iterations):
                orbit = self.model(orbit)
                drifts.append((energy(orbit) / start - 1).abs())
        drift = torch.stack(drifts).nan_to_num(nan=torch.inf)
        return {
            "kind": self.kind,
            "seed": self.seed,
            "steps": self.steps,
            "seconds": self.watch.seconds,
            "parameters": sum(value.numel() for value in self.model.parameters() if value.requires_grad),
            "error": float(error),
            "drift_median": float(drift[-1].median()),
            "drift_largest": float(drift.max()),
            "escaped": float((drift.amax(0) > 1).double().mean()),
            "symplectic_defect": self.symplectic_defect(fresh[:50]),
            "merged": self.scheduler.merged if self.scheduler else 0,
            "drift": drift.median(1).values.tolist(),
            "curve": self.curve,
        }

    def symplectic_defect(self, x: Tensor) -> float:
        """The largest entry of DᵀJD - J over some states, D the map's derivative."""
        jacobian = torch.func.vmap(torch.func.jacrev(self.model))(x).detach()
        form = torch.zeros(4, 4).double()
        form[:2, 2:], form[2:, :2] = torch.eye(2), -torch.eye(2)
        return float((jacobian.mT @ form @ jacobian - form).abs().max())


def work(setting: Setting, seeds: Sequence[int], out: Path, console: Console) -> Results:
    """Train everything with every seed."""
    jobs = [
        Job(f"{kind}-{seed}", f"{kind}, seed {seed}", setting.steps_of(kind), partial(Learner, kind, setting, seed))
        for seed in seeds
        for kind in KINDS
    ]
    rows = list(train(jobs, out, console, setting.record).values())
    return Results({"rows": rows}, table(rows, setting), {"hamiltonian": figure(rows)})


def table(rows: Sequence[Row], setting: Setting) -> str:
    """A line a network: medians over seeds and, in brackets, their range."""
    columns = {
        "error of one step": "error",
        f"energy drift, {setting.iterations} steps": "drift_median",
        "largest drift": "drift_largest",
        "orbits off by 100 %": "escaped",
        "max of DᵀJD - J": "symplectic_defect",
    }
    lines = [
        f"{setting.batch} pairs a step, {len({row['seed'] for row in rows})} seeds. Drift is |H / H₀ - 1|: the median "
        f"over {setting.orbits} orbits at the end, and the largest along all. Medians (range) over seeds.",
        "",
        f"| network | trains | steps | {' | '.join(columns)} | ms a step | seconds |",
        "| --- " * (len(columns) + 5) + "|",
    ]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        same = [row for row in rows if row["kind"] == kind]
        cells = [_range([row[key] for row in same]) for key in columns.values()]
        seconds, steps = sorted(row["seconds"] for row in same)[len(same) // 2], same[0]["steps"]
        cells = [str(same[0]["parameters"]), str(steps), *cells, f"{1000 * seconds / steps:.2f}", f"{seconds:.1f}"]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _range(values: Sequence[float]) -> str:
    low, *_, high = ordered = sorted(values) * (2 if len(values) == 1 else 1)
    return f"{ordered[len(ordered) // 2]:.2g} ({low:.2g} to {high:.2g})"


def figure(rows: Sequence[Row]) -> Figure:
    """Losses, and energy drift along the iterated maps."""
    drawn = Figure(figsize=(9, 3.6), layout="constrained")
    losses, drifts = drawn.subplots(1, 2)
    for row in rows:
        style, label = KINDS[row["kind"]], row["kind"] if row["seed"] == rows[0]["seed"] else None
        if row["curve"]:
            _, seconds, loss = zip(*row["curve"], strict=True)
            losses.semilogy(seconds, loss, style, label=label, linewidth=1)
        drifts.loglog(range(1, len(row["drift"]) + 1), row["drift"], style, linewidth=1)
    losses.set(xlabel="seconds", ylabel="squared error of one step")
    drifts.set(xlabel="iterations of the learned map", ylabel="|H / H₀ - 1|, median of orbits")
    losses.legend()
    return drawn


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    return run_setting(MODULE, __doc__, "runs/hamiltonian", (Setting(), SHORT), work, arguments)


if __name__ == "__main__":
    sys.exit(main())
