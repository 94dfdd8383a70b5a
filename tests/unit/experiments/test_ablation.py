"""experiments/ablation.py and its report: rows, plan, statistics and page, on made-up results."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from benchmark_modules import ROOT, import_experiment
from scipy.stats import wilcoxon

from vsr_dist.config import check_config, load_config
from vsr_dist.models import build_generator

ablation = import_experiment("ablation")
report = import_experiment("ablation_report")
runner_module = import_experiment("runner")
SEQUENCES = tuple(part.name for part in ablation.HELD_OUT)
PLAN = {
    "cpu_s_per_run": 60.0,
    "reference_step_s": 0.2,
    "cost_ratio": {row.name: 4.0 if row.has_adversary else 1.5 for row in ablation.ROWS} | {ablation.REFERENCE: 1.0},
    "rounds": {},
}


def result(values, bicubic=0.0):
    """A result file with these values (sequence -> metric -> value)."""
    table = {name: {"bicubic": dict.fromkeys(scores, bicubic), "ours": scores} for name, scores in values.items()}
    table["overall"] = {"bicubic": {"psnr_y": 99.0}, "ours": {"psnr_y": 99.0}}
    return {"evaluations": {"held_out": {"table": table}}, "steps": 1200, "cpu_s": 90.0}


def results_with(differences, sequences=SEQUENCES, seeds=(0, 1, 2)):
    """Row -> seed -> result: every row has the reference's values plus `differences[row](metric, sequence, seed)`."""
    rng = np.random.default_rng(0)
    level = {(name, metric): rng.normal(30, 3) for name, metric in product(sequences, report.METRIC_NAMES)}
    return {
        row.name: {
            seed: result(
                {
                    name: {
                        metric: level[name, metric] + differences.get(row.name, lambda *_: 0.0)(metric, place, seed)
                        for metric in report.METRIC_NAMES
                    }
                    for place, name in enumerate(sequences)
                }
            )
            for seed in seeds
        }
        for row in ablation.ROWS
    }


def test_every_row_is_a_valid_training_that_differs_from_its_base():
    configs = {}
    here = runner_module.Experiment("ablation", ROOT / "runs/ablation", ROOT / "experiments/results/ablation")
    for row in ablation.ROWS:
        run = ablation.run_of(row, 1, PLAN, here)
        configs[row.name] = load_config(ROOT / run.config, run.settings)
        check_config(configs[row.name])
        build_generator(configs[row.name].generator, 4)
        assert configs[row.name].adversarial.is_on == row.has_adversary
    for row in ablation.ROWS:
        if row.base is not None:
            this, base = configs[row.name], configs[row.base]
            parts = [
                (config.generator, config.loss, config.adversarial, config.data, config.train.carry_state)
                for config in (this, base)
            ]
            assert parts[0] != parts[1]
            assert replace(this.data, order=base.data.order) == base.data
    assert len({run.name for run in ablation.runs_of(here)}) == len(ablation.ROWS) * len(ablation.SEEDS)


def test_held_out_frames_are_never_training_frames():
    trained = {(part.video, frame) for part in ablation.TRAIN for frame in range(part.first, part.last + 1)}
    held_out = [(part.video, frame) for part in ablation.HELD_OUT for frame in range(part.first, part.last + 1)]
    assert not trained & set(held_out) and len(held_out) == len(set(held_out))
    videos = {part.video for part in ablation.HELD_OUT}
    assert len(ablation.HELD_OUT) >= 10 and len(videos - {part.video for part in ablation.TRAIN}) >= 3


def test_steps_fill_the_same_cpu_time():
    step_s = {row.name: PLAN["reference_step_s"] * PLAN["cost_ratio"][row.name] for row in ablation.ROWS}
    for row in ablation.ROWS:
        steps = ablation.steps_of(row, PLAN)
        warm_s = steps.warmup * PLAN["reference_step_s"]
        assert warm_s + (steps.total - steps.warmup) * step_s[row.name] == pytest.approx(60.0, rel=0.02)
        assert (steps.warmup > 0) == row.has_adversary


