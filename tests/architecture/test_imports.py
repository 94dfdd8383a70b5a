"""Imports point down: the contracts of pyproject.toml hold, and they cover every module."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def contracts():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def test_every_contract_is_kept(contracts, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True, no_logo=True)
    output = capsys.readouterr().out
    assert status == 0, output
    assert f"Contracts: {len(contracts)} kept, 0 broken." in output


def test_the_layers_name_every_module_of_the_package(contracts):
    """import-linter says nothing of a module that no layer names."""
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    named = {name.strip(" ()") for layer in layers for name in re.split("[|:]", layer)}
    modules = {
        f"vsr_dist.{path.stem}"
        for path in (ROOT / "vsr_dist").iterdir()
        if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").exists()
    }
    assert modules | {"sharding", "sweeps"} == named
