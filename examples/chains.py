"""What a second of computing buys: dynamics, weighted samples of a generator, and Monte-Carlo chains of its proposals.

    python -m examples.chains --data runs/dense-0 --out runs/chains
    python -m examples.chains --data runs/dense-0 --weights runs/alanine/models/rnvp/generator.safetensors --short

Each way estimates the free-energy difference of φ > 0 (0 < φ < 2.4 rad against the rest) of alanine dipeptide. With the
standard error σ of ΔF and the probability p of the region, it is worth n = 1 / (σ² p (1 - p)) independent frames; these
are compared per second of CPU time of one core. What the generator's training took is not in its seconds; dynamics are
those of the biased simulation in `--data`, adaptation of the bias included.

Source: Hastings, Biometrika 57 (1970) 97, for the chains.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from examples.scaffold import command, parser
from p4torch.errors import P4Error
from p4torch.molecules import MALA, BoltzmannGenerator, MolecularSystem, ReferenceData
from p4torch.molecules.analysis.free_energy import FreeEnergyDifference
from p4torch.molecules.generator.reference import Reference
from p4torch.molecules.generator.sampling import SHIPPED
from p4torch.molecules.simulation.data import PARTS
from p4torch.runs.checkpoint import write_whole
from p4torch.runs.folder import read_json, writable_folder, write_json
from p4torch.runs.provenance import provenance

Row = dict[str, Any]

COLUMNS = (
    "| | ΔF / kT | CPU s | independent frames | per CPU s | acceptance | autocorrelation time / steps |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
)


@dataclass(frozen=True)
class Setting:
    """How much of each: samples in all, chains, steps that chains forget first, Langevin steps between proposals."""

    samples: int = 100_000
    chains: int = 64
    discard: int = 50
    local_samples: int = 20_000
    langevin_steps: int = 5
    langevin_size: float = 0.001

    @property
    def local(self) -> MALA:
        """Moves between proposals."""
        return MALA(self.langevin_steps, self.langevin_size)


SHORT = Setting(samples=3200, chains=64, discard=5, local_samples=3200, langevin_steps=1)


def worth(estimate: FreeEnergyDifference) -> float:
    """Independent frames that would have this error of ΔF."""
    p = 1 / (1 + math.exp(estimate.value))
    return 1 / (estimate.error**2 * p * (1 - p))


def row(name: str, estimate: FreeEnergyDifference, seconds: float, **more: Any) -> Row:
    """Of the table."""
    frames = worth(estimate)
    values = {"delta_f_kT": estimate.value, "delta_f_kT_error": estimate.error, "cpu_seconds": seconds}
    return {"name": name, **values, "independent_frames": frames, "per_second": frames / seconds, **more}


def dynamics(reference: Reference, data: Path) -> Row:
    """All frames of a biased simulation."""
    said = read_json(data / "provenance.json")
    return row("dynamics, biased", _visited(reference.difference), said["wall_seconds"] * said["workers"])


def weighted(generator: BoltzmannGenerator, setting: Setting, seed: int) -> Row:
    """Samples with weights."""
    samples, seconds = timed(lambda: generator.sample(setting.samples, torch.Generator().manual_seed(seed)))
    return row("generator, weighted samples", generator.free_energy_difference(samples), seconds)


def chains(generator: BoltzmannGenerator, reference: Reference, setting: Setting, seed: int, local: MALA | None) -> Row:
    """Monte-Carlo chains, with or without Langevin moves."""
    count = setting.local_samples if local else setting.samples
    steps = max(1, count // setting.chains)
    made, seconds = timed(
        lambda: generator.sample_mcmc(steps, setting.chains, local=local, discard=setting.discard, seed=seed)
    )
    estimate = _visited(reference.free_energy(made.frames, trajectory_ids=made.trajectory_ids))
    inside = made.mixing(made.inside(reference.torsion))
    name = "generator, chains" + (f" with {local.steps} Langevin steps" if local else "")
    more = {"local_acceptance": made.local_acceptance, "energy_autocorrelation": made.mixing().autocorrelation_time}
    times = {"autocorrelation": inside.autocorrelation_time, **more}
    return row(name, estimate, seconds, acceptance=float(made.acceptance), **times)


def _visited(estimate: FreeEnergyDifference | None) -> FreeEnergyDifference:
    """What was found, where both regions were visited."""
    if estimate is None:
        raise P4Error("both regions of the torsion must be visited: draw more, or simulate longer")
    return estimate


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """(what it gives, CPU seconds)."""
    started = time.process_time()
    return work(), time.process_time() - started


def table(rows: Sequence[Row]) -> str:
    """For people."""
    lines = []
    for one in rows:
        known = [
            f"{one[name]:{form}}" if name in one else "-"
            for name, form in (("acceptance", ".3f"), ("autocorrelation", ".2f"))
        ]
        value = f"{one['delta_f_kT']:.3f} ± {one['delta_f_kT_error']:.3f}"
        cells = [
            one["name"],
            value,
            f"{one['cpu_seconds']:.0f}",
            f"{one['independent_frames']:.0f}",
            f"{one['per_second']:.1f}",
        ]
        lines.append("| " + " | ".join([*cells, *known]) + " |\n")
    return COLUMNS + "".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser("examples.chains", __doc__)
    options.add_argument("--data", type=Path, required=True, help="folder of a biased simulation")
    options.add_argument("--weights", type=Path, help="of a generator; default: the one that the repository holds")
    options.add_argument("--out", type=Path, default=Path("runs/chains"))
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--short", action="store_true", help="seconds of it, to see that it works")
    given = options.parse_args(arguments)
    setting, console = SHORT if given.short else Setting(), Console()
    system = MolecularSystem.alanine_dipeptide()
    try:
        writable_folder(given.out)
        generator = BoltzmannGenerator.load(given.weights or SHIPPED, system)
        reference = Reference(system, *(ReferenceData.load(given.data, part, system) for part in PARTS))
        rows = [dynamics(reference, given.data), weighted(generator, setting, given.seed)]
        rows += [chains(generator, reference, setting, given.seed, local) for local in (None, setting.local)]
    except P4Error as error:
        print(error, file=sys.stderr)
        return 2
    write_json(given.out / "metrics.json", {"model": generator.model, "rows": rows})
    write_json(given.out / "provenance.json", provenance(seed=given.seed, command=command("examples.chains")))
    text = table(rows)
    write_whole(given.out / "table.md", lambda path: path.write_text(text))
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
