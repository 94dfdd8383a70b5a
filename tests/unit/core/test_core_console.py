"""The block of lines at the bottom of a terminal, read from a small terminal of our own."""

from __future__ import annotations

import io
import re

from vsr_dist.core.console import LiveView, block, say


class Screen(io.StringIO):
    """Understands what LiveView sends: text, new lines, 'up n lines' and 'clear below'."""

    def isatty(self) -> bool:
        return True

    def rows(self) -> list[str]:
        rows, row = [""], 0
        for token in re.findall(r"\x1b\[\d+F|\x1b\[J|\n|[^\x1b\n]+", self.getvalue()):
            if token.endswith("F") and token.startswith("\x1b"):
                row -= int(token[2:-1])
            elif token == "\x1b[J":
                del rows[row:]
                rows.append("")
            elif token == "\n":
                row += 1
                rows += [""] * (row + 1 - len(rows))
            else:
                rows[row] = token
        return rows


def make_screen(monkeypatch, term="xterm"):
    # Not a fixture: between the set-up and the call of a test, pytest puts its own streams back.
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", "70")
    return screen


def test_lines_are_replaced_in_place_and_notes_stay_above(monkeypatch):
    screen = make_screen(monkeypatch)
    with LiveView(10, "step") as view:
        view.show("losses", "G total 2")
        view.note("held-out 30.0 dB")
        view.show("losses", "G total 1")
        view.advance(10)
        say("warning: from another module")
        view.show("speed", "7 clips/s")
    rows = screen.rows()
    assert rows[:2] == ["held-out 30.0 dB", "warning: from another module"]
    assert rows[2].startswith("step    10/10 [########################] 100 %")
    assert rows[3:] == ["losses  G total 1", "speed   7 clips/s", ""]
    say("after")
    assert screen.rows()[5] == "after"


def test_without_a_terminal_there_are_plain_lines_only(capsys):
    with LiveView(10, "step") as view:
        view.show("losses", "G total 2")
        view.advance(10)
        view.note("step 10/10")
    assert capsys.readouterr() == ("step 10/10 | 0s left\n", "")


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    screen = make_screen(monkeypatch, "dumb")
    with LiveView(10, "step") as view:
        view.show("losses", "G total 2")
        view.note("step 1/10")
    assert screen.getvalue() == "step 1/10 | 0s left\n"


def test_other_ranks_are_silent(monkeypatch):
    screen = make_screen(monkeypatch)
    with LiveView(10, "step", enabled=False) as view:
        view.show("losses", "G total 2")
        view.advance()
        view.note("hidden")
    assert screen.getvalue() == ""


def test_no_line_is_wrapped_and_the_share_is_drawn():
    lines = block("step", 25, 100, 75.0, {"losses": "x" * 300}, 60)
    assert all(len(line) < 60 for line in lines)
    assert lines[0] == "step    25/100 [######------------------]  25 % | 1m15s left"[:59]
    assert block("step", 0, 0, 0.0, {}, 80) == [f"step  0/0 [{'#' * 24}] 100 %"]
