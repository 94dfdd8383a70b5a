"""A full disk, and kills at random moments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharding.cli import main
from sharding.errors import run_cli
from sharding.samples import find_samples
from sharding.verify import verify

ROOT = Path(__file__).parents[2]
CLIP = next(path for path in find_samples() if path.stem == "carphone_pristine")


def run(*argv: object) -> int:
    return run_cli(main, [str(word) for word in argv])


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_full_disk_is_one_line_and_a_rerun_goes_on(
    small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], num_workers: int
) -> None:
    """The clip takes 9.7 MB in six shards, so that three fit."""
    options = [CLIP, "--shard-mb", 1.7, "--holdout-tail", 0.15, "--min-frames", 1, "--workers", num_workers]
    out, reference = small_disk / "set", tmp_path / "reference"
    assert run("pack", *options, "--out", reference, "--clip-frames", 8) == 0
    capsys.readouterr()
    assert run("pack", *options, "--out", out, "--clip-frames", 8) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no space is left for")
    assert "finished shards are kept: make room and run the same command again" in error
    assert error.count("\n") == 1
    assert not (out / "index.json").exists()
    assert not list(out.rglob("*.tmp.*"))
    kept = {path.name: path.read_bytes() for path in out.glob("*.tar")}
    assert all((reference / name).read_bytes() == data for name, data in kept.items())
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    assert run("pack", *options, "--out", out, "--clip-frames", 8) == 0
    assert verify(out) == []
    assert contents(out) == contents(reference)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_kills_at_random_moments_leave_the_bytes_as_they_are(tmp_path: Path) -> None:
    result = tmp_path / "kills.json"
    script = ROOT / "benchmarks" / "pack_kill.py"
    command = [sys.executable, str(script), "--kills", "4", "--seed", "7", "--result", str(result)]
    command += ["--clips", "bikes"]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    found = json.loads(result.read_text())
    assert found["num_equal"] == 4 and found["num_shards"] > 4
