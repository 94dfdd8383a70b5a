"""Promotion of a trial to a configuration of its own, and the three verbs of the command line."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import pytest
import yaml
from optuna.trial import TrialState
from sweeps_results import Results, full_study, parameters, settling
from sweeps_stub import make_study, study_tree

from sweeps.cli import main, register
from sweeps.report import write_report
from sweeps.trial import promote
from vsr_dist.config import load_config
from vsr_dist.core.errors import UserError, run_cli


def test_the_best_feasible_trial_becomes_a_configuration_of_its_own(tmp_path):
    results = full_study(tmp_path, set=["train.steps=10"])
    best, path = promote(results.config, None)
    assert (best.number, path) == (3, results.config.directory / "best.yaml")  # Not 7, which was not repeated.
    config = load_config(path)
    assert (config.name, config.run_dir) == ("stub-best", "runs/stub-best")
    assert config.tracking.tags == {"team": "pixels"}
    assert config.tracking.extra_params == {}
    assert config.adversarial.weight == best.params["adversarial.weight"]
    assert config.discriminator.filters == best.params["discriminator.filters"]
    head = path.read_text().splitlines()
    assert head[0] == "# Best trial of study stub: trial 3, quality 0.7550, with new seeds 0.7650 +/- 0.0000 (n = 3)."
    assert head[2] == "# It still contains the study's `set`: train.steps=10."
    _, elsewhere = promote(results.config, tmp_path / "new" / "gan.yaml")
    assert load_config(elsewhere) == config


def test_a_trial_can_be_picked_by_hand(tmp_path):
    results = full_study(tmp_path)
    picked, path = promote(results.config, None, 2)
    assert picked.number == 2 and load_config(path).adversarial.weight == picked.params["adversarial.weight"]
    text = path.read_text()
    assert text.startswith("# Chosen trial of study stub: trial 2, quality 0.8150.")
    level = statistics.median(settling(0.95)[-5:])
    assert f"# It violates constraints: not weak (tail_median(drift/normalized_loss) <= 0.75) is {level:.4g}" in text
    with pytest.raises(UserError, match=r"has no trial 99, .* the last number is 15"):
        promote(results.config, None, 99)
    with pytest.raises(UserError, match=r"trial 13 is not complete \(fail\)"):
        promote(results.config, None, 13)


def test_without_a_feasible_trial_the_error_names_the_constraint(tmp_path):
    results = Results(tmp_path)
    results.add(settling(0.5), state=TrialState.FAIL, reason="NaN")
    with pytest.raises(UserError, match=r"study stub has no complete trial \(1 trials\)"):
        promote(results.config, None)
    for level in (0.95, 0.97, 0.2):
        results.add(settling(level))
    message = "No trial is feasible. Of 3 complete settings, 2 violate the constraint not weak"
    with pytest.raises(UserError, match=message) as caught:
        promote(results.config, None)
    assert "--number" in str(caught.value) and "\n" not in str(caught.value)
    picked, _ = promote(results.config, None, 1)
    assert picked.number == 1


def test_promotion_needs_the_trials_folder(tmp_path):
    results = Results(tmp_path)
    results.add(settling(0.5), params=parameters(4))
    (results.config.trial_dir(0) / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"trial 0 cannot be promoted: .*config.yaml is missing"):
        promote(results.config, None)


def test_without_a_study_there_is_nothing_to_report_or_promote(tmp_path):
    config = make_study(tmp_path)
    for action in (lambda: write_report(config), lambda: promote(config, None)):
        with pytest.raises(UserError, match=r"no study stub in .*study.db; start it with"):
            action()
    assert not config.directory.exists()


def test_the_commands_do_it_all(tmp_path, capsys):
    make_study(tmp_path)
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study_tree(tmp_path)))
    assert run_cli(main, ["report", "--config", str(file)]) == 2
    assert capsys.readouterr().err.startswith("error: no study stub in ")
    assert run_cli(main, ["run", "--config", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "best: trial" in printed and "report.html" in printed
    assert run_cli(main, ["report", "--config", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "| trial | role | val/psnr_y |" in printed and "report.csv" in printed
    assert run_cli(main, ["run", "--config", str(tmp_path / "no.yaml")]) == 2
    out = tmp_path / "best.yaml"
    assert run_cli(main, ["promote", "--config", str(file), "--out", str(out), "--set", "num_trial=4"]) == 2
    assert "did you mean 'num_trials'" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["run", "report", "promote"])
def test_other_programs_can_take_the_verbs_in(verb, capsys):
    parser = argparse.ArgumentParser(prog="outer")
    register(parser.add_subparsers(dest="study_verb"))
    arguments = parser.parse_args([verb, "--config", "x.yaml"])
    assert callable(arguments.handler)
    assert arguments.config == Path("x.yaml")
    with pytest.raises(SystemExit) as caught:
        parser.parse_args([verb, "--help"])
    assert caught.value.code == 0
    assert f"outer {verb} --config configs/studies/demo.yaml" in capsys.readouterr().out


def test_the_verbs_are_listed(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in ("run", "report", "promote"))
