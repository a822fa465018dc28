"""A report is one file that a browser shows without a network; the browser of these tests is a real one."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from matplotlib.figure import Figure
from tests.molecules.systems import system_of
from torch import Tensor

from p4torch.errors import ArgumentError
from p4torch.molecules.report import Finding, Molecule, Page, Plot, Table, write_page
from p4torch.molecules.report.scene import energy_range, energy_text, fitted, scene

#: Distances and volumes after a superposition in double precision, in nm and nm³.
ROUNDING = 1e-12

#: Half a unit of the embedded coordinates (1e-4 nm).
EMBEDDED = 0.5001e-4

#: Virtual milliseconds for the page, and seconds until a browser that hangs is given up.
BUDGET, PATIENCE = 4000, 120

WIDTH, HEIGHT = 1000, 1400

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")

#: `npm install --prefix .venv axe-core`, as `.ci/run` does.
AXE = next(filter(Path.is_file, [Path(__file__).parents[2] / ".venv/node_modules/axe-core/axe.min.js"]), None)
needs_axe = pytest.mark.skipif(AXE is None, reason="no axe-core in .venv/node_modules")

EVIL = "<script>alert(1)</script> & \"quoted\" 'too' </script> <img src=http://x.org/y.png>"


def png() -> bytes:
    figure, file = Figure(figsize=(3, 2)), io.BytesIO()
    figure.subplots().plot([0, 1, 0])
    figure.savefig(file, format="png")
    return file.getvalue()


def noisy(frames: int = 8) -> Molecule:
    system = system_of()
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, -1, 2], [1, 0, -1], [-2, 1, 0]], dtype=torch.float64))
    x = system.positions + 0.005 * torch.randn(frames, system.atoms, 3, dtype=torch.float64)
    x[1::2] = x[1::2] @ turn + 3.0
    symbols = tuple(atom.element.symbol for atom in system.topology.atoms())
    return Molecule(symbols, tuple(system.bonds), x, system.energy(x))


def page(molecule: Molecule | None = None, text: str = "words") -> Page:
    return Page(
        title=f"Report {text}",
        lead=text,
        findings=(Finding("size", "41 %", "good", text), Finding(text, text, "none", text)),
        plots=(Plot(text, text, png()), Plot("second", "caption", png())),
        tables=(Table(text, ("quantity", "value"), (("energy", "−1.5 ± 0.2"), (text, "—")), text),),
        molecule=molecule,
        footer=text,
        headline=Finding("Verdict", "", "fair", text),
        facts=(("Command", text), (text, "300 K")),
    )


class Outline(HTMLParser):
    """Tags, attributes, ids and texts of a page; complains of tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def written(path: Path, contents: Page) -> str:
    write_page(path, contents)
    return path.read_text(encoding="utf-8")


def test_whatever_is_given_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    molecule = replace(noisy(2), symbols=("</script><b>", *noisy(2).symbols[1:]))
    html = written(tmp_path / "page.html", page(molecule, EVIL))
    outline = Outline(html)
    assert "alert(1)</script>" not in html
    assert outline.text.count(EVIL) == 16  # every text of the page once, and its title twice
    assert not outline.all("b")
    assert len(outline.all("script")) == 2
    assert [image["alt"] for image in outline.all("img")] == [f"Figure: {EVIL}", "Figure: second"]


def test_nothing_comes_from_outside(tmp_path: Path) -> None:
    html = written(tmp_path / "page.html", page(noisy()))
    html, images = re.subn(r'src="data:image/png;base64,[\w/+=]+"', "", html)
    assert images == 2
    assert not re.search(r"https?:|//[a-z]|url\(|@import|\bimport\b|fetch|XMLHttp", html)
    assert not re.search(r"\b(src|href|srcset|action|data)\s*=", html)
    policy = next(meta["content"] for meta in Outline(html).all("meta") if "http-equiv" in meta)
    assert policy is not None and "default-src 'none'" in policy


def test_figures_are_embedded_whole(tmp_path: Path) -> None:
    html = written(tmp_path / "page.html", page())
    assert html.count("data:image/png;base64,") == 2
    assert "canvas>" not in html and "Structures" not in html


def test_headings_tables_and_language_are_accessible(tmp_path: Path) -> None:
    outline = Outline(written(tmp_path / "page.html", page(noisy())))
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert outline.all("html") == [{"lang": "en"}]
    assert [cell["scope"] for cell in outline.all("th")] == ["col", "col", "row", "row"]
    assert [cell.get("class") for cell in outline.all("td")] == ["number", "number"]
    assert "Good" in outline.text and "No verdict" in outline.text


