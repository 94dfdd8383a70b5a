"""A number that is not finite: the run stops or goes back, says why, and keeps what is needed to look at it."""

from __future__ import annotations

import json
import math
import os

import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_gan import train_here

from vsr_dist.config import load_config
from vsr_dist.core.collectives import World
from vsr_dist.core.rng import step_seed
from vsr_dist.data.loader import TrainLoader
from vsr_dist.data.shards import open_shard_set
from vsr_dist.data.windows import SampleReader
from vsr_dist.metrics.registry import METRICS
from vsr_dist.training import checkpoint
from vsr_dist.training.tracking import read_metrics
from vsr_dist.training.trainer import Trainer, write_bundle

TREE = {
    "seed": 5,
    "data": {"clip_frames": 3, "crop_px": 10, "val_crop_px": 12, "batch_clips": 4, "val_clips": 2},
    "generator": {"kind": "recurrent", "channels": 4, "num_blocks": 1},
    "loss": {"perceptual": 0.0},
    "adversarial": {"weight": 0.0},
    "train": {"steps": 12, "accumulation_steps": 2, "threads": 1, "log_every": 2, "validate_every": 6},
    "tracking": {"mlflow": False},
}


@pytest.fixture
def train(tmp_path, pack_films, monkeypatch, capsys):
    """Trains with faults: before each listed step, once per entry, a weight becomes NaN. Returns status and errors."""
    config = tmp_path / "small.yaml"
    tree = {**TREE, "run_dir": str(tmp_path / "run"), "data": {**TREE["data"], "root": str(pack_films("npy"))}}
    tree["train"] = {**TREE["train"], "checkpoint_every": 4}
    config.write_text(yaml.safe_dump(tree))
    real_step = Trainer._train_step

    def run(*overrides, faults=()):
        left = list(faults)

        def broken_step(self, step, *arguments, **options):
            if step in left:
                left.remove(step)
                with torch.no_grad():
                    next(self.parts.live.modules["generator"].parameters()).fill_(math.nan)
            real_step(self, step, *arguments, **options)

        monkeypatch.setattr(Trainer, "_train_step", broken_step)
        return train_here(config, *overrides), capsys.readouterr()

    run.config = config
    return run


def ended(run_dir):
    return json.loads((run_dir / "ended.json").read_text())


def test_stop_is_the_default_and_leaves_a_bundle(train, tmp_path):
    status, texts = train(faults=[6])
    assert status == 2
    assert "not finite: the term(s) loss_g/image" in texts.err
    found = ended(tmp_path / "run")
    assert (found["exit_reason"], found["status"], found["error"]) == ("failed", 2, "NonFiniteError")
    folder = tmp_path / "run/debug/step_00000006"
    report = json.loads((folder / "rank_0.json").read_text())
    assert report["terms"]["loss_g/image"] == ["nan", "nan"]
    assert report["step"] == 6
    assert report["step_seed"] == step_seed(5, 0, 6)
    assert report["config"]["train"]["steps"] == 12
    assert report["learning_rates"]["generator"] == pytest.approx(1e-4)
    # The micro-batches are those that the step read.
    config = load_config(train.config)
    loader = TrainLoader(config.data, open_shard_set(config.data), config.seed, World(), 2)
    kept = load_file(folder / "rank_0.safetensors")
    batches = loader.batches(6)
    for number in range(2):
        batch = next(batches)
        assert torch.equal(kept[f"low_{number}"], batch.low_BTCHW)
        assert torch.equal(kept[f"real_{number}"], batch.real_BTCYX)
        assert report["windows"][number] == list(batch.names)
    batches.close()


def test_rollback_goes_on_from_the_last_checkpoint_with_a_lower_learning_rate(train, tmp_path):
    status, texts = train("train.on_non_finite=rollback", faults=[6])
    assert status == 0, texts.err
    assert "step 7 was not finite: rolled back to step 4, learning rates x 0.5" in texts.out
    lines = [line for line in read_metrics(tmp_path / "run/metrics.jsonl") if "learning_rate/generator" in line]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert {name for name in lines[0] if name.startswith("perf/")} == {n for n in METRICS if n.startswith("perf/")}
    rates = [line["learning_rate/generator"] for line in lines]
    assert rates == pytest.approx([1e-4, 1e-4, 5e-5, 5e-5, 5e-5, 5e-5])
    state = checkpoint.read_state(checkpoint.newest(tmp_path / "run/checkpoints"))
    assert (state["step"], state["rollbacks"]) == (12, 1)
    assert (tmp_path / "run/debug/step_00000006/rank_0.safetensors").is_file()


