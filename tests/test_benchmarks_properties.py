"""The measures of the properties: what they find on small runs, and what a run keeps."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.properties import measures, report
from benchmarks.properties.__main__ import main
from benchmarks.properties.subjects import SUBJECTS, Subject, plain
from rich.console import Console

import p4torch.properties as properties
from p4torch.properties import Orthogonal

#: Of the training in single precision: a few roundings of entries of about 1.
ROUNDING = 1e-5


def run(out: Path, *arguments: str) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=200)
    code = main([*arguments, "--out", str(out)], console)
    return code, console.file.getvalue()  # type: ignore[attr-defined]


def test_elements_lie_in_their_sets() -> None:
    weight = Subject("Orthogonal").element(6, 1)
    assert float(Orthogonal(weight).defect(weight)) < ROUNDING
    assert torch.equal(weight, Subject("Orthogonal").element(6, 1))
    assert not torch.equal(weight, Subject("Orthogonal").element(6, 1, index=1))


def test_a_training_keeps_the_property_and_its_merges_the_weight() -> None:
    found = measures.training(Subject("Orthogonal"), steps=3 * measures.EVERY)
    assert found["merged"] == 3 and found["skipped"] == 0
    assert max(found["defect"], found["distance"], found["change_largest"], found["inverse_residual"]) < ROUNDING


def test_directions() -> None:
    n = measures.SMALL
    assert measures.directions(Subject("LowRankUpdate"))["directions"] == n
    assert measures.directions(Subject("LowRankUpdate", ranks=(3,)))["directions"] == 3 * n
    assert measures.directions(Subject("Orthogonal"))["directions"] == n - 1


def test_plain_layers_have_the_weight() -> None:
    weight = torch.randn(3, 4)
    assert torch.equal(plain(weight).weight.detach(), weight)
    assert plain(weight.to(torch.complex64)).weight.is_complex()


def test_a_run_keeps_what_it_does_not_measure_again(tmp_path: Path) -> None:
    code, said = run(tmp_path, "--only", "LowRankUpdate", "--parts", "directions")
    assert code == 0 and "LowRankUpdate" in said
    code, _ = run(tmp_path, "--only", "Orthogonal", "--parts", "training", "--steps", "40")
    metrics = json.loads((tmp_path / "metrics.json").read_text("utf-8"))["properties"]
    assert code == 0 and set(metrics) == {"LowRankUpdate", "Orthogonal"}
    assert set(metrics["LowRankUpdate"]) == {"directions"} and metrics["Orthogonal"]["training"]["steps"] == 40
    table = (tmp_path / "table.md").read_text("utf-8")
    assert "| LowRankUpdate |" in table and "| Orthogonal |" in table
    assert set(metrics["Orthogonal"]["training"]["made"]) == set(report.MADE)


def test_the_heading_names_one_command_or_says_that_there_were_several(tmp_path: Path) -> None:
    machine = {"machine": {"cpu": "some", "cores": 1}, "versions": {"torch": "any"}}
    settings = {key: 1 for key in ("steps", "every", "features", "small", "large", "batch")}
    first, second = ({"directions": {"directions": 1, "rank": 1, "made": {"command": name}}} for name in ("a", "b"))
    for metrics, said in (
        ({"x": first}, "`a`"),
        ({"x": first, "y": second}, "several"),
        ({"x": {"times": {}}}, "several"),
    ):
        report.write(tmp_path, machine, metrics, settings)
        assert said in (tmp_path / "table.md").read_text("utf-8").splitlines()[0]


def test_shortened_steps_are_no_change_by_a_merge() -> None:
    walk = measures.Walk(Subject("FixedSpectrum", ranks=(4,)))
    with torch.no_grad():
        walk.site.perturbation.u.fill_(1.0)  # far beyond what the property allows
    walk.scheduler.steps = measures.EVERY - 1
    walk.optimizer.step()  # without gradients
    walk._merge()
    assert walk.scheduler.merged == 1 and max(walk.changes) < ROUNDING


def test_distances_are_measured_where_something_is_projected() -> None:
    assert measures.training(Subject("FixedSpectrum"), steps=measures.EVERY)["distance"] is None


@pytest.mark.parametrize("arguments", [("--only", "Nothing"), ("--parts", "none"), ("--steps", "1")])
def test_wrong_options(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    code, said = run(tmp_path, *arguments)
    assert code == 2 and "Error" in said and not list(tmp_path.iterdir())


def test_a_failure_is_a_row_and_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(subject: Subject) -> dict[str, Any]:
        raise ValueError("on purpose")

    monkeypatch.setattr(measures, "directions", fail)
    code, said = run(tmp_path, "--only", "Orthogonal", "--parts", "directions")
    assert code == 1 and "on purpose" in said


def test_rows_of_missing_properties_say_so() -> None:
    reason = {"reason": "p4torch has no Unheard"}
    assert report.row("Unheard", {"training": reason, "times": reason})[:3] == ["Unheard", reason["reason"], "-"]


def test_all_properties_are_subjects() -> None:
    kernels = {"ConvolutionBound"}  # of no linear layer
    assert set(properties.__all__) - kernels <= {subject.kind for subject in SUBJECTS}
