"""Two processes compute what one process computes, and a resumed run what an uninterrupted one does."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vsr_dist.training.tracking import read_metrics

pytestmark = pytest.mark.slow

WEIGHTS = ("generator", "discriminator", "ema")


def weights(run_dir: Path, step: int = 20) -> dict[str, torch.Tensor]:
    folder = run_dir / "checkpoints" / f"step_{step:08d}"
    return {
        f"{name}.{key}": tensor for name in WEIGHTS for key, tensor in load_file(folder / f"{name}.safetensors").items()
    }


def assert_equal_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [key for key in first if not torch.equal(first[key], second[key])]
    assert not different, f"{len(different)} of {len(first)} tensors differ, first {different[0]}"


def losses(run_dir: Path) -> list[dict[str, float]]:
    """Logged numbers without clocks and memory."""
    unstable = ("time_s", "perf/")
    return [
        {key: value for key, value in line.items() if not key.startswith(unstable)}
        for line in read_metrics(run_dir / "metrics.jsonl")
    ]


@pytest.mark.parametrize(
    "variant",
    [
        (),
        ("train.precision=bf16", "adversarial.r1_gamma=0", "adversarial.r2_gamma=0", "loss.perceptual=0"),
        (
            "discriminator={kind: srgan, filters: 4, norm: batch}",
            "adversarial.loss=paper",
            "train.allow_batch_norm=true",
            "loss.perceptual=0",
        ),
    ],
    ids=["rpgan-r1r2", "bf16", "paper-batchnorm"],
)
def test_two_processes_equal_one_with_two_micro_batches(launcher, variant):
    """Rank r sees what micro-batch r sees, and halving is exact: the weights must agree in every bit."""
    fifty = ("train.steps=50", "train.validate_every=50", "train.checkpoint_every=50", "train.pictures=0")
    fifty += ("data.batch_clips=2", "data.val_clips=1")  # a clip is a micro-batch
    schedule = ("generator_optimizer.final_ratio=0.1", "discriminator_optimizer.final_ratio=0.5")
    one = launcher.run("one", "train.accumulation_steps=2", *fifty, *schedule, *variant)
    two = launcher.run("two", "train.processes=2", *fifty, *schedule, *variant, processes=2)
    rates = [
        [v for line in losses(run) for key, v in line.items() if key.startswith("learning_rate/")] for run in (one, two)
    ]
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 10
    assert json.loads((two / "summary.json").read_text())["processes"] == 2
    if "adversarial.loss=paper" in variant:
        # Running statistics of batch norm are each rank's own by design; what trains is compared.
        keep = {key for key in weights(one, 50) if "running_" not in key and "num_batches" not in key}
        assert_equal_bits({k: weights(one, 50)[k] for k in keep}, {k: weights(two, 50)[k] for k in keep})
    else:
        assert_equal_bits(weights(one, 50), weights(two, 50))


def test_two_processes_are_close_to_the_undivided_batch(launcher):
    """Without accumulation the sums round differently; after one step the difference is rounding only."""
    whole = launcher.run("whole", "train.steps=1", "train.warmup_steps=0")
    two = launcher.run("two", "train.steps=1", "train.warmup_steps=0", processes=2)
    for key, expected in weights(whole, 1).items():
        torch.testing.assert_close(weights(two, 1)[key], expected, rtol=0, atol=2e-4, msg=key)


def test_resumed_run_equals_uninterrupted_run(launcher):
    """20 steps equal 10 + resume + 10: weights, optimisers and every logged number."""
    straight = launcher.run("straight")
    resumed = launcher.folder / "resumed"
    (resumed / "checkpoints").mkdir(parents=True)
    name = "step_00000010"
    shutil.copytree(straight / "checkpoints" / name, resumed / "checkpoints" / name)
    # Log lines up to step 13, as a crash at step 13 would have left them.
    lines = [line for line in (straight / "metrics.jsonl").read_text().splitlines() if json.loads(line)["step"] <= 13]
    (resumed / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    launcher.run("resumed", options=("--resume", "auto"))
    assert_equal_bits(weights(straight), weights(resumed))
    optimizers = [
        torch.load(run / "checkpoints/step_00000020/optimizers.pt", weights_only=True) for run in (straight, resumed)
    ]
    for player in ("generator", "discriminator"):
        states = [optimizer[player]["state"] for optimizer in optimizers]
        for index, state in states[0].items():
            assert all(torch.equal(state[key], states[1][index][key]) for key in state)
    assert losses(straight) == losses(resumed)


def test_a_run_on_two_processes_resumes_on_two_and_on_one(launcher):
    """On as many micro-batches as before in every bit; on fewer with the same samples, which only rounding moves."""
    straight = launcher.run("straight", "train.log_every=1", processes=2)
    name = "step_00000010"
    worlds = {"two": (2, 1), "one": (1, 2), "undivided": (1, 1)}
    said = {}
    for run, (processes, micro_batches) in worlds.items():
        shutil.copytree(straight / "checkpoints" / name, launcher.folder / run / "checkpoints" / name)
        division = ("train.log_every=1", f"train.accumulation_steps={micro_batches}")
        done = launcher.attempt(run, *division, options=("--resume", "auto"), processes=processes)
        assert done.returncode == 0, done.stderr
        said[run] = done.stdout
    assert "the checkpoint is from" not in said["two"]
    moved = "the checkpoint is from 2 process(es) x 1 micro-batch(es), this run has 1 process(es) x {} micro-batch(es)"
    assert moved.format(2) in said["one"] and moved.format(1) in said["undivided"]
    assert_equal_bits(weights(straight), weights(launcher.folder / "two"))
    assert_equal_bits(weights(straight), weights(launcher.folder / "one"))
    images = [image_losses(run, after=10) for run in (straight, launcher.folder / "undivided")]
    assert len(images[0]) == 10
    assert images[1] == pytest.approx(images[0], rel=1e-3)
    # What other samples would have cost: far more than that.
    assert min(abs(a - b) for a, b in zip(images[0], images[0][1:], strict=False)) > 2e-3 * images[0][0]


def image_losses(run_dir: Path, after: int) -> list[float]:
    return [line["loss_g/image"] for line in losses(run_dir) if line["step"] > after and "loss_g/image" in line]


def test_speed_and_io_fields_leave_the_result_alone(launcher):
    plain = launcher.run("plain", "train.steps=6")
    other = launcher.run(
        "other",
        "train.steps=6",
        "data.reader_threads=3",
        "data.read_ahead_batches=1",
        "train.log_every=1",
        "train.validate_every=2",
        "train.pictures=0",
        "train.checkpoint_every=3",
        "name=other",
    )
    assert_equal_bits(weights(plain, 6), weights(other, 6))


def test_a_launch_with_another_number_of_processes_is_refused(launcher):
    done = launcher.attempt("one", "train.processes=2")
    assert done.returncode == 2
    assert "train.processes is 2, but 1 process(es) were started" in done.stderr
    assert "Traceback" not in done.stderr


def test_accelerates_cpu_switch_starts_one_process_and_is_caught(launcher):
    """`accelerate launch --cpu --num_processes 2` starts one process without a word: our check must speak."""
    import subprocess

    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m"]
    command += ["vsr_dist.train", "--config", str(launcher.config), "--set", "train.processes=2"]
    command += ["--set", f"run_dir={launcher.folder / 'cpu'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "1 process(es) were started" in done.stderr


def test_resume_refuses_other_settings_and_a_used_folder_is_refused(launcher):
    launcher.run("run", "train.steps=2", "train.warmup_steps=1")
    changed = launcher.attempt("run", "train.steps=4", "train.warmup_steps=1", options=("--resume", "auto"))
    assert changed.returncode == 2
    assert "train.steps 2 -> 4" in changed.stderr
    used = launcher.attempt("run", "train.steps=2", "train.warmup_steps=1")
    assert used.returncode == 2
    assert "--resume auto" in used.stderr
    again = launcher.attempt("run", "train.steps=2", "train.warmup_steps=1", options=("--resume", "auto"))
    assert again.returncode == 0
    assert "finished already" in again.stdout
