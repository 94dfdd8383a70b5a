"""`experiments/drift_report.py`, on made-up results whose numbers are known."""

from __future__ import annotations

import json
import math

import cv2
import pytest
from benchmark_modules import import_experiment

report = import_experiment("drift_report")
drift = import_experiment("drift")
runner = import_experiment("runner")

STEPS = range(0, 1501, 30)
SEQUENCES = ("bikes_unseen", "vtest_unseen")


def result_of(name, seed, *, psnr=30.0, lpips=0.2, loss=None, slope=0.0, dead=0.01, auc=0.9):
    """A run whose loss is `loss` at the middle of its later half and changes by `slope` over the whole run."""
    columns = ["step", "val/psnr_y", "val/high_frequency_gap"]
    if loss is not None:
        columns += [report.LOSS, "drift/auc", "drift/ks", "drift/dead_fraction"]
        columns += ["drift/paired_accuracy", "drift/probe_auc"]
    rows = []
    for step in STEPS:
        row = [step, psnr, -3.0]
        if loss is not None:
            row += [loss + slope * (step - 1125) / 1500, auc, 0.7, dead, 0.95, 0.99]
        rows.append(row)
    ours = {"psnr_y": psnr, "ssim_y": 0.85, "tof": 0.3, "stlpips": lpips}
    bicubic = {"psnr_y": 28.0, "ssim_y": 0.8, "tof": 0.4, "stlpips": 0.4}
    table = {scope: {"bicubic": bicubic, "ours": ours} for scope in (*SEQUENCES, "overall")}
    return {
        "name": f"{name}-seed{seed}",
        "seed": seed,
        "cpu_s": 300.0,
        "evaluation_cpu_s": 20.0,
        "curve": {"every": 1, "columns": columns, "rows": rows},
        "evaluations": {"unseen": {"table": table}},
        "versions": {"torch": "2.x"},
        "machine": {"processor": "a processor"},
        "commit": "0123456789abcdef",
        "init_generator_sha256": "abc",
    }


def results_of(*found):
    return {result["name"]: result for result in found}


def page_of(tmp_path, results):
    here = runner.Experiment("drift", tmp_path / "work", tmp_path / "results")
    here.results.mkdir()
    for name, result in results.items():
        here.result_path(name).write_text(json.dumps(result))
    arms = [*drift.ARMS, *drift.TRADE_OFF, drift.WINNER_ARM]
    report.write_page(
        here, arms, (drift.CHOSEN, "winner"), drift.all_runs(), tmp_path / "docs/drift.md", tmp_path / "docs/images"
    )
    return (tmp_path / "docs/drift.md").read_text()


def test_measures_of_a_run():
    found = report.measures(result_of("cure", 1, psnr=31.0, loss=0.6, slope=0.08))
    # The tail is the last 13 of 51 evaluations, 1140 to 1500; its middle is step 1320.
    assert found["loss"] == pytest.approx(0.6 + 0.08 * 195 / 1500)
    assert found["trend"] == pytest.approx(0.08) and found["trend_high"] == pytest.approx(0.08)
    assert found["psnr_y"] == 31.0 and found["dead"] == 0.01 and found["hf_gap"] == -3.0
    assert "loss" not in report.measures(result_of("none", 1))


def test_a_trend_needs_three_points_of_the_later_half():
    assert all(math.isnan(end) for end in report.trend([0, 30, 60], [1.0, 0.9, 0.8]))
    # The earlier half, in which every run falls from chance, does not count.
    assert report.trend([0, 30, 60, 90, 120], [1.0, 0.9, 0.5, 0.5, 0.5]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, set()),
        ({"loss": 0.8}, {"level"}),
        ({"loss": 0.3}, {"level"}),
        ({"slope": 0.2}, {"trend"}),
        ({"dead": 0.05}, {"dead"}),
    ],
)
def test_targets_of_the_drift(change, missed):
    kept = report.kept(report.measures(result_of("cure", 1, **{"loss": 0.6, **change})))
    assert {name for name, holds in kept.items() if not holds} == missed


def test_a_target_is_met_only_with_all_seeds():
    def sentence(*runs):
        measured = report.by_arm(drift.ARMS, results_of(*runs))
        return report.drift_sentence(measured, 2, "cure", "cure")

    good, bad = result_of("cure", 100, loss=0.6), result_of("cure", 101, loss=0.9)
    assert "**met**, 2 of 2" in sentence(good, result_of("cure", 101, loss=0.5))
    assert "**missed**, 1 of 2" in sentence(good, bad)
    assert "**open**, 1 of 1" in sentence(good)
    assert sentence() == "cure: not run yet."


@pytest.mark.parametrize(
    ("psnr", "lpips", "against_none", "against_paper"),
    [
        (29.7, 0.17, "met", "missed"),
        (29.4, 0.17, "missed", "missed"),
        (29.7, 0.19, "missed", "missed"),
        (30.4, 0.17, "met", "met"),
        (30.21, 0.17, "met", "not clear, an interval holds 0"),
    ],
)
def test_what_the_cure_must_gain_in_pictures(psnr, lpips, against_none, against_paper):
    runs = [
        run
        for place, seed in enumerate((100, 101))
        for run in (
            result_of("none", seed),
            result_of("paper", seed, psnr=30.2 + place / 100, lpips=0.18, loss=1.0),
            result_of("cure", seed, psnr=psnr, lpips=lpips, loss=0.6),
        )
    ]
    measured = report.by_arm(drift.ARMS, results_of(*runs))
    first, second = report.comparison_sentences(measured, "cure", {"cure": "cure"}, 2)
    assert "so far" in report.comparison_sentences(measured, "cure", {"cure": "cure"}, 5)[0]
    assert f"**{against_none}**" in first and f"**{against_paper}**" in second


