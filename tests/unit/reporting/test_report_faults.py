"""`vsr-dist report` of runs that are not whole, do not compare, or change meanwhile, and of mistakes."""

from __future__ import annotations

import fcntl
import threading

import numpy as np
import pytest
from report_runs import Page, make_evaluation, make_run, panel, report, table_with

from vsr_dist.ops.picture import four_of, two_by_two
from vsr_dist.reporting import page as page_module
from vsr_dist.reporting.runs import open_compared
from vsr_dist.training.samples import read_samples, write_samples


@pytest.fixture
def no_curves(monkeypatch):
    """Drawing takes most of a report's time."""
    monkeypatch.setattr(page_module, "curves_figure", lambda runs: None)


def test_windows_with_another_truth_are_apart(tmp_path):
    runs = [make_run(tmp_path / name, name, steps=-10) for name in ("alpha", "beta")]  # without curves: quicker
    write_samples(runs[0], 20, {"film-0001": two_by_two([panel(v) for v in (10, 20, 90, 200)], 12)})
    write_samples(runs[1], 20, {"film-0001": two_by_two([panel(v) for v in (10, 20, 90, 150)], 12)})
    assert report(tmp_path / "out", *runs) == 0
    assert len(list((tmp_path / "out" / "assets").glob("window-*.png"))) == 2


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
        runs, expected = [run, tmp_path / "none"], "contains neither config.yaml nor metrics.json"
    if case == "absent":
        runs, expected = [tmp_path / "nowhere"], "is not a folder"
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


def test_pictures_of_somebody_else_stay(tmp_path, no_curves):
    mine = tmp_path / "site" / "assets" / "logo.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    assert report(tmp_path / "site", make_run(tmp_path / "a", "alpha")) == 0
    assert mine.read_bytes() == b"mine"


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
    stop, written = threading.Event(), threading.Semaphore(0)

    def train():
        step = 0
        while not stop.wait(0.01):
            step += 10
            write_samples(tmp_path, step, {"a": four, "b": four})
            written.release()

    thread = threading.Thread(target=train)
    thread.start()
    try:
        assert written.acquire(timeout=60)
        found = [read_samples(tmp_path) for _ in range(200)]
        # However slow the other thread was, a folder that it wrote since is found.
        while written.acquire(blocking=False):
            pass
        assert written.acquire(timeout=60)
        found.append(read_samples(tmp_path))
    finally:
        stop.set()
        thread.join()
    assert all(one is not None and np.array_equal(one.pictures["a"], four) for one in found)
    assert all(set(one.pictures) == {"a", "b"} for one in found)
    assert found[-1].step > found[0].step


def test_a_damaged_sample_is_named(tmp_path, capsys):
    run = make_run(tmp_path / "a", "alpha")
    (run / "samples" / "step_00000020" / "film-0001.png").write_bytes(b"")
    assert report(tmp_path / "out", run) == 2
    assert "damaged picture film-0001.png" in capsys.readouterr().err
