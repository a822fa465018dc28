"""What a run of generators leaves for its reader: rows, table, figures, trajectories, and a page."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from p4torch.molecules.analysis.plots import CEILING, ERROR
from p4torch.molecules.conditions import solvent
from p4torch.molecules.generator import figures
from p4torch.molecules.generator.architectures import architecture
from p4torch.molecules.generator.diagnostics import energy_parity, findings, headline, uncovered_share
from p4torch.molecules.generator.evaluation import floors, held_out_mean
from p4torch.molecules.generator.job import Job, has_nll, load_nll, load_samples
from p4torch.molecules.generator.reference import Reference
from p4torch.molecules.generator.samples import Samples
from p4torch.molecules.generator.table import cells, markdown
from p4torch.molecules.generator.trajectories import write_trajectories
from p4torch.molecules.report import Molecule, Page, Plot, Table, write_page
from p4torch.runs.checkpoint import write_whole
from p4torch.runs.folder import read_json, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]

#: Structures that the page shows, and models that figures do.
SHOWN, DRAWN = 60, 6

#: Titles and captions of the figures, by the name of their file.
FIGURES = {
    "energies": (
        "Energies",
        "Of samples without weights, against the simulation's; the dotted line is the simulation's largest energy, the "
        "number above each violin the share of energies below it.",
    ),
    "ramachandran": (
        "Torsions",
        "Free energy over two torsions: of the simulation, and of the model's samples without weights and with them.",
    ),
    "free-energy": (
        "Free energy",
        "Along the torsion, with bands of two standard errors; a gap is where a bin is hardly sampled (an error above "
        f"{ERROR:g} kT), and the axis ends at {CEILING:g} kT.",
    ),
    "ess": (
        "Effective sample size",
        "Against the number of samples: where a line falls back, a sample came that outweighs all before it.",
    ),
    "training": (
        "Training",
        "Effective sample size and held-out likelihood, against time and energy evaluations. -log q depends on the "
        "coordinates: models whose torsions are other coordinates have an axis of their own.",
    ),
}

REPORT = "report.html"
#: Below the table.
EXPLAINED = (
    "± one standard error. Own coordinates: −log q depends on them, and models with others cannot be compared by it; "
    "its difference from the first model's is that of shapes, and can. Forward ESS: the effective share of held-out "
    "frames, weighted from the model to the Boltzmann distribution; it sees modes that samples miss. A single held-out "
    "frame where the model has hardly any density brings it down to nothing, also for models whose samples are good. "
    "md-held-out: held-out frames against those trained on, which no model can beat; md-noise: frames with Gaussian "
    "noise on every coordinate."
)


@dataclass(frozen=True)
class Results:
    """Finished jobs of one molecule: their rows and samples."""

    reference: Reference
    jobs: tuple[Job, ...]
    models: Path

    @cached_property
    def rows(self) -> list[Row]:
        """As jobs left them; all but the first with their difference from it in the log-density of the same held-out
        frames. It is that of shapes: models may have different coordinates, whose -log q cannot be compared."""
        result: list[Row] = [read_json(self.models / job.name / "result.json") for job in self.jobs]
        first, *others = (self.models / job.name for job in self.jobs)
        for row, path in zip(result[1:], others, strict=True):
            if has_nll(first) and has_nll(path):
                difference = held_out_mean(self.reference, load_nll(path) - load_nll(first))
                row |= {"nll_difference": difference.value, "nll_difference_error": difference.error}
        return result

    @property
    def samples(self) -> dict[str, Samples]:
        """By title, of as many jobs as figures can tell apart."""
        return {job.title: load_samples(self.models / job.name / "samples.npz") for job in self.jobs[:DRAWN]}

    @property
    def logs(self) -> dict[str, list[Row]]:
        """By title."""
        texts = {job.title: (self.models / job.name / "metrics.jsonl").read_text("utf-8") for job in self.jobs}
        return {title: [json.loads(line) for line in text.splitlines()] for title, text in texts.items()}

    @property
    def coordinates(self) -> dict[str, str]:
        """How models have torsions, by title: only where it is the same can their -log q be compared."""
        return {job.title: architecture(job.model).torsions for job in self.jobs}

    @cached_property
    def best(self) -> int:
        """The number of the job whose samples are worth most."""
        return max(range(len(self.rows)), key=lambda index: self.rows[index]["ess_raw"])


def summarise(results: Results, out: Path, facts: Mapping[str, str] | None = None) -> None:
    """Write `metrics.json`, `md.json`, `table.md`, figures as PNG and PDF, `samples/` of the best model, and
    `report.html`, with `facts` by name: what else there is to say of how the run was made."""
    rows, samples = results.rows, results.samples
    reference, best = results.reference, results.jobs[results.best]
    baseline = floors(reference)
    write_json(out / "metrics.json", rows)
    write_json(out / "md.json", baseline)
    text = markdown([*rows, *baseline])
    write_whole(out / "table.md", lambda path: path.write_text(text, encoding="utf-8"))
    chosen = samples.get(best.title) or load_samples(results.models / best.name / "samples.npz")
    figures_by_name = {
        "energies": figures.energies(reference, samples),
        "ramachandran": figures.ramachandran(reference, best.title, chosen),
        "free-energy": figures.free_energies(reference, best.title, chosen),
        "ess": figures.sizes(samples),
        "training": figures.training(results.logs, results.coordinates),
    }
    for name, figure in figures_by_name.items():
        for kind in ("png", "pdf"):
            write_whole(out / f"{name}.{kind}", partial(figure.savefig, format=kind, dpi=200))
    write_trajectories(out / "samples", reference.system, chosen)
    write_page(out / REPORT, page(results, chosen, figures_by_name, baseline, facts or {}))


def page(
    results: Results,
    samples: Samples,
    figures_by_name: dict[str, Figure],
    baseline: Sequence[Row],
    facts: Mapping[str, str],
) -> Page:
    """The page of a run; its findings are of the best model, whose samples are given."""
    reference, system = results.reference, results.reference.system
    title = results.jobs[results.best].title
    residues = "-".join(residue.name for residue in system.topology.residues())
    histogram = reference.histogram(samples.frames).probabilities
    uncovered = uncovered_share(reference.ramachandran.probabilities, histogram)
    diagnostics = findings(results.rows[results.best], energy_parity(system, samples), uncovered)
    header, lines = cells([*results.rows, *baseline])
    columns = tuple(zip(*lines, strict=True))
    return Page(
        title=f"Boltzmann generator of {residues}",
        lead=f"{system.atoms} atoms at {system.temperature:g} K. {len(reference.all):,} weighted frames of a "
        f"simulation, {len(reference.train):,} of them for training. What follows is about the model {title}, whose "
        f"{len(samples):,} samples are worth most; the table has all.",
        findings=diagnostics,
        plots=tuple(Plot(*FIGURES[name], png(figure)) for name, figure in figures_by_name.items()),
        tables=(
            Table(
                "All figures",
                (header[0], *columns[0]),
                tuple((name, *column) for name, column in zip(header[1:], columns[1:], strict=True)),
                EXPLAINED,
            ),
        ),
        molecule=structures(reference, samples),
        footer=f"Written by p4torch. {system!r}",
        headline=headline(diagnostics),
        facts=(
            ("Temperature", f"{system.temperature:g} K"),
            ("Solvent", solvent(system.openmm_system)),
            *facts.items(),
        ),
    )


def structures(reference: Reference, samples: Samples) -> Molecule | None:
    """Some samples below the data's largest energy, drawn by weight if there are weights."""
    system = reference.system
    low = samples.select(samples.energies <= reference.level[1])
    if len(low) == 0:
        return None
    chances = low.weights if low.weighted else torch.full((len(low),), 1.0, dtype=torch.float64)
    count = min(SHOWN, int((chances > 0).sum()))
    chosen = torch.multinomial(chances, count, generator=torch.Generator().manual_seed(0))
    symbols = tuple(atom.element.symbol if atom.element else "?" for atom in system.topology.atoms())
    picked = low.select(chosen)
    return Molecule(symbols, tuple((i, j) for i, j in system.bonds), picked.frames, picked.energies)


def png(figure: Figure) -> bytes:
    """The figure's file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()
