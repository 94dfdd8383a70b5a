"""What `vsr-dist upscale` keeps beside the film: sound, subtitles, chapters, covers, metadata; and part of a video."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from upscale_media import decoded, generator, moving, packets_of, times_of, upscale, write_video

__all__ = ["generator"]
CHAPTERS = [
    {"id": n, "start": 500 * n, "end": 500 * (n + 1), "time_base": Fraction(1, 1000), "metadata": {"title": f"c{n}"}}
    for n in range(2)
]


def payloads(path, kind):
    return [data for _, data in packets_of(path, kind)]


def titles(path):
    with av.open(str(path)) as container:
        return [
            (float(c["start"] * c["time_base"]), float(c["end"] * c["time_base"]), c["metadata"].get("title"))
            for c in container.chapters()
        ]


@pytest.mark.parametrize("suffixes", [(".mp4", ".mp4"), (".mp4", ".mkv"), (".mkv", ".mp4"), (".mov", ".mp4")])
def test_sound_is_copied_bit_for_bit_at_its_times(tmp_path, generator, suffixes):
    source = write_video(tmp_path / f"in{suffixes[0]}", moving(12), audio="aac")
    output = tmp_path / f"out{suffixes[1]}"
    assert upscale(generator, source, output, "--segment-frames", "5") == 0
    assert payloads(output, "audio") == payloads(source, "audio")
    times = [[time for time, _ in packets_of(path, "audio")] for path in (source, output)]
    assert np.abs(np.subtract(*times)).max() <= 0.001
    # mkv counts in milliseconds.
    assert np.abs(np.subtract(times_of(source), times_of(output))).max() <= 0.0005


@pytest.mark.parametrize(("codec", "suffix"), [("flac", ".mkv"), ("libopus", ".webm"), ("pcm_s16le", ".mov")])
def test_other_sound_in_containers_that_hold_it(tmp_path, generator, codec, suffix):
    source = write_video(tmp_path / "in.mkv", moving(4), audio=codec)
    assert upscale(generator, source, tmp_path / f"out{suffix}") == 0
    assert payloads(tmp_path / f"out{suffix}", "audio") == payloads(source, "audio")


def test_sound_that_the_container_cannot_hold_is_an_error_that_names_one(tmp_path, generator, capsys):
    source = write_video(tmp_path / "in.mkv", moving(2), audio="aac")
    assert upscale(generator, source, tmp_path / "out.webm") == 2
    error = capsys.readouterr().err
    assert "webm cannot hold" in error
    assert ".mp4" in error
    assert "--no-audio" in error
    assert upscale(generator, source, tmp_path / "out.webm", "--no-audio") == 0
    assert "--no-audio" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mkv", "out.webm"]


@pytest.mark.parametrize(
    ("codec", "suffix", "target", "becomes"),
    [
        ("subrip", ".mkv", ".mkv", "subrip"),
        ("subrip", ".mkv", ".mp4", "mov_text"),
        ("mov_text", ".mp4", ".mkv", "subrip"),
        ("mov_text", ".mp4", ".mp4", "mov_text"),
    ],
)
def test_subtitles_are_kept_or_converted(tmp_path, generator, codec, suffix, target, becomes):
    source = write_video(tmp_path / f"in{suffix}", moving(24), subtitles=codec)
    output = tmp_path / f"out{target}"
    assert upscale(generator, source, output) == 0
    with av.open(str(output)) as container:
        stream = container.streams.subtitles[0]
        assert stream.metadata["language"] == "fra"
        found = {}
        for packet in container.demux(stream):
            subtitles = stream.codec_context.decode2(packet) if packet.size else None
            for rect in subtitles.rects if subtitles else ():
                text = rect.ass.split(b",", 8)[-1].decode().strip()
                if text:
                    found[text] = (float(packet.pts * packet.time_base), float(packet.duration * packet.time_base))
        assert stream.codec_context.codec.canonical_name == becomes
    assert found == {"line 0": pytest.approx((0.1, 0.2)), "line 1": pytest.approx((0.4, 0.2))}


def test_chapters_metadata_and_cover(tmp_path, generator):
    source = write_video(
        tmp_path / "in.mkv", moving(30), chapters=CHAPTERS, cover=True, metadata={"title": "Ein Film f\u00fcr alle"}
    )
    assert upscale(generator, source, tmp_path / "out.mkv") == 0
    assert titles(tmp_path / "out.mkv") == titles(source) == [(0.0, 0.5, "c0"), (0.5, 1.0, "c1")]
    with av.open(str(source)) as one, av.open(str(tmp_path / "out.mkv")) as other:
        assert other.metadata["title"] == "Ein Film f\u00fcr alle"
        covers = [[bytes(p) for p in c.demux(c.streams.video[1]) if p.size] for c in (one, other)]
        assert covers[0] == covers[1]
        assert len(covers[0][0]) > 100
    assert upscale(generator, tmp_path / "out.mkv", tmp_path / "again.mp4") == 0
    assert titles(tmp_path / "again.mp4") == titles(source)
    with av.open(str(tmp_path / "again.mp4")) as container:
        attached = [s for s in container.streams.video if s.disposition & av.stream.Disposition.attached_pic]
        assert [bytes(p) for p in container.demux(attached[0]) if p.size] == covers[0]


def test_a_part_of_a_video_begins_at_zero_with_its_sound(tmp_path, generator):
    frames = moving(30, 32, 48)
    source = write_video(tmp_path / "in.mp4", frames, audio="aac", chapters=CHAPTERS, options={"crf": "1"})
    options = ("--start", "0.4", "--frames", "6", "--quality", "1", "--segment-frames", "4")
    assert upscale(generator, source, tmp_path / "out.mp4", *options) == 0
    assert times_of(tmp_path / "out.mp4") == [Fraction(n, 30) for n in range(6)]
    _, inputs = decoded(source)
    _, results = decoded(tmp_path / "out.mp4")
    for number in (0, 5):
        errors = [np.abs(results[number][::2, ::2].astype(float) - frame).mean() for frame in inputs]
        assert int(np.argmin(errors)) == 12 + number
    sound = packets_of(tmp_path / "out.mp4", "audio")
    assert sound[0][0] == pytest.approx(0, abs=0.022)
    assert sound[-1][0] < 0.2
    assert sound[0][1] in payloads(source, "audio")
    assert titles(tmp_path / "out.mp4") == [
        (0.0, pytest.approx(0.1), "c0"),
        (pytest.approx(0.1), pytest.approx(0.2), "c1"),
    ]


def test_a_start_behind_the_end_is_an_error(tmp_path, generator, capsys):
    source = write_video(tmp_path / "in.mp4", moving(3))
    assert upscale(generator, source, tmp_path / "out.mp4", "--start", "7") == 2
    assert "--start 7" in capsys.readouterr().err
