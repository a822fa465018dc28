"""Energies and gradients of alanine dipeptide: the force field in PyTorch against OpenMM's Reference platform.

python -m benchmarks.molecules --out results/molecules
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from p4torch.molecules import ForceField, MolecularSystem, OpenMMEnergy
from p4torch.training.folder import write_json
from p4torch.training.provenance import provenance

FRAMES, NOISE_NM = 4000, 0.004


def rates(rounds: int, threads: int) -> dict[str, Any]:
    """Frames a second of each side, in turns, and ratios to two OpenMM processes of the same round."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    system = MolecularSystem.alanine_dipeptide()
    frames = system.positions + NOISE_NM * torch.randn(FRAMES, system.atoms, 3, dtype=torch.float64)
    force_field, single = ForceField(system.openmm_system), frames.float()
    found: dict[str, list[float]] = {}
    with OpenMMEnergy(system.openmm_system, workers=2) as two:
        sides: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
            "openmm, 2 processes": lambda: two.energy_and_gradient(frames),
            "p4torch, float32": lambda: force_field.energy_and_gradient(single),
            "p4torch, float64": lambda: force_field.energy_and_gradient(frames),
        }
        for side in sides.values():
            side()
        for _ in range(rounds):
            for name, side in sides.items():
                started = time.perf_counter()
                side()
                found.setdefault(name, []).append(FRAMES / (time.perf_counter() - started))
    reference = found["openmm, 2 processes"]
    rows = {}
    for name, values in found.items():
        ratios = [value / other for value, other in zip(values, reference, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows[name] = {"frames_per_second": statistics.median(values), "ratio": middle, "quartiles": [low, high]}
    return rows


def main() -> None:
    """Measure, print and write `force_field.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    rows = rates(asked.rounds, asked.threads)
    for name, row in rows.items():
        low, high = row["quartiles"]
        print(f"{name}: {row['frames_per_second']:,.0f} frames/s, ratio {row['ratio']:.2f} ({low:.2f} to {high:.2f})")
    write_json(asked.out / "force_field.json", {"rows": rows, "provenance": provenance(rounds=asked.rounds)})


if __name__ == "__main__":
    main()
