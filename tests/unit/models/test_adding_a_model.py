"""docs/adding_a_model.md, followed as it stands, in a copy of the source."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from train_launcher import TINY

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "adding_a_model.md").read_text()
# A block of code, with the last file that the text before it names.
BLOCK = re.compile(r"`([\w/]+\.py)`:\n\n```python\n(.*?)```", re.DOTALL)


def insert(source: str, shown: str) -> str:
    """`source` with what a block of the page adds: imports, members of a union, lines of a table."""
    header = ""
    for line in shown.splitlines():
        if line.startswith("from "):
            source = source.replace("import annotations\n\n", f"import annotations\n\n{line}\n", 1)
        elif found := re.fullmatch(r"(\w+ = )\.\.\. \| (\w+)", line):
            source, count = re.subn(f"^{found[1]}(\\(?)", rf"{found[1]}\1{found[2]} | ", source, flags=re.MULTILINE)
            assert count == 1, line
        elif line.endswith("{"):
            header = f"\n{line}\n"
            assert source.count(header) == 1, line
        elif line.startswith("    ") and line.strip() != "...":
            source = source.replace(header, f"{header}{line}\n")
    return source


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The packages and their tests with the changes of the page."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("vsr_dist", "sharding", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    blocks = BLOCK.findall(PAGE)
    assert [Path(name).name for name, _ in blocks] == ["detail.py", "__init__.py", "test_model_contracts.py"]
    for name, shown in blocks:
        path = folder / name
        path.write_text(insert(path.read_text(), shown) if path.exists() else shown)
    return folder


def run(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_new_file_keeps_the_house_rules(copy):
    run(copy, "ruff", "check", "vsr_dist/models/detail.py")
    run(copy, "ruff", "format", "--check", "vsr_dist/models/detail.py")


def test_the_contract_tests_pass_on_the_new_model(copy):
    printed = run(copy, "pytest", "-q", "tests/unit/models/test_model_contracts.py", "-k", "detail or every_kind")
    assert re.search(r"^[5-9] passed", printed, re.MULTILINE), printed


def test_the_new_model_trains_for_a_step(copy, shards, tmp_path):
    train = {"steps": 1, "threads": 1, "pictures": 0, "log_every": 1, "validate_every": 1}
    config = {
        **TINY,
        "run_dir": str(tmp_path / "run"),
        "data": {**TINY["data"], "root": str(shards)},
        "generator": {"kind": "detail", "channels": 4},
        "train": train,
    }
    (tmp_path / "detail.yaml").write_text(yaml.safe_dump(config))
    run(copy, "vsr_dist.train", "--config", str(tmp_path / "detail.yaml"))
    description = json.loads((tmp_path / "run" / "generator.json").read_text())
    assert description["generator"] == {"kind": "detail", "channels": 4}
