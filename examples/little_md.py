"""How little dynamics a generator needs, if it may ask for forces.

    python -m examples.little_md --nanoseconds 0.1,0.4,1.6 --out runs/little-md
    python -m examples.little_md --short

For each length, two walkers of alanine dipeptide run so long under a bias that a run of the same length has found. The
free-energy difference of φ > 0 (0 < φ < 2.4 rad against the rest) is estimated from

    dynamics    their weighted frames alone
    likelihood  weighted samples of a generator that was trained on these frames
    forces      weighted samples of the same generator after it has learned from the forces at its own samples, with a
                tenth of the likelihood of the frames: samples alone lose modes while their weights are poor

Energies are counted with their gradients; each time step of the dynamics is one. A length that is done is not done
again; a training that was stopped goes on.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from examples.scaffold import command, parser
from p4torch.errors import P4Error
from p4torch.molecules import BoltzmannGenerator, MolecularSystem, ReferenceData, TorsionFlattening, simulate
from p4torch.molecules.analysis.free_energy import FreeEnergyDifference
from p4torch.molecules.analysis.weights import effective_sample_size
from p4torch.molecules.generator.architectures import MIXING_RANK
from p4torch.molecules.generator.reference import principal_difference
from p4torch.molecules.generator.schedule import PERTURBATION_RATE
from p4torch.runs.checkpoint import write_whole
from p4torch.runs.folder import read_json, writable_folder, write_json
from p4torch.runs.provenance import provenance

Row = dict[str, Any]

COLUMNS = (
    "| dynamics / ns | from | ΔF / kT | ESS / % | energies / 10⁶ | minutes |\n"
    "| ---: | --- | ---: | ---: | ---: | ---: |\n"
)


@dataclass(frozen=True)
class Setting:
    """Of the trainings, and how many samples judge them."""

    likelihood_steps: int = 400
    force_steps: int = 3_000
    learning_rate: float = 1e-3
    judged: int = 50_000


SHORT = Setting(likelihood_steps=20, force_steps=4, judged=500)


def dynamics(nanoseconds: float, seed: int) -> TorsionFlattening:
    """All of it is for training."""
    return TorsionFlattening(
        walkers=2,
        held_out=0,
        adapters=1,
        save_ps=0.02,
        seed=seed,
        nanoseconds=nanoseconds,
        adaptation_ns=nanoseconds,
        equilibration_ns=nanoseconds / 10,
    )


def length(system: MolecularSystem, nanoseconds: float, setting: Setting, out: Path, seed: int) -> list[Row]:
    """The rows of one length."""
    started, method = time.perf_counter(), dynamics(nanoseconds, seed)
    total = method.walkers * (method.nanoseconds + method.equilibration_ns) + method.adapters * method.adaptation_ns
    steps = round(total * 1e6 / method.step_fs)
    if not (out / "data" / "train" / "frames.dcd").exists():
        simulate(system, method, out / "data", workers=1, resume=(out / "data").exists())
    data = ReferenceData.load(out / "data", "train", system)
    spent = 0

    def row(origin: str, estimate: FreeEnergyDifference | None, ess: float) -> Row:
        values = {
            "delta_f_kT": estimate and estimate.value,
            "delta_f_kT_error": estimate and estimate.error,
            "ess": ess,
        }
        minutes = (time.perf_counter() - started) / 60
        return {"nanoseconds": total, "from": origin, **values, "energies": steps + spent, "minutes": minutes}

    def judge(origin: str, generator: BoltzmannGenerator) -> Row:
        samples = generator.sample(setting.judged, torch.Generator().manual_seed(seed))
        weights = samples.weights if samples.weighted else torch.zeros(len(samples))
        ess = effective_sample_size(samples.log_weights) if samples.weighted else 0.0
        return row(origin, principal_difference(system, samples.frames, weights), ess)

    reweighted = principal_difference(system, data.frames, data.weights, data.trajectory_ids)
    rows = [row("dynamics", reweighted, effective_sample_size(data.weights.log()))]
    generator = BoltzmannGenerator.create(system, data.frames, data.weights, seed=seed)
    rate = PERTURBATION_RATE / math.sqrt(MIXING_RANK)
    options: dict[str, Any] = {"perturbation_rate": rate, "seed": seed, "resume": True}
    generator.fit_likelihood(
        data.frames, data.weights, steps=setting.likelihood_steps, out=out / "likelihood", **options
    )
    rows.append(judge("likelihood", generator))
    run = generator.fit_forces(
        data.frames,
        data.weights,
        steps=setting.force_steps,
        learning_rate=setting.learning_rate,
        out=out / "forces",
        **options,
    )
    spent = run.evaluations
    rows.append(judge("forces", generator))
    return rows


def table(rows: Sequence[Row]) -> str:
    """For people."""
    lines = []
    for one in rows:
        error = "?" if one["delta_f_kT_error"] is None else f"{one['delta_f_kT_error']:.2f}"
        value = "not visited" if one["delta_f_kT"] is None else f"{one['delta_f_kT']:.2f} ± {error}"
        numbers = f"{100 * one['ess']:.1f} | {one['energies'] / 1e6:.2f} | {one['minutes']:.1f}"
        lines.append(f"| {one['nanoseconds']:g} | {one['from']} | {value} | {numbers} |\n")
    return COLUMNS + "".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser("examples.little_md", __doc__)
    options.add_argument("--nanoseconds", default="0.1,0.4,1.6", help="of each walker, with commas")
    options.add_argument("--out", type=Path, default=Path("runs/little-md"))
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--short", action="store_true", help="seconds of it, to see that it works")
    given = options.parse_args(arguments)
    setting = SHORT if given.short else Setting()
    torch.set_flush_denormal(True)
    system, rows = MolecularSystem.alanine_dipeptide(), []
    try:
        writable_folder(given.out)
        for text in ["0.01"] if given.short else given.nanoseconds.split(","):
            folder = given.out / f"{text}ns"
            done = folder / "rows.json"
            if not done.exists():
                write_json(done, length(system, float(text), setting, folder, given.seed))
            rows += read_json(done)
    except (P4Error, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    write_json(given.out / "metrics.json", rows)
    write_json(given.out / "provenance.json", provenance(seed=given.seed, command=command("examples.little_md")))
    write_whole(given.out / "table.md", lambda path: path.write_text(table(rows), encoding="utf-8"))
    Console().print(table(rows), highlight=False, markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
