"""`metrics.json` and `table.md` of the properties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from p4torch.runs.checkpoint import write_whole
from p4torch.runs.folder import write_json

Metrics = dict[str, dict[str, Any]]

#: What each part says of the run that measured it: parts may come from several.
MADE = ("command", "started", "git_revision")

HEAD = (
    "property",
    "defect",
    "distance",
    "change by a merge",
    "residual of A⁻¹",
    "directions",
    "step",
    "merge",
    "skipped",
)
WORDS = """\
**defect** after {steps} Adam steps on changing targets with merges every {every}, float32, n = {features}, in the
property's own measure, in double precision; in brackets the largest before a merge, where it is much larger.
**distance**: ‖A - P(A)‖ / ‖A‖ with P the property's projection, an upper bound of the relative distance from S; none
where everything is admitted as it is.
**change by a merge**: of the effective weight, relative, median and largest of all merges (corrections included).
**residual of A⁻¹**: the largest entry of A A⁻¹ - I at the end, where the property offers an inverse (`Invertible`
without bounds on log|det A|). **directions**: in how many B moves A at B₀, n = {small}, at the rank given.
**step**: forward and backward relative to `nn.Linear` of the same dtype, n = {large}, batch {batch}; **merge**: in
such steps of the property; medians of alternating runs, for the ranks given (quartiles in metrics.json).
**skipped**: merges that were refused, of all."""


def write(folder: Path, machine: Mapping[str, Any], metrics: Metrics, settings: Mapping[str, Any]) -> list[Path]:
    """Both files, each whole."""
    data, table = folder / "metrics.json", folder / "table.md"
    write_json(data, {"machine": machine, "properties": metrics})
    host = machine["machine"]
    text = f"{host['cpu']}, {host['cores']} cores, torch {machine['versions']['torch']}. {_commands(metrics)}.\n\n"
    text += WORDS.format(**settings) + "\n\n" + markdown(HEAD, [row(name, parts) for name, parts in metrics.items()])
    write_whole(table, lambda path: path.write_text(text, encoding="utf-8"))
    return [data, table]


def _commands(metrics: Metrics) -> str:
    """The command behind all numbers; or that there were several."""
    commands = {part.get("made", {}).get("command") for parts in metrics.values() for part in parts.values()}
    if len(commands) == 1 and None not in commands:
        return f"`{commands.pop()}`"
    return "`python -m benchmarks.properties`, in several runs (metrics.json names those of the later ones)"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def row(name: str, parts: Mapping[str, Any]) -> list[str]:
    """One line of the table; why a part is missing is said in its place, or once for all of them."""
    reasons = {part.get("reason") for part in parts.values()}
    if len(reasons) == 1 and None not in reasons:
        return [name, str(reasons.pop()), *["-"] * (len(HEAD) - 2)]
    walk, tangent, timed = (parts.get(part, {}) for part in ("training", "directions", "times"))
    return [name, *_kept(walk), _directions(tangent), *_times(timed), _skipped(walk)]


def _kept(walk: Mapping[str, Any]) -> list[str]:
    if "defect" not in walk:
        return [str(walk.get("reason", "-")), "-", "-", "-"]
    defect = f"{walk['defect']:.1e}"
    if walk["defect_before_merges"] > max(10 * walk["defect"], 1e-5):
        defect += f" ({walk['defect_before_merges']:.1e})"
    distance, residual = walk["distance"], walk.get("inverse_residual")
    change = f"{walk['change_median']:.1e}, {walk['change_largest']:.1e}"
    return [defect, _number(distance), change, _number(residual)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _directions(tangent: Mapping[str, Any]) -> str:
    if "directions" not in tangent:
        return str(tangent.get("reason", "-"))
    return f"{tangent['directions']}" + ("" if tangent["rank"] is None else f" (rank {tangent['rank']})")


def _times(timed: Mapping[str, Any]) -> list[str]:
    if "step" not in timed:
        return [str(timed.get("reason", "-")), "-"]
    return [_ratios(timed["step"]), _ratios(timed["merge"])]


def _ratios(rows: Mapping[str, Mapping[str, Any]]) -> str:
    shown = []
    for rank, value in rows.items():
        ratio = value["reason"] if value["ratio"] is None else f"{value['ratio']:.2f}"
        shown.append(ratio if rank == "None" else f"{ratio} (rank {rank})")
    return ", ".join(shown)


def _skipped(walk: Mapping[str, Any]) -> str:
    return f"{walk['skipped']} of {walk['merged'] + walk['skipped']}" if "skipped" in walk else "-"
