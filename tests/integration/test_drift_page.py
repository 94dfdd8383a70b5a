"""The page of the drift proof, from made-up runs, whose numbers are known."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import yaml
from benchmark_modules import import_benchmark

from sweeps.space import check_space
from sweeps.study_config import load_study
from vsr_dist.core.config_io import apply_overrides, read_yaml
from vsr_dist.core.errors import BadInputError

ROOT = Path(__file__).parents[2]
drift_page = import_benchmark("drift_page")
drift_measures = import_benchmark("drift_measures")
drift_second = import_benchmark("drift_second")

STUDY = ROOT / "configs/studies/drift.yaml"
CONFIG = {
    "train": {"steps": 640, "validate_every": 16},
    "data": {"val_clips": 64},
    "adversary": {"r1_gamma": 0.03},
}
TITLES = {
    "paper": {"paper": "paper", "filters": "filters"},
    "repeat": {"winner": "winner", "paper": "paper", "default": "base"},
}


def row(step, loss):
    values = {"step": step, "time_s": 1.0, "drift/normalized_loss": loss, "drift/dead_fraction": 0.01}
    values |= {"drift/paired_accuracy": 0.9, "drift/auc": 0.8, "drift/probe_auc": 1.0, "drift/gradient_ratio": 0.1}
    values |= {"drift/high_frequency_gap": -2.0, "drift/overfit": 0.0, "control/r1_gamma": 0.02 * (1 + step % 32 // 16)}
    for prefix, shift in (("val", 0.5), ("val_bicubic", 0.0)):
        values |= {f"{prefix}/psnr_y": 25.0 + shift, f"{prefix}/ssim_y": 0.8, f"{prefix}/tof": 0.5}
        values |= {f"{prefix}/tdiff": 0.001, f"{prefix}/stlpips": 0.3 - 0.1 * shift}
    return values


def write_run(folder, level, slope=0.0, cpu_s=90.0, without=()):
    """40 evaluations in 640 steps; the loss is a line that passes `level` in the middle."""
    folder.mkdir(parents=True)
    rows = [row(step, level + slope * (step - 328) / 624) for step in range(16, 656, 16)]
    rows = [{name: value for name, value in line.items() if name not in without} for line in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    (folder / "summary.json").write_text("{}")
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    folder.with_suffix(".cpu").write_text(f"{cpu_s}\n")
    return [(line["step"], line) for line in rows]


def test_measures_of_a_line(tmp_path):
    found = drift_measures.measures(write_run(tmp_path / "run", 0.5, slope=0.2))
    assert found["rise"] == pytest.approx(0.2) and found["rise_high"] == pytest.approx(0.2)
    # The median of the last ten of 40 evaluations lies at 87 % of the way from the first to the last.
    assert found["loss"] == pytest.approx(0.5 + 0.2 * (568 - 328) / 624)
    assert found["psnr_gain"] == pytest.approx(0.5) and found["tdiff_ratio"] == pytest.approx(1.0)
    assert list(drift_measures.acceptance(found).values()) == [True, False, True, True]


def test_spread_is_students():
    found = drift_measures.spread([1.0, 2.0, 3.0])
    # 4.3027 is the 97.5 % quantile of t with two degrees of freedom.
    assert found.mean == 2.0 and found.high == pytest.approx(2.0 + 4.3027 / 3**0.5, abs=1e-3)
    assert drift_measures.spread([0.25]).text(2) == "0.25"


def test_the_page_is_filled(tmp_path, monkeypatch):
    work, study = tmp_path / "work", load_study(STUDY)
    for phase, arms in TITLES.items():
        for place, name in enumerate(arms):
            for seed in (0, 1):
                write_run(
                    work / phase / f"{name}-seed{seed}", 1.0 if name == "paper" else 0.5 + 0.1 * place + 0.01 * seed
                )
    write_run(work / "pretrain", 0.5)
    write_run(work / "trial", 0.5)

    trials = [made(number, value, excess, study, work) for number, value, excess in ((0, 0.3, 0.1), (1, 0.25, -0.4))]
    monkeypatch.setattr(drift_page, "load_trials", lambda _: trials)
    page, result = tmp_path / "docs/drift.md", tmp_path / "results/drift.json"
    drift_page.write_page(work, TITLES, study, "the command", page, tmp_path / "docs/images", result)
    text = page.read_text()
    assert "$" not in text
    assert "windows 40 times" in text
    assert "**paper**: normalised loss above 0.9 in 2 of 2 runs" in text
    assert "**winner**: normalised loss above 0.9 in 0 of 2 runs, between 0.35 and 0.75 in 2" in text
    assert "| 1 | 0.2500 | yes | none |" in text and "| 0 | 0.3000 | no | c1_not_at_chance |" in text
    assert "| all | 2 of 2 | 2 of 2 | 2 of 2 | 2 of 2 | all held: 2 |  |" in text
    assert "| base | +0.00 | not measured | 1.50 (1.50 to 1.50) |" in text
    for name in ("paper", "repeat", "tradeoff"):
        assert (tmp_path / f"docs/images/drift_{name}.png").stat().st_size > 5000
    assert json.loads(result.read_text())["repeat"]["winner"]["1"]["loss"] == pytest.approx(0.51)


def write_pilots_and_repeat(work):
    for phase, arms in (("pilots", drift_second.PILOT_ARMS), ("second", drift_second.SECOND_ARMS)):
        for name in arms:
            without = ["control/r1_gamma"] if name == drift_second.CHOSEN else []
            without += ["val/stlpips", "val_bicubic/stlpips"]
            for seed in (0, 1):
                folder, level = work / phase / f"{name}-seed{seed}", 1.0 if name == "paper" else 0.5
                write_run(folder, level, slope=0.02 * (seed + 1), without=without)


def test_the_second_round_is_put_between_its_marks(tmp_path):
    write_pilots_and_repeat(tmp_path / "work")
    page, pictures, result = tmp_path / "drift.md", tmp_path / "images", tmp_path / "drift.json"
    page.write_text(f"before\n{drift_second.BEGIN}\nold\n{drift_second.END}\nafter\n")
    result.write_text('{"steps": 800}')
    for _ in range(2):
        drift_second.write_section(tmp_path / "work", page, pictures, result)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text and "$" not in text
    assert "| all | 2 of 2 | 2 of 2 | 2 of 2 | 2 of 2 | all held: 2 |  |" in text
    assert "upper end below 0.10 in 2 of 2 runs (0.020 to 0.040); everything held in 2" in text
    found = json.loads(result.read_text())
    assert found["steps"] == 800 and found["second_round"]["runs"][drift_second.CHOSEN]["1"]["rise"] == pytest.approx(
        0.04
    )
    for name in ("swings", "second"):
        assert (pictures / f"drift_{name}.png").stat().st_size > 5000


def test_a_page_without_a_place_for_the_second_round_is_refused(tmp_path):
    page = tmp_path / "drift.md"
    page.write_text("no marks")
    with pytest.raises(BadInputError, match="has no place for the second round"):
        drift_second.write_section(tmp_path, page, tmp_path, tmp_path / "drift.json")


def test_swing_is_what_a_line_leaves(tmp_path):
    rows = write_run(tmp_path / "run", 0.5, slope=0.3)
    assert drift_measures.swing(rows) == pytest.approx(0.0, abs=1e-9)
    assert drift_measures.gamma_range(rows) == pytest.approx(2.0)
    moved = [
        (step, {**row, drift_measures.LOSS: row[drift_measures.LOSS] + 0.1 * (-1) ** place})
        for place, (step, row) in enumerate(rows)
    ]
    assert drift_measures.autocorrelation(moved) == pytest.approx(-19 / 20, abs=0.01)
    # 20 points of +-0.1 about the line, over 18 degrees of freedom; the line takes next to nothing of them.
    assert drift_measures.swing(moved) == pytest.approx(0.1 * (20 / 18) ** 0.5, rel=0.01)


def made(number, value, excess, study, work):
    limits = {item.name: -0.1 for item in study.constraints} | {"c1_not_at_chance": excess}
    return SimpleNamespace(
        number=number,
        values=[value],
        state=optuna.trial.TrialState.COMPLETE,
        params={path: dimension.extremes()[0] for path, dimension in study.space.items()},
        constraints=limits,
        user_attrs={"role": "search", "run_dirs": [str(work / "trial")]},
    )


def test_a_missing_phase_is_named(tmp_path):
    with pytest.raises(BadInputError, match="has no finished run of paper, filters; run --phases paper first"):
        drift_page.load_phase(tmp_path, "paper", TITLES["paper"])


def test_the_study_loads_and_its_space_is_valid():
    study = load_study(STUDY)
    base = apply_overrides(read_yaml(ROOT / study.base), study.set)
    check_space(study.space, base, "base")
    assert study.num_trials >= 30
    assert study.start[0].keys() == study.space.keys(), "trial 0 is the paper's setting in every respect of the space"
    assert study.start[0]["objective"] == "paper"
