"""The report: facts, words, tables, pictures and page, on constructed trials in a real database."""

from __future__ import annotations

import base64
import csv
import re
import statistics

import cv2
import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from sweeps_results import CONSTRAINTS, Results, climbing, full_study, parameters, settling

from sweeps.findings import load_findings
from sweeps.report import importances, labels_of, write_report
from sweeps.storage import load_trials, open_storage
from vsr_dist.core.errors import UserError

TWO = [
    {"metric": "val/psnr_y"},
    {
        "name": "drift",
        "direction": "minimize",
        "terms": [{"metric": "drift/normalized_loss", "reduce": "tail_median"}],
    },
]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The sixteen trials, and their report."""
    results = full_study(tmp_path_factory.mktemp("study"))
    return results, write_report(results.config)


def findings_of(results):
    return load_findings(results.config)


def tables(text):
    """Every table of a markdown text, as (header, rows)."""
    blocks = [block for block in text.split("\n\n") if block.startswith("|")]
    split = [[line.strip("| ").split(" | ") for line in block.splitlines()] for block in blocks]
    return [(lines[0], lines[2:]) for lines in split]


def test_the_head_says_what_was_found(study):
    _, files = study
    text = files.markdown.read_text()
    assert "16 trials of" in text and ": 13 complete, 1 pruned, 1 failed, 1 running." in text
    assert "minimize `val/tof / val_bicubic/tof + 0.5 * max(val/tdiff / val_bicubic/tdiff - 1, 0)`" in text
    assert "7 of 12 settings are feasible. Best: **trial 3**, quality 0.7550; repeated with new seeds: 0.7650" in text
    assert "- Trial 13: RuntimeError: out of memory on rank 1 (exit status 17)" in text
    assert "- Trial 12: drift/dead_fraction 0.8, above 0.5 at 3 consecutive evaluations" in text


def test_the_best_trials_are_feasible_first_and_repeated_first(study):
    _, files = study
    header, rows = tables(files.markdown.read_text())[0]
    assert header[:5] == ["trial", "role", "quality", "new seeds, mean +/- s.d.", "feasible"]
    feasible = [row[4].startswith("yes") for row in rows]
    assert feasible == sorted(feasible, reverse=True)
    assert rows[0][0] == "3" and rows[0][3] == "0.7650 +/- 0.0000 (n = 3)" and rows[0][4] == "yes; 3 of 3 repeats"
    values = [float(row[2]) for row in rows[1:7]]
    assert values == sorted(values)
    assert rows[-1][:3] == ["0", "start", "0.9750"]  # The paper's setting is always shown.


def test_the_settings_of_the_best_stand_beside_the_given_one(study):
    results, files = study
    header, rows = tables(files.markdown.read_text())[2]
    assert header == ["parameter", "range", "trial 0 (given)", "trial 3", "trial 7", "trial 10", "trial 5"]
    cells = {row[0]: row[1:] for row in rows}
    assert set(cells) == {f"`{path}`" for path in results.config.space}
    trials = load_trials(results.config)
    assert cells["`adversarial.weight`"][:2] == ["0.0001 to 0.1 (logarithmic)", "0.001"]
    assert float(cells["`adversarial.weight`"][2]) == pytest.approx(trials[3].params["adversarial.weight"], rel=1e-3)
    assert cells["`adversarial.loss`"][1:] == [trials[n].params["adversarial.loss"] for n in (0, 3, 7, 10, 5)]


def test_constraints_are_shown_one_by_one(study):
    _, files = study
    header, rows = tables(files.markdown.read_text())[1]
    assert header[:5] == ["constraint", "rule", "met by", "trial 0 (given)", "trial 3"]
    by_name = {row[0]: row for row in rows}
    assert set(by_name) == {constraint["name"] for constraint in CONSTRAINTS}
    level = np.median(climbing()[-5:])
    assert by_name["not weak"][1:4] == [
        "`tail_median(drift/normalized_loss) <= 0.75`",
        "8 of 12",
        f"{level:.4g} missed",
    ]
    assert by_name["not weak"][4] == f"{np.median(settling(0.6)[-5:]):.4g} met"
    assert by_name["keeps fidelity"][4].endswith(" met")


def test_the_csv_holds_every_trial_and_every_value(study):
    results, files = study
    with files.table.open() as file:
        rows = list(csv.DictReader(file))
    trials = load_trials(results.config)
    assert [int(row["trial"]) for row in rows] == list(range(16))
    for row, trial in zip(rows, trials, strict=True):
        assert row["state"] == trial.state.name
        assert float(row["adversarial.weight"]) == trial.params["adversarial.weight"]
        assert row["quality"] == ("" if trial.value is None else str(trial.value))
    assert rows[14]["role"] == "repeat" and rows[14]["repeat_of"] == "3" and rows[14]["seeds"] == "[7, 8, 9]"
    assert float(rows[0]["constraint not weak"]) == pytest.approx(np.median(climbing()[-5:]))
    assert (rows[0]["feasible"], rows[3]["feasible"], rows[12]["feasible"]) == ("False", "True", "")
    assert rows[13]["reason"].startswith("RuntimeError")


def test_the_page_needs_no_other_file(study):
    _, files = study
    page = files.page.read_text()
    inlined = [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
    assert sorted(inlined) == sorted(path.read_bytes() for path in files.pictures)
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert page.count("<table>") == 5 and "<strong>trial 3</strong>" in page
    assert "<details><summary>16 trials</summary>" in page


def test_the_pictures_show_something(study):
    _, files = study
    names = {path.name for path in files.pictures}
    assert names == {f"report_{kind}.png" for kind in ("drift", "history", "parallel", "importance")}
    for path in files.pictures:
        picture_YXC = cv2.imread(str(path)).astype(int)
        coloured_YX = np.ptp(picture_YXC, axis=2) > 60
        assert picture_YXC.shape[0] > 300 and coloured_YX.sum() > 500, path.name
    drift_YXC = cv2.imread(str(files.markdown.with_name("report_drift.png"))).astype(int)
    red_YX = (drift_YXC[..., 2] > 180) & (drift_YXC[..., 0] < 60) & (drift_YXC[..., 1] < 120)
    assert red_YX.sum() > 150  # The paper's curve.


def test_the_same_trials_give_the_same_bytes(study):
    results, files = study
    before = {path: path.read_bytes() for path in files.all}
    again = write_report(results.config)
    assert {path: path.read_bytes() for path in again.all} == before
    assert not list(results.config.directory.glob("*.tmp"))


def test_several_objectives_have_a_front(tmp_path):
    results = full_study(tmp_path, objectives=TWO)
    files = write_report(results.config)
    assert "report_pareto.png" in {path.name for path in files.pictures}
    found = findings_of(results)
    study = optuna.load_study(study_name="stub", storage=results.study._storage)
    searched = {trial.number for trial in found.searched}
    # Optuna's own front, which counts repeats as trials and leaves infeasible ones out.
    expected = {trial.number for trial in study.best_trials} & searched
    assert {trial.number for trial in found.front} == expected and expected
    assert f"On the Pareto front: trials {', '.join(map(str, sorted(expected)))}." in files.markdown.read_text()
    assert [trial.number in expected for trial in found.ranked][: len(expected)] == [True] * len(expected)


def test_repeats_decide_by_their_mean_and_by_most_of_them(tmp_path):
    results = Results(tmp_path)
    results.add(settling(0.5), tof=0.6)
    results.add(settling(0.55), tof=0.7)
    results.add(settling(0.6), tof=0.8)
    assert [trial.number for trial in findings_of(results).ranked] == [0, 1, 2]
    again = {"role": "repeat", "seeds": [5]}
    for tof in (0.9, 1.0):  # The first was lucky.
        results.add(settling(0.5), tof=tof, params=parameters(0), repeat_of=0, **again)
    for tof in (0.7, 0.74):
        results.add(settling(0.5), tof=tof, params=parameters(1), repeat_of=1, **again)
    found = findings_of(results)
    assert found.best.number == 1 and [trial.number for trial in found.ranked] == [1, 0, 2]
    repeats = found.repeats(found.trials[0])
    values = [0.9 + 0.025, 1.0 + 0.025]
    assert repeats.values == pytest.approx(values)
    assert (repeats.mean, repeats.deviation) == pytest.approx((statistics.mean(values), statistics.stdev(values)))
    for _ in range(3):  # With other seeds the second drifts.
        results.add(settling(0.95), tof=0.6, params=parameters(1), repeat_of=1, **again)
    found = findings_of(results)
    assert found.repeats(found.trials[1]).num_feasible == 2
    assert found.best.number == 0 and not found.is_good(found.trials[1])


def test_a_trial_with_several_seeds_gives_a_value_by_seed(tmp_path):
    results = Results(tmp_path, objective={"metric": "val/psnr_y"})
    results.add(settling(0.5), psnr=29.0)
    results.add(settling(0.5), psnr=29.0, params=parameters(0), role="repeat", repeat_of=0, seeds=[1, 2, 3])
    repeats = findings_of(results).repeats(findings_of(results).trials[0])
    assert repeats.values == pytest.approx([28.985, 29.085, 29.185])
    assert (repeats.num_feasible, repeats.deviation) == (3, pytest.approx(0.1))
    for folder in results.config.run_dirs(1, 3):
        (folder / "metrics.jsonl").unlink()
    away = findings_of(results).repeats(findings_of(results).trials[0])
    assert away.values == pytest.approx([29.085])  # Of runs on another machine the storage has the mean.


def test_when_nothing_is_feasible_the_report_says_what_fails_most(tmp_path):
    results = Results(tmp_path)
    results.add(settling(0.95), role="start")
    results.add(settling(0.97))
    results.add(settling(0.2))
    found = findings_of(results)
    assert found.best is None and found.most_failed() == ("not weak", 2)
    expected = (
        "**No trial is feasible.** Of 3 complete settings, 2 violate the constraint `not weak`, more than any other."
    )
    assert found.answer == expected
    text = write_report(results.config).markdown.read_text()
    assert expected in text
    assert "3 complete trials are too few for importances of 5 parameters; 10 needed" in text
    assert "report_importance" not in text


def test_a_study_that_has_only_begun_has_a_report(tmp_path):
    results = Results(tmp_path)
    with pytest.raises(UserError, match="has no trials yet; start it with: vsr-dist study run"):
        write_report(results.config)
    results.add(settling(0.5, 3), state=TrialState.RUNNING)
    text = write_report(results.config).markdown.read_text()
    assert "1 trials of" in text and "1 running" in text and "No trial is complete yet." in text


def test_importances_find_what_matters_and_state_n(tmp_path):
    results = Results(tmp_path, constraints=[])
    for number in range(24):
        share = parameters(number)["discriminator.dropout"] / 0.3
        results.add(settling(0.5), tof=0.5 + share)
        results.add(settling(0.5), tof=9.0, role="repeat", repeat_of=number) if number < 2 else None
    found = importances(findings_of(results))
    assert max(found, key=found.get) == "discriminator.dropout"
    assert sum(found.values()) == pytest.approx(1.0)
    assert importances(findings_of(results)) == found
    assert "quality (n = 24)" in write_report(results.config).markdown.read_text()


def test_importances_look_at_the_best_trials_in_either_direction(tmp_path):
    """PED-ANOVA depends on the order alone: to maximize x is to minimize -x."""
    found = []
    for name, objective in (("down", {"metric": "val/tof", "direction": "minimize"}), ("up", {"metric": "val/psnr_y"})):
        (tmp_path / name).mkdir()
        results = Results(tmp_path / name, constraints=[], objective=objective)
        for number in range(16):
            values = parameters(number)
            badness = values["discriminator.dropout"] if values["discriminator.filters"] < 32 else 0.4
            results.add(settling(0.5, 2), tof=1.0 + badness + number / 1e4, psnr=29.0 - badness - number / 1e4)
        found.append(importances(findings_of(results)))
    assert found[0] == pytest.approx(found[1])


def test_names_are_short_and_different():
    paths = ["loss.tv", "objective", "a.schedule.rate", "b.schedule.rate", "adversarial.gamma_control.target"]
    assert list(labels_of(paths).values()) == [
        *("loss.tv", "objective", "a.schedule.rate", "b.schedule.rate"),
        "gamma_control.target",
    ]


def test_texts_from_outside_do_no_harm(tmp_path):
    results = Results(tmp_path)
    results.add(settling(0.5), state=TrialState.FAIL, reason="<script> `odd | **")
    files = write_report(results.config)
    assert "- Trial 0: <script> `odd | **" in files.markdown.read_text()
    assert "<li>Trial 0: &lt;script&gt; `odd | **</li>" in files.page.read_text()


def test_a_trial_that_was_retried_is_reported_once(tmp_path):
    results = Results(tmp_path, constraints=[])
    results.add(settling(0.5), state=TrialState.FAIL, reason="interrupted")
    results.add(settling(0.5), params=parameters(0))
    lost = optuna.load_study(study_name="stub", storage=open_storage(results.config))
    trial = lost.trials[1]
    copy = optuna.trial.create_trial(
        values=trial.values,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=trial.user_attrs,
        system_attrs={"failed_trial": 1, "retry_history": [0, 1]},
    )
    lost.add_trial(copy)
    assert [found.number for found in findings_of(results).trials] == [2]
    assert "1 trials of" in write_report(results.config).markdown.read_text()
