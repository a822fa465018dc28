"""The command line `p4torch`."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

import p4torch
from p4torch.cli import app


def call(*arguments: str):
    """The command in this process."""
    return CliRunner(env={"TERMINAL_WIDTH": "200", "NO_COLOR": "1"}).invoke(app, list(arguments))


def test_help_and_version() -> None:
    assert call("--version").output == f"p4torch {p4torch.__version__}\n"
    shown = call("--help").output
    assert "molecule" in shown and "density" not in shown


@pytest.mark.parametrize("arguments", [["density", "--steps", "5"], ["linear"], ["patches", "--help"]])
def test_experiments_that_have_moved_are_told(arguments: list[str]) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert f"python -m experiments {arguments[0]}" in result.output and result.output.count("\n") == 1


def test_a_missing_extra_is_named() -> None:
    code = "import sys; sys.modules['typer'] = None; import p4torch.cli"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == 'Error: this command needs more than torch: pip install "p4torch[experiments]"\n'
