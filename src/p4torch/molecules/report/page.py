"""The page: HTML with its style, script, figures and structures inside."""

from __future__ import annotations

import base64
import re
from html import escape
from importlib import resources
from pathlib import Path

from p4torch.molecules.report.contents import Finding, Molecule, Page, Plot, Table
from p4torch.molecules.report.scene import COLOURS, elements, energy_range, energy_text, scene
from p4torch.runs.checkpoint import write_whole

#: The page may show what it holds and run its own script; a browser that obeys this loads nothing from anywhere.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

VERDICTS = {"good": "Good", "fair": "Fair", "poor": "Poor", "none": "No verdict"}

#: A number, with or without its error or a unit of %; or the dash that stands for none.
NUMBER = re.compile(r"[+−-]?[\d.,]+(e[+−-]?\d+)?( ?[±(] ?[\d.,e+−-]+\)?)? ?%?|[–—−-]?|nan|[+−-]?(inf|∞)", re.IGNORECASE)


def write_page(path: Path, page: Page) -> None:
    """Write a page as one file that needs no other: whole, or not at all."""
    html = _html(page).encode("utf-8", "replace")
    write_whole(path, lambda temporary: temporary.write_bytes(html))


def _html(page: Page) -> str:
    title = escape(page.title)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{_file("page.css")}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="lead">{escape(page.lead)}</p>
</header>
<main>
{_section("Findings", _findings(page.findings))}
{_section("Structures", _molecule(page.molecule))}
{_section("Figures", _plots(page.plots))}
{_section("Tables", "".join(map(_table, page.tables)))}
</main>
<footer><p>{escape(page.footer)}</p></footer>
<script>
{_file("viewer.js")}
{_file("controls.js")}</script>
</body>
</html>
"""


def _file(name: str) -> str:
    return (resources.files("p4torch.molecules.report") / name).read_text("utf-8")


def _section(title: str, contents: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{contents}</section>" if contents else ""


def _findings(findings: tuple[Finding, ...]) -> str:
    cards = (
        f'<div class="finding {finding.verdict}">\n<dt>{escape(finding.name)}</dt>\n'
        f'<dd class="value">{escape(finding.value)} <span class="verdict">{VERDICTS[finding.verdict]}</span></dd>\n'
        f'<dd class="words">{escape(finding.words)}</dd>\n</div>\n'
        for finding in findings
    )
    return f'<dl class="findings">\n{"".join(cards)}</dl>\n' if findings else ""


def _plots(plots: tuple[Plot, ...]) -> str:
    return f'<div class="plots">\n{"".join(map(_plot, plots))}</div>\n' if plots else ""


def _plot(plot: Plot) -> str:
    data = base64.b64encode(plot.png).decode("ascii")
    wide = ' class="wide"' if plot.wide else ""
    return (
        f"<figure{wide}>\n<h3>{escape(plot.title)}</h3>\n"
        f'<img src="data:image/png;base64,{data}" alt="Figure: {escape(plot.title)}">\n'
        f"<figcaption>{escape(plot.caption)}</figcaption>\n</figure>\n"
    )


def _table(table: Table) -> str:
    columns = zip(*table.rows, strict=True) if table.rows else [()] * len(table.header)
    numbers = [bool(cells) and all(NUMBER.fullmatch(cell.strip()) for cell in cells) for cells in columns]
    looks = [' class="number"' if number else "" for number in numbers]
    head = "".join(f'<th scope="col"{look}>{escape(c)}</th>' for c, look in zip(table.header, looks, strict=True))
    body = "".join(
        f'<tr><th scope="row"{looks[0]}>{escape(row[0])}</th>'
        + "".join(f"<td{look}>{escape(cell)}</td>" for cell, look in zip(row[1:], looks[1:], strict=True))
        + "</tr>\n"
        for row in table.rows
    )
    title = escape(table.title)
    caption = f"<caption>{escape(table.caption)}</caption>\n" if table.caption else ""
    return (
        f'<h3>{title}</h3>\n<div class="scroll" tabindex="0" role="region" aria-label="{title}">\n<table>\n{caption}'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n</div>\n"
    )


def _molecule(molecule: Molecule | None) -> str:
    if molecule is None:
        return ""
    count, atoms = len(molecule.frames), len(molecule.symbols)
    low, high = energy_range(molecule.energies)
    above = "≥ " if high < float(molecule.energies.max()) else ""
    swatches = "".join(
        f'<li><span style="background: {colour}"></span>{escape(name)}</li>'
        for name, (colour, _) in elements(molecule).items()
    )
    return f"""<div class="viewer" id="viewer">
<canvas tabindex="0" role="application" aria-label="The molecule in three dimensions, {atoms} atoms"
 aria-describedby="help"></canvas>
<ul class="swatches" aria-label="Colours of the elements">{swatches}</ul>
<div class="legend"><span>{energy_text(low)} kT</span>
<span class="bar" style="background: linear-gradient(90deg, {", ".join(COLOURS)})"></span>
<span>{above}{energy_text(high)} kT</span></div>
<noscript><p>The structures are drawn by a script, and scripts are switched off.</p></noscript>
<div class="controls">
<button type="button" data-step="-1" aria-label="Previous frame">‹</button>
<input type="range" min="0" max="{count - 1}" value="0" aria-label="Frame"{" disabled" if count == 1 else ""}>
<button type="button" data-step="1" aria-label="Next frame">›</button>
<output></output>
<label><input type="checkbox"{" disabled" if count == 1 else ""}> Overlay all frames</label>
<button type="button" data-reset>Reset view</button>
</div>
<p class="help" id="help">Drag or use the arrow keys to turn, wheel, pinch or + and − to zoom. Balls are coloured by
element, bonds and rims by the reduced energy of the frame. Overlaid frames are superposed on the first.</p>
<script type="application/json">{scene(molecule)}</script>
</div>
"""
