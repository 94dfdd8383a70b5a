"""torchrun and accelerate: restarts, ranks that die, launchers that die, and set-ups that are refused."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from train_launcher import ROOT, Launcher

from vsr_dist.training import checkpoint
from vsr_dist.training.metrics_file import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LONG = ("train.steps=100000", "train.log_every=5", "train.validate_every=100000", "train.checkpoint_every=100000")
CPU_2 = str(ROOT / "configs/accelerate/cpu-2.yaml")
GPU_1 = str(ROOT / "configs/accelerate/gpu-1.yaml")
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node")


def start(
    launcher: Launcher, words: tuple[str, ...], name: str, *overrides: str, deaths: str | None = None, **variables: str
) -> subprocess.Popen[str]:
    """Start a training, by `tests/dying_rank.py` if it has deaths; it goes on from what lies there."""
    target = ["-m", "vsr_dist.train"] if deaths is None else [str(ROOT / "tests/dying_rank.py")]
    command = [sys.executable, "-m", *words, *target, "--config", str(launcher.config), "--resume", "auto"]
    for override in (f"run_dir={launcher.folder / name}", *overrides):
        command += ["--set", override]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DYING_RANK": deaths or "", **variables}
    return subprocess.Popen(
        command, cwd=launcher.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=800)
    return process.returncode, output, errors


def wait_for_lines(run_dir: Path, limit_s: float = 240.0) -> None:
    begin_s = time.monotonic()
    file = run_dir / "metrics.jsonl"
    while not file.exists() or len(file.read_text().splitlines()) < 3:
        assert time.monotonic() - begin_s < limit_s, f"no log lines in {run_dir}"
        time.sleep(0.2)


def ended(run_dir: Path) -> dict[str, object]:
    return json.loads((run_dir / "ended.json").read_text())


def everything(run_dir: Path, step: int) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Weights and optimiser states after `step` steps, and the logged numbers without clocks and memory."""
    folder = run_dir / "checkpoints" / f"step_{step:08d}"
    found = {f"{file.stem}.{k}": v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
    for player, state in torch.load(folder / "optimizers.pt", weights_only=True).items():
        for number, values in state["state"].items():
            found |= {f"{player}.{number}.{key}": value for key, value in values.items()}
    lines = [
        {key: value for key, value in line.items() if not key.startswith(("time_s", "perf/", "system/"))}
        for line in read_metrics(run_dir / "metrics.jsonl")
    ]
    return found, lines


def test_five_kills_and_restarts_leave_no_trace(launcher):
    """torchrun restarts all ranks after each SIGKILL of one; with --resume auto the result has the same bits."""
    steps, draws = 20, random.Random(1)
    options = ("train.checkpoint_every=3", "train.keep_checkpoints=2", "train.processes=2")
    whole = launcher.run("whole", *options, processes=2)
    # Each later than the one before, so that every start gets as far as its death.
    deaths = ",".join(f"{draws.randrange(2)}:{step}" for step in sorted(draws.sample(range(1, steps), 5)))
    words = (*TORCHRUN, "2", "--max-restarts", "5")
    status, output, errors = finished(start(launcher, words, "killed", *options, deaths=deaths))
    assert status == 0, output + errors
    killed = launcher.folder / "killed"
    (tensors, lines), (expected, expected_lines) = everything(killed, steps), everything(whole, steps)
    assert tensors.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(tensors[key], expected[key])] == []
    assert lines == expected_lines
    assert ended(killed)["exit_reason"] == "finished"


def test_a_rank_that_dies_takes_the_job_down_with_a_named_error(launcher):
    begin_s = time.monotonic()
    process = start(launcher, (*TORCHRUN, "2"), "run", deaths="1:7")
    status, _, errors = finished(process)
    assert status != 0
    assert "SIGKILL" in errors or "Signal 9" in errors, "the launcher names the signal"
    assert "rank 0: another process of this training is gone" in errors
    assert time.monotonic() - begin_s < 300
    found = ended(launcher.folder / "run")
    assert (found["exit_reason"], found["status"], found["error"]) == ("lost_rank", 75, "LostRankError")


@pytest.mark.parametrize(
    ("words", "processes"),
    [
        ((*TORCHRUN, "1"), 1),
        ((*TORCHRUN, "2"), 2),
        (("accelerate.commands.launch", "--config_file", GPU_1), 1),
    ],
    ids=["torchrun-1", "torchrun-2", "accelerate-1"],
)
def test_sigterm_to_the_launcher_stops_all_and_leaves_no_orphan(launcher, words, processes):
    """Also under `accelerate launch` with one process, whose launcher dies of the signal and tells nobody."""
    process = start(launcher, words, "run", *LONG)
    run_dir = launcher.folder / "run"
    wait_for_lines(run_dir)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= processes
    process.send_signal(signal.SIGTERM)
    finished(process)
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []
    found = ended(run_dir)
    assert (found["exit_reason"], found["status"]) == ("stopped", 143)
    state = checkpoint.read_state(checkpoint.newest(run_dir / "checkpoints"))
    assert state["processes"] == processes
    # Goes on by itself, from there.
    again = start(launcher, (*TORCHRUN, str(processes)), "run", *LONG)
    wait_for_step(run_dir, state["step"])
    again.send_signal(signal.SIGTERM)
    _, output, _ = finished(again)
    assert f"steps {state['step']} to" in output


def wait_for_step(run_dir: Path, step: int, limit_s: float = 240.0) -> None:
    begin_s = time.monotonic()
    while not [line for line in read_metrics(run_dir / "metrics.jsonl") if line["step"] > step]:
        assert time.monotonic() - begin_s < limit_s
        time.sleep(0.2)


def test_a_killed_launcher_leaves_no_orphan(launcher):
    process = start(launcher, (*TORCHRUN, "2"), "run", *LONG)
    wait_for_lines(launcher.folder / "run")
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    finished(process)
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []
    assert ended(launcher.folder / "run")["exit_reason"] == "stopped"


@pytest.mark.parametrize(
    ("options", "overrides", "expected"),
    [
        (("--mixed_precision", "fp16"), (), "mixed_precision is fp16, in which these networks are not safe"),
        (("--mixed_precision", "bf16"), (), "mixed_precision is bf16, but train.precision is float32"),
        ((), ("discriminator={kind: srgan, filters: 4, norm: batch}",), "srgan has batch norm, and each of the 2"),
        ((), ("data.batch_clips=3",), "data.batch_clips is 3; expected a multiple"),
    ],
    ids=["fp16", "bf16", "batch-norm", "uneven"],
)
def test_what_would_train_wrongly_is_refused_once(launcher, options, overrides, expected):
    words = ("accelerate.commands.launch", "--config_file", CPU_2, *options)
    status, _, errors = finished(start(launcher, words, "run", *overrides))
    assert status != 0
    assert errors.count("error: ") == 1, errors
    assert expected in errors