def test_a_plan_keeps_its_steps_and_takes_later_rows(tmp_path, monkeypatch):
    load = iter((1.0, 3.0, 2.0, 5.0, 1.0, 2.0, 4.0) * 20)

    class Measuring:
        def say(self, text):
            pass

        def cpu_per_step(self, config, settings, run_dir, limit_s):
            """Twice the reference for each other row; how busy the machine is changes between the pairs."""
            if run_dir.name == ablation.REFERENCE:
                self.busy = next(load)
            return self.busy * (0.1 if run_dir.name == ablation.REFERENCE else 0.2)

    here = runner_module.Experiment("ablation", tmp_path / "work", tmp_path / "results")
    here.results.mkdir()

    def add(row):
        plan = ablation.calibrate(row, ablation.load_plan(here), here, Measuring())
        runner_module.Runner().publish(ablation.plan_path(here), plan)

    first, second = ablation.ROWS[:3], ablation.ROWS[3:5]
    for row in first:
        add(row)
    plan = ablation.load_plan(here)
    assert plan["cost_ratio"] == pytest.approx({"single_frame": 2.0, "convgru": 1.0, "convlstm": 2.0})
    before = {row.name: ablation.steps_of(row, plan) for row in first}
    for row in second:
        add(row)
    later = ablation.load_plan(here)
    assert {row.name: ablation.steps_of(row, later) for row in first} == before
    assert later["cost_ratio"][second[0].name] == pytest.approx(2.0)
    assert later["reference_step_s"] == plan["reference_step_s"]


def test_effects_are_paired_by_sequence_after_averaging_seeds():
    shift = np.random.default_rng(1).normal(0.3, 0.2, (len(SEQUENCES), 3))
    results = results_with({"aligned": lambda metric, place, seed: float(shift[place, seed])})
    effects = {(one.row, one.metric): one for one in report.effects_of(ablation.ROWS, results)}
    found, by_sequence = effects["aligned", "psnr_y"], shift.mean(axis=1)
    assert (found.base, found.num_sequences) == ("convgru", len(SEQUENCES))
    assert found.difference == pytest.approx(by_sequence.mean())
    assert found.low < found.difference < found.high
    assert found.seed_differences == pytest.approx(tuple(shift.mean(axis=0)))
    num_comparisons = sum(row.base is not None for row in ablation.ROWS)
    # The smoothed rows differ from `aligned` by the same amounts the other way round: they have the same smallest p.
    assert found.p == pytest.approx(num_comparisons * wilcoxon(by_sequence).pvalue)
    assert found.verdict == "better"
    assert effects["aligned", "tof"].verdict == "worse", "there less is better"
    assert effects["aligned_ema", "psnr_y"].verdict == "worse"
    assert effects["warped", "psnr_y"].verdict == "within noise" and effects["warped", "psnr_y"].p == 1.0


def test_a_verdict_needs_every_seed_and_enough_sequences():
    results = results_with({"convlstm": lambda metric, place, seed: (1.0, 1.0, -0.1)[seed]})
    found = {(one.row, one.metric): one for one in report.effects_of(ablation.ROWS, results)}["convlstm", "psnr_y"]
    assert found.p < 0.05 and found.difference > 0 and found.verdict == "within noise"
    few = results_with({"convlstm": lambda *_: 1.0}, sequences=SEQUENCES[:5])
    found = {(one.row, one.metric): one for one in report.effects_of(ablation.ROWS, few)}["convlstm", "psnr_y"]
    assert found.p is None and found.verdict == "too few sequences"


def test_holm_is_the_step_down_correction():
    # Worked by hand: 0.01 * 4, 0.02 * 3, max(0.03 * 2, 0.06), 0.2 * 1.
    assert report.holm([0.02, None, 0.2, 0.01, 0.03]) == pytest.approx([0.06, None, 0.2, 0.04, 0.06], nan_ok=True)
    assert report.holm([0.6, 0.9]) == [1.0, 1.0]


