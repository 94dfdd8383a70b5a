"""What a command prints while it works."""

from __future__ import annotations

import re

import pytest

import sharding.console
from sharding.console import Progress, format_duration, say


class Clock:
    """A clock that stands still unless it is set."""

    now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(sharding.console, "time", made)
    return made


def test_a_log_gets_a_line_every_few_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1000, "frame", verb="packed") as progress:
        for second in range(1, 11):
            clock.now_s = 100.0 + second
            progress.advance(50)
    assert capsys.readouterr().out.splitlines() == [
        "packed 250 of 1000 frames, 50.0 frames/s, 15s left",
        "packed 500 of 1000 frames, 50.0 frames/s, 10s left",
        "packed 500 of 1000 frames, 50.0 frames/s, 10s left",
    ]


def test_without_a_total_there_is_no_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(0, "frame", verb="scanned") as progress:
        clock.now_s += 4.0
        progress.advance(100)
    assert capsys.readouterr().out == "scanned 100 frames, 25.0 frames/s\n"


def test_work_done_before_does_not_count_for_the_speed(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(100, "frame", verb="packed", start=60) as progress:
        clock.now_s += 2.0
        progress.advance(20)
    assert capsys.readouterr().out == "packed 80 of 100 frames, 10.0 frames/s, 2s left\n"


def test_a_failure_adds_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), Progress(5, "frame", verb="packed"):
        raise KeyError
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_bar_in_frames(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress(40, "frame", verb="packed") as progress:
        assert progress.has_bar
        progress.advance(40)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(r"packed: 100%.* 40/40 \[.*frame", captured.err)


def test_notes_are_plain_lines_with_the_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10, "step", start=4) as progress:
        progress.advance()
        progress.advance(2)
        clock.now_s += 10.0
        # Three steps in ten seconds, three to go; the four before this process say nothing about its speed.
        progress.note("step 7")
        progress.advance(3)
        assert progress.seconds_left() == 0.0
    assert capsys.readouterr() == ("step 7 | 10s left\n", "")


@pytest.mark.parametrize("verb", [None, "packed"])
def test_a_disabled_one_prints_nothing(verb: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10, "step", verb=verb, enabled=False) as progress:
        assert progress.seconds_left() == 0.0
        progress.advance()
        progress.note("hidden")
    say("seen")
    assert capsys.readouterr() == ("seen\n", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.4, "0s"),
        (8.4, "8s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (75, "1m15s"),
        (3599.4, "59m59s"),
        (3599.7, "1h00m"),
        (3725, "1h02m"),
        (100 * 3600 + 59 * 60 + 59, "100h59m"),
    ],
)
def test_durations_are_short_and_never_contain_60(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
