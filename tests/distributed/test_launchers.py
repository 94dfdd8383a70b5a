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
from forked import run_ranks, start_ranks
from safetensors.torch import load_file
from train_launcher import ROOT, Launcher

from vsr_dist.training import checkpoint
from vsr_dist.training.tracking import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LONG = ("train.steps=100000", "train.log_every=1", "train.validate_every=100000", "train.checkpoint_every=100000")
CPU_2 = str(ROOT / "configs/accelerate/cpu-2.yaml")
GPU_1 = str(ROOT / "configs/accelerate/gpu-1.yaml")
DYING_RANK = str(ROOT / "tests/helpers/dying_rank.py")
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node")


def start(
    launcher: Launcher, words: tuple[str, ...], name: str, *overrides: str, deaths: str | None = None, **variables: str
) -> subprocess.Popen[str]:
    """Start a training, by `tests/helpers/dying_rank.py` if it has deaths; it goes on from what lies there."""
    target = ["-m", "vsr_dist.train"] if deaths is None else [DYING_RANK]
    command = [sys.executable, "-m", *words, *target, *options_of(launcher, name, *overrides)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DYING_RANK": deaths or "", **variables}
    return subprocess.Popen(
        command, cwd=launcher.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def options_of(launcher: Launcher, name: str, *overrides: str) -> list[str]:
    options = ["--config", str(launcher.config), "--resume", "auto"]
    return [*options, *(word for item in (f"run_dir={launcher.folder / name}", *overrides) for word in ("--set", item))]


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
    """SIGKILL of a rank before five random steps, each time all start again with --resume auto: the same bits."""
    steps, draws = 20, random.Random(1)
    options = ("train.checkpoint_every=3", "train.keep_checkpoints=2", "train.processes=2")
    whole = launcher.run("whole", *options, processes=2)
    # Each later than the one before, so that every start gets as far as its death.
    deaths = ",".join(f"{draws.randrange(2)}:{step}" for step in sorted(draws.sample(range(1, steps), 5)))
    arguments = options_of(launcher, "killed", *options)
    for number in range(6):
        variables = {"DYING_RANK": deaths, "TORCHELASTIC_RESTART_COUNT": str(number)}
        done = run_ranks(2, DYING_RANK, arguments, launcher.folder, variables)
        assert done.returncode == (-signal.SIGKILL if number < 5 else 0), done.stdout + done.stderr
    killed = launcher.folder / "killed"
    (tensors, lines), (expected, expected_lines) = everything(killed, steps), everything(whole, steps)
    assert tensors.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(tensors[key], expected[key])] == []
    assert lines == expected_lines
    assert ended(killed)["exit_reason"] == "finished"


def test_torchrun_starts_all_again_after_a_death_and_ends_the_job_after_the_next_with_a_named_error(launcher):
    begin_s = time.monotonic()
    words = (*TORCHRUN, "2", "--max-restarts", "1")
    process = start(launcher, words, "run", "train.checkpoint_every=5", deaths="0:7,1:12")
    status, output, errors = finished(process)
    assert status != 0
    assert "steps 5 to 20" in output
    assert "SIGKILL" in errors or "Signal 9" in errors, "the launcher names the signal"
    assert "rank 0: another process of this run exited" in errors
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
    again = start_ranks(processes, "vsr_dist.train", options_of(launcher, "run", *LONG), launcher.folder)
    wait_for_step(run_dir, state["step"])
    for rank in again:
        rank.terminate()
    assert [rank.wait(240) for rank in again] == [143] * processes
    assert f"steps {state['step']} to" in again[0].output()[0]


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


def test_a_precision_of_the_launcher_is_refused_once(launcher):
    words = ("accelerate.commands.launch", "--config_file", CPU_2, "--mixed_precision", "fp16")
    status, _, errors = finished(start(launcher, words, "run"))
    assert status != 0
    assert errors.count("error: ") == 1, errors
    assert "mixed_precision is fp16, which these networks do not support" in errors


@pytest.mark.parametrize(
    ("variables", "overrides", "expected"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, (), "mixed_precision is bf16, but train.precision is float32"),
        ({}, ("discriminator={kind: srgan, filters: 4, norm: batch}",), "srgan has batch norm, and each of the 2"),
        ({}, ("data.batch_clips=3",), "data.batch_clips is 3; expected a multiple"),
    ],
    ids=["bf16", "batch-norm", "uneven"],
)
def test_what_would_train_wrongly_is_refused_once(launcher, variables, overrides, expected):
    arguments = options_of(launcher, "run", *overrides)
    done = run_ranks(2, "vsr_dist.train", arguments, launcher.folder, variables)
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1, done.stderr
    assert expected in done.stderr
