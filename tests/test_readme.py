"""The README's Python runs as it stands."""

import re
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"


def test_examples_run_in_order() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    inverse, weight = names["inverse"], names["layer"].weight.detach()
    assert float((inverse.detach() @ weight - inverse.new_ones(64).diag()).abs().max()) < 1e-3
    assert float(names["loss"].detach()) < 1.0
