from __future__ import annotations

import re

import pytest

import sharding.progress
from sharding.parallel import Workers, report_frames
from sharding.progress import Progress, format_duration


class Clock:
    """A clock that stands unless it is set."""

    now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(sharding.progress, "time", made)
    return made


def test_a_log_gets_a_line_every_few_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("packed", 1000) as progress:
        for second in range(1, 11):
            clock.now_s = 100.0 + second
            progress.show(50 * second)
    assert capsys.readouterr().out.splitlines() == [
        "packed 250 of 1000 frames, 50.0 frames/s, 15s left",
        "packed 500 of 1000 frames, 50.0 frames/s, 10s left",
        "packed 500 of 1000 frames, 50.0 frames/s, 10s left",
    ]


def test_without_a_total_there_is_no_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("scanned", None) as progress:
        clock.now_s += 4.0
        progress.show(100)
    assert capsys.readouterr().out == "scanned 100 frames, 25.0 frames/s\n"


def test_a_failure_adds_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), Progress("packed", 5):
        raise KeyError
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_bar_in_frames(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress("packed", 40) as progress:
        progress.show(40)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(r"packed: 100%.* 40/40 \[.*frame", captured.err)


def square(number: int) -> int:
    report_frames(number)
    return number * number


def fail(number: int) -> int:
    raise ValueError(f"task {number}")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_frames_are_counted_wherever_a_task_runs(num_workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    with Workers(num_workers) as workers:
        for _ in range(2):
            assert workers.run(square, [3, 4, 5], Progress("squared", 12)) == [9, 16, 25]
        lines = capsys.readouterr().out.splitlines()
        with pytest.raises(ValueError, match="task 3"):
            workers.run(fail, [3, 4], Progress("failed", 2))
    report_frames(5)  # of nobody's task: no effect
    assert [line.split(" frames")[0] for line in lines] == ["squared 12 of 12"] * 2


def test_durations_are_short() -> None:
    assert [format_duration(seconds) for seconds in (8.4, 75, 3725)] == ["8s", "1m15s", "1h02m"]
