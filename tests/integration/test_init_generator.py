"""`train.init_generator`: a run that starts from the weights of a trained generator, and `train.perceptual_metric`."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from small_gan import train_here

from vsr_dist.training.tracking import read_metrics

TREE = {
    "seed": 5,
    "data": {"clip_frames": 3, "crop_px": 10, "val_crop_px": 12, "batch_clips": 2, "val_clips": 2},
    "generator": {"kind": "recurrent", "channels": 4, "num_blocks": 1},
    "discriminator": {"kind": "spatiotemporal", "filters": 4, "levels": 2},
    "loss": {"perceptual": 0.0},
    "adversarial": {"weight": 0.01},
    "train": {"steps": 6, "threads": 1, "log_every": 3, "validate_every": 3, "checkpoint_every": 3, "pictures": 0},
    "tracking": {"mlflow": False},
}


@pytest.fixture
def train(tmp_path, pack_films, capsys):
    """Trains in the named folder with the given overrides; returns status and output."""
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump({**TREE, "data": {**TREE["data"], "root": str(pack_films("npy"))}}))

    def run(name, *overrides):
        return train_here(config, f"run_dir={tmp_path / name}", *overrides), capsys.readouterr()

    return run


def weights(run_dir):
    return load_file(run_dir / "generator.safetensors")


def validation(run_dir, step):
    lines = [line for line in read_metrics(run_dir / "metrics.jsonl") if line["step"] == step and "val/psnr_y" in line]
    return {name: value for name, value in lines[-1].items() if name not in ("step", "time_s")}


def test_epochs_become_steps_of_the_data(train, tmp_path):
    """Sequences of 15, 5 and 10 frames have 13 + 3 + 8 windows of 3, which are 12 batches of 2."""
    status, _ = train("epochs", "train.epochs=1", "train.validate_every=1000", "train.checkpoint_every=1000")
    assert status == 0
    resolved = yaml.safe_load((tmp_path / "epochs" / "config.yaml").read_text())["train"]
    num_steps = json.loads((tmp_path / "epochs" / "summary.json").read_text())["steps"]
    assert resolved["epochs"] == 1 and resolved["steps"] == num_steps == 12


def test_a_run_whose_publication_was_interrupted_logs_nothing_twice(train, tmp_path):
    assert train("run")[0] == 0
    log = (tmp_path / "run/metrics.jsonl").read_bytes()
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    (tmp_path / "run/summary.json").unlink()
    assert train("run")[0] == 0
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == log
    assert json.loads((tmp_path / "run/summary.json").read_text())["metrics"] == summary["metrics"]


def test_step_0_is_the_file_and_resuming_neither_needs_it_nor_changes_the_result(train, tmp_path):
    assert train("first", "seed=1", "adversarial.weight=0", "generator_optimizer.learning_rate=0.01")[0] == 0
    trained = tmp_path / "first"
    end = {name: value for name, value in validation(trained, 6).items() if name.startswith("val/")}
    fresh = validation(trained, 0)["val/psnr_y"]
    assert end["val/psnr_y"] != fresh, "six steps must leave a trace, or the next line could not fail"

    status, texts = train("whole", f"train.init_generator={trained}")
    assert status == 0
    begun = validation(tmp_path / "whole", 0)
    assert {name: begun[name] for name in end} == end
    digest = hashlib.sha256((trained / "generator.safetensors").read_bytes()).hexdigest()
    assert f"starts from {trained}, sha256 {digest}" in texts.out
    noted = json.loads((tmp_path / "whole/init_generator.json").read_text())
    assert noted == {"init_generator": str(trained), "init_generator_sha256": digest}
    assert json.loads((tmp_path / "whole/summary.json").read_text())["init_generator_sha256"] == digest

    # A weight file serves as well; here the run is cut back to its middle, and the file is gone when it goes on.
    shutil.copytree(trained, tmp_path / "moved")
    weight_file = f"train.init_generator={tmp_path / 'moved/generator.safetensors'}"
    assert train("parts", weight_file)[0] == 0
    for name in ("summary.json", "generator.safetensors", "generator.json"):
        (tmp_path / "parts" / name).unlink()
    shutil.rmtree(tmp_path / "parts/checkpoints/step_00000006")
    shutil.rmtree(tmp_path / "moved")
    status, texts = train("parts", weight_file)
    assert status == 0 and "starts from" not in texts.out
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert json.loads((tmp_path / "parts/summary.json").read_text())["init_generator_sha256"] == digest


def test_wrong_generators_are_refused(train, tmp_path):
    status, texts = train("none", f"train.init_generator={tmp_path / 'nowhere'}")
    assert status == 2 and "nowhere; expected a run directory" in texts.err and texts.err.count("\n") == 1
    assert train("wide", "generator.channels=6", "train.steps=1", "adversarial.weight=0")[0] == 0
    status, texts = train("other", f"train.init_generator={tmp_path / 'wide'}")
    assert status == 2 and "generator.channels 6 there, 4 here" in texts.err and texts.err.count("\n") == 1
    damaged = tmp_path / "wide/generator.safetensors"
    save_file({"head.weight": torch.zeros(1)}, damaged)
    status, texts = train("other2", "generator.channels=6", f"train.init_generator={damaged}")
    assert status == 2 and "does not hold the weights" in texts.err


@pytest.mark.skipif(importlib.util.find_spec("stlpips_pytorch") is None, reason="stlpips-pytorch is not installed")
def test_the_perceptual_metric_is_logged_and_changes_no_weight(train, tmp_path):
    assert train("without", "adversarial.weight=0")[0] == 0
    assert train("with", "adversarial.weight=0", "train.perceptual_metric=stlpips")[0] == 0
    plain, judged = (validation(tmp_path / name, 6) for name in ("without", "with"))
    assert {"val/stlpips", "val_bicubic/stlpips"} == judged.keys() - plain.keys()
    assert 0 < judged["val/stlpips"] < 1 and 0 < judged["val_bicubic/stlpips"] < 1
    assert all(judged[name] == plain[name] for name in plain)
    # Before the first step the generator is bicubic: the two must agree, each from its own forward.
    start = validation(tmp_path / "with", 0)
    assert start["val/stlpips"] == pytest.approx(start["val_bicubic/stlpips"], abs=1e-6)
    first, second = weights(tmp_path / "without"), weights(tmp_path / "with")
    assert all(torch.equal(first[name], second[name]) for name in first)
