"""The best checkpoint, and checkpoints whose writer is killed at any moment."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from vsr_dist.core.collectives import World
from vsr_dist.core.errors import BadConfigError
from vsr_dist.training import checkpoint
from vsr_dist.training.checkpoint import CheckpointKeeper, Restorable
from vsr_dist.training.config import TrainConfig
from vsr_dist.training.ema import make_ema


def make_live(value=0.0):
    generator, discriminator = nn.Linear(3, 3), nn.Linear(3, 1)
    nn.init.constant_(generator.weight, value)
    modules = {"generator": generator, "discriminator": discriminator, "ema": make_ema(generator, 0.9)}
    return Restorable(modules, {name: torch.optim.Adam(modules[name].parameters()) for name in list(modules)[:2]})


def keeper_of(folder, live=None, **fields):
    return CheckpointKeeper(TrainConfig(**fields), folder, live or make_live(), World())


def steps_of(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def state():
    return {"config": {}}


@pytest.mark.parametrize(("mode", "values", "kept"), [("max", [1.0, 3.0, 2.0, 3.0], 2), ("min", [3.0, 1.0, 2.0], 2)])
def test_the_best_is_kept_and_a_tie_changes_nothing(tmp_path, mode, values, kept):
    keeper = keeper_of(tmp_path, best_mode=mode)
    for step, value in enumerate(values, start=1):
        keeper.keep_best(step, {"val/psnr_y": value}, state)
    found = checkpoint.read_state(checkpoint.best(tmp_path / "checkpoints"))
    assert found["step"] == kept
    assert found["best"] == {"metric": "val/psnr_y", "mode": mode, "value": values[kept - 1]}


def test_the_best_is_whole_and_loads(tmp_path):
    keeper_of(tmp_path, make_live(0.25)).keep_best(7, {"val/psnr_y": 1.0}, state)
    path = checkpoint.best(tmp_path / "checkpoints")
    assert {file.name for file in path.iterdir()} == {
        *(f"{name}.safetensors" for name in ("generator", "discriminator", "ema")),
        "optimizers.pt",
        "state.json",
        "manifest.json",
    }
    live = make_live()
    assert checkpoint.load(path, live)["step"] == 7
    assert torch.equal(live.modules["generator"].weight, torch.full((3, 3), 0.25))
    (path / "ema.safetensors").unlink()
    assert checkpoint.best(tmp_path / "checkpoints") is None


def test_the_best_is_neither_pruned_nor_taken_for_the_newest(tmp_path):
    keeper = keeper_of(tmp_path, keep_checkpoints=1)
    keeper.keep_best(90, {"val/psnr_y": 1.0}, state)
    assert checkpoint.newest(tmp_path / "checkpoints") is None
    assert not keeper.has_checkpoint()
    for step in (10, 20, 30):
        keeper.save(step, state())
    assert steps_of(tmp_path) == ["best", "step_00000030"]
    assert checkpoint.newest(tmp_path / "checkpoints").name == "step_00000030"


def test_a_resumed_run_remembers_the_best(tmp_path):
    keeper_of(tmp_path).keep_best(5, {"val/psnr_y": 30.0}, state)
    keeper_of(tmp_path).keep_best(6, {"val/psnr_y": 29.0}, state)
    assert checkpoint.read_state(checkpoint.best(tmp_path / "checkpoints"))["step"] == 5
    # By another measure the value says nothing.
    keeper_of(tmp_path, best_metric="val/tof").keep_best(7, {"val/tof": 99.0}, state)
    assert checkpoint.read_state(checkpoint.best(tmp_path / "checkpoints"))["step"] == 7


def test_the_direction_is_that_of_the_metric(tmp_path):
    for step, value in enumerate((3.0, 1.0, 2.0), start=1):
        keeper_of(tmp_path, best_metric="val/tof").keep_best(step, {"val/tof": value}, state)
    found = checkpoint.read_state(checkpoint.best(tmp_path / "checkpoints"))
    assert (found["step"], found["best"]["mode"]) == (2, "min")
    assert TrainConfig(best_metric="drift/auc").is_highest_best
    for name in ("drift/slope", "psnr_y"):
        with pytest.raises(BadConfigError, match=rf"{name}.*, whose better direction is not known: set best_mode"):
            TrainConfig(best_metric=name)
    assert TrainConfig(best_metric="drift/slope", best_mode="max").is_highest_best


def test_no_candidates(tmp_path):
    keeper = keeper_of(tmp_path)
    keeper.keep_best(0, {"val/psnr_y": 99.0}, state)
    keeper.keep_best(1, {"val/psnr_y": float("nan")}, state)
    keeper_of(tmp_path, best_metric=None).keep_best(2, {}, state)
    assert not (tmp_path / "checkpoints").exists()
    with pytest.raises(BadConfigError, match=r"no metric val/psnr_x \(did you mean 'val/psnr_y'\?\)"):
        keeper_of(tmp_path, best_metric="val/psnr_x", best_mode="max").keep_best(0, {"val/psnr_y": 1.0}, state)
    with pytest.raises(
        BadConfigError, match=r"best_metric is val/psnr_x \(did you mean 'val/psnr_y'\?\), whose better"
    ):
        TrainConfig(best_metric="val/psnr_x")


def test_between_the_two_renames_of_the_best_its_predecessor_is_found(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    checkpoint._save_best(folder, 1, make_live(), {})
    renames = []

    def once(source, target):
        renames.append(target)
        if len(renames) == 2:
            raise OSError("killed here")
        real(source, target)

    real = os.replace
    monkeypatch.setattr(os, "replace", once)
    with pytest.raises(OSError, match="killed here"):
        checkpoint._save_best(folder, 2, make_live(), {})
    monkeypatch.undo()
    assert checkpoint.read_state(checkpoint.best(folder))["step"] == 1
    checkpoint._save_best(folder, 3, make_live(), {})
    assert checkpoint.read_state(checkpoint.best(folder))["step"] == 3
    assert [path.name for path in folder.iterdir()] == ["best"]


def test_the_last_good_checkpoint_has_no_broken_weight(tmp_path):
    live = make_live(1.0)
    keeper = keeper_of(tmp_path, live)
    keeper.save(1, state())
    live.modules["ema"].module.weight.data[0, 0] = float("inf")
    keeper.save(2, state())
    assert keeper.restore_last_good()["step"] == 1
    assert torch.isfinite(live.modules["ema"].module.weight).all()
    (tmp_path / "checkpoints/step_00000001/manifest.json").unlink()
    assert keeper.restore_last_good() is None


def save_until_killed(folder, first, num_operations):
    """Checkpoint after checkpoint, each weight the number of its step, killed in the middle of a file operation.

    The operations are counted, not timed, so that a busy machine changes nothing: the last one is half a write, or a
    rename or removal that does not happen.
    """
    left = num_operations

    def counted(real, half=None):
        def operation(*arguments, **named):
            nonlocal left
            left -= 1
            if left == 0:
                if half is not None:
                    half(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return operation

    write_bytes = Path.write_bytes
    os.replace, shutil.rmtree = counted(os.replace), counted(shutil.rmtree)
    Path.write_bytes = counted(write_bytes, lambda path, data: write_bytes(path, bytes(data)[: len(data) // 2]))
    step = first
    while True:
        live = make_live(float(step))
        checkpoint.save(folder, step, live, {}, keep=2)
        checkpoint._save_best(folder, step, live, {})
        step += 1


def loads_whole(path):
    live = make_live()
    step = checkpoint.load(path, live)["step"]
    return step, torch.equal(live.modules["generator"].weight, torch.full((3, 3), float(step)))


def test_kills_in_any_operation_of_a_save_leave_the_newest_complete_checkpoint(tmp_path):
    folder = tmp_path / "checkpoints"
    step, interrupted, had_best = 0, 0, False
    for num_operations in range(1, 31):
        child = os.fork()
        if child == 0:
            try:
                save_until_killed(folder, step + 1, num_operations)
            finally:
                os._exit(1)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        newest = checkpoint.newest(folder)
        interrupted += bool(list(folder.glob("*.tmp")))
        if newest is not None:
            found, whole = loads_whole(newest)
            assert whole and found >= step
            step = found
        assert newest is not None or not step
        best = checkpoint.best(folder)
        assert best is None or loads_whole(best)[1]
        assert best is not None or not had_best
        had_best = best is not None
    assert had_best
    assert step > 5 and interrupted > 10
    assert json.loads((checkpoint.newest(folder) / "state.json").read_text())["step"] == step