def test_spread_is_students():
    found = report.spread([1.0, 2.0, 3.0])
    assert found.mean == 2.0 and found.high - 2.0 == pytest.approx(4.302652729911275 / 3**0.5)
    assert report.spread([0.25]).text(2) == "0.25"


@pytest.mark.parametrize(
    ("values", "state"),
    [
        ({"loss": 1.0, "auc": 0.5, "dead": 0.9}, "dead"),
        ({"loss": 0.99, "auc": 0.5, "dead": 0.0}, "at chance"),
        ({"loss": 0.95, "auc": 0.8, "dead": 0.0}, "near chance in its loss though it separates"),
        ({"loss": 0.1, "auc": 1.0, "dead": 0.0}, "too strong"),
        ({"loss": 0.5, "auc": 1.0, "dead": 0.0}, "in the band"),
        ({"loss": 0.8, "auc": 1.0, "dead": 0.0}, "weak"),
    ],
)
def test_what_is_said_of_a_discriminator(values, state):
    assert report.discriminator_state(values) == state


def test_a_page_of_nothing_says_so(tmp_path):
    text = page_of(tmp_path, {})
    assert f"So far: 0 of {len(drift.all_runs())} runs." in text
    assert "$" not in text and "The study has not been run yet." in text


def test_a_page_of_some_runs_has_tables_and_pictures(tmp_path):
    runs = [result_of("none", seed) for seed in (100, 101)]
    runs += [result_of("vgg", 100, lpips=0.25)]
    runs += [result_of(arm.name, 100, loss=1.0, dead=0.6, auc=0.5) for arm in drift.ARMS[2:6]]
    runs += [result_of("cure", seed, psnr=29.8, lpips=0.16 + seed / 1e5, loss=0.6) for seed in (100, 101)]
    runs += [result_of("cure_3.0", 100, psnr=28.0, lpips=0.1, loss=0.6)]
    text = page_of(tmp_path, results_of(*runs))
    assert f"So far: {len(runs)} of {len(drift.all_runs())} runs." in text and "$" not in text
    assert "| paper, lr 1e-4 | 1 | 1.00 |" in text and "| no adversary | 2 | - |" in text
    assert "| bicubic | 28.00 / 0.4000 |" in text
    assert "- **paper, dropout 0.3** (1 seed): dead in 1." in text
    assert "against the same losses without an adversary: ST-LPIPS -20.0 %, PSNR-Y +0.00 dB." in text
    assert "That holds for cure, ratio 0.1" in text and "ratio 3.0 (ST" not in text
    for name in (report.CURVES_NAME, report.TRADE_OFF_NAME):
        picture = cv2.imread(str(tmp_path / "docs/images" / name))
        assert picture.shape[1] > 800 and picture.std() > 10


def test_the_study_is_told_from_its_table_of_trials(tmp_path):
    here = runner.Experiment("drift", tmp_path / "work", tmp_path / "results")
    (here.work / "study").mkdir(parents=True)
    (here.work / "study/report.csv").write_text(
        "trial,state,role,J,feasible,constraint c1,adversarial.loss,discriminator.filters,run_dirs,drift/auc\n"
        "0,COMPLETE,search,0.3,True,0.6,rpgan,16,10,0.9\n"
        "1,COMPLETE,search,0.2,False,0.9,paper,16,10,0.5\n"
        "2,COMPLETE,search,0.25,True,0.7,bce,8,10,0.9\n"
        "3,FAIL,search,,,,bce,8,10,\n"
    )
    text = report.study_section(here)
    assert text.startswith("3 finished trials of 4; 2 keep every constraint.")
    assert "the winner is trial 2 with J 0.2500" in text
    assert "| 2 | 0.2500 | 0.700 | loss bce, filters 8 |" in text and "paper" not in text
    # What was read is kept beside the results, for a machine without the study.
    (here.work / "study/report.csv").unlink()
    assert report.study_section(here) == text
    assert "run_dirs" not in (here.results / report.STUDY_NAME).read_text()


def test_every_arm_has_one_schedule_and_the_same_data():
    from vsr_dist.config import load_config

    runs = {run.name: run for run in drift.all_runs()}
    configs = [
        load_config(runner.ROOT / run.config, [s.replace("{work}", "runs/drift") for s in run.settings])
        for run in runs.values()
    ]
    for config in configs:
        assert config.generator_optimizer.final_ratio == config.discriminator_optimizer.final_ratio == 1.0
    for same in (lambda c: c.data, lambda c: c.generator, lambda c: (c.train.steps, c.train.init_generator)):
        assert len({str(same(config)) for config in configs}) == 1
    assert len(runs) >= 6 * 5 + 4 * 3
