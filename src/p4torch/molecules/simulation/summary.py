"""What a simulation has found, and how far it can be trusted: `summary.json`, figures, and a few lines of text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from p4torch.molecules.analysis.crossings import count_crossings
from p4torch.molecules.analysis.free_energy import POSITIVE_PHI, free_energy_difference, free_energy_profile
from p4torch.molecules.analysis.histograms import ramachandran_histogram
from p4torch.molecules.analysis.plots import free_energy_figure, ramachandran_figure
from p4torch.molecules.analysis.tempering import tempering_free_energy_difference
from p4torch.molecules.analysis.torsions import in_arc, torsion_angles
from p4torch.molecules.simulation.data import PARTS, ReferenceData
from p4torch.molecules.simulation.parallel_tempering import part_name
from p4torch.molecules.system import MolecularSystem
from p4torch.molecules.torsion_names import default_torsions, parse_torsions, torsion_label
from p4torch.runs.folder import read_json, write_figure, write_json

#: MBAR sees at most so many frames of a temperature: its time grows with them, its error hardly falls.
_MBAR_FRAMES = 4000


@dataclass(frozen=True)
class Summary:
    """`fields` as in `summary.json`, and what a reader of the terminal gets."""

    fields: dict[str, Any]

    @property
    def text(self) -> str:
        """A few lines."""
        lines = [_line(name, part) for name, part in self.fields["parts"].items()]
        mbar = self.fields.get("mbar")
        if mbar:
            lines.append(f"MBAR over all temperatures: {_pair(mbar['delta_f_kT'], mbar['error_kT'])} kT")
        return "\n".join(lines)


def summarise(out: Path, system: MolecularSystem) -> Summary:
    """Of a finished run in the folder `out`: writes `summary.json`, `free-energy` and `ramachandran` figures there.

    The free-energy difference is that between 0 < θ < 2.4 rad and all the rest, in kT, with θ the first torsion that
    was biased, or would be by default.
    """
    config = read_json(out / "config.json")
    tempered = config["method"] == "tempered"
    names = [part_name(temperature) for temperature in config["temperatures"]] if tempered else list(PARTS)
    parts = {name: ReferenceData.load(out, name, system) for name in names if (out / name).exists()}
    label = torsion_label(system.topology, default_torsions(system.topology)[0]) if tempered else config["biased"][0]
    torsion = parse_torsions(system.topology, label)[0]
    angles = {name: torsion_angles(data.frames, torch.tensor([torsion]))[:, 0] for name, data in parts.items()}
    fields: dict[str, Any] = {
        "torsion": label,
        "region_rad": list(POSITIVE_PHI),
        "parts": {name: _part(data, angles[name]) for name, data in parts.items()},
    }
    if tempered:
        fields["mbar"] = _mbar(list(parts.values()), list(angles.values()), fields["parts"][names[0]])
    write_json(out / "summary.json", fields)
    _draw(out, system, parts, angles, label)
    return Summary(fields)


def _part(data: ReferenceData, theta: Tensor) -> dict[str, Any]:
    weights = data.weights
    everything = _difference(theta, data)
    crossings = count_crossings(theta, data.trajectory_ids)
    mean = float((weights * data.energies).sum() / weights.sum())
    trajectories = {
        int(index): _difference(theta[mine], data.select(mine))
        for index in data.trajectory_ids.unique()
        if (mine := data.trajectory_ids == index).any()
    }
    return {
        "temperature": data.temperature,
        "frames": len(data),
        "effective_share": float(weights.sum() ** 2 / weights.square().sum() / len(weights)),
        "crossings": int(crossings.between_cores.sum()),
        "mean_energy_kJ_mol": mean,
        **everything,
        "walkers": trajectories,
    }


def _difference(theta: Tensor, data: ReferenceData) -> dict[str, Any]:
    """Without numbers where a region was not visited: then nothing is known about it."""
    inside = in_arc(theta, POSITIVE_PHI)
    if bool(inside.all()) or not bool(inside.any()):
        return {"delta_f_kT": None, "error_kT": None}
    result = free_energy_difference(theta, weights=data.weights, trajectory_ids=data.trajectory_ids)
    details = {name: getattr(result, name) for name in ("blocks", "block_length", "inefficiency")}
    return {"delta_f_kT": result.value, "error_kT": result.error, **details}


def _mbar(parts: list[ReferenceData], angles: list[Tensor], lowest: dict[str, Any]) -> dict[str, Any] | None:
    """From all temperatures at once."""
    if lowest["delta_f_kT"] is None:
        return None
    stride = max(1, len(parts[0]) // _MBAR_FRAMES)
    energies = torch.cat([data.energies[::stride] for data in parts])
    states = torch.cat([torch.full((len(data.energies[::stride]),), index) for index, data in enumerate(parts)])
    inside = torch.cat([in_arc(theta[::stride], POSITIVE_PHI) for theta in angles])
    temperatures = torch.tensor([data.temperature for data in parts], dtype=torch.float64)
    inefficiency = max(1.0, lowest["inefficiency"] / stride)
    result = tempering_free_energy_difference(
        energies, temperatures, states, inside, parts[0].temperature, inefficiency=inefficiency
    )
    return {"delta_f_kT": result.value, "error_kT": result.error, "stride": stride}


def _draw(
    out: Path, system: MolecularSystem, parts: dict[str, ReferenceData], angles: dict[str, Tensor], label: str
) -> None:
    profiles = {
        name.replace("_", " "): free_energy_profile(
            angles[name], weights=data.weights, trajectory_ids=data.trajectory_ids
        )
        for name, data in parts.items()
    }
    figures = {"free-energy": free_energy_figure(profiles, {"phi": "φ", "psi": "ψ"}.get(label.partition(":")[0], "θ"))}
    try:
        both = torch.tensor(parse_torsions(system.topology, "phi,psi"))
    except ValueError:  # not one φ and one ψ
        both = None
    if both is not None:
        panels = {}
        for name, data in parts.items():
            phi, psi = torsion_angles(data.frames, both).unbind(-1)
            panels[name.replace("_", " ")] = ramachandran_histogram(phi, psi, weights=data.weights)
        figures["ramachandran"] = ramachandran_figure(panels)
    for name, figure in figures.items():
        write_figure(out / name, figure)


def _line(name: str, part: dict[str, Any]) -> str:
    result = "not both regions visited" if part["delta_f_kT"] is None else _pair(part["delta_f_kT"], part["error_kT"])
    return (
        f"{name.replace('_', ' ')}: {part['frames']} frames, effective {100 * part['effective_share']:.1f} %, "
        f"{part['crossings']} crossings, mean energy {part['mean_energy_kJ_mol']:.2f} kJ/mol, ΔF {result} kT"
    )


def _pair(value: float, error: float) -> str:
    return f"{value:.3f} ± {error:.3f}"
