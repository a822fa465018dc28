"""Landau's gauge of a field of SU(2) on a periodic lattice in two dimensions: one element of SU(2) a site trains.

Links U_μ(x) are drawn by heat baths from exp(-β Σ (1 - tr P / 2)), P the plaquettes. A gauge transformation

    U_μ(x) -> g(x) U_μ(x) g(x+μ)ᴴ

changes no plaquette; Landau's gauge has the largest F = mean of tr U_μ(x) / 2 within reach, where the divergence of the
field vanishes. Here g is one parameter, a stack of matrices kept in SU(2) by `p4torch.SpecialUnitary`, and Adam climbs
F; overrelaxed sweeps, the field's own method, start from the same links. Both stop in some maximum of many.

Source: Creutz (1980) and Kennedy and Pendleton (1985), for the heat bath; Cucchieri and Mendes (1996), for
overrelaxation. In two dimensions the mean of tr P / 2 is I₂(β) / I₁(β), up to the finite lattice.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import p4torch as p4
from examples.scaffold import Stopwatch
from p4torch.parametrize.sites import counter_based_generator
from p4torch.training.steps import warmup_cosine


@dataclass(frozen=True)
class Gauge:
    """The size of everything."""

    size: int = 16
    beta: float = 4.0
    sweeps: int = 100
    measured: int = 100
    steps: int = 3000
    every: int = 20
    rate: float = 3e-2
    relaxations: int = 300
    omega: float = 1.7

    @staticmethod
    def short() -> Gauge:
        return Gauge(size=4, sweeps=3, measured=2, steps=4, every=2, relaxations=4)


# --- links `(2, L, L, 2, 2)`, in the directions of the two axes -----------------------------------------------------


def neighbour(field: Tensor, direction: int, steps: int = 1) -> Tensor:
    """Of every site `(L, L, ...)` the one so many steps ahead."""
    return field.roll(-steps, direction)


def plaquettes(links: Tensor) -> Tensor:
    """tr P / 2 at every site, `(L, L)`."""
    first, second = links
    around = first @ neighbour(second, 0) @ neighbour(first, 1).mH @ second.mH
    return around.diagonal(dim1=-2, dim2=-1).sum(-1).real / 2


def staples(links: Tensor, direction: int) -> Tensor:
    """The sum of what closes each link of a direction to its two plaquettes, `(L, L, 2, 2)`."""
    own, other, across = links[direction], links[1 - direction], 1 - direction
    ahead = neighbour(other, direction)
    up = ahead @ neighbour(own, across).mH @ other.mH
    down = neighbour(ahead, across, -1).mH @ neighbour(own, across, -1).mH @ neighbour(other, across, -1)
    return up + down


def normalized(sums: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest element of SU(2) to a sum of some, and its length: sum = k u."""
    size = torch.linalg.det(sums).real.clamp_min(0).sqrt()
    return sums / size.clamp_min(1e-30)[..., None, None], size


def matrices(a: Tensor) -> Tensor:
    """a₀ + i σ·a `(..., 2, 2)` of quaternions `(..., 4)`."""
    a0, a1, a2, a3 = a.unbind(-1)
    rows = [torch.stack([torch.complex(a0, a3), torch.complex(a2, a1)], -1)]
    rows.append(torch.stack([torch.complex(-a2, a1), torch.complex(a0, -a3)], -1))
    return torch.stack(rows, -2)


def drawn(strength: Tensor, generator: torch.Generator) -> Tensor:
    """Elements of SU(2) with the density exp(strength · tr u / 2), `(...)` -> `(..., 2, 2)`: Kennedy and Pendleton."""
    a0, left = torch.zeros_like(strength), torch.ones_like(strength, dtype=torch.bool)
    while bool(left.any()):
        r = 1 - torch.rand(4, *strength.shape, generator=generator, dtype=strength.dtype)
        delta = -(r[0].log() + (2 * torch.pi * r[1]).cos() ** 2 * r[2].log()) / strength
        accepted = left & (r[3] ** 2 <= 1 - delta / 2) & (delta <= 2)
        a0, left = torch.where(accepted, 1 - delta, a0), left & ~accepted
    axis = torch.randn(*strength.shape, 3, generator=generator, dtype=strength.dtype)
    axis = axis / axis.norm(dim=-1, keepdim=True) * (1 - a0**2).clamp_min(0).sqrt()[..., None]
    return matrices(torch.cat([a0[..., None], axis], -1))


def sweep(links: Tensor, beta: float, generator: torch.Generator) -> None:
    """A heat bath for every link, in place."""
    for direction in range(2):
        for colour in range(2):
            unit, size = normalized(staples(links, direction))
            new = drawn(beta * size, generator) @ unit.mH
            links[direction] = torch.where(even_sites(links, colour), new, links[direction])


def even_sites(links: Tensor, colour: int) -> Tensor:
    """Sites of a colour of the checkerboard, `(L, L, 1, 1)`."""
    x = torch.arange(links.shape[1])
    return ((x[:, None] + x) % 2 == colour)[..., None, None]


