"""Studies read from YAML: defaults, and slips that are caught while reading."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sweeps.config import LaunchConfig, ObjectiveConfig, load_study, parse_study
from sweeps.space import Categorical, FloatRange
from vsr_dist.core.errors import BadConfigError

MINIMAL = """
name: first
base: base.yaml
study_dir: studies/first
launch: {config_file: cpu.yaml}
space:
  loss.tv: {type: float, low: 0, high: 1}
"""
DEMO = Path(__file__).parents[3] / "configs" / "studies" / "demo.yaml"


def changed(**changes):
    return {**yaml.safe_load(MINIMAL), **changes}


def test_a_minimal_study_has_the_documented_defaults(tmp_path):
    (tmp_path / "study.yaml").write_text(MINIMAL)
    study = load_study(tmp_path / "study.yaml")
    assert study.objective == ObjectiveConfig("val/psnr_y", "maximize")
    assert study.launch == LaunchConfig("cpu.yaml")
    assert (study.set, study.num_trials, study.seed, study.storage, study.trial_timeout_s) == ((), 20, 0, None, None)
    assert study.space == {"loss.tv": FloatRange(0.0, 1.0)}
    assert study.trial_dir(7) == Path("studies/first/trial_0007")
    assert study.log_path(7) == Path("studies/first/trial_0007/output.log")


def test_the_demo_study_says_what_it_should():
    study = load_study(DEMO)
    assert study.space == {
        "adversarial.r1_gamma": FloatRange(1e-3, 3.0, log=True),
        "discriminator.filters": Categorical((4, 8, 16)),
    }
    assert (study.num_trials, study.study_dir, study.base) == (6, "demo/study", "configs/demo.yaml")
    assert "train.init_generator=demo/run" in study.set
    assert "tracking.log_model=false" in study.set


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_trial": 3}, "unknown key num_trial (did you mean 'num_trials'?)"),
        ({"base": None}, "base is empty"),
        ({"num_trials": 0}, "num_trials is 0; expected at least 1"),
        ({"num_trials": "many"}, "num_trials"),
        ({"trial_timeout_s": 0}, "trial_timeout_s is 0"),
        ({"workers": 0}, "workers is 0; expected at least 1"),
        ({"stall_timeout_s": 0}, "stall_timeout_s is 0"),
        ({"max_retries": -1}, "max_retries is -1"),
        ({"heartbeat_s": 0}, "heartbeat_s is 0"),
        ({"objective": {"metric": "val/stlpips"}}, "val/stlpips improves if you minimize it"),
        (
            {"objective": {"metric": "val/psnr_rgb", "direction": "minimize"}},
            "val/psnr_rgb improves if you maximize it",
        ),
        ({"sampler": {"kind": "tpee"}}, "tpee"),
        ({"pruner": {"kind": "median", "startup_trials": -1}}, "startup_trials is -1"),
        ({"repeat": {"top": -1}}, "expected top of at least 0"),
        ({"launch": {"command": ["b"], "gpus_per_trial": -1}}, "gpus_per_trial is -1"),
        ({"start": [{}] * 99}, "start has 99 entries"),
        ({"objective": {}, "objectives": [{}]}, "give only one of them"),
        ({"objectives": []}, "objectives: expected at least one"),
        ({"objectives": [{}, {}], "pruner": {"kind": "median"}}, "pruner.kind median needs one objective"),
        ({"objectives": [{}, {}], "repeat": {"top": 1}}, "repeat.top needs one objective"),
        ({"name": "my study"}, "expected letters, digits"),
        ({"set": ["run_dir=x"]}, "the driver sets run_dir"),
        ({"set": ["loss.tv=1"]}, "loss.tv is in the space as well"),
        ({"storage": "mysql://host/db"}, "expected sqlite:///FILE, postgresql+psycopg://"),
        ({"objective": {"metric": "loss_g/total"}}, "contains the loss weights that a study tunes"),
        ({"objective": {"metric": "learning_rate/generator"}}, "does not measure a trial's quality"),
        ({"objective": {"metric": "val/tof"}}, "val/tof improves if you minimize it"),
        ({"objective": {"metric": "val/ssim_y", "direction": "minimize"}}, "improves if you maximize it"),
        ({"objective": {"direction": "upwards"}}, "upwards"),
        ({"launch": {}}, "give config_file (an accelerate configuration) or command"),
        ({"launch": {"config_file": "a", "command": ["b"]}}, "and not both"),
        ({"launch": {"command": ["b"], "args": ["c"]}}, "args belong to accelerate launch"),
        ({"space": {}}, "space: expected at least one entry"),
    ],
)
def test_a_slip_is_refused_with_advice(changes, expected):
    with pytest.raises(BadConfigError, match=r"^study\.yaml: ") as caught:
        parse_study(changed(**changes), "study.yaml")
    assert expected in str(caught.value)


def test_missing_keys_and_all_other_faults_come_together():
    with pytest.raises(BadConfigError) as caught:
        parse_study({"name": "x", "sed": 1, "space": {"a": 1}, "num_trials": "many"}, "study.yaml")
    for part in ("base is missing", "study_dir is missing", "launch is missing", "unknown key sed", "space.a", "many"):
        assert part in str(caught.value)


def test_a_metric_to_minimise_is_accepted():
    study = parse_study(changed(objective={"metric": "val/tof", "direction": "minimize"}), "study.yaml")
    assert study.objective.direction == "minimize"
