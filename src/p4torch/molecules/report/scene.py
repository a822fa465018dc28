"""What the viewer draws: superposed frames, colours and radii, as compact JSON."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from p4torch.molecules.report.contents import Molecule
from p4torch.molecules.rigid import superpose

#: Coordinates are whole numbers of this many nm.
UNIT = 1e-4

#: Colour and radius of the ball (nm) by element, and those of any other. White to red as chemists are used to.
ELEMENTS = {
    "H": ("#eef0f3", 0.026),
    "C": ("#5b6470", 0.039),
    "N": ("#3f63e0", 0.039),
    "O": ("#dd3b35", 0.038),
    "F": ("#6fc65a", 0.035),
    "P": ("#ec8a2b", 0.046),
    "S": ("#e2bd2c", 0.046),
    "Cl": ("#35ab4c", 0.045),
    "Br": ("#9c4a31", 0.048),
    "I": ("#8b3fb5", 0.051),
}
OTHER = ("#d178ae", 0.044)

#: From low to high energy: lightness rises in even steps while the hue turns from violet over blue and green to yellow.
COLOURS = ("#5e218f", "#4944b3", "#0068c4", "#0686ae", "#079fa9", "#0fb89d", "#4acf77", "#aad74f", "#f2d935")

#: Energies further above the upper quartile than so many ranges between the quartiles share the last colour: one
#: clash of atoms would otherwise give all other frames the first one.
FENCE = 1.5


def scene(molecule: Molecule) -> str:
    """The JSON that `viewer.js` reads; safe inside a `script` element."""
    frames = fitted(molecule.frames)
    energies = molecule.energies.detach().to("cpu", torch.float64)
    low, high = energy_range(energies)
    symbols = elements(molecule)
    radii = [float(frame.norm(dim=-1).max()) for frame in frames]
    contents = {
        "unit": UNIT,
        # Most frames fill the view; a few that fly apart do not shrink the rest.
        "radius": sorted(radii)[len(radii) // 2] + max(radius for _, radius in symbols.values()),
        "elements": list(symbols.values()),
        "atoms": [list(symbols).index(_name(symbol)) for symbol in molecule.symbols],
        "bonds": [list(bond) for bond in molecule.bonds],
        "frames": (frames / UNIT).round().long().flatten(1).tolist(),
        "shades": [round(shade, 3) for shade in ((energies - low) / ((high - low) or 1)).clamp(0, 1).tolist()],
        "energies": [energy_text(energy) for energy in energies.tolist()],
        "colours": COLOURS,
    }
    return json.dumps(contents, separators=(",", ":")).replace("<", "\\u003c")


def fitted(frames: Tensor) -> Tensor:
    """Frames superposed on the first, which lies with its longest axis across and its shortest towards the reader."""
    frames = frames.detach().to("cpu", torch.float64)
    first = frames[0] - frames[0].mean(0)
    axes = torch.linalg.svd(first)[2]
    axes[2] *= torch.linalg.det(axes).sign()  # a mirror image would be another molecule
    return superpose(frames, first @ axes.T)


def energy_range(energies: Tensor) -> tuple[float, float]:
    """The energies that the first and the last colour stand for."""
    energies = energies.detach().to("cpu", torch.float64)
    low, lower, upper, high = torch.quantile(energies, energies.new_tensor([0, 0.25, 0.75, 1])).tolist()
    fence = upper + FENCE * (upper - lower)
    return low, min(high, fence) if fence > low else high


def elements(molecule: Molecule) -> dict[str, tuple[str, float]]:
    """Colour and radius of the elements that occur, in the order of their first atoms."""
    return {name: ELEMENTS.get(name, OTHER) for name in map(_name, molecule.symbols)}


def energy_text(energy: float) -> str:
    """An energy in kT, for people."""
    text = f"{energy:.1f}" if abs(energy) < 1e5 else f"{energy:.2e}"
    return text.replace("-", "−") if float(text) else "0.0"


def _name(symbol: str) -> str:
    return symbol.strip().capitalize()
