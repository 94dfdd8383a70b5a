"""`pip install vsr-dist` without extras does the core's work, and names the extra for what it leaves out.

A process in which everything is hidden that the core's dependencies do not bring stands for such an installation.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import get_args

import cv2
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sharding.extras import Extra

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
GROUPS = {"demo", "docs", "dev"}  # They are not for use but for `make`.
SMALL = {
    "run_dir": "run",
    "data": {"root": "data", "clip_frames": 3, "crop_px": 10, "val_crop_px": 12, "batch_clips": 2, "val_clips": 2},
    "generator": {"kind": "recurrent", "channels": 4, "num_blocks": 1},
    "train": {"steps": 1, "warmup_steps": 0, "validate_every": 1, "threads": 1},
    "loss": {"perceptual": 0.0},
    "tracking": {"uri": "sqlite:///mlflow.db"},
}
# Runs commands, those of `vsr-dist` and of `python -m sweeps`, and prints [status, stdout, stderr] of each.
CORE_ONLY = """
import contextlib, importlib.metadata, io, json, sys
from importlib.machinery import PathFinder
hidden_modules, hidden_distributions, commands = json.load(sys.stdin)

class CoreFinder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden_modules else super().find_spec(name, path, target)

real_distribution = importlib.metadata.distribution
def distribution(name):
    if name.lower().replace("_", "-") in hidden_distributions:
        raise importlib.metadata.PackageNotFoundError(name)
    return real_distribution(name)

importlib.metadata.distribution = distribution
sys.meta_path[sys.meta_path.index(PathFinder)] = CoreFinder
from sharding.errors import run_cli
from vsr_dist.cli import main
import sweeps.cli

results = []
for program, *arguments in commands:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = run_cli(sweeps.cli.main, arguments) if program == "sweeps" else main(arguments)
        except SystemExit as exit:  # of --help
            status = exit.code
    results.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""
WORKS = {
    "pack": "vsr-dist pack film --out data --holdout-tail 0.25",
    "verify": "vsr-dist verify data",
    "inspect": "vsr-dist inspect data",
    "check": "vsr-dist config check small.yaml",
    "train": "vsr-dist train --config small.yaml",
    "evaluate": "vsr-dist evaluate --checkpoint run --data data --out evaluation --track",
    "report": "vsr-dist report report --runs run evaluation",
    "upscale": "vsr-dist upscale film film.mp4 --frames 2",
    "export": "vsr-dist export --checkpoint run --format torch --out generator.pt2",
    "replay": "vsr-dist track replay run",
    "study help": "vsr-dist study --help",
}
DATABASE = "postgresql://u@127.0.0.1:1/db"
EVALUATE = "vsr-dist evaluate --checkpoint run --data data --out other --metrics"
TRAIN = "vsr-dist train --config small.yaml --set"
MISSING = [
    ("studies", "vsr-dist study run --config study.yaml"),
    ("studies", "vsr-dist study report --config study.yaml"),
    ("studies", "sweeps promote --config study.yaml"),
    ("samples", "vsr-dist samples clips"),
    ("perceptual", f"{TRAIN} run_dir=b --set loss.perceptual=0.1"),
    ("perceptual", f"{TRAIN} run_dir=c --set train.perceptual_metric=stlpips"),
    ("perceptual", f"{EVALUATE} stlpips"),
    ("metrics", f"{EVALUATE} lpips"),
    ("metrics", f"{EVALUATE} psnr_y,tlp"),
    ("metrics", f"{EVALUATE} dists"),
    ("metrics", f"{EVALUATE} vmaf"),
    ("s3", f"{TRAIN} run_dir=d --set data.root=s3://bucket/set"),
    ("onnx", "vsr-dist export --checkpoint run --format onnx --out generator.onnx"),
    ("basicvsr", "vsr-dist import basicvsr:reds4 published"),
    ("postgres", f"{TRAIN} run_dir=e --set tracking.uri={DATABASE}"),
    ("postgres", "vsr-dist track replay e"),
    ("postgres", f"vsr-dist upscale film other.mp4 --checkpoint models:/a/1 --tracking-uri {DATABASE}"),
]


def owners():
    """By top-level module, the names of the distributions that have it."""
    found = metadata.packages_distributions().items()
    return {module: {canonicalize_name(name) for name in names} for module, names in found}


def names_of(requirements):
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def brought_by(requirements):
    """Names of the distributions that pip would install for these requirements."""
    found, waiting = set(), [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, *requirement.extras) in found:
            continue
        found.add((name, *requirement.extras))
        try:
            needed = [Requirement(text) for text in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue  # Only for another platform, or not there at all, as for the CUDA libraries of a CPU's torch.
        environments = [{"extra": extra} for extra in ("", *requirement.extras)]
        waiting += [one for one in needed if one.marker is None or any(map(one.marker.evaluate, environments))]
    return {name for name, *_ in found}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, films, empty_mlflow_database):
    """What each command did: (status, stdout, stderr)."""
    folder = tmp_path_factory.mktemp("core")
    (folder / "film").mkdir()
    for number, frame in enumerate(films["steps"]):
        cv2.imwrite(str(folder / "film" / f"{number}.png"), frame)
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    shutil.copy(empty_mlflow_database, folder / "mlflow.db")
    core = brought_by(PROJECT["dependencies"]) | {"vsr-dist", "pip"}
    distributions = sorted({canonicalize_name(one.name) for one in metadata.distributions()} - core)
    modules = [module for module, names in owners().items() if not core & names]
    commands = [*WORKS.values(), *(command for _, command in MISSING)]
    done = subprocess.run(
        [sys.executable, "-c", CORE_ONLY],
        input=json.dumps([modules, distributions, [command.split() for command in commands]]),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(commands, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("command", WORKS.values(), ids=WORKS)
def test_the_core_works_without_any_extra(outcomes, command):
    status, _, err = outcomes[command]
    assert status == 0, err


@pytest.mark.slow
@pytest.mark.parametrize(("extra", "command"), MISSING)
def test_a_missing_extra_is_one_line_that_names_it(outcomes, extra, command):
    status, _, err = outcomes[command]
    assert status == 2
    assert err.count("\n") == 1 and err.startswith("error: ")
    assert f"needs the extra '{extra}' (" in err and f"; run: pip install 'vsr-dist[{extra}]'" in err


def test_every_extra_has_its_error_and_its_line_in_the_readme():
    assert {extra for extra, _ in MISSING} == set(EXTRAS) - GROUPS == set(get_args(Extra))
    table = re.search(r"^\| extra \|.*?\n\n", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(EXTRAS)


def imported(package):
    """Top-level modules that the sources of a package import anywhere."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield str(node.module).partition(".")[0]


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    installed = owners()
    core, studies = names_of(PROJECT["dependencies"]), names_of(EXTRAS["studies"])
    used = set()
    for package, declared in (("sharding", core), ("vsr_dist", core), ("sweeps", core | studies)):
        modules = set(imported(package)) - set(sys.stdlib_module_names) - {"sharding", "vsr_dist", "sweeps"}
        undeclared = {module for module in modules if not installed.get(module, set()) & declared}
        assert not undeclared, package
        used |= set().union(*(installed[module] for module in modules if package != "sweeps"))
    assert not core - used
