"""`vsr-dist report`, on run directories and evaluation folders that were written by hand."""

from __future__ import annotations

import csv
import fcntl
import html.parser
import json
import re
import threading
import time

import cv2
import numpy as np
import pytest

from vsr_dist.cli import main
from vsr_dist.config import dump_config, parse_config
from vsr_dist.ops.picture import four_of, two_by_two
from vsr_dist.reporting import page as page_module
from vsr_dist.reporting.colours import COLOURS, colours_of, style_of
from vsr_dist.reporting.curves import curves_figure, shown_panels
from vsr_dist.reporting.runs import open_compared
from vsr_dist.reporting.scores import best_places, metric_of
from vsr_dist.training.samples import read_samples, write_samples


def panel(level):
    return np.full((12, 16, 3), level, np.uint8)


def make_run(folder, name, *, psnr=27.0, bicubic=26.5, steps=20, finished=True, window=90, ended=None, **settings):
    folder.mkdir(parents=True)
    tree = {
        "name": name,
        "run_dir": str(folder),
        "train": {"steps": 20},
        "tracking": {"mlflow": False},
        **{key: value for key, value in settings.items() if isinstance(value, dict)},
        **{key: value for key, value in settings.items() if not isinstance(value, dict)},
    }
    (folder / "config.yaml").write_text(dump_config(parse_config(tree, "test")))
    lines = []
    for step in range(0, steps + 1, 10):
        gain = (psnr - bicubic) * step / 20
        line = {"step": step, "time_s": 100.0 + step, "val/psnr_y": bicubic + gain, "val/tof": 0.3 - gain / 10}
        line |= {"val_bicubic/psnr_y": bicubic, "val_bicubic/tof": 0.3}
        if step:
            line |= {"drift/normalized_loss": 0.5 + step / 100, "drift/verdict_code": 0.0}
        lines += [line, {"step": step, "time_s": 100.5 + step, "loss_g/total": 0.05, "perf/clips_per_s": 8.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    environment = {"command": f"vsr-dist train {name}", "git": {"commit": "0123456789abcdef", "changed": "true"}}
    (folder / "environment.json").write_text(json.dumps({**environment, "versions": {"torch": "2", "numpy": name}}))
    write_samples(folder, steps, {"film-0001": two_by_two([panel(v) for v in (10, 20, window, 200)], 12)})
    if finished:
        summary = {"exit_reason": "finished", "seconds": 75.0, "processes": 2, "device": "cpu", "clips_per_s": 9.5}
        (folder / "summary.json").write_text(json.dumps({**summary, "versions": {"torch": "2", "numpy": name}}))
    if ended:
        (folder / "ended.json").write_text(json.dumps(ended))
    return folder


def make_evaluation(folder, *, run=None, psnr=27.0, digest="d1"):
    folder.mkdir(parents=True)
    by_method = {"bicubic": {"psnr_y": 26.0, "tdiff": 0.0005}}
    subject = {"method": "bicubic"}
    if run is not None:
        by_method["ours"] = {"psnr_y": psnr, "tdiff": 0.0004}
        subject = {"provenance": {"run": run, "seed": 0, "steps": 20}}
    scores = {"split": "val", "data_digest": digest, "protocol": "As ever.", "subject": subject}
    scores["table"] = {"film": by_method, "overall": by_method}
    (folder / "metrics.json").write_text(json.dumps(scores))
    cv2.imwrite(str(folder / "comparison.png"), panel(33))
    for name in ("crops", "profiles"):
        (folder / name).mkdir()
        cv2.imwrite(str(folder / name / "film.png"), panel(44))
    return folder


def report(out, *runs):
    return main(["report", str(out), "--runs", *(str(run) for run in runs), "--no-mlflow"])


@pytest.fixture
def no_curves(monkeypatch):
    """Drawing takes most of a report's time."""
    monkeypatch.setattr(page_module, "curves_figure", lambda runs: None)


class Page(html.parser.HTMLParser):
    """Tags that are open, tables as rows of cell texts, and the sources of pictures."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tables, self.pictures, self.marks, self.text = [], [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "img":
            self.pictures.append(values["src"])
        if tag == "span" and values.get("class") == "mark":
            self.marks.append(values["style"].removeprefix("background: "))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in ("meta", "img", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report of two runs and two evaluations, of which one is of the first run."""
    root = tmp_path_factory.mktemp("report")
    runs = [
        make_run(root / "a", "alpha", psnr=27.0, loss={"adversarial": 0.002}),
        make_run(root / "b", "beta", psnr=27.4, window=120, loss={"adversarial": 0.02}, seed=3),
        make_evaluation(root / "scores_a", run="alpha"),
        make_evaluation(root / "bicubic"),
    ]
    assert report(root / "out", *runs) == 0
    return root, Page((root / "out" / "report.html").read_text())


def table_with(page, title):
    return next(table for table in page.tables if table[0][0] == title)


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


def test_only_settings_that_differ_are_shown(made):
    _, page = made
    shown = [{row[0]: row[1:] for row in table[1:]} for table in page.tables if table[0][0] == "setting"]
    assert shown[0] == {"seed": ["0", "3"], "loss.adversarial": ["0.002", "0.02"]}
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


def test_windows_with_another_truth_are_apart(tmp_path):
    runs = [make_run(tmp_path / name, name, steps=-10) for name in ("alpha", "beta")]  # without curves: quicker
    write_samples(runs[0], 20, {"film-0001": two_by_two([panel(v) for v in (10, 20, 90, 200)], 12)})
    write_samples(runs[1], 20, {"film-0001": two_by_two([panel(v) for v in (10, 20, 90, 150)], 12)})
    assert report(tmp_path / "out", *runs) == 0
    assert len(list((tmp_path / "out" / "assets").glob("window-*.png"))) == 2


def test_the_csv_holds_every_value(made):
    root, _ = made
    with (root / "out" / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    values = {(row["label"], row["scope"], row["method"], row["metric"]): row for row in rows}
    assert float(values["beta", "held-out windows", "", "val/psnr_y"]["value"]) == 27.4
    assert values["beta", "held-out windows", "", "val/tof"]["better"] == "lower"
    assert float(values["scores_a", "overall", "ours", "tdiff"]["value"]) == 0.0004
    assert len(values) == len(rows)


def test_a_second_report_replaces_the_first(tmp_path):
    runs = [make_run(tmp_path / "a", "alpha"), make_evaluation(tmp_path / "e", run="alpha")]
    assert report(tmp_path / "out", *runs) == 0
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert "sequence-0-crops-0.png" in first
    assert report(tmp_path / "out", *runs) == 0
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert report(tmp_path / "out", runs[1]) == 0
    left = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert left == {"report.html", "report.md", "report.csv", "sequence-0-crops-0.png", "sequence-0-profiles-0.png"}


def test_what_is_missing_is_said(tmp_path, capsys, no_curves):
    killed = make_run(tmp_path / "killed", "killed", steps=10, finished=False)
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "time')  # cut off in the middle
    failed = make_run(
        *(tmp_path / "failed", "failed"),
        finished=False,
        ended={"exit_reason": "failed", "error": "NonFiniteError", "message": "loss_g/tv is NaN"},
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.yaml").write_text("name: empty\n")
    running = make_run(tmp_path / "running", "running", finished=False)
    with (running / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert report(tmp_path / "out", killed, failed, empty, running) == 0
    page = Page((tmp_path / "out" / "report.html").read_text())
    for text in (
        "killed: not finished: killed, or running on another machine (neither summary.json nor ended.json)",
        "failed: not finished: failed (NonFiniteError: loss_g/tv is NaN)",
        "empty: metrics.jsonl has no line",
        "running: not finished: still running",
    ):
        assert text in page.text, text
        assert text in capsys.readouterr().out or text in page.text
    facts = {row[0]: row[1:] for row in table_with(page, "fact")[1:]}
    assert facts["steps"] == ["10 of 20", "20 of 20", "0 of 0", "20 of 20"]
    assert "The steps differ" in page.text
    psnr = next(row for row in table_with(page, "metric") if row[0] == "PSNR-Y dB")
    assert psnr[2] == "26.75 (+0.25)" and psnr[4] == "-"


def test_runs_on_other_windows_are_not_ranked(tmp_path, no_curves):
    runs = [make_run(tmp_path / "a", "alpha"), make_run(tmp_path / "b", "beta", bicubic=30.0, psnr=31.0)]
    evaluations = [make_evaluation(tmp_path / f"e{n}", run=f"r{n}", digest=f"d{n}", psnr=27 + n) for n in range(2)]
    assert report(tmp_path / "out", *runs, *evaluations) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.count("**Not comparable:**") == 2
    assert not [line for line in text.splitlines() if line.startswith("|") and "**" in line]


def test_equal_names_are_told_apart(tmp_path):
    runs = [make_run(tmp_path / name, "same") for name in ("a", "b")]
    assert open_compared(runs).labels == [f"same ({run})" for run in runs]


@pytest.mark.parametrize("case", ["twice", "twice by another name", "no run", "absent", "damaged", "file", "own"])
def test_a_mistake_is_one_line(tmp_path, capsys, case):
    run = make_run(tmp_path / "a", "alpha")
    out, runs, expected = tmp_path / "out", [run], ""
    if case == "twice":
        runs, expected = [run, run], "twice"
    if case == "twice by another name":
        (tmp_path / "link").symlink_to(run)
        runs, expected = [run, tmp_path / "link"], "also as"
    if case == "no run":
        (tmp_path / "none").mkdir()
        runs, expected = [run, tmp_path / "none"], "holds neither config.yaml nor metrics.json"
    if case == "absent":
        runs, expected = [tmp_path / "nowhere"], "is no folder"
    if case == "damaged":
        (run / "summary.json").write_text('{"exit')
        expected = "cannot be read as JSON"
    if case == "file":
        out.write_text("x")
        expected = "is a file"
    if case == "own":
        out, expected = run, "is a run or an evaluation"
    assert report(out, *runs) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and expected in errors[0], errors
    assert case in ("file", "own") or not out.exists()


def test_a_report_of_something_else_is_not_written_over(tmp_path, capsys):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "report.html").write_text("<p>a study")
    assert report(tmp_path / "study", make_run(tmp_path / "a", "alpha")) == 2
    assert "did not write" in capsys.readouterr().err
    assert (tmp_path / "study" / "report.html").read_text() == "<p>a study"


def test_names_cannot_break_the_page(tmp_path):
    run = make_run(tmp_path / "a", "<b>x</b> | `y`", steps=-10)
    assert report(tmp_path / "out", run) == 0
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert "<b>x</b>" in page.text and "b" not in page.open


def test_samples_keep_the_last_step_only(tmp_path):
    four = [panel(v) for v in (1, 2, 3, 4)]
    for step in (10, 20):
        write_samples(tmp_path, step, {"a": two_by_two(four, 12)})
    write_samples(tmp_path, 30, {})
    found = read_samples(tmp_path)
    assert found.step == 20 and list(found.pictures) == ["a"]
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step_00000020"]
    read = four_of(found.pictures["a"])
    assert all(np.array_equal(one, other) for one, other in zip(read, four, strict=True))
    assert read_samples(tmp_path / "none") is None


def test_samples_that_a_training_replaces_meanwhile_are_read(tmp_path):
    """A folder that is gone by the time it is read is looked for again."""
    four = two_by_two([panel(v) for v in (1, 2, 3, 4)], 12)
    stop = threading.Event()

    def train():
        step = 0
        while not stop.is_set():
            step += 10
            write_samples(tmp_path, step, {"a": four, "b": four})

    thread = threading.Thread(target=train)
    thread.start()
    try:
        time.sleep(0.1)
        found = [read_samples(tmp_path) for _ in range(200)]
    finally:
        stop.set()
        thread.join()
    assert all(one is not None and np.array_equal(one.pictures["a"], four) for one in found)
    assert found[-1].step > found[0].step


def test_a_damaged_sample_is_named(tmp_path, capsys):
    run = make_run(tmp_path / "a", "alpha")
    (run / "samples" / "step_00000020" / "film-0001.png").write_bytes(b"")
    assert report(tmp_path / "out", run) == 2
    assert "damaged picture film-0001.png" in capsys.readouterr().err


def test_the_best_of_values():
    assert best_places([1.0, 3.0, None, 3.0], +1) == {1, 3}
    assert best_places([1.0, 3.0], -1) == {0}
    assert best_places([1.0, float("nan"), 2.0], +1) == {2}
    assert best_places([1.0], +1) == best_places([2.0, 2.0], +1) == best_places([1.0, 2.0], 0) == set()
    assert metric_of("tdiff").show(0.00051) == "5.10" and metric_of("stlpips").better == "lower"
    assert metric_of("unheard_of").better == "-"
