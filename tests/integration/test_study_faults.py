"""Faults of real trainings: the trial alone fails, with its reason, and the study goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from sweeps.driver import run_study
from sweeps.launch import mark_of, marked
from sweeps.storage import load_trials
from sweeps.study_config import load_study

ROOT = Path(__file__).resolve().parents[2]
CPU_2 = ROOT / "configs" / "accelerate" / "cpu-2.yaml"
BASE = {
    "name": "tiny",
    "data": {"clip_frames": 3, "crop_px": 12, "batch_clips": 2, "val_clips": 2, "val_crop_px": 16},
    "generator": {"kind": "recurrent", "channels": 4, "num_blocks": 1},
    "discriminator": {"kind": "spatiotemporal", "filters": 4, "levels": 2},
    "loss": {"adversarial": 0.001, "perceptual": 0.0},
    "train": {"steps": 4, "warmup_steps": 1, "validate_every": 2, "checkpoint_every": 2, "log_every": 1, "threads": 1},
    "tracking": {"mlflow": False},
}


@pytest.fixture
def study_file(tmp_path, pack_films):
    """Writes a study of `num_trials` tiny trainings, as many processes as asked for; the first one may be faulty."""

    def write(*, processes: int = 1, program: tuple[str, ...] = ("-m", "vsr_dist.train"), **changes: object) -> Path:
        base = {**BASE, "data": {**BASE["data"], "root": str(pack_films("npy"))}}
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
        launcher = [sys.executable]
        if processes > 1:
            launcher += ["-m", "accelerate.commands.launch", "--config_file", str(CPU_2)]
        study = {
            "name": "faults",
            "base": str(tmp_path / "base.yaml"),
            "study_dir": str(tmp_path / "study"),
            "num_trials": 2,
            "grace_s": 5,
            "launch": {"command": [*launcher, *program]},
            "space": {"loss.adversarial": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
        }
        (tmp_path / "study.yaml").write_text(yaml.safe_dump({**study, **changes}))
        return tmp_path / "study.yaml"

    return write


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "processes", "expected"),
    [
        ("die", 2, "rank 1 was killed (exit status -9)"),
        ("memory", 1, "out of memory: "),
        ("nan", 1, "the run ended early: diverged: "),
        ("hang", 1, "stopped: nothing new in its metrics or output for stall_timeout_s"),
    ],
)
def test_a_faulty_training_fails_alone(study_file, monkeypatch, kind, processes, expected):
    monkeypatch.setenv("FAULT", kind)
    monkeypatch.setenv("FAULT_RANK", str(processes - 1))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    program = (str(ROOT / "tests" / "faulty_training.py"),)
    # A stalled start of a loaded machine must not be taken for a hang.
    study = load_study(study_file(processes=processes, program=program, stall_timeout_s=45 if kind == "hang" else 240))
    best = run_study(study)
    trials = load_trials(study)
    assert [trial.state.name for trial in trials] == ["FAIL", "COMPLETE"]
    assert best.number == 1
    assert trials[0].user_attrs["reason"].startswith(expected)
    assert not any(marked(mark_of(study.trial_dir(number))) for number in range(2))


@pytest.mark.slow
def test_a_driver_that_is_killed_loses_nothing(study_file):
    file = study_file(num_trials=2, set=["train.steps=300", "train.validate_every=100", "train.checkpoint_every=10"])
    study = load_study(file)
    command = [sys.executable, "-m", "sweeps", "run", "--config", str(file)]
    driver = subprocess.Popen(command)
    metrics = study.trial_dir(0) / "metrics.jsonl"
    end_s = time.monotonic() + 120
    while not (metrics.is_file() and metrics.stat().st_size):
        assert time.monotonic() < end_s
        time.sleep(0.1)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    left = marked(mark_of(study.trial_dir(0)))
    assert left and load_trials(study)[0].state.name == "RUNNING"
    run_study(study)
    trials = load_trials(study)
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE"]
    assert "retries" not in trials[0].user_attrs
    assert sorted(trials[0].intermediate_values) == [100, 200, 300]
    assert not any(psutil.pid_exists(process.pid) and process.is_running() for process in left)


@pytest.mark.slow
def test_a_hopeless_training_saves_and_is_pruned(study_file):
    rule = {"metric": "val/psnr_y", "below": 99.0, "times": 1}
    changed = ["train.steps=100000", "train.validate_every=20", "train.checkpoint_every=100000", "train.log_every=10"]
    study = load_study(study_file(num_trials=1, set=changed, stop_when=[rule], grace_s=60))
    with pytest.raises(Exception, match="all 1 trials of study faults failed; the last one: val/psnr_y"):
        run_study(study)
    (trial,) = load_trials(study)
    assert trial.state.name == "PRUNED"
    assert "killed" not in trial.user_attrs["reason"]
    (checkpoint,) = (study.trial_dir(0) / "checkpoints").glob("step_*")
    assert int(checkpoint.name.removeprefix("step_")) >= 20
