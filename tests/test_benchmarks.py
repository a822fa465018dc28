"""The benchmarks: what they measure on fakes, what they keep, and what fails the short form."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from benchmarks import command, families, figure, layers, machine, peers, report, short
from benchmarks.bars import BARS
from benchmarks.counting import count
from benchmarks.families import linear, merges
from benchmarks.measure import Effort, Side, alternate, quartiles, ratio_of
from benchmarks.rows import Job, Row, compare
from rich.console import Console
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
QUICK = Effort(rounds=3, seconds=1.0, least=2, block=0.0)

#: Sleeping takes at least as long as asked, and on a busy machine up to this many times as long.
SLEEP_SLACK = 4.0


def silent() -> Console:
    return Console(file=io.StringIO(), record=True, width=160)


def job(name: str, run: Callable[[Effort], list[Row]] | None = None, family: str = "fake") -> Job:
    return Job(family, name, run or (lambda effort: [Row(name, "a / b", 0.5, (0.4, 0.6), "memory", facts={"n": 1})]))


# --- measuring ------------------------------------------------------------------------------------------------


def test_the_ratio_of_sides_of_known_time() -> None:
    sides = {"slow": Side(lambda: time.sleep(0.02)), "fast": Side(lambda: time.sleep(0.005))}
    times = alternate(sides, QUICK)
    ratio, (low, high) = ratio_of(times["slow"], times["fast"])
    assert 4 / SLEEP_SLACK < ratio < 4 * SLEEP_SLACK
    assert low <= high and all(len(found) == QUICK.rounds for found in times.values())


def test_sides_take_turns_and_preparing_is_not_timed() -> None:
    order: list[str] = []
    sides = {
        "a": Side(lambda: order.append("a"), prepare=lambda: time.sleep(0.02)),
        "b": Side(lambda: order.append("b")),
    }
    times = alternate(sides, QUICK)
    assert order == list("ab" + "ab" + "ba" + "ab")  # a warm-up, then rounds, every second one backwards
    assert max(times["a"]) < 0.02


def test_a_budget_ends_the_rounds_but_not_before_the_least() -> None:
    effort = Effort(rounds=100, seconds=0.0, least=3, block=0.0)
    assert len(alternate({"a": Side(lambda: None)}, effort)["a"]) == 3


def test_quartiles() -> None:
    assert quartiles([3.0, 1.0, 2.0, 5.0, 4.0]) == (2.0, 3.0, 4.0)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)


def test_the_slowest_step_is_taken_after_the_noise() -> None:
    quiet = [1.0] * 20
    quiet[7] = 3.0  # the schedule's slow step, in every run
    runs = [list(quiet) for _ in range(3)]
    runs[0][12] = 50.0  # noise, in one of them
    ratio, steps = merges.slowest_over_median(runs, skip=2)
    assert ratio == 3.0 and len(steps) == 18


def test_counts_of_a_step_are_exact() -> None:
    n = 32
    layer = nn.Linear(n, n, bias=False)
    x = torch.ones(4, n)
    ledger = count(lambda: layer(x).add_(1), list(layer.parameters()))
    transpose, product, add = 1, 1, 1
    assert ledger.kernels == transpose + product + add
    assert ledger.peak == 4 * (n * n + 4 * n + 4 * n)  # the weight, x, and the result


# --- rows, and what is missing --------------------------------------------------------------------------------


def test_a_missing_peer_is_named_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nflows", None)
    monkeypatch.setitem(sys.modules, "nflows.transforms.lu", None)
    builders: dict[str, Callable[[], Side]] = {
        "ours": lambda: Side(lambda: None),
        "theirs": lambda: peers.step_of(lambda: peers.lu_linear(8), 8),
        "plain": lambda: Side(lambda: None),
    }
    timed = compare(builders, QUICK, 1)
    left_out, measured = timed.row("x", "theirs", "ours"), timed.row("y", "plain", "ours")
    assert left_out.ratio is None and "nflows is missing" in (left_out.reason or "") and not left_out.failed
    assert measured.ratio is not None and measured.facts["threads"] == 1


def test_a_peer_that_breaks_is_a_failure_with_its_reason() -> None:
    def broken() -> Side:
        raise RuntimeError("torch.solve was removed\nand more")

    row = compare({"a": broken, "b": lambda: Side(lambda: None)}, QUICK, 1).row("x", "a", "b", bar="lu")
    assert row.failed and row.reason == "a fails: RuntimeError: torch.solve was removed"


def test_a_property_that_is_not_there_is_missing() -> None:
    with pytest.raises(layers.Missing, match="NoSuchProperty"):
        layers.perturbed("NoSuchProperty", 8, 1)


def test_every_job_has_a_name_of_its_own_and_every_bar_is_held() -> None:
    jobs = families.all_jobs() + short.jobs()
    assert len({made.title for made in jobs}) == len(jobs)
    rows = [row for made in families.all_jobs() if made.title == "linear/Invertible-32" for row in made.run(QUICK)]
    assert [row.bar for row in rows] == ["linear small"] * len(linear.RANKS)
    assert all(row.ratio is not None and "floor_ratio" in row.facts for row in rows)


def test_bars_know_their_direction() -> None:
    assert BARS["memory"].met(0.6) and not BARS["memory"].met(0.61)
    assert BARS["pass 1"].met(100) and not BARS["pass 1"].met(99)


# --- what a run keeps -----------------------------------------------------------------------------------------


def run(jobs: list[Job], folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(command, "all_jobs", lambda: jobs)
    return command.main(["--out", str(folder), *options], silent())


def rows_in(folder: Path, family: str = "fake") -> list[str]:
    return list(json.loads((folder / f"{family}.json").read_text())["jobs"])


def test_rows_are_written_after_each_job_and_an_interrupt_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def first(effort: Effort) -> list[Row]:
        calls.append("first")
        return [Row("first", "a / b", 0.5, (0.4, 0.6), "memory")]

    def second(effort: Effort) -> list[Row]:
        assert rows_in(tmp_path) == ["fake/first"]
        raise KeyboardInterrupt

    def finished(effort: Effort) -> list[Row]:
        return [Row("second", "a / b", 0.9, (0.8, 1.0), "memory")]

    assert run([job("first", first), job("second", second)], tmp_path, monkeypatch) == 130
    assert rows_in(tmp_path) == ["fake/first"]
    assert "| first | a / b | 0.5 | 0.4 to 0.6 |  | ≤ 0.6 | met |" in (tmp_path / "table.md").read_text()
    resumed = [job("first", first), job("second", finished)]
    assert run(resumed, tmp_path, monkeypatch, "--resume") == 0
    assert rows_in(tmp_path) == ["fake/first", "fake/second"] and calls == ["first"]
    assert "met by 1 of 2" in (tmp_path / "table.md").read_text()
    assert run(resumed, tmp_path, monkeypatch) == 0 and calls == ["first", "first"]


def test_rows_of_other_settings_or_machines_are_not_mixed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run([job("one"), job("two")], tmp_path, monkeypatch) == 0
    assert run([job("one"), job("two")], tmp_path, monkeypatch, "--only", "fake/two") == 0
    assert sorted(rows_in(tmp_path)) == ["fake/one", "fake/two"]
    options = ("--only", "fake/two", "--rounds", "7", "--resume")
    assert run([job("one"), job("two")], tmp_path, monkeypatch, *options) == 0
    assert rows_in(tmp_path) == ["fake/two"]


def test_a_failed_job_is_told_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(effort: Effort) -> list[Row]:
        raise ValueError("no")

    assert run([job("broken", broken), job("fine")], tmp_path, monkeypatch) == 1
    stored = json.loads((tmp_path / "fake.json").read_text())["jobs"]
    assert stored["fake/broken"][0]["reason"] == "failed: ValueError: no" and "fake/fine" in stored


def test_a_file_that_is_something_else_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fake.json").write_text("[1, 2")
    assert run([job("one")], tmp_path, monkeypatch, "--resume") == 0
    assert rows_in(tmp_path) == ["fake/one"]


def test_rows_survive_the_file() -> None:
    row = Row("x", "a / b", 0.5, (0.4, 0.6), "memory", facts={"threads": 1})
    assert Row.of_json(json.loads(json.dumps(row.as_json()))) == row
    assert row.as_json()["held_to"]["met"] is True


def test_what_a_run_writes_is_not_another_revision() -> None:
    here = machine.description(rounds=1)
    assert machine.same(here, {**here, "git_revision": f"{here['git_revision']}".rstrip("+") + "+"})
    assert not machine.same(here, machine.description(rounds=2))


# --- the figure -----------------------------------------------------------------------------------------------


def points(side: str, exponent: float, panel: str = "inverse") -> list[Row]:
    facts = {"panel": panel, "unit": "s", "threads": 1}
    sizes = (64, 128, 256, 512, 1024)
    return [Row(f"{side} {n}", side, facts={**facts, "features": n, "value": 1e-9 * n**exponent}) for n in sizes]


def test_the_fit_finds_a_known_exponent_in_the_upper_half() -> None:
    (curve,) = figure.curves(points("a", 2.5))
    exponent, error = curve.fit() or (math.nan, math.nan)
    assert exponent == pytest.approx(2.5) and error == pytest.approx(0, abs=1e-9)
    overhead = figure.Curve("inverse", "a", (1, 2, 4, 8, 16, 32), (9.0, 9.0, 9.0, 64.0, 256.0, 1024.0))
    assert (overhead.fit() or (math.nan,))[0] == pytest.approx(2.0)
    assert figure.fitted((1, 2), (1.0, 2.0)) is None


def test_the_figure_is_drawn_with_what_there_is(tmp_path: Path) -> None:
    assert figure.draw([], tmp_path) is None
    rows = points("p4torch Invertible, rank 1", 2) + points("dense slogdet, solve", 3)
    rows += [*points("nn.Linear", 2, "memory"), Row("z", "LU (nflows)", reason="peer nflows is missing")]
    assert figure.draw(rows, tmp_path) is not None
    stored = json.loads((tmp_path / "exponents.json").read_text())
    assert {entry["side"]: round(entry["exponent"], 6) for entry in stored if entry["panel"] == "inverse"} == {
        "p4torch Invertible, rank 1": 2.0,
        "dense slogdet, solve": 3.0,
    }
    assert all((tmp_path / f"scaling.{ending}").stat().st_size > 0 for ending in ("pdf", "png"))


# --- the short form -------------------------------------------------------------------------------------------


def short_run(folder: Path, monkeypatch: pytest.MonkeyPatch, kernels: float, *options: str) -> int:
    made = job("x", lambda effort: [Row("x: kernels", "", ratio=kernels)], "short")
    monkeypatch.setattr(short, "jobs", lambda: [made])
    return command.main(["--short", "--out", str(folder), *options], silent())


def test_the_check_records_passes_and_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert short_run(tmp_path, monkeypatch, 100, "--check") == 0  # nothing recorded: it is now
    recorded = (tmp_path / "short.json").read_text()
    assert json.loads(recorded)["values"] == {"x: kernels": 100}
    assert short_run(tmp_path, monkeypatch, 100, "--check") == 0
    assert short_run(tmp_path, monkeypatch, 150, "--check") == 0
    assert short_run(tmp_path, monkeypatch, 151, "--check") == 1
    assert (tmp_path / "short.json").read_text() == recorded
    assert short_run(tmp_path, monkeypatch, 151) == 0  # recorded anew
    assert short_run(tmp_path, monkeypatch, 151, "--check") == 0


def test_what_is_recorded_and_gone_fails() -> None:
    assert short.worse({}, {"x: kernels": 3}) == ["x: kernels: recorded 3, not measured now"]
    assert short.worse({"new: kernels": 7}, {}) == []


def test_a_recorded_file_that_is_broken_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "short.json").write_text('{"values": 3}')
    assert short_run(tmp_path, monkeypatch, 1, "--check") == 2


def test_counts_do_not_vary() -> None:
    (made,) = [made for made in short.jobs() if made.name == "Invertible 64"]
    first, second = made.run(QUICK), made.run(QUICK)
    assert first == second and all(row.ratio for row in first)


# --- the command line -----------------------------------------------------------------------------------------


def test_list_runs_in_a_process_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--list"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert {"linear/Orthogonal-512", "orthogonal/512", "scaling/memory-4096"} <= set(done.stdout.split())


@pytest.mark.parametrize(
    "options", [["--only", "nothing"], ["--only", ","], ["--rounds", "0"], ["--check"], ["--seconds", "nan"]]
)
def test_wrong_options_are_named(options: list[str], tmp_path: Path) -> None:
    console = silent()
    assert command.main([*options, "--out", str(tmp_path)], console) == 2
    assert "must be" in console.export_text()


def test_select_takes_families_and_jobs() -> None:
    jobs = [job("a"), job("b"), job("c", family="other")]
    assert [made.name for made in command.select(jobs, "fake/b, other")] == ["b", "c"]
    assert command.select(jobs, None) == jobs


def test_cells_of_a_row_without_a_ratio_give_the_reason() -> None:
    assert report.details(Row("x", "a / b", bar="lu", reason="peer nflows is missing"))[-1] == "peer nflows is missing"


def test_the_table_names_the_machine_of_each_family(tmp_path: Path) -> None:
    here = machine.description(rounds=1, seconds=1.0)
    kept = report.Report(tmp_path, here)
    kept.add(job("one"), [Row("one", "a / b", 0.5)])
    assert kept.write_table([]).read_text().startswith(f"{here['machine']['cpu']}, {here['machine']['cores']} cores")
    there = {**here, "machine": {**here["machine"], "cpu": "abacus"}}
    again = report.Report(tmp_path, there)
    again.plan([job("one")], [], resume=True)
    again.add(job("two", family="other"), [Row("two", "a / b", 0.5)])
    first = again.write_table([]).read_text().splitlines()[0]
    assert f"{here['machine']['cpu']}, " in first.split(": fake; ")[0]
    assert first.split(": fake; ")[1].startswith("abacus, ") and ": other. Float32" in first
