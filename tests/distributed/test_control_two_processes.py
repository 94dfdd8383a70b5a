"""With every controller on, two processes decide as one does, and a resumed run as an uninterrupted one."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from vsr_dist.training.tracking import read_metrics

pytestmark = pytest.mark.slow

CONTROL = (
    "adversarial.gamma_control={target: 0.72, rule: proportional, after: 3, lowest: 0.098}",
    "adversarial.weight_control.ratio=0.1",
    "loss.balance=shares",
    "loss.balance_steps=6",
    "loss.perceptual=0.2",
    "loss.tv=0.05",
    "train.log_every=1",
)


def weights(run_dir):
    folder = run_dir / "checkpoints" / "step_00000020"
    names = ("generator", "discriminator", "ema")
    return {
        f"{name}.{key}": value for name in names for key, value in load_file(folder / f"{name}.safetensors").items()
    }


def controllers(run_dir):
    return json.loads((run_dir / "checkpoints" / "step_00000020" / "state.json").read_text())["controllers"]


def column(run_dir, name):
    return [line[name] for line in read_metrics(run_dir / "metrics.jsonl") if name in line]


def drift(run_dir):
    return [
        {key: value for key, value in line.items() if key.startswith(("drift/", "control/"))}
        for line in read_metrics(run_dir / "metrics.jsonl")
    ]


def assert_equal_bits(first, second):
    assert first.keys() == second.keys()
    assert not [key for key in first if not torch.equal(first[key], second[key])]


def test_controllers_decide_the_same_on_two_processes_and_after_a_resume(launcher):
    two = launcher.run("two", *CONTROL, processes=2)
    one = launcher.run("one", "train.accumulation_steps=2", *CONTROL)
    assert_equal_bits(weights(one), weights(two))
    assert controllers(one) == controllers(two)
    assert drift(one) == drift(two)
    shares = column(one, "share_g/perceptual")
    assert shares[-1] == pytest.approx(0.2, rel=0.5), "the batch differs from those that were measured"
    assert len(set(column(one, "control/perceptual_weight"))) == 6, "fixed after six steps"
    assert len(set(column(one, "control/adversarial_weight"))) > 10 and len(set(column(one, "control/r1_gamma"))) > 2

    resumed = launcher.folder / "resumed"
    name = "step_00000010"
    shutil.copytree(one / "checkpoints" / name, resumed / "checkpoints" / name)
    lines = [line for line in (one / "metrics.jsonl").read_text().splitlines() if json.loads(line)["step"] <= 13]
    (resumed / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    launcher.run("resumed", "train.accumulation_steps=2", *CONTROL, options=("--resume", "auto"))
    assert_equal_bits(weights(one), weights(resumed))
    assert controllers(one) == controllers(resumed)
    assert drift(one) == drift(resumed)

    summary = json.loads((one / "summary.json").read_text())
    assert summary["drift"].startswith("discriminator ")
    assert (one / "drift.png").read_bytes().startswith(b"\x89PNG")


CARRIED = ("data.order=ordered", "train.carry_state=true", "generator.recurrence=convlstm", "train.log_every=1")


def test_a_carried_state_is_the_same_on_two_processes_and_after_a_resume(launcher):
    two = launcher.run("carried-two", *CARRIED, processes=2)
    one = launcher.run("carried-one", "train.accumulation_steps=2", *CARRIED)
    assert_equal_bits(weights(one), weights(two))
    states = [load_file(run / "checkpoints/step_00000020/carried_state.safetensors") for run in (one, two)]
    assert_equal_bits(*states)
    assert [len(part) for part in states[0].values()] == [4, 4], "four lanes of hidden and cell state"
    assert all(bool(part.any()) for part in states[0].values())
    forgetful = launcher.run("carried-not", "train.accumulation_steps=2", *CARRIED, "train.carry_state=false")
    assert column(forgetful, "loss_g/total") != column(one, "loss_g/total")

    name = "step_00000010"
    for resumed, processes, parts in (("carried-a", 1, 2), ("carried-b", 2, 1)):
        shutil.copytree(one / "checkpoints" / name, launcher.folder / resumed / "checkpoints" / name)
        options = (f"train.accumulation_steps={parts}", *CARRIED)
        launcher.run(resumed, *options, processes=processes, options=("--resume", "auto"))
        assert_equal_bits(weights(one), weights(launcher.folder / resumed))
