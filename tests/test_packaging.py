"""What the repository says of itself, in several files, is the same everywhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import p4torch

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
HOME = re.findall(r'^Homepage = "(\S+)"$', PROJECT, flags=re.MULTILINE)[0]
RAW = f"{HOME}/raw/main/"
#: Python's versions that the package supports.
PYTHONS = re.findall(r"Programming Language :: Python :: (3\.\d+)", PROJECT)
#: Bytes; what a release may be.
WHEEL = 10_000_000


def read(path: str) -> str:
    return (ROOT / path).read_text("utf-8")


def workflow() -> dict[str, Any]:
    jobs: dict[str, Any] = yaml.safe_load(read(".github/workflows/check.yml"))["jobs"]
    return jobs


def commands(job: dict[str, Any]) -> str:
    return "\n".join(step.get("run", "") for step in job["steps"])


def targets() -> dict[str, list[str]]:
    """Of the Makefile: what each depends on."""
    found = re.findall(r"^([a-z-]+):([^#\n]*)##", read("Makefile"), flags=re.MULTILINE)
    return {name: needed.split() for name, needed in found}


# --- what CI runs -------------------------------------------------------------------------------------------------


def test_the_workflow_runs_what_ci_runs() -> None:
    script = re.findall(r"^make (\S+)", read(".ci/run"), flags=re.MULTILINE)
    assert script[-1:] == ["check"]
    assert "bash .ci/run" in commands(workflow()["all"]).splitlines()
    wanted = {"lint", "types", "floors", "docs", "test", "test-slow", "bench-short", "demo-short"}
    assert set(targets()["check"]) == wanted


def test_the_workflow_runs_targets_that_there_are() -> None:
    called = {name for job in workflow().values() for name in re.findall(r"make (?:-C \S+ )?([a-z-]+)", commands(job))}
    assert {"docs", "test"} <= called <= targets().keys()


def test_every_python_is_tested() -> None:
    jobs = workflow()
    (first,) = (step["with"]["python-version"] for step in jobs["all"]["steps"] if "with" in step)
    assert sorted([first, *jobs["pythons"]["strategy"]["matrix"]["python"]], key=_number) == PYTHONS
    assert f'requires-python = ">={PYTHONS[0]}"' in PROJECT and sorted(PYTHONS, key=_number) == PYTHONS


def _number(version: str) -> int:
    return int(version.partition(".")[2])


def test_the_lowest_and_the_newest_torch_are_tested() -> None:
    (lowest,) = re.findall(r'^dependencies = \["torch>=([\d.]+)"\]', PROJECT, flags=re.MULTILINE)
    asked = [row["torch"] for row in workflow()["core"]["strategy"]["matrix"]["include"]]
    assert asked == [f"torch=={lowest}.0", "torch"]


def test_slow_tests_stand_apart() -> None:
    makefile = read("Makefile")
    assert '-m "not slow"' in makefile and "-m slow" in makefile


def test_hooks_use_the_pinned_version() -> None:
    (hook,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert f"ruff=={hook['rev'].removeprefix('v')}" in read("constraints.txt").splitlines()


# --- what a release says ------------------------------------------------------------------------------------------


def test_one_version_and_one_date() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    headings = re.findall(r"^## \[(\S+)\](?: - (\S+))?$", read("CHANGELOG.md"), flags=re.MULTILINE)
    assert headings[0] == ("Unreleased", "")
    assert headings[1] == (citation["version"], citation["date-released"])
    assert citation["version"] == p4torch.__version__
    assert 'dynamic = ["version"]' in PROJECT


def test_the_citation_names_the_papers() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert "2010.07033" in citation["preferred-citation"]["url"]
    assert [paper["title"] for paper in citation["references"]] == [
        "Preserving Properties of Neural Networks by Perturbative Updates"
    ]
    assert citation["repository-code"] == HOME


def test_links_to_the_project_lead_to_one_place() -> None:
    kinds = ("*.md", "*.cff", "*.toml", "*.yml", "docs/**/*.md", ".github/**/*.md")
    text = "".join(path.read_text("utf-8") for kind in kinds for path in ROOT.glob(kind))
    assert set(re.findall(r"https://github\.com/[\w-]*/p4torch\b", text)) == {HOME}


def test_images_of_the_readme_are_shown_elsewhere_too() -> None:
    images = re.findall(r"!\[[^\]]*\]\((\S+)\)", read("README.md"))
    assert images and all(image.startswith(RAW) for image in images)
    assert all((ROOT / image.removeprefix(RAW)).is_file() for image in images)


def test_what_the_source_archive_names_is_there() -> None:
    (block,) = re.findall(r"targets\.sdist\]\ninclude = \[(.*?)\]", PROJECT, flags=re.DOTALL)
    names = re.findall(r'"/(\S+)"', block)
    assert len(names) > 10 and [name for name in names if not (ROOT / name).exists()] == []


def test_the_package_is_small() -> None:
    files = [path for path in (ROOT / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < WHEEL


def test_templates_are_readable() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text("utf-8"))
        assert {"name", "description", "body"} <= form.keys()
