"""`vsr-dist report`, on run directories and evaluation folders that were written by hand: what it shows."""

from __future__ import annotations

import csv
import json
import re

import cv2
import pytest
from report_runs import Page, make_evaluation, make_run, panel, report, table_with

from vsr_dist.reporting.pictures import COLOURS, colours_of, curves_figure, shown_panels, style_of
from vsr_dist.reporting.runs import open_compared


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report of two runs and two evaluations, of which one is of the first run."""
    root = tmp_path_factory.mktemp("report")
    runs = [
        make_run(root / "a", "alpha", psnr=27.0, adversarial={"weight": 0.002}),
        make_run(root / "b", "beta", psnr=27.4, window=120, adversarial={"weight": 0.02}, seed=3),
        make_evaluation(root / "scores_a", run="alpha"),
        make_evaluation(root / "bicubic"),
    ]
    assert report(root / "out", *runs) == 0
    return root, Page((root / "out" / "report.html").read_text())


def test_the_page_needs_no_other_file(made):
    root, page = made
    assert page.pictures and all(source.startswith("data:image/png;base64,") for source in page.pictures)
    text = (root / "out" / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)|@import|<script|url\(', text)


def test_the_better_value_is_marked_and_the_direction_said(made):
    root, page = made
    header, step, psnr, tof = table_with(page, "metric")
    assert header == ["metric", "better", "alpha", "beta"] and step[2:] == ["20", "20"]
    assert psnr == ["PSNR-Y dB", "higher", "27.00 (+0.50)", "27.40 (+0.90)"]
    assert tof == ["tOF px", "lower", "0.250 (-0.050)", "0.210 (-0.090)"]
    text = (root / "out" / "report.md").read_text()
    assert "| PSNR-Y dB | higher | 27.00 (+0.50) | **27.40** (+0.90) |" in text
    assert "| tOF px | lower | 0.250 (-0.050) | **0.210** (-0.090) |" in text


def test_evaluations_stand_beside_bicubic(made):
    _, page = made
    header, of, psnr, tdiff = next(table for table in page.tables if table[0][2] == "bicubic")
    assert header == ["metric", "better", "bicubic", "scores_a"]
    assert of == ["of", "-", "-", "alpha, step 20"]
    assert psnr == ["PSNR-Y dB", "higher", "26.00", "27.00"] and tdiff == ["tdiff x1e4", "lower", "5.00", "4.00"]


def test_intervals_of_an_evaluation_are_shown(tmp_path):
    folder = make_evaluation(tmp_path / "e", run="alpha")
    scores = json.loads((folder / "metrics.json").read_text())
    scores["intervals"] = {"ours": {"psnr_y": {"low": 26.5, "high": 27.25, "kind": "sequences"}}}
    scores["methods"] = ["bicubic", "ours"]
    (folder / "metrics.json").write_text(json.dumps(scores))
    assert report(tmp_path / "out", folder) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| PSNR-Y dB | higher | 26.00 | **27.00** (26.50 to 27.25) |" in text and "95 % interval" in text


def test_only_settings_that_differ_are_shown(made):
    _, page = made
    shown = [{row[0]: row[1:] for row in table[1:]} for table in page.tables if table[0][0] == "setting"]
    assert shown[0] == {"seed": ["0", "3"], "adversarial.weight": ["0.002", "0.02"]}
    assert set(shown[1]) == {"name", "run_dir"}


def test_facts_of_the_runs(made):
    _, page = made
    facts = {row[0]: row[1:] for row in table_with(page, "fact")[1:]}
    assert facts["state"] == ["finished", "finished"] and facts["discriminator"] == ["healthy", "healthy"]
    assert facts["steps"] == ["20 of 20", "20 of 20"] and facts["processes x device"] == ["2 x cpu", "2 x cpu"]
    assert facts["duration"] == ["1m15s", "1m15s"] and facts["commit"] == ["0123456789ab, files changed"] * 2
    assert facts["version of torch"] == ["2", "2"] and facts["version of numpy"] == ["alpha", "beta"]


def test_a_run_has_one_colour_in_tables_and_curves(made):
    root, page = made
    compared = open_compared([root / "a", root / "b", root / "scores_a", root / "bicubic"])
    colours = colours_of(compared)
    assert colours == {"alpha": COLOURS[0], "beta": COLOURS[1], "scores_a": COLOURS[0]}
    assert set(page.marks) == {COLOURS[0], COLOURS[1]}
    figure = curves_figure(compared.runs)
    drawn = [[line.get_color() for line in axes.lines][:2] for axes in figure.axes[:2]]
    assert drawn == [[COLOURS[0], COLOURS[1]]] * 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["alpha", "beta", "bicubic"]


def test_the_curves_are_the_runs_numbers(made):
    root, _ = made
    runs = open_compared([root / "a", root / "b"]).runs
    titles = [entry.name for entry in shown_panels(runs)]
    assert titles == ["val/psnr_y", "drift/normalized_loss", "perf/clips_per_s", "loss_g/total"]
    psnr = curves_figure(runs).axes[0]
    assert psnr.lines[1].get_xydata().tolist() == [[0, 26.5], [10, pytest.approx(26.95)], [20, pytest.approx(27.4)]]
    assert psnr.lines[2].get_ydata()[0] == 26.5  # bicubic


def test_pictures_of_evaluations_stand_one_after_the_other(tmp_path):
    folders = [make_evaluation(tmp_path / name, run=name) for name in ("one", "two")]
    folders.append(make_evaluation(tmp_path / "bicubic"))
    assert report(tmp_path / "out", *folders) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    names = re.findall(r"\]\(assets/(.*)\.png\)", text)
    assert names == [f"sequence-0-{kind}-{number}" for kind in ("crops", "profiles") for number in (0, 1)]


def test_many_sequences_are_an_overview_and_the_first_few(tmp_path):
    folder = make_evaluation(tmp_path / "one", run="one")
    for number in range(11):
        cv2.imwrite(str(folder / "crops" / f"f{number:02d}.png"), panel(55))
    assert report(tmp_path / "out", folder) == 0
    pictures = {path.stem for path in (tmp_path / "out" / "assets").iterdir()}
    assert "comparison-0" in pictures and sum("crops" in name for name in pictures) == 8
    assert "4 more sequences" in (tmp_path / "out" / "report.md").read_text()


def test_many_runs_keep_different_styles():
    styles = [tuple(style_of(place).values()) for place in range(20)]
    assert len(set(styles)) == 20


def test_samples_of_the_same_window_stand_in_one_picture(made):
    root, _ = made
    picture = cv2.imread(str(root / "out" / "assets" / "window-0-0.png"))[40]
    panels = [picture[place * (len(picture) + 4) // 5 + 20, 0] for place in range(5)]
    assert panels == [10, 20, 90, 120, 200]  # input, bicubic, alpha, beta, truth


def test_the_csv_holds_every_value(made):
    root, _ = made
    with (root / "out" / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    values = {(row["label"], row["scope"], row["method"], row["metric"]): row for row in rows}
    assert float(values["beta", "held-out windows", "", "val/psnr_y"]["value"]) == 27.4
    assert values["beta", "held-out windows", "", "val/tof"]["better"] == "lower"
    assert float(values["scores_a", "overall", "ours", "tdiff"]["value"]) == 0.0004
    assert len(values) == len(rows)
