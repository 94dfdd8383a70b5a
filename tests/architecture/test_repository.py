"""Rules that hold for the repository as a whole."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from vsr_dist.config import load_config

ROOT = Path(__file__).parents[2]
PACKAGES = ("sharding", "vsr_dist", "sweeps")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
RUN_CONFIGS = [path for path in CONFIGS if path.parent.name not in {"accelerate", "studies"}]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def parse(path):
    return ast.parse(path.read_text())


@pytest.fixture(scope="module")
def repository_files():
    """Files that are tracked, and new ones that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_path_of_one_machine(repository_files):
    # Put together here, so that this file does not match itself.
    machine_path = re.compile(rb"(?<![\w.~-])/(?:" + b"|".join([b"work", b"root", b"tmp"]) + rb")/")
    faults = [name_of(path) for path in repository_files if machine_path.search(path.read_bytes())]
    assert not faults


def test_python_sources_are_ascii(repository_files):
    sources = [path for path in repository_files if path.suffix == ".py"]
    assert len(sources) > len(MODULES)
    assert not [name_of(path) for path in sources if not path.read_bytes().isascii()]


@pytest.mark.parametrize("path", RUN_CONFIGS, ids=name_of)
def test_run_configurations_load(path):
    assert load_config(path).run_dir


def test_launch_configurations_name_their_processes():
    paths = [path for path in CONFIGS if path.parent.name == "accelerate"]
    assert paths
    assert all(yaml.safe_load(path.read_text())["num_processes"] >= 1 for path in paths)


def test_every_public_module_has_a_docstring():
    public = [path for path in MODULES if path.stem in {"__init__", "__main__"} or not path.stem.startswith("_")]
    assert not [name_of(path) for path in public if not ast.get_docstring(parse(path))]


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_marked_as_typed(package):
    assert (ROOT / package / "py.typed").is_file()
    folders = {path.parent for path in MODULES if path.is_relative_to(ROOT / package)}
    assert not [name_of(folder) for folder in folders if not (folder / "__init__.py").is_file()]


def uses(tree, library):
    """True if the source imports `library` (dotted name), or reaches it as an attribute."""
    parent, _, leaf = library.rpartition(".")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute) and parent and node.attr == leaf:
            names = [f"{ast.unparse(node.value)}.{leaf}"]
        else:
            continue
        if any(name == library or name.startswith(f"{library}.") for name in names):
            return True
    return False


@pytest.mark.parametrize(
    ("library", "callers"),
    [
        (
            "mlflow",
            [
                "vsr_dist/inference/mlflow_model.py",
                "vsr_dist/training/tracked_runs.py",
                "vsr_dist/training/tracking.py",
            ],
        ),
        ("torch.distributed", ["vsr_dist/core/collectives.py"]),
    ],
)
def test_these_modules_alone_use(library, callers):
    assert [name_of(path) for path in MODULES if uses(parse(path), library)] == callers


def config_fields(tree):
    """(Class, field) of each dataclass whose name ends with Config."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            for statement in node.body:
                if isinstance(statement, ast.AnnAssign):
                    yield node.name, statement.target.id


def attributes_read(node):
    """Names read as `x.name` or `getattr(x, "name")`; a check in `__post_init__` is no use of a value."""
    if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
        return set()
    found = set().union(*(attributes_read(child) for child in ast.iter_child_nodes(node)))
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        found.add(node.attr)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
        found |= {argument.value for argument in node.args[1:2] if isinstance(argument, ast.Constant)}
    return found


def test_no_configuration_field_is_dead():
    trees = [parse(path) for path in MODULES]
    fields = {field for tree in trees for field in config_fields(tree)}
    read = set().union(*(attributes_read(tree) for tree in trees))
    assert ("TrainConfig", "steps") in fields
    assert not sorted(f"{owner}.{field}" for owner, field in fields if field not in read)
