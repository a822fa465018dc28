"""Packages that are not installed: the error says how to install them."""

from __future__ import annotations

import importlib
import sys

import pytest

from p4torch.interop._packages import needs


@pytest.mark.parametrize(
    ("package", "name"), [("zuko", "zuko"), ("nflows", "nflows"), ("pyro", "pyro-ppl"), ("sbi", "sbi")]
)
def test_a_missing_package(package: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for loaded in [module for module in sys.modules if module.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"p4torch.interop.{package}", raising=False)
    with pytest.raises(ImportError, match=rf'`p4torch.interop.{package}` needs {name}: pip install "p4torch\[flows\]"'):
        importlib.import_module(f"p4torch.interop.{package}")


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(ModuleNotFoundError, match="nothing_of_that_name"), needs("zuko"):
        importlib.import_module("nothing_of_that_name")
