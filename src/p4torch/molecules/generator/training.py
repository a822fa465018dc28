"""Training of a generator: phases, log, checkpoints, exact resume."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from p4torch.errors import ArgumentError, CheckpointError
from p4torch.flows.structure import with_structure
from p4torch.molecules.analysis.weights import effective_sample_size
from p4torch.molecules.generator.encoded import Batches, Encoded
from p4torch.molecules.generator.log_files import write_board
from p4torch.molecules.generator.molecular_flow import MolecularFlow
from p4torch.molecules.generator.phase_fit import PhaseFit
from p4torch.molecules.generator.schedule import Phase, Schedule
from p4torch.molecules.trajectory import check_frames
from p4torch.parametrize.sites import counter_based_generator
from p4torch.runs import folder
from p4torch.runs.checkpoint import written
from p4torch.runs.pool import Progress, Report
from p4torch.training import load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from p4torch.flows.latent import Distribution

#: Held-out frames and samples that a line of the log rests on.
LOG_FRAMES, LOG_SAMPLES = 5000, 2000
#: Options of a schedule.
SHARED = ("merge_every", "perturbation_rate", "clip", "seed")


class Training:
    """A generator's training by a schedule, from the checkpoint in `out`, if it has one and `resume` is true.

    What a step does is a pure function of the seed and its number: a training that was stopped, or killed, and goes on
    ends with the same bits.

    Args:
        generator: trained in place.
        data: frames, for phases with likelihood.
        schedule: the phases.
        out: a folder for `checkpoint.pt` and `metrics.jsonl`; None keeps the log in memory, in `lines`.
        resume: go on from the checkpoint.
        held_out: frames that the log's likelihood is of.
        level: mean of u over the data, kT: what energy shifts are measured from; and `ceiling`, the largest u.
        report: called after each chunk, with the points through the flow so far; asks to stop by returning true.

    Raises:
        ArgumentError: no data for a phase that needs them.
        CheckpointError: a checkpoint of another molecule, model or schedule, or one that cannot be written.
    """

    def __init__(
        self,
        generator: MolecularFlow,
        data: Encoded | None,
        schedule: Schedule,
        *,
        out: Path | str | None = None,
        resume: bool = False,
        held_out: Encoded | None = None,
        level: tuple[float, float] | None = None,
        report: Report[Progress] | None = None,
    ) -> None:
        if data is None and any(phase.frames for phase in schedule.phases):
            raise ArgumentError.of("frames", "given, for a phase with likelihood", None)
        self.generator, self.data, self.schedule = generator, data, schedule
        self.out = None if out is None else Path(out)
        self.held_out, self.level = held_out, level
        self.report = report or (lambda progress: False)
        self.lines: list[dict[str, Any]] = []
        self.phase_index, self.done, self.points, self.seconds = 0, 0, 0, 0.0
        self.evaluations, self.left_out, self.broken = 0, 0, 0
        self.step_seconds = [0.0 for _ in schedule.phases]
        self.merge_counts = [[0, 0] for _ in schedule.phases]  # merged and skipped
        self._pending: dict[str, Any] | None = None
        self._since_log: list[Tensor] = []
        self._note = ""
        self._stopped = False
        if self.out is not None:
            folder.writable_folder(self.out)
            if resume and self._checkpoint.exists():
                self._restore(load_checkpoint(self._checkpoint))
            folder.keep_lines(self.out / "metrics.jsonl", self.points)

    @property
    def finished(self) -> bool:
        """Whether all phases are done."""
        return self.phase_index >= len(self.schedule.phases)

    def fit(self) -> bool:
        """Train to the end, or until the report asks to stop; whether it is finished.

        Ctrl-C raises KeyboardInterrupt; the last checkpoint stays.
        """
        while not self.finished and not self._stopped:
            self._fit_phase(self.schedule.phases[self.phase_index])
        return self.finished

    def _fit_phase(self, phase: Phase) -> None:
        self._fit = PhaseFit(self.generator, self.schedule, self.phase_index, self.done)
        self._started = time.perf_counter() - self.seconds
        if self._pending is not None:
            if self._fit.merges and self._pending["merges"]:
                self._fit.merges.load_state_dict(self._pending["merges"])
            if self._pending["optimizer"] is not None:
                self._fit.optimizer.load_state_dict(self._pending["optimizer"])
            self._pending = None
        base = cast("Distribution", self.generator.flow.base)
        for chunk in Batches(self.data, base, phase, self.schedule.seed, self.phase_index, self.done):
            self._after_chunk(len(chunk), self._fit.train(chunk))
            if self._stopped:
                break
        if self.done >= phase.steps:
            self.phase_index, self.done = self.phase_index + 1, 0

    def _after_chunk(self, made: int, loss: Tensor) -> None:
        """Count, log, report and save after so many steps of this mean loss."""
        phase, self.done = self._fit.phase, self._fit.done
        self.points += made * (phase.samples + phase.frames)
        self.evaluations += made * phase.samples
        self._since_log.append(loss)
        last = self.done >= phase.steps
        log = last or self.done % phase.every < made
        self.seconds = time.perf_counter() - self._started
        self._count()
        if log:
            self._log_line()
        stop = self.report(Progress(self.points, f"loss {float(loss):.3f}{self._note}"))
        if self.out is not None and (log or stop):
            self._write_checkpoint(last)
        self._stopped = stop and not (last and self.phase_index + 1 == len(self.schedule.phases))

    def _count(self) -> None:
        """Take over what the phase has counted since the last time."""
        fit = self._fit
        self.step_seconds[self.phase_index] += fit.seconds
        self.left_out, self.broken = self.left_out + fit.left_out, self.broken + int(fit.broken)
        fit.seconds, fit.left_out, fit.broken = 0.0, 0, torch.zeros_like(fit.broken)
        self.merge_counts[self.phase_index] = [fit.merged, fit.skipped]

    def _log_line(self) -> None:
        """Counts are of the whole run."""
        merged, skipped = map(sum, zip(*self.merge_counts, strict=True))
        row = {
            "step": self.points,
            "stage": self.phase_index,
            "stage_step": self.done,
            "loss": float(torch.stack(self._since_log).mean()),
            **self._quality(),
            "merged": merged,
            "skipped": skipped,
            "steps_left_out": self.left_out,
            "energies_left_out": self.broken,
            "energy_evaluations": self.evaluations,
            "seconds": self.seconds,
            "step_seconds": list(self.step_seconds),
        }
        self._since_log.clear()
        self.lines.append(row)
        said = {"energy_shift_kT": "shift {:.2f} kT", "ess": "ESS {:.2%}"}
        notes = [text.format(row[name]) for name, text in said.items() if row.get(name) is not None]
        notes.append(f"{row['merged']} merged, {row['skipped']} skipped")
        if self.left_out or self.broken:
            notes.append(f"not finite: {self.left_out} gradients, {self.broken} energies, left out")
        self._note = ", " + ", ".join(notes)
        if self.out is not None:
            with written(self.out / "metrics.jsonl"):
                folder.append_line(self.out / "metrics.jsonl", row)
                write_board(self.out / "tensorboard", row)

    @torch.no_grad()
    def _quality(self) -> dict[str, float | None]:
        """Held-out likelihood, and what samples are worth."""
        generator = counter_based_generator(self.schedule.seed, "log", self.points)
        samples = self.generator.sample(LOG_SAMPLES, generator)
        usable = bool((samples.log_weights > -math.inf).any())
        result: dict[str, float | None] = {"ess": effective_sample_size(samples.log_weights) if usable else None}
        if self.held_out is not None:
            frames = self.held_out.draw(LOG_FRAMES, counter_based_generator(self.schedule.seed, "held out", 0))
            result["nll"] = -float(self.generator.flow.log_prob(frames).mean())
        if self.level is not None:
            mean, largest = self.level
            low = samples.energies[samples.energies <= largest]
            result["energy_shift_kT"] = float(low.mean()) - mean if len(low) else None
            result["low_energy_fraction"] = len(low) / len(samples)
        return result

    # --- checkpoints ------------------------------------------------------------------------------------------------

    @property
    def _checkpoint(self) -> Path:
        assert self.out is not None
        return self.out / "checkpoint.pt"

    def _identity(self) -> dict[str, Any]:
        return {
            "fingerprint": self.generator.system.fingerprint,
            "temperature": self.generator.system.temperature,
            "model": self.generator.model,
            **self.schedule.fields(),
        }

    def _write_checkpoint(self, phase_done: bool) -> None:
        state = {
            "of": self._identity(),
            "generator": self.generator.state_dict(),
            "optimizer": None if phase_done else self._fit.optimizer.state_dict(),
            "merges": {} if phase_done or self._fit.merges is None else self._fit.merges.state_dict(),
            "stage_index": self.phase_index + phase_done,
            "done": 0 if phase_done else self.done,
            "losses": self._since_log,
            **{name: getattr(self, name) for name in _COUNTS},
        }
        save_checkpoint(self._checkpoint, state)

    def _restore(self, state: dict[str, Any]) -> None:
        wrong = folder.differences(self._identity(), self.schedule.adopted(state.get("of", {})))
        if wrong:
            raise CheckpointError(f"`{self._checkpoint}` must be of the training that is resumed: {wrong}")
        self._check_coordinates(state["generator"])
        self.generator.load_state_dict(with_structure(self.generator, state["generator"]))
        self.phase_index, self.done = state["stage_index"], state["done"]
        self._since_log = list(state.get("losses", []))
        for name in _COUNTS:
            setattr(self, name, state.get(name, getattr(self, name)))
        added = len(self.schedule.phases) - len(self.step_seconds)
        self.step_seconds += [0.0] * added
        self.merge_counts += [[0, 0] for _ in range(added)]
        self._pending = {"optimizer": state["optimizer"], "merges": state["merges"]}

    def _check_coordinates(self, state: dict[str, Tensor]) -> None:
        """Frames were encoded by the generator's coordinates, before this; other threads sum in another order."""
        for name, value in self.generator.coordinates.state_dict().items():
            got = state[f"coordinates.{name}"]
            if got.shape != value.shape or not torch.allclose(got, value, rtol=1e-6, atol=1e-9):
                raise CheckpointError(f"`{self._checkpoint}` must be of these data, got coordinates of other frames")


def train(
    generator: MolecularFlow, phase: Phase, frames: Tensor | None, weights: Tensor | None, **options: Any
) -> Training:
    """A training of one phase, done; options are of `Schedule` or of `Training`."""
    if frames is not None:
        check_frames(frames, generator.system)
    shared = {name: options.pop(name) for name in SHARED if name in options}
    data = None if frames is None else Encoded(generator.coordinates, frames, weights)
    training = Training(generator, data, Schedule((phase,), **shared), **options)
    training.fit()
    return training


_COUNTS = ("points", "seconds", "evaluations", "left_out", "broken", "step_seconds", "merge_counts")
