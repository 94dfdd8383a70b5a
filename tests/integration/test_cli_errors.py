"""A mistake of the user's ends with status 2 and one line on stderr that says what to do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sharding.index import read_index
from vsr_dist.cli import main
from vsr_dist.inference.generator_io import save_generator
from vsr_dist.models import build_generator
from vsr_dist.models.recurrent import RecurrentConfig

SMALL = {
    "data": {"clip_frames": 3, "crop_px": 10, "val_crop_px": 12, "batch_clips": 4, "val_clips": 2},
    "generator": {"kind": "recurrent", "channels": 4, "num_blocks": 1},
    "train": {"steps": 2, "threads": 1},
    "loss": {"perceptual": 0.0},
    "adversarial": {"weight": 0.0},
    "tracking": {"mlflow": False},
}
PYTHON = sys.executable


@pytest.fixture
def fails(capsys):
    """Runs `vsr-dist ARGV` in this process, which must fail properly; returns the message."""

    def run(*argv: object) -> str:
        assert main([str(word) for word in argv]) == 2
        return one_line(capsys.readouterr().err)

    return run


def one_line(err: str) -> str:
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert "Traceback" not in err
    return err


@pytest.fixture
def config(tmp_path, pack_films) -> Path:
    """A small training on the packed films."""
    tree = {**SMALL, "run_dir": str(tmp_path / "run"), "data": {**SMALL["data"], "root": str(pack_films("npy"))}}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def damaged(tmp_path, pack_films):
    """A copy of the packed films whose `kind` of damage its first train shard and its val shard have."""

    def make(kind: str) -> Path:
        root = shutil.copytree(pack_films("npy"), tmp_path / "damaged")
        for name in ("train-000000.tar", "val-000000.tar"):
            path = root / name
            data = bytearray(path.read_bytes())
            if kind == "missing":
                path.unlink()
            elif kind == "truncated":
                path.write_bytes(data[: len(data) // 2])
            else:
                first = next(clip for clip in read_index(pack_films("npy")).clips if clip.shard == name)
                for member in (members[0] for members in first.members.values()):
                    data[member.offset + member.num_bytes // 2] ^= 1
                path.write_bytes(data)
        return root

    return make


@pytest.fixture
def finished_run(tmp_path) -> Path:
    """A run directory with a generator that nobody trained."""
    folder = tmp_path / "finished"
    folder.mkdir()
    generator = RecurrentConfig(channels=4, num_blocks=1)
    save_generator(folder, build_generator(generator, 4), generator, {})
    return folder


def test_pack_without_its_source(fails, tmp_path):
    message = fails("pack", tmp_path / "no.mp4", "--out", tmp_path / "set")
    assert "no.mp4 does not exist; expected a video file or a folder of images" in message
    assert not (tmp_path / "set" / "index.json").exists()


def test_pack_of_a_text_with_a_videos_name_and_of_an_empty_folder(fails, tmp_path):
    (tmp_path / "notes.mp4").write_text("These are my notes.\n" * 50)
    (tmp_path / "empty").mkdir()
    message = fails("pack", tmp_path / "notes.mp4", tmp_path / "empty", "--out", tmp_path / "set")
    assert "notes.mp4 is not a video" in message
    assert "empty has no images" in message  # both faults at once


def test_a_folder_that_is_no_data_set(fails, tmp_path):
    assert "has no index.json" in fails("inspect", tmp_path)
    fails("verify", tmp_path)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("missing", "is missing"), ("truncated", "bytes, expected"), ("flipped", "is damaged: its hash")],
)
def test_verify_lists_the_faults_and_ends_with_one_line(capsys, damaged, kind, expected):
    root = damaged(kind)
    assert main(["verify", str(root)]) == 2
    out, err = capsys.readouterr()
    assert "faults, listed on stdout" in one_line(err)
    for shard in ("train-000000.tar", "val-000000.tar"):
        assert any(line.startswith(shard) and expected in line for line in out.splitlines())


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("missing", "train-000000.tar is missing"),
        ("truncated", "train-000000.tar has"),
        ("flipped", "differ from the index"),
    ],
)
def test_train_on_a_damaged_set(fails, config, damaged, kind, expected):
    message = fails("train", "--config", config, "--set", f"data.root={damaged(kind)}")
    assert expected in message


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("missing", "val-000000.tar is missing"),
        ("truncated", "val-000000.tar has"),
        ("flipped", "differ from the index"),
    ],
)
def test_evaluate_on_a_damaged_set(fails, tmp_path, damaged, kind, expected):
    message = fails("evaluate", "--method", "bicubic", "--data", damaged(kind), "--out", tmp_path / "out")
    assert expected in message
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert not list(tmp_path.glob("out/videos/*"))


def test_train_on_a_folder_without_a_set(fails, config, tmp_path):
    (tmp_path / "empty").mkdir()
    message = fails("train", "--config", config, "--set", f"data.root={tmp_path / 'empty'}")
    assert "has no index.json" in message


def test_a_configuration_file_that_is_not_there(fails, tmp_path):
    for argv in (["train", "--config"], ["config", "check"], ["config", "show"]):
        assert "no configuration file" in fails(*argv, tmp_path / "no.yaml")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("generator.channels=1000000000000", "the networks are too large"),
        ("tracking.uri=https://me:hunter2@host", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ("train.step=5", "unknown key train.step (did you mean 'steps'?)"),
        ("optimizer.learning_rate=5", "unknown key optimizer"),
        ("train.steps=many", "train.steps: Expected int. Got value: many"),
        ("train.steps=", "train.steps is empty"),
        ("train.steps", "override 'train.steps' is not of the form PATH=VALUE"),
        ("loss.tv=[1", "is not valid YAML"),
        ("loss.tv.x=1", "loss.tv: Expected float"),
        ("train.steps.x=1", "cannot set train.steps.x: 'steps' is a value, not a section"),
    ],
)
def test_an_override_that_does_not_fit(fails, config, override, expected):
    for argv in (["train", "--config", config], ["config", "check", config]):
        assert expected in fails(*argv, "--set", override)


def test_a_password_is_not_said_again(fails, config):
    assert "hunter2" not in fails("train", "--config", config, "--set", "tracking.uri=postgresql://me:hunter2@host/db")


def test_a_configuration_file_with_several_faults_names_them_all(fails, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("seed: x\nlos: {tv: 1}\ndata:\n  crop_px: 1.5\n  symmetries: 3\n")
    message = fails("config", "check", path)
    for part in (str(path), "seed:", "unknown key los", "data.crop_px:", "data.symmetries:"):
        assert part in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.crop_px=17", "data.crop_px is 17, larger than the low-resolution frames"),
        ("data.batch_clips=0", "batch_clips is 0, expected at least 1"),
        ("data.train_split=test", "no split 'test'; expected one of: train, val"),
        ("scale=2 data.clip_frames=1 loss.temporal=0", "scale is 2, but"),
        ("train.processes=2", "train.processes is 2, but 1 process(es) were started"),
        ("train.accumulation_steps=3", "data.batch_clips is 4; expected a multiple"),
    ],
)
def test_train_with_what_the_data_cannot_give(fails, config, override, expected):
    options = [word for one in override.split() for word in ("--set", one)]
    assert expected in fails("train", "--config", config, *options)


def test_a_check_with_data_finds_what_a_training_would(fails, config):
    """`config check` opens the data; --no-data leaves it out."""
    assert "data.crop_px is 17" in fails("config", "check", config, "--set", "data.crop_px=17")
    assert main(["config", "check", str(config), "--set", "data.crop_px=17", "--no-data"]) == 0
    message = fails("config", "check", config, "--set", "data.val_crop_px=11")
    assert "data.val_crop_px 11 x scale 4 is below the 48 px that the validation's tOF needs" in message
    assert main(["config", "check", str(config)]) == 0


def test_a_check_measures_the_share_of_every_term(config, capsys):
    options = ["--set", "adversarial.weight=0.1", "--set", "loss.balance=shares", "--set", "loss.tv=0.05"]
    assert main(["config", "check", str(config), "--measure", *options]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    shares = {row[0]: float(row[2]) for row in rows if row and row[0] in ("adversarial", "tv", "temporal")}
    assert shares == pytest.approx({"adversarial": 0.1, "tv": 0.05, "temporal": 0.1}, rel=0.05)


def test_train_into_a_directory_in_use(fails, config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
    assert "already contains a run; add --resume auto" in fails("train", "--config", config)


def test_evaluate_without_a_checkpoint(fails, tmp_path, pack_films):
    rest = ("--data", pack_films("npy"), "--out", tmp_path / "out")
    assert "expected a run directory" in fails("evaluate", "--checkpoint", tmp_path / "no", *rest)
    (tmp_path / "unfinished").mkdir()
    assert "expected a finished run directory" in fails("evaluate", "--checkpoint", tmp_path / "unfinished", *rest)
    assert not (tmp_path / "out").exists()


def test_evaluate_with_what_does_not_fit(fails, tmp_path, pack_films, finished_run):
    command = ("evaluate", "--checkpoint", finished_run, "--data", pack_films("npy"), "--out")
    assert "no split 'test'" in fails(*command, tmp_path / "out", "--split", "test")
    assert "--device gpu cannot be used" in fails(*command, tmp_path / "out", "--device", "gpu")
    (tmp_path / "file").write_text("")
    assert "is a file; expected a folder" in fails(*command, tmp_path / "file")
    description = json.loads((finished_run / "generator.json").read_text())
    smaller = RecurrentConfig(channels=4, num_blocks=1)
    assert description["scale"] == 4
    save_generator(finished_run, build_generator(smaller, 2), smaller, {})
    assert "has scale 2" in fails(*command, tmp_path / "out")
    (finished_run / "generator.safetensors").write_bytes(b"damaged")
    assert "does not hold the weights" in fails(*command, tmp_path / "out")


@pytest.mark.parametrize(
    "command",
    [
        [str(Path(PYTHON).with_name("vsr-dist")), "pack", "absent.mp4", "--out", "set"],
        [PYTHON, "-m", "sharding", "inspect", "absent"],
        [PYTHON, "-m", "vsr_dist.cli", "evaluate", "--checkpoint", "absent", "--data", "DATA", "--out", "out"],
        [PYTHON, "-m", "vsr_dist.train", "--config", "CONFIG", "--set", "data.root=absent"],
    ],
    ids=["script", "sharding", "evaluate", "train"],
)
def test_as_processes_of_their_own(tmp_path, config, pack_films, command):
    """The whole way to the exit status, with whatever libraries write to stderr on the way."""
    words = [{"DATA": str(pack_films("npy")), "CONFIG": str(config)}.get(word, word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2, done.stderr
    assert "absent" in one_line(done.stderr)
    assert done.stdout == ""