def test_an_empty_page_has_no_sections(tmp_path: Path) -> None:
    html = written(tmp_path / "page.html", Page("title", "", (), (), (), None, ""))
    assert "<section" not in html and "<h1>title</h1>" in html


def test_frames_are_superposed_without_a_mirror() -> None:
    molecule = noisy()
    for points in (molecule.frames, molecule.frames * molecule.frames.new_tensor([1, 1, -1])):
        x = fitted(points)
        for before, after in zip(points, x, strict=True):
            torch.testing.assert_close(torch.pdist(after), torch.pdist(before), atol=ROUNDING, rtol=0)
            corner = [(frame[[4, 10, 14]] - frame[8]).det() for frame in (before, after)]
            torch.testing.assert_close(*corner, atol=ROUNDING, rtol=0)
        assert float((x - x[0]).norm(dim=-1).max()) < 0.05  # ten standard deviations of the noise
        spread = x[0].square().sum(0).tolist()
        assert spread == sorted(spread, reverse=True)


@pytest.mark.parametrize("atoms", [1, 2, 3])
def test_the_smallest_molecules_have_a_scene(atoms: int) -> None:
    x = torch.randn(2, atoms, 3)
    contents = json.loads(scene(Molecule(("Xx",) * atoms, (), x, torch.zeros(2))))
    result = torch.tensor(contents["frames"], dtype=torch.float64).view(2, atoms, 3) * contents["unit"]
    assert bool((result - fitted(x)).abs().le(EMBEDDED).all())
    assert contents["shades"] == [0, 0] and contents["radius"] > 0


def test_one_clash_does_not_use_up_the_colours() -> None:
    energies = torch.tensor([1.0, 2.0, 3.0, 4.0, 1e9])
    low, high = energy_range(energies)
    assert low == 1 and 4 < high < 10
    assert energy_range(energies[:4]) == (1, 4)
    assert energy_range(torch.tensor([2.0, 2.0, 2.0, 2.0, 2.0, 7.0])) == (2, 7)


def test_energies_are_written_for_people() -> None:
    assert [energy_text(energy) for energy in (-12.34, -0.001, 99999.0, 1.5e9)] == [
        "−12.3",
        "0.0",
        "99999.0",
        "1.50e+09",
    ]


def broken(change: Callable[[Tensor], Any]) -> Tensor:
    x = torch.zeros(2, 3, 3)
    change(x)
    return x


WATER: dict[str, Any] = {
    "symbols": ("H", "O", "H"),
    "bonds": ((0, 1), (1, 2)),
    "frames": torch.zeros(2, 3, 3),
    "energies": torch.zeros(2),
}


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("symbols", ()),
        ("frames", torch.zeros(2, 4, 3)),
        ("frames", torch.zeros(3, 3)),
        ("frames", torch.zeros(0, 3, 3)),
        ("frames", torch.zeros(2, 3, 3, dtype=torch.long)),
        ("frames", broken(lambda x: x[1, 2].fill_(torch.nan))),
        ("energies", torch.zeros(3)),
        ("energies", torch.zeros(2, 1)),
        ("energies", torch.tensor([0.0, torch.inf])),
        ("bonds", ((0, 3),)),
        ("bonds", ((-1, 0),)),
        ("bonds", ((1, 1),)),
    ],
)
def test_structures_that_do_not_fit_are_refused(argument: str, value: object) -> None:
    Molecule(**WATER)
    with pytest.raises(ArgumentError, match=f"`{argument}`"):
        Molecule(**{**WATER, argument: value})


@pytest.mark.parametrize(
    ("argument", "make"),
    [
        ("png", lambda: Plot("title", "caption", b"GIF89a")),
        ("rows", lambda: Table("title", ("a", "b"), (("1", "2"), ("3",)))),
        ("header", lambda: Table("title", (), ())),
        ("verdict", lambda: Finding("name", "value", "excellent", "words")),  # type: ignore[arg-type]
        ("title", lambda: Page(" ", "", (), (), (), None, "")),
    ],
)
def test_contents_that_cannot_be_shown_are_refused(argument: str, make: Callable[[], object]) -> None:
    with pytest.raises(ArgumentError, match=f"`{argument}`"):
        make()


def test_the_verdict_stands_on_top(tmp_path: Path) -> None:
    text = Outline(written(tmp_path / "page.html", page(text="of a run"))).text
    places = [text.index(part) for part in ("Report of a run", "Fair", "Command", "Findings")]
    assert places == sorted(places)


# --- in a browser -----------------------------------------------------------------------------------------------------


