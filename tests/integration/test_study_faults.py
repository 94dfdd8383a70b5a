"""Faults of real trainings: the trial alone fails, with its reason, and the study goes on."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import yaml
from forked import Forked

from sweeps.config import load_study
from sweeps.driver import run_study
from sweeps.storage import counted, first_number, load_trials
from vsr_dist.core.files import exclusive

ROOT = Path(__file__).resolve().parents[2]
CPU_2 = ROOT / "configs" / "accelerate" / "cpu-2.yaml"
BASE = {
    "name": "tiny",
    "data": {"clip_frames": 3, "crop_px": 12, "batch_clips": 2, "val_clips": 2, "val_crop_px": 16},
    "generator": {"kind": "recurrent", "channels": 4, "num_blocks": 1},
    "discriminator": {"kind": "spatiotemporal", "filters": 4, "levels": 2},
    "loss": {"perceptual": 0.0},
    "adversarial": {"weight": 0.001},
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
            "space": {"adversarial.weight": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
        }
        (tmp_path / "study.yaml").write_text(yaml.safe_dump({**study, **changes}))
        return tmp_path / "study.yaml"

    return write


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "expected"),
    [
        (2, {"die": "rank 1 was killed (exit status -9)"}),
        (
            1,
            {
                "memory": "out of memory: ",
                "nan": "the run ended early: diverged: ",
                "hang": "stopped: no new metrics or output for stall_timeout_s",
            },
        ),
    ],
    ids=["two processes", "one process"],
)
def test_a_faulty_training_fails_alone(study_file, monkeypatch, processes, expected):
    """One trial with each fault, and one without."""
    monkeypatch.setenv("FAULTS", ",".join(expected))
    monkeypatch.setenv("FAULT_RANK", str(processes - 1))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    program = (str(ROOT / "tests" / "helpers" / "faulty_training.py"),)
    num_faults = len(expected)
    study = load_study(study_file(processes=processes, program=program, stall_timeout_s=20, num_trials=num_faults + 1))
    best = run_study(study)
    trials = load_trials(study)
    assert [trial.state.name for trial in trials] == ["FAIL"] * num_faults + ["COMPLETE"]
    assert best.number == num_faults
    for trial, reason in zip(trials, expected.values(), strict=False):
        assert trial.user_attrs["reason"].startswith(reason)
    for trial in trials:
        with exclusive(study.trial_dir(trial.number) / "trial.lock", wait=False):
            pass  # No process of the trial is left: the supervisor holds the lock until then.


@pytest.mark.slow
def test_a_killed_drivers_training_saves_and_the_next_driver_resumes_it(study_file):
    """kill -9 of the driver ends the real training, which resumes from its checkpoint and counts once."""
    steps = ["train.steps=400", "train.validate_every=200", "train.checkpoint_every=400"]
    file = study_file(num_trials=2, set=steps, heartbeat_s=1, max_retries=9, grace_s=120)
    study = load_study(file)
    driver = Forked("sweeps", ["run", "--config", str(file)], file.parent)
    run_dir = study.trial_dir(0)
    wait_until(lambda: (run_dir / "metrics.jsonl").is_file() and (run_dir / "metrics.jsonl").stat().st_size)
    driver.kill()
    driver.wait()
    with exclusive(run_dir / "trial.lock"):  # Once no process of the trial is left.
        assert json.loads((run_dir / "ended.json").read_text())["exit_reason"] == "stopped"
        (checkpoint,) = (run_dir / "checkpoints").glob("step_*")
    stopped_at = int(checkpoint.name.removeprefix("step_"))
    assert 0 < stopped_at < 400
    run_study(study)
    trials = load_trials(study)
    assert not [trial for trial in trials if not trial.state.is_finished()]
    assert [trial.state.name for trial in counted(trials)] == ["COMPLETE", "COMPLETE"]
    resumed = next(trial for trial in counted(trials) if first_number(trial) == 0)
    assert resumed.params == trials[0].params and sorted(resumed.intermediate_values) == [200, 400]
    steps = [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == 400


def wait_until(condition, limit_s=240.0):
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_hopeless_training_saves_and_is_pruned(study_file):
    rule = {"metric": "val/psnr_y", "below": 99.0, "times": 1}
    changed = ["train.steps=100000", "train.validate_every=20", "train.checkpoint_every=100000", "train.log_every=10"]
    study = load_study(study_file(num_trials=1, set=changed, stop_when=[rule], grace_s=60))
    with pytest.raises(Exception, match=r"gave a result \(1 pruned\); the last one: val/psnr_y"):
        run_study(study)
    (trial,) = load_trials(study)
    assert trial.state.name == "PRUNED"
    assert "killed" not in trial.user_attrs["reason"]
    (checkpoint,) = (study.trial_dir(0) / "checkpoints").glob("step_*")
    assert int(checkpoint.name.removeprefix("step_")) >= 20
