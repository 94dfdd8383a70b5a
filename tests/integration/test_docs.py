"""Every command that the README and the docs show is run, in the order shown, on the real clips."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from forked import run_forked
from realvsr_tree import make_realvsr

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# The two commands of the README are what CI itself runs.
RUN_BY_CI = {"make demo", "make test"}
# Frames that are evaluated of each sequence, or upscaled, for the number that a page names.
FRAMES = 4
# What shortens a training without changing what the command exercises.
SHORT = "train.steps=4 train.warmup_steps=2 train.log_every=2 train.validate_every=4 train.pictures=1 data.val_clips=3"


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def shortened(command: str) -> str:
    if "vsr_dist.train" in command or command.startswith("vsr-dist train"):
        return command + "".join(f" --set {override}" for override in SHORT.split())
    if command.startswith("vsr-dist evaluate") and "--data" in command and "--frames" not in command:
        return f"{command} --frames {FRAMES}"
    if command.startswith(("vsr-dist evaluate", "vsr-dist upscale")):
        return re.sub(r"--frames \d+", f"--frames {FRAMES}", command)
    if command.startswith("vsr-dist study run"):
        overrides = [*SHORT.split(), "tracking.log_model=false", "train.log_every=2"]
        return f"{command} --set num_trials=1 --set {shlex.quote('set=[' + ', '.join(overrides) + ']')}"
    return command


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configurations, as a checkout has them, and a data set of pairs, as a reader has it."""
    folder = tmp_path_factory.mktemp("docs")
    make_realvsr(folder / "RealVSR", with_overlap=True)
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


@cache
def run(command: str, workspace: Path) -> None:
    """Once per command. `vsr-dist` is forked, which saves the start of Python; all else goes through the shell."""
    if command.startswith("vsr-dist "):
        done = run_forked("vsr_dist.cli", shlex.split(command)[1:], workspace)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return
    binaries = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, shell=True, cwd=workspace, env=environment, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="session")
def trained(workspace: Path) -> Path:
    """What a reader of any page has from the README: packed clips and a finished (short) demo run."""
    for command in commands(PAGES[0]):
        if command not in RUN_BY_CI and ("samples" in command or "pack" in command or "vsr_dist.train" in command):
            run(shortened(command), workspace)
    return workspace


ALL = [(page, command) for page in PAGES for command in dict.fromkeys(commands(page)) if command not in RUN_BY_CI]
UNIQUE = {command: page for page, command in reversed(ALL)}
ORDERED = [command for _, command in ALL if command in UNIQUE and UNIQUE.pop(command)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("command", ORDERED, ids=[command[:60] for command in ORDERED])
def test_command_of_the_docs_works(trained: Path, command: str) -> None:
    run(shortened(command), trained)


def test_the_pages_show_commands() -> None:
    assert set(commands(PAGES[0])) >= RUN_BY_CI
    assert len(ORDERED) >= 12


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_of_the_docs_exist(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    missing = [t for t in targets if not t.startswith("http") and not (page.parent / t).exists()]
    assert not missing


def test_the_site_builds_with_every_link_and_reference(tmp_path: Path) -> None:
    """`make docs`: in strict mode a broken link, a page without a place or an unknown class is an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    networks = (tmp_path / "site/api/networks/index.html").read_text()
    assert "vsr_dist.models.base.RecurrentGenerator" in networks
