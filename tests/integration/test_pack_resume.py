"""Interrupted packs: kills, a full disk, errors, reruns, and other data in the output folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pack_runs import CLIPS, contents, run

import sharding.write
from sharding.errors import BadConfigError, BadInputError, BadShardError
from sharding.index import read_index
from sharding.pack import PackJob, pack
from sharding.plan import PackOptions
from sharding.verify import verify

ROOT = Path(__file__).parents[2]


def job(out: Path, name: str = "carphone_pristine", **options: object) -> PackJob:
    settings = {"shard_bytes": 1, "holdout_tail": 0.5, **options}
    return PackJob(out, (CLIPS[name],), options=PackOptions(**settings))  # type: ignore[arg-type]


def children_of(pid: int) -> set[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return {int(child) for child in path.read_text().split()} if path.exists() else set()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to see the worker processes")
def test_a_killed_pack_is_no_data_set_and_a_rerun_gives_the_same_bytes(tmp_path: Path) -> None:
    out, reference = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-m", "sharding", "pack", str(CLIPS["bikes"]), "--codec", "png"]
    options = ["--shard-mb", "5", "--workers", "2", "--out"]
    log = tmp_path / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen([*command, *options, str(out)], stdout=stream, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 60
        while not list(out.glob("*.tar")) and time.monotonic() < deadline:
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)
        workers = children_of(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert len(workers) >= 2
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers), "workers outlived their parent"
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    (out / "train-000001.tar.tmp.1").write_bytes(b"half a shard")
    with pytest.raises(BadShardError, match=r"has no index\.json"):
        read_index(out)

    done = subprocess.run([*command, *options, str(out)], capture_output=True, text=True, check=True)
    assert f"skipped {len(finished)} finished shards" in done.stdout
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
    pack(PackJob(reference, (CLIPS["bikes"],), options=PackOptions(codec="png", shard_bytes=5_000_000)))
    assert contents(out) == contents(reference)
    assert verify(out) == []


def test_a_rerun_of_a_finished_pack_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set"
    first = pack(job(out))
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    again = pack(job(out))
    assert (first.num_written, first.num_skipped) == (2, 0)
    assert (again.num_written, again.num_skipped) == (0, 2)
    assert "skipped 2 finished shards" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.tar")} == before


def test_a_lost_or_short_shard_is_made_again_with_the_same_bytes(tmp_path: Path) -> None:
    out = tmp_path / "set"
    pack(job(out))
    expected = contents(out)
    (out / "train-000000.tar").write_bytes(b"short")
    (out / "val-000000.tar").unlink()
    with pytest.raises(BadShardError, match=r"train-000000.tar has 5 bytes.*val-000000.tar is missing.*rerun pack"):
        read_index(out)
    assert pack(job(out)).num_written == 2
    assert contents(out) == expected


def test_an_exception_half_way_leaves_nothing_that_looks_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "set"
    calls = []

    def failing(*args: object) -> dict[str, object]:
        calls.append(args)
        if len(calls) == 6:
            raise OSError("disk full")
        return record(*args)  # type: ignore[arg-type]

    record = sharding.write.clip_record
    monkeypatch.setattr(sharding.write, "clip_record", failing)
    with pytest.raises(OSError, match="disk full"):
        pack(job(out))
    assert [path.name for path in out.iterdir() if path.name != ".pack"] == ["train-000000.tar"]
    monkeypatch.undo()
    assert pack(job(out)).num_skipped == 1
    assert verify(out) == []


def test_a_failure_in_the_first_shard_leaves_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding.write, "clip_record", lambda *args: {}["x"])
    with pytest.raises(KeyError):
        pack(job(tmp_path / "set"))
    assert [path.name for path in (tmp_path / "set").iterdir()] == [".pack"]


def test_another_pack_is_refused_and_overwrite_replaces_it(tmp_path: Path) -> None:
    out = tmp_path / "set"
    pack(job(out))
    before = contents(out)
    with pytest.raises(BadShardError, match=r"scale 4, now 2.*--overwrite"):
        pack(job(out, scale=2))
    with pytest.raises(BadShardError, match="other sources"):
        pack(job(out, name="carphone_distorted"))
    with pytest.raises(BadShardError, match="other splits"):
        pack(job(out, holdout_tail=0.25))
    assert contents(out) == before
    pack(replace(job(out, scale=2, holdout_tail=0.0), overwrite=True))
    assert read_index(out).scale == 2
    assert sorted(path.name for path in out.glob("*.tar")) == ["train-000000.tar"]
    assert verify(out) == []


def test_overwrite_with_a_bad_source_leaves_the_old_pack(tmp_path: Path) -> None:
    out = tmp_path / "set"
    pack(job(out))
    before = contents(out)
    text = tmp_path / "text.mp4"
    text.write_text("hello")
    with pytest.raises(BadInputError):
        pack(PackJob(out, (text,), overwrite=True))
    assert contents(out) == before


def test_shards_without_a_journal_are_not_touched(tmp_path: Path) -> None:
    out = tmp_path / "set"
    out.mkdir()
    (out / "train-000000.tar").write_bytes(b"someone else's")
    with pytest.raises(BadShardError, match="no record of its sources"):
        pack(job(out))
    assert (out / "train-000000.tar").read_bytes() == b"someone else's"


def test_overwrite_is_refused_for_a_part(tmp_path: Path) -> None:
    with pytest.raises(BadConfigError, match="other parts"):
        pack(replace(job(tmp_path / "set"), part=(0, 2), overwrite=True))


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


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_full_disk_is_one_line_and_a_rerun_goes_on(
    small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], num_workers: int
) -> None:
    """The clip takes 9.7 MB in six shards, so that three fit."""
    clip = CLIPS["carphone_pristine"]
    options = [clip, "--shard-mb", 1.7, "--holdout-tail", 0.15, "--min-frames", 1, "--workers", num_workers]
    out, reference = small_disk / "set", tmp_path / "reference"
    assert run("pack", *options, "--out", reference, "--clip-frames", 8) == 0
    capsys.readouterr()
    assert run("pack", *options, "--out", out, "--clip-frames", 8) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the disk of")
    assert "finished shards are kept: free some space and run the same command again" in error
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
@pytest.mark.timeout(300)
def test_kills_at_random_moments_leave_the_bytes_as_they_are(tmp_path: Path) -> None:
    result = tmp_path / "kills.json"
    script = ROOT / "benchmarks" / "pack_kill.py"
    command = [sys.executable, str(script), "--kills", "2", "--seed", "7", "--result", str(result)]
    command += ["--clips", "bikes"]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    found = json.loads(result.read_text())
    assert found["num_equal"] == 2 and found["num_shards"] > 4
