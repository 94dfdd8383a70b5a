"""What people read while a command works."""

from __future__ import annotations

import pytest

from vsr_dist.core.console import Progress, format_duration, say


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.4, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (75, "1m15s"),
        (3599.4, "59m59s"),
        (3599.7, "1h00m"),
        (3660, "1h01m"),
        (100 * 3600 + 59 * 60 + 59, "100h59m"),
    ],
)
def test_durations_are_short_and_never_hold_60(seconds, text):
    assert format_duration(seconds) == text


def test_notes_are_plain_lines_with_the_time_left(capsys, monkeypatch):
    clock = iter([100.0, 110.0, 130.0])
    monkeypatch.setattr("vsr_dist.core.console.time.monotonic", lambda: next(clock))
    with Progress(10, "step", start=4) as progress:
        progress.advance()
        progress.advance(2)
        # Three steps in ten seconds, three to go; the four before this process say nothing of its speed.
        progress.note("step 7")
        progress.advance(3)
        assert progress.seconds_left() == 0.0
    out, err = capsys.readouterr()
    assert out == "step 7 | 10s left\n"
    assert err == ""


def test_nothing_done_leaves_no_estimate_and_a_disabled_one_is_silent(capsys):
    with Progress(10, "step", enabled=False) as progress:
        assert progress.seconds_left() == 0.0
        progress.advance()
        progress.note("hidden")
    say("seen")
    assert capsys.readouterr() == ("seen\n", "")
