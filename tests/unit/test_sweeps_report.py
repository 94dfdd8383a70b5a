"""Report, promotion and the command line, on the results of stub trials."""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import pytest
import yaml
from sweeps_stub import make_study, study_tree

from sweeps.cli import main, register
from sweeps.driver import run_study
from sweeps.promote import promote
from sweeps.report import rank, write_report
from sweeps.storage import load_trials
from vsr_dist.config import dump_config, load_config
from vsr_dist.core.errors import UserError, run_cli


@pytest.fixture
def study(tmp_path):
    """Four trials; the second one fails. The stub writes no `config.yaml`, as a training would; here it is made."""
    config = make_study(tmp_path, "finish", "crash", num_trials=4, set=["train.steps=20"])
    run_study(config)
    for trial in load_trials(config):
        overrides = [f"{path}={value!r}" for path, value in trial.params.items()]
        overrides += ["train.steps=20", "tracking.tags.study=stub", f"tracking.tags.trial='{trial.number}'", "name=t"]
        resolved = dump_config(load_config(Path(config.base), overrides))
        (config.trial_dir(trial.number) / "config.yaml").write_text(resolved)
    return config


def table(text):
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return rows[0], rows[2:]


def test_the_table_is_sorted_best_first_and_names_failures(study):
    path, _ = write_report(study)
    text = path.read_text()
    header, rows = table(text)
    assert header == [
        *("trial", "state", "val/psnr_y", "D loss / chance", "D right on pairs"),
        *("loss.adversarial", "discriminator.filters", "seconds"),
    ]
    values = [float(row[2]) for row in rows[:3]]
    assert values == sorted(values, reverse=True)
    assert [row[1] for row in rows] == ["COMPLETE"] * 3 + ["FAIL"]
    assert "- Trial 1: RuntimeError: out of memory on rank 1 (exit status 17)" in text
    assert "4 trials of" in text and "3 with a result" in text
    for row in rows[:3]:
        trial = load_trials(study)[int(row[0])]
        assert row[3] == f"{trial.user_attrs['drift/normalized_loss']:.2f}"
        assert float(row[5]) == pytest.approx(trial.params["loss.adversarial"], rel=1e-3)
        assert int(row[6]) == trial.params["discriminator.filters"]


def test_the_history_is_a_picture_with_something_on_it(study):
    _, path = write_report(study)
    picture_YXC = cv2.imread(str(path))
    assert picture_YXC.shape[:2] == (480, 840)
    blue_YX = (picture_YXC[..., 0] > 150) & (picture_YXC[..., 2] < 80)
    red_YX = (picture_YXC[..., 2] > 180) & (picture_YXC[..., 0] < 80)
    assert blue_YX.sum() > 200 and red_YX.sum() > 20


def test_a_distance_is_ranked_smallest_first(tmp_path, study):
    down = make_study(tmp_path, objective={"metric": "val/tof", "direction": "minimize"})
    trials = load_trials(study)
    assert [t.number for t in rank(down, trials)][:3] == [t.number for t in rank(study, trials)][:3][::-1]
    assert rank(down, trials)[-1].number == 1


def test_the_best_trial_becomes_a_configuration_of_its_own(study, tmp_path):
    best, path = promote(study, None)
    assert path == study.directory / "best.yaml"
    config = load_config(path)
    assert best.number == rank(study, load_trials(study))[0].number
    assert (config.name, config.run_dir) == ("stub-best", "runs/stub-best")
    assert config.tracking.tags == {"team": "pixels"}
    assert config.loss.adversarial == best.params["loss.adversarial"]
    assert config.discriminator.filters == best.params["discriminator.filters"]
    assert config.train.steps == 20
    assert f"# Best trial of study stub: trial {best.number}" in path.read_text()
    assert "overrides are still in it: train.steps=20" in path.read_text()
    _, elsewhere = promote(study, tmp_path / "new" / "gan.yaml")
    assert load_config(elsewhere) == config


def test_promotion_needs_the_best_trials_folder(study):
    best, _ = promote(study, None)
    (study.trial_dir(best.number) / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"the best trial is \d, but .*config.yaml is gone"):
        promote(study, None)


def test_without_trials_there_is_nothing_to_report_or_promote(tmp_path):
    config = make_study(tmp_path, "crash", num_trials=1)
    for action in (lambda: write_report(config), lambda: promote(config, None)):
        with pytest.raises(UserError, match=r"no study stub in .*journal.log; start it with"):
            action()
    assert not config.directory.exists()
    with pytest.raises(UserError, match="all 1 trials"):
        run_study(config)
    with pytest.raises(UserError, match="no trial of study stub has a result"):
        promote(config, None)
    assert "| 0 | FAIL |" in write_report(config)[0].read_text()


def test_the_commands_do_it_all(tmp_path, capsys):
    make_study(tmp_path)
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study_tree(tmp_path)))
    assert run_cli(main, ["report", "--config", str(file)]) == 2
    assert capsys.readouterr().err.startswith("error: no study stub in ")
    assert run_cli(main, ["run", "--config", str(file)]) == 0
    assert "best: trial" in capsys.readouterr().out
    assert run_cli(main, ["report", "--config", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "| trial | state | val/psnr_y |" in printed and "report.png" in printed
    assert run_cli(main, ["run", "--config", str(tmp_path / "no.yaml")]) == 2
    assert run_cli(main, ["run", "--config", str(file), "--set", "num_trials=4"]) == 0
    assert "trial 3: val/psnr_y" in capsys.readouterr().out
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