def test_the_page_says_what_is_finished_and_takes_its_words_from_the_numbers(tmp_path):
    results = results_with({"aligned": lambda metric, place, seed: 0.5 + 0.012 * place})
    results["bidirectional"] = {}
    for scores in (one["evaluations"]["held_out"]["table"]["bikes_a"] for one in results["warped"].values()):
        del scores["ours"]["flicker"]
    page, picture = tmp_path / "ablation.md", tmp_path / "images" / "ablation.png"
    report.write_report(ablation.ROWS, ablation.SEEDS, results, PLAN, page, picture)
    text = page.read_text()
    planned = len(ablation.ROWS) * 3
    assert f"**So far {planned - 3} of {planned} runs are finished.**" in text
    better = (
        "- **ConvGRU, aligned by Farneback flow** against ConvGRU: better: PSNR-Y (+0.58), SSIM-Y (+0.5780); worse: tOF"
    )
    assert better in text
    assert "- Best PSNR-Y dB: ConvGRU, aligned by Farneback flow" in text
    assert "bidirectional** against" not in text
    assert "| ConvGRU, bidirectional | ConvGRU | 0 | - | - | - | - | - | - | - |" in text
    assert "| ConvGRU | single frames | 3 | 1,200 | 1.5 |" in text
    assert "n 13" in text and picture.stat().st_size > 10_000
    assert all(len(line) < 121 for line in text.splitlines() if not line.startswith(("|", "- ")))


def test_nothing_finished_is_a_page_and_no_plan_is_one_line(tmp_path, monkeypatch, capsys):
    empty = {row.name: {} for row in ablation.ROWS}
    report.write_report(ablation.ROWS, ablation.SEEDS, empty, PLAN, tmp_path / "a.md", tmp_path / "a.png")
    assert "**So far 0 of" in (tmp_path / "a.md").read_text()
    arguments = ["ablation.py", "--report", "--work", str(tmp_path / "w"), "--results", str(tmp_path / "r")]
    monkeypatch.setattr(sys, "argv", arguments)
    assert main_of(ablation) == 2
    assert "no run was started yet" in capsys.readouterr().err


def main_of(module):
    return module.main(
        "ablation", "", module.runs_of, prepare=module.prepare, report=module.report, extra_options=module.add_options
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_rows_from_the_videos_to_the_page(tmp_path, monkeypatch):
    part = ablation.Part
    monkeypatch.setattr(ablation, "ROWS", (ablation.ROWS[0], ablation.ROWS[1]))
    monkeypatch.setattr(ablation, "SEEDS", (0,))
    monkeypatch.setattr(ablation, "CALIBRATION_ROUNDS", 1)
    monkeypatch.setattr(ablation, "CALIBRATION_S", 0.2)
    monkeypatch.setattr(ablation, "CPU_S_PER_RUN", 1.0)
    monkeypatch.setattr(ablation, "TRAIN", (part("car_train", "carphone_pristine", 0, 20),))
    held_out = tuple(part(f"car_{first}", "carphone_pristine", first, first + 6) for first in (40, 50, 60))
    monkeypatch.setattr(ablation, "HELD_OUT", held_out)
    page = tmp_path / "page.md"
    places = ["--work", str(tmp_path / "w"), "--results", str(tmp_path / "r"), "--page", str(page)]
    monkeypatch.setattr(sys, "argv", ["ablation.py", *places, "--picture", str(tmp_path / "p.png")])
    assert main_of(ablation) == 0
    plan = json.loads((tmp_path / "r" / "plan.json").read_text())
    for row in ablation.ROWS:
        found = json.loads((tmp_path / "r" / f"{row.name}-seed0.json").read_text())
        assert found["steps"] == ablation.steps_of(row, plan).total
        assert set(report.scores_of(found)) == {"car_40", "car_50", "car_60"}
    text = page.read_text()
    assert "So far" not in text and "| ConvGRU | single frames | 1 |" in text