def browse(html: Path, *arguments: str) -> str:
    """What the browser prints; an AssertionError if the page complained on its console."""
    assert CHROMIUM is not None
    profile = html.parent / "profile"
    command = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ]
    command += [f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND", "--no-first-run"]
    command += [f"--virtual-time-budget={BUDGET}", f"--window-size={WIDTH},{HEIGHT}", "--enable-logging=stderr"]
    done = subprocess.run(
        [*command, *arguments, html.as_uri()], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


def accessibility_violations(html: Path, scheme: str = "light") -> list[str]:
    """What axe-core finds fault with in a page, by rule and element."""
    assert AXE is not None
    run = """
      const found = await axe.run(document, { resultTypes: ["violations"] });
      document.documentElement.dataset.checked = found.passes.length;
      document.documentElement.dataset.axe = JSON.stringify(found.violations.flatMap(
        (rule) => rule.nodes.map((node) => `${rule.id}: ${node.html.slice(0, 200)} ${node.failureSummary}`)));"""
    source = AXE.read_text(encoding="utf-8").replace("</script", "<\\/script")
    copy = html.with_name(f"{html.stem}-{scheme}.html")
    copy.write_text(html.read_text("utf-8").replace("</head>", f"<script>{source}</script></head>"), encoding="utf-8")
    dark = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    seen = root(browse(with_script(copy, run), "--dump-dom", dark))
    assert int(str(seen["data-checked"])) > 10
    return list(json.loads(str(seen["data-axe"])))


def root(dom: str) -> dict[str, str | None]:
    return next(attributes for tag, attributes in Outline(dom).tags if tag == "html")


def with_script(html: Path, script: str) -> Path:
    """The page with a script of the test's own, which runs when the page is ready.

    A browser without a display shows frames when it likes: the page gets them by a timer.
    """
    timer = "requestAnimationFrame = (draw) => setTimeout(draw, 0);"
    code = f"<script>{timer}\naddEventListener('load', async () => {{ {script} }});</script>"
    html.write_text(html.read_text(encoding="utf-8").replace("</body>", f"{code}\n</body>"), encoding="utf-8")
    return html


@needs_browser
def test_a_browser_draws_the_molecule_and_shows_the_figures(tmp_path: Path) -> None:
    html, shot = tmp_path / "page.html", tmp_path / "page.png"
    write_page(html, page(noisy()))
    with_script(
        html,
        "const box = document.querySelector('canvas').getBoundingClientRect();"
        "document.documentElement.dataset.box = [box.left, box.top, box.width, box.height].map(Math.round);",
    )
    dom = browse(html, "--dump-dom")
    seen = root(dom)
    assert seen["data-ready"] == "true"
    assert seen["data-images"] == "2"
    assert Outline(dom).all("canvas")[0]["data-drawn"] == "22"
    assert re.search(r"<output>Frame 1 of 8: −?[\d.]+ kT</output>", dom)
    browse(html, f"--screenshot={shot}")
    left, top, width, height = map(int, str(seen["data-box"]).split(","))
    pixels = torch.from_numpy(matplotlib.image.imread(shot))[..., :3]
    assert top + height < pixels.shape[0], "the canvas must lie inside the screenshot"
    canvas = pixels[top + 60 : top + height - 5, left + 5 : left + width - 5]  # without the legend at its top
    drawn = (canvas - canvas[0, 0]).abs().amax(-1) > 0.1
    assert 0.02 < float(drawn.double().mean()) < 0.5
    assert 0.35 < float(drawn.double().sum(0).nonzero().double().mean()) / drawn.shape[1] < 0.65, (
        "must be in the middle"
    )
    assert len(canvas[drawn].mul(8).round().unique(dim=0)) > 20, "must have colours and shades"


#: What a reader does, step by step; the picture and the words after each.
DRIVE = """
const canvas = document.querySelector("canvas"), box = canvas.getBoundingClientRect(), states = [];
const settle = () => new Promise((done) => setTimeout(done, 50));
const press = (key) => canvas.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
const point = (type, x, y, pointerId = 1) => canvas.dispatchEvent(new PointerEvent(type,
  { pointerId, clientX: box.left + x, clientY: box.top + y, bubbles: true, cancelable: true }));
const wheel = (target) => target.dispatchEvent(new WheelEvent("wheel",
  { deltaY: -90, bubbles: true, cancelable: true }));
const slider = document.querySelector("input[type=range]"), overlay = document.querySelector("input[type=checkbox]");
const steps = {
  start: () => {},
  drag: () => { point("pointerdown", 300, 200); point("pointermove", 340, 230); point("pointerup", 340, 230); },
  pinch: () => {
    point("pointerdown", 300, 200, 1); point("pointerdown", 400, 200, 2); point("pointermove", 450, 200, 2);
    point("pointerup", 450, 200, 2); point("pointerup", 300, 200, 1);
  },
  wheel: () => wheel(canvas),
  arrow: () => press("ArrowLeft"),
  plus: () => press("+"),
  next: () => document.querySelector("[data-step='1']").click(),
  slider: () => { slider.value = 5; slider.dispatchEvent(new Event("input")); },
  page: () => press("PageDown"),
  overlay: () => overlay.click(),
  alone: () => overlay.click(),
  first: () => { slider.value = 0; slider.dispatchEvent(new Event("input")); },
  reset: () => document.querySelector("[data-reset]").click(),
  released: () => point("pointermove", 100, 100),
  scrolling: () => { wheel(document.body); wheel(canvas); },
};
for (const step of Object.values(steps)) {
  step();
  await settle();
  states.push([canvas.toDataURL(), document.querySelector("output").textContent]);
}
const pictures = [...new Set(states.map(([picture]) => picture))];
document.documentElement.dataset.states = JSON.stringify(Object.fromEntries(
  Object.keys(steps).map((name, k) => [name, [pictures.indexOf(states[k][0]), states[k][1]]])));
"""


@needs_browser
def test_a_reader_turns_zooms_and_leafs(tmp_path: Path) -> None:
    html = tmp_path / "page.html"
    write_page(html, page(noisy()))
    dom = browse(with_script(html, DRIVE), "--dump-dom", "--force-device-scale-factor=2")
    states = json.loads(str(root(dom)["data-states"]))
    pictures = {name: picture for name, (picture, _) in states.items()}
    assert pictures["alone"] == pictures["page"], "without the overlay, the picture before it"
    assert pictures["first"] == pictures["plus"], "the frame alone has changed since"
    same = ("reset", "released", "scrolling")
    assert {pictures[name] for name in same} == {pictures["start"]}
    others = [picture for name, picture in pictures.items() if name not in (*same, "alone", "first")]
    assert len(set(others)) == len(others), pictures
    frames = {name: text.split(":")[0] for name, (_, text) in states.items()}
    assert [frames[name] for name in ("plus", "next", "slider", "page")] == [f"Frame {k} of 8" for k in (1, 2, 6, 7)]
    canvas = Outline(dom).all("canvas")[0]
    assert int(str(canvas["width"])) > 1.5 * WIDTH, "twice the pixels on a fine display"


@needs_browser
def test_a_page_without_structures_gets_ready(tmp_path: Path) -> None:
    html = tmp_path / "page.html"
    write_page(html, page())
    assert root(browse(html, "--dump-dom"))["data-ready"] == "true"


@needs_browser
def test_one_frame_of_one_atom_is_drawn(tmp_path: Path) -> None:
    html = tmp_path / "page.html"
    write_page(html, page(Molecule(("He",), (), torch.zeros(1, 1, 3), torch.zeros(1))))
    dom = browse(html, "--dump-dom")
    assert Outline(dom).all("canvas")[0]["data-drawn"] == "1"
    assert "Frame 1 of 1: 0.0 kT" in dom


@needs_browser
@needs_axe
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible(tmp_path: Path, scheme: str) -> None:
    verdicts = ("good", "fair", "poor", "none")
    findings = tuple(Finding(verdict, "41 %", verdict, "words") for verdict in verdicts)  # type: ignore[arg-type]
    for headline in findings:
        contents = replace(page(noisy()), findings=findings, headline=headline)
        write_page(tmp_path / "page.html", contents)
        assert accessibility_violations(tmp_path / "page.html", scheme) == []


@needs_browser
@needs_axe
def test_faults_of_a_page_are_noticed(tmp_path: Path) -> None:
    html = tmp_path / "page.html"
    write_page(html, page(noisy()))
    text = re.sub(r'alt="[^"]*"', "", html.read_text("utf-8")).replace("--soft: #5a6475", "--soft: #ccc")
    html.write_text(text, "utf-8")
    rules = {violation.partition(":")[0] for violation in accessibility_violations(html)}
    assert {"image-alt", "color-contrast"} <= rules


#: Bytes of a page that is sent by mail, or opened on a telephone.
HEAVIEST = 1_500_000

STORED = sorted((Path(__file__).parents[2] / "results").glob("*/report.html"))


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.parent.name)
def test_stored_pages_are_light(path: Path) -> None:
    assert path.stat().st_size < HEAVIEST


@needs_browser
@needs_axe
@pytest.mark.parametrize("path", STORED, ids=lambda path: path.parent.name)
def test_stored_pages_are_accessible(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "report.html"
    shutil.copy(path, copy)
    assert accessibility_violations(copy) == []
