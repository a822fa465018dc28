"""The page: HTML with its style, script, figures and structures inside."""

from __future__ import annotations

import base64
import re
from pathlib import Path

from jinja2 import Environment, PackageLoader

from p4torch.molecules.report.contents import Page, Table
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
    """Texts are escaped; style, scripts and the scene's JSON are not."""
    loader = PackageLoader("p4torch.molecules", "report")
    environment = Environment(
        autoescape=True, loader=loader, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"base64": lambda data: base64.b64encode(data).decode("ascii")}
    environment.filters |= {"energy": energy_text, "numbers": _numbers}
    contents = {"page": page, "policy": POLICY, "verdicts": VERDICTS}
    if page.molecule is not None:
        low, high = energy_range(page.molecule.energies)
        drawing = {"elements": elements(page.molecule), "scene": scene(page.molecule), "colours": COLOURS}
        contents |= {"low": low, "high": high, **drawing}
    return environment.get_template("page.html.j2").render(contents)


def _numbers(table: Table) -> list[bool]:
    """Which columns hold numbers only."""
    columns = zip(*table.rows, strict=True) if table.rows else [()] * len(table.header)
    return [bool(cells) and all(NUMBER.fullmatch(cell.strip()) for cell in cells) for cells in columns]