def test_a_rollback_forgets_the_best_of_the_abandoned_steps(train, tmp_path):
    """After it the rate is so low that no later validation is better than the abandoned one."""
    overrides = ["train.on_non_finite=rollback", "train.rollback_factor=0.0001", "train.validate_every=2"]
    status, _ = train(*overrides, "train.log_every=6", faults=[7])
    assert status == 0
    best = checkpoint.read_state(tmp_path / "run" / "checkpoints" / "best")
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "val/psnr_y" in line]
    measured = {line["step"]: line["val/psnr_y"] for line in lines}
    assert best["best"]["value"] == measured[best["step"]] == max(v for step, v in measured.items() if step)


def test_the_bundle_counts_no_damaged_window_again(train, tmp_path, monkeypatch):
    """The limit is what the training itself meets: the bundle reads a damaged window of the bad step once more."""
    read = SampleReader.read

    def damaged(self, sample, out):
        found = read(self, sample, out)
        return found._replace(is_replacement=True) if sample.position == 24 else found

    monkeypatch.setattr(SampleReader, "read", damaged)
    overrides = ["data.on_bad_sample=replace", "data.max_bad_samples=2", "train.on_non_finite=rollback"]
    status, texts = train(*overrides, faults=[6])
    assert status == 0, texts.err
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    # Once before the rollback, once after it.
    assert [line["data/bad_samples"] for line in lines if "data/bad_samples" in line][-1] == 2
    assert (tmp_path / "run" / "debug").is_dir()


def test_the_newest_bundles_are_kept_whatever_their_step(tmp_path):
    class Loader:
        world = World(0, 1)
        num_replaced = 0

        def batches(self, step):
            return (batch for batch in ())

    steps = [50, 40, 30, 20, 10, 5]
    for number, step in enumerate(steps):
        folder = write_bundle(tmp_path, Loader(), step, 0, {})
        os.utime(folder, (number, number))
    assert {path.name for path in (tmp_path / "debug").iterdir()} == {f"step_{step:08d}" for step in steps[1:]}


def test_before_the_first_checkpoint_rollback_goes_back_to_the_start(train, tmp_path):
    status, texts = train("train.on_non_finite=rollback", faults=[2])
    assert status == 0, texts.err
    assert "step 3 was not finite: rolled back to step 0" in texts.out


def test_rollbacks_are_bounded_and_each_lowers_the_rate(train, tmp_path):
    options = ("train.on_non_finite=rollback", "train.max_rollbacks=2")
    status, texts = train(*options, faults=[5, 6, 7])
    assert status == 2
    assert "learning rates x 0.25" in texts.out
    assert "train.max_rollbacks=2 rollbacks did not help" in texts.err
    assert len(list((tmp_path / "run/debug").iterdir())) == 3


def test_a_stopped_run_resumes_as_if_nothing_had_happened(train, tmp_path):
    assert train(faults=[6])[0] == 2
    assert train()[0] == 0
    assert ended(tmp_path / "run")["exit_reason"] == "finished"
    resumed = load_file(tmp_path / "run/checkpoints/step_00000012/ema.safetensors")
    assert train(f"run_dir={tmp_path / 'straight'}")[0] == 0
    straight = load_file(tmp_path / "straight/checkpoints/step_00000012/ema.safetensors")
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)


def test_a_log_interval_cut_by_a_stop_is_logged_whole(train, tmp_path):
    """A checkpoint in the middle of a log interval holds the sums so far."""
    options = ("train.log_every=5", "train.checkpoint_every=3")
    assert train(*options, faults=[7])[0] == 2
    status, texts = train(*options)
    assert status == 0, texts.err
    assert train(*options, f"run_dir={tmp_path / 'straight'}")[0] == 0
    resumed, straight = (
        [line["loss_g/image"] for line in read_metrics(tmp_path / name / "metrics.jsonl") if "loss_g/image" in line]
        for name in ("run", "straight")
    )
    assert resumed == straight
    assert len(straight) == 3
