"""The container files, as far as they can be checked without building an image."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def dockerfile():
    return (ROOT / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def copied(dockerfile):
    """Paths that COPY takes from the repository."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", dockerfile, re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


@pytest.fixture(scope="module")
def services():
    return yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]


def test_hadolint_finds_nothing():
    hadolint = Path(sys.executable).parent / "hadolint"
    result = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_copied_paths_exist_and_are_sent_to_the_builder(copied):
    sent = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().split("\n") if line[:1] == "!"}
    assert copied
    assert all((ROOT / source).exists() for source in copied), copied
    assert sent == set(copied)


def test_the_image_runs_as_a_plain_user_under_tini(dockerfile):
    runtime = dockerfile.split("\nFROM ")[-1]
    assert "\nUSER 1000:1000\n" in runtime
    assert '\nENTRYPOINT ["tini", "--", "vsr-dist"]\n' in runtime


def test_the_image_and_the_package_have_one_version(dockerfile, services):
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert f'image.version="{version}"' in dockerfile
    assert {service["image"] for service in services.values()} == {f"vsr-dist:{version}"}


def test_the_tracking_server_answers_to_the_name_that_training_uses(services):
    (uri,) = re.findall(r"tracking\.uri=http://(\w+):5000", " ".join(services["train"]["command"]))
    assert uri in services
    (allowed,) = [option for option in services[uri]["command"] if option.startswith("--allowed-hosts=")]
    assert f"{uri}:*" in allowed.partition("=")[2].split(",")


def test_the_training_service_names_files_that_exist(services):
    defaults = re.findall(r"\$\{VSR_\w+:-(configs/[^}]+)\}", " ".join(services["train"]["command"]))
    assert len(defaults) == 2
    assert all((ROOT / name).is_file() for name in defaults), defaults
