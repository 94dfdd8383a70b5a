"""Several trials at a time, pruning, seeds, starts, repeats and limits, with stub trials."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
import yaml
from optuna.samplers import GPSampler
from optuna.trial import TrialState
from sweeps_stub import SPACE, make_study, study_tree

from sweeps.config import LaunchConfig
from sweeps.driver import run_study
from sweeps.storage import load_trials
from sweeps.trial import gpu_environment, launch_command
from vsr_dist.core.errors import BadConfigError


def states(study):
    return [trial.state.name for trial in load_trials(study)]


def num_at_once(study):
    """The largest number of trainings that ran at the same time, by their own clocks."""
    folders = [study.trial_dir(trial.number) for trial in load_trials(study)]
    begins_s = [float((folder / "starts").read_text().split()[1]) for folder in folders]
    ends_s = [float((folder / "end_s").read_text()) for folder in folders]
    return max(sum(begin <= now < end for begin, end in zip(begins_s, ends_s, strict=True)) for now in begins_s)


def test_two_workers_run_two_trials_at_a_time(tmp_path):
    study = make_study(tmp_path, "meet", "meet", num_trials=6, workers=2, trial_timeout_s=120)
    run_study(study)
    assert states(study) == ["COMPLETE"] * 6
    assert num_at_once(study) == 2


def test_one_hopeless_trial_is_stopped_by_a_rule_and_saves(tmp_path):
    rule = {"metric": "drift/dead_fraction", "above": 0.5, "times": 3, "after_step": 2}
    bound = {"name": "alive", "metric": "drift/dead_fraction", "at_most": 0.05}
    unknown = {"name": "tof", "metric": "val/tof", "at_most": 0.5}
    study = make_study(
        tmp_path, "hopeless", "crash", num_trials=2, stop_when=[rule], constraints=[bound, unknown], grace_s=20
    )
    with pytest.raises(Exception, match=r"no trial of study stub gave a result \(1 pruned, 1 failed\)"):
        run_study(study)
    pruned = load_trials(study)[0]
    assert pruned.state.name == "PRUNED"
    assert pruned.user_attrs["reason"] == ("drift/dead_fraction 0.9, above 0.5 at 3 consecutive evaluations, step 5")
    assert pruned.constraints == {"alive": pytest.approx(0.85), "tof": 1.0}
    assert (study.trial_dir(0) / "checkpoint").read_text() == "saved"
    assert pruned.user_attrs["drift/dead_fraction"] == 0.9


def test_the_median_pruner_ends_what_is_worse_than_earlier_trials(tmp_path):
    pruner = {"kind": "median", "startup_trials": 2, "warmup_steps": 4}
    study = make_study(tmp_path, "finish", "finish", "hopeless", num_trials=3, pruner=pruner, grace_s=20)
    assert run_study(study).number in (0, 1)
    assert states(study) == ["COMPLETE", "COMPLETE", "PRUNED"]
    reason = load_trials(study)[2].user_attrs["reason"]
    assert reason.startswith("median pruner: val/psnr_y 10 at step ")
    assert int(reason.rpartition(" ")[2]) >= 5
    assert set(load_trials(study)[2].intermediate_values.values()) == {10.0}


def test_infeasible_trials_are_no_winners(tmp_path, capsys):
    bound = {"name": "level", "metric": "drift/normalized_loss", "at_most": 0.5}
    study = make_study(tmp_path, num_trials=2, constraints=[bound], repeat={"top": 1})
    assert run_study(study) is None
    assert [trial.constraints for trial in load_trials(study)] == [{"level": pytest.approx(0.4)}] * 2
    printed = capsys.readouterr().out
    assert "violates level" in printed
    assert "none of 2 complete trials keeps every constraint" in printed


def test_a_trial_of_several_seeds_has_their_mean(tmp_path):
    study = make_study(tmp_path, num_trials=1, seeds_per_trial=3)
    run_study(study)
    (trial,) = load_trials(study)
    expected = 30 - (math.log10(trial.params["adversarial.weight"]) + 3) ** 2
    assert trial.value == pytest.approx(expected + 0.01)
    assert trial.user_attrs["seeds"] == [0, 1, 2]
    assert [len(ids) for ids in (trial.user_attrs["mlflow_run_ids"], trial.user_attrs["run_dirs"])] == [3, 3]
    options = json.loads((study.trial_dir(0) / "seed_2" / "options.json").read_text())
    assert {"seed=2", "tracking.tags.seed='2'", "name=stub-trial-0000-seed-2"} <= set(options)


def test_the_winner_is_repeated_with_fresh_seeds(tmp_path, capsys):
    study = make_study(tmp_path, num_trials=3, repeat={"top": 1, "seeds": 2}, workers=2)
    best = run_study(study)
    repeats = load_trials(study)[3:]
    assert [trial.user_attrs["role"] for trial in repeats] == ["repeat"] * 2
    assert sorted(trial.user_attrs["seeds"] for trial in repeats) == [[1], [2]]
    assert {trial.user_attrs["repeat_of"] for trial in repeats} == {best.number}
    assert all(trial.params == best.params for trial in repeats)
    assert sorted(trial.value - best.value for trial in repeats) == pytest.approx([0.01, 0.02])
    assert f"with new seeds {best.value + 0.015:.4f} +/- 0.0071 (n = 2)," in capsys.readouterr().out
    run_study(study)
    assert len(load_trials(study)) == 5


def test_the_first_trials_are_the_given_ones(tmp_path):
    start = [{}, {"adversarial.weight": 0.01, "discriminator.filters": 8}]
    study = make_study(tmp_path, num_trials=3, start=start)
    run_study(study)
    trials = load_trials(study)
    assert trials[0].params == {"adversarial.weight": 0.001, "discriminator.filters": 16}
    assert trials[1].params == {"adversarial.weight": 0.01, "discriminator.filters": 8}
    assert [trial.user_attrs["role"] for trial in trials] == ["start", "start", "search"]
    assert trials[2].params not in (trials[0].params, trials[1].params)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (
            {"adversarial.wieght": 1e-3},
            "start[0]: adversarial.wieght is not in the space (did you mean 'adversarial.weight'?)",
        ),
        ({"adversarial.weight": 1.0}, "adversarial.weight is 1.0; expected float from 0.0001 to 0.01"),
        ({"discriminator.filters": 9}, "discriminator.filters is 9; expected one of [8, 16, 24]"),
    ],
)
def test_a_start_outside_the_space_is_refused(tmp_path, start, expected):
    study = make_study(tmp_path, start=[start])
    with pytest.raises(BadConfigError) as caught:
        run_study(study)
    assert expected in str(caught.value)
    assert not study.directory.exists()


def test_a_start_needs_the_bases_value_to_be_in_the_space(tmp_path):
    space = {**SPACE, "loss.tv": {"type": "float", "low": 0.1, "high": 1.0}}
    study = make_study(tmp_path, start=[{}], space=space)
    with pytest.raises(BadConfigError, match=r"loss\.tv is 2e-08, the base's value since none is given"):
        run_study(study)


def test_a_study_learns_from_another_one(tmp_path, capsys):
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    old = make_study(tmp_path / "old", num_trials=3)
    run_study(old)
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(study_tree(tmp_path / "old", num_trials=3)))
    narrow = {**SPACE, "discriminator.filters": {"type": "categorical", "choices": [16, 24]}}
    study = make_study(
        tmp_path / "new", num_trials=1, warm_start=[str(tmp_path / "old.yaml")], space=narrow, start=[{}]
    )
    for _ in range(2):
        run_study(study)
    fitting = [trial for trial in load_trials(old) if trial.params["discriminator.filters"] != 8]
    warm = [trial for trial in load_trials(study) if trial.user_attrs["role"] == "warm"]
    assert [trial.params for trial in warm] == [trial.params for trial in fitting]
    assert [trial.values for trial in warm] == [trial.values for trial in fitting]
    assert Counter(trial.user_attrs["role"] for trial in load_trials(study)) == {"warm": len(warm), "start": 1}
    assert f"warm start: {len(warm)} trial(s) of study stub" in capsys.readouterr().out
    other = make_study(
        tmp_path / "new",
        name="other",
        study_dir=str(tmp_path / "other"),
        warm_start=[str(tmp_path / "old.yaml")],
        objective={"metric": "drift/auc"},
    )
    with pytest.raises(BadConfigError, match="its objectives differ"):
        run_study(other)


def test_several_objectives(tmp_path):
    objectives = [{"metric": "val/psnr_y"}, {"metric": "drift/normalized_loss", "direction": "minimize"}]
    study = make_study(tmp_path, num_trials=2, objectives=objectives)
    best = run_study(study)
    assert best.values == [max(trial.values[0] for trial in load_trials(study)), 0.9]


def test_no_trial_begins_after_the_time_limit(tmp_path):
    study = make_study(tmp_path, num_trials=4, time_limit_s=1e-6)
    run_study(study)
    assert states(study) == []


def test_a_trial_that_writes_nothing_is_a_hang(tmp_path):
    study = make_study(tmp_path, "hang", num_trials=2, stall_timeout_s=2.0)
    assert run_study(study).number == 1
    assert load_trials(study)[0].user_attrs["reason"].startswith("stopped: no new metrics or output")


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("memory", "out of memory: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB"),
        ("killed", "the training was killed (exit status -9), perhaps because the system ran out of memory, see dmesg"),
        ("diverged", "the run ended early: diverged: loss_g/image is nan at step 7"),
    ],
)
def test_the_reason_is_told(tmp_path, behaviour, reason):
    study = make_study(tmp_path, behaviour, num_trials=2)
    assert run_study(study).number == 1
    assert load_trials(study)[0].user_attrs["reason"] == reason


def test_a_metrics_file_that_is_none_fails_its_trial_alone(tmp_path):
    study = make_study(tmp_path, "garbage", num_trials=2)
    assert run_study(study).number == 1
    assert "holds a line that is not JSON" in load_trials(study)[0].user_attrs["reason"]


def test_each_trial_has_gpus_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7,8")
    monkeypatch.setenv("MLFLOW_RUN_ID", "the-drivers")
    launch = {**make_study(tmp_path).launch.__dict__, "gpus_per_trial": 2}
    launch = {key: list(value) if isinstance(value, tuple) else value for key, value in launch.items() if value}
    study = make_study(tmp_path, "meet", "meet", num_trials=3, workers=2, launch=launch, trial_timeout_s=120)
    run_study(study)
    environments = [json.loads((study.trial_dir(n) / "environment.json").read_text()) for n in range(3)]
    assert not any("MLFLOW_RUN_ID" in environment for environment in environments)
    seen = [environment["CUDA_VISIBLE_DEVICES"] for environment in environments]
    assert set(seen[:2]) == {"3,5", "7,8"}
    assert seen[2] in ("3,5", "7,8")
    with pytest.raises(BadConfigError, match=r"3 worker\(s\) with 2 GPU\(s\) per trial need 6 GPUs, but .* has 4"):
        run_study(make_study(tmp_path, workers=3, launch=launch))
    assert gpu_environment(0, 1) == {}


def test_a_port_of_its_own_unless_the_launcher_chooses(tmp_path):
    fixed, free = tmp_path / "fixed.yaml", tmp_path / "free.yaml"
    fixed.write_text("num_processes: 2\n")
    free.write_text("main_process_port: 0\n")
    assert launch_command(LaunchConfig(str(fixed)), 4711)[5:7] == ["--main_process_port", "4711"]
    assert "--main_process_port" not in launch_command(LaunchConfig(str(free)), 4711)
    given = LaunchConfig(str(fixed), args=("--main_process_port", "9"))
    assert launch_command(given, 4711).count("--main_process_port") == 1


def test_a_choice_may_be_a_whole_section(tmp_path):
    arms = [{"kind": "spatiotemporal", "filters": 8}, {"kind": "spatiotemporal", "filters": 24, "dropout": 0.3}]
    space = {
        "adversarial.weight": SPACE["adversarial.weight"],
        "discriminator": {"type": "categorical", "choices": arms},
    }
    study = make_study(tmp_path, num_trials=2, space=space, start=[{"discriminator": arms[1]}])
    run_study(study)
    options = json.loads((study.trial_dir(0) / "options.json").read_text())
    assert "discriminator={kind: spatiotemporal, filters: 24, dropout: 0.3}" in options
    assert load_trials(study)[0].params["discriminator"] == "{kind: spatiotemporal, filters: 24, dropout: 0.3}"


@pytest.mark.parametrize("kind", ["random", "qmc"])
def test_every_sampler_runs_and_is_the_same_each_time(tmp_path, kind):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    found = []
    for name in ("a", "b"):
        study = make_study(tmp_path / name, num_trials=3, seed=5, sampler={"kind": kind})
        run_study(study)
        found.append([trial.params for trial in load_trials(study)])
    assert found[0] == found[1]
    assert len({params["adversarial.weight"] for params in found[0]}) == 3


def test_the_gp_sampler_takes_several_objectives_and_constraints(tmp_path, monkeypatch):
    seen = []
    sample = GPSampler.sample_relative

    def watched(self, study, trial, space):
        seen.append([past.constraints for past in study.get_trials(states=(TrialState.COMPLETE,))])
        return sample(self, study, trial, space)

    monkeypatch.setattr(GPSampler, "sample_relative", watched)
    objectives = [{"metric": "val/psnr_y"}, {"metric": "drift/normalized_loss", "direction": "minimize"}]
    bound = {"name": "sharp", "metric": "val/psnr_y", "at_least": 29.5}
    sampler = {"kind": "gp", "startup_trials": 2}
    study = make_study(tmp_path, num_trials=4, objectives=objectives, constraints=[bound], sampler=sampler)
    run_study(study)
    assert states(study) == ["COMPLETE"] * 4
    assert len(seen[3]) == 3 and all(set(past) == {"sharp"} for past in seen[3])
    assert len({trial.params["adversarial.weight"] for trial in load_trials(study)}) == 4