# --- Landau's gauge -------------------------------------------------------------------------------------------------


def transformed(links: Tensor, g: Tensor) -> Tensor:
    """g(x) U_μ(x) g(x+μ)ᴴ."""
    return torch.stack([g @ links[axis] @ neighbour(g, axis).mH for axis in range(2)])


def functional(links: Tensor) -> Tensor:
    """F, 1 at most."""
    return links.diagonal(dim1=-2, dim2=-1).sum(-1).real.mean() / 2


def divergence(links: Tensor) -> float:
    """The mean over sites of |Σ_μ A_μ(x) - A_μ(x-μ)|², A = (U - Uᴴ)/2i."""
    potential = (links - links.mH) / 2j
    total = potential.sum(0) - neighbour(potential[0], 0, -1) - neighbour(potential[1], 1, -1)
    return float(total.abs().square().sum((-2, -1)).mean())


class Transformation(nn.Module):
    """g: a stack of one matrix of SU(2) for each site, the identity at first."""

    def __init__(self, links: Tensor) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.eye(2, dtype=links.dtype).repeat(*links.shape[1:3], 1, 1))
        p4.perturb(self, "g", p4.SpecialUnitary)

    def forward(self, links: Tensor) -> Tensor:
        return transformed(links, self.g)


def relaxed(links: Tensor, sweeps: int, omega: float) -> Tensor:
    """Links in Landau's gauge by overrelaxation: g(x) moves beyond its best value, one colour after the other."""
    for step in range(2 * sweeps):
        total = links[0].mH + links[1].mH + neighbour(links[0], 0, -1) + neighbour(links[1], 1, -1)
        best = normalized(total)[0]
        identity = torch.eye(2, dtype=links.dtype).expand_as(best)
        g = normalized((1 - omega) * identity + omega * best)[0]
        links = transformed(links, torch.where(even_sites(links, step % 2), g, identity))
    return links


def gauge_row(setting: Gauge, seed: int) -> dict[str, Any]:
    """One configuration, fixed in both ways."""
    generator = counter_based_generator(seed, "links", 0)
    links = torch.eye(2, dtype=torch.complex128).repeat(2, setting.size, setting.size, 1, 1)
    measured = []
    for index in range(setting.sweeps + setting.measured):
        sweep(links, setting.beta, generator)
        if index >= setting.sweeps:
            measured.append(float(plaquettes(links).mean()))
    model = Transformation(links)
    optimizer = torch.optim.Adam(p4.parameter_groups(model), lr=setting.rate)
    scheduler = p4.MergeScheduler(model, optimizer, every=setting.every, seed=seed)
    watch = Stopwatch()
    with watch:
        for step in range(setting.steps):
            for group in optimizer.param_groups:
                group["lr"] = setting.rate * warmup_cosine(step, setting.steps)
            optimizer.zero_grad()
            loss = -functional(model(links))
            loss.backward()
            optimizer.step()
            scheduler.step()
    with torch.no_grad():
        fixed = model(links)
    (site,) = p4.sites(model)
    other = relaxed(links, setting.relaxations, setting.omega)
    return {
        "seed": seed,
        "plaquette": statistics.fmean(measured),
        "plaquette_exact": exact_plaquette(setting.beta),
        "functional": [float(functional(each)) for each in (links, fixed, other)],
        "divergence": [divergence(each) for each in (links, fixed, other)],
        "plaquettes_moved": float((plaquettes(fixed) - plaquettes(links)).abs().max()),
        "defect": float(site.perturbation.defect(model.g.detach()).max()),
        "merged": scheduler.merged,
        "seconds": watch.seconds,
    }


def exact_plaquette(beta: float) -> float:
    """I₂(β) / I₁(β)."""
    at = torch.tensor(beta, dtype=torch.float64)
    i0, i1 = torch.special.i0(at), torch.special.i1(at)
    return float((i0 - 2 * i1 / at) / i1)


def gauge_table(rows: Sequence[dict[str, Any]], setting: Gauge) -> str:
    """A line a configuration."""
    lines = [
        f"SU(2) on {setting.size} x {setting.size} sites, β = {setting.beta:g}, Landau's gauge: {setting.steps} steps "
        f"of Adam, {setting.relaxations} overrelaxed sweeps (ω = {setting.omega:g}). The mean plaquette is I₂/I₁ = "
        f"{exact_plaquette(setting.beta):.4f} on a large lattice. F and the mean squared divergence: of the links as "
        "drawn, after Adam, after the sweeps.",
        "",
        "| seed | mean plaquette | F | divergence | plaquettes moved by | defect of g | merges (matrices) | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        shares = ", ".join(f"{value:.4f}" for value in row["functional"])
        divergences = ", ".join(f"{value:.1g}" for value in row["divergence"])
        cells = [row["seed"], f"{row['plaquette']:.4f}", shares, divergences, f"{row['plaquettes_moved']:.1g}"]
        cells += [f"{row['defect']:.1g}", row["merged"], f"{row['seconds']:.1f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"
