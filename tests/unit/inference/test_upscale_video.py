"""What `vsr-dist upscale` keeps: frames, times, colours, orientation, depth; sound, subtitles, chapters, metadata."""

from __future__ import annotations

from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from upscale_media import (
    clip,
    decoded,
    generator,
    moving,
    packets_of,
    said,
    stated_length_s,
    times_of,
    upscale,
    write_video,
)

__all__ = ["clip", "generator"]
UNEVEN = [0, 1, 3, 4, 9, 10, 15, 16, 17, 30]


def bicubic(frames, scale=2):
    return [cv2.resize(f, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC) for f in frames]


@pytest.mark.parametrize(("suffix", "length_s"), [(".mp4", 31 / 30), (".mkv", 1.033), (".mov", 31 / 30)])
def test_uneven_times_are_kept_to_the_tick_over_segments(tmp_path, generator, suffix, length_s):
    source = write_video(tmp_path / f"in{suffix}", moving(10), pts=UNEVEN)
    output = tmp_path / f"out{suffix}"
    assert upscale(generator, source, output, "--segment-frames", "3") == 0
    assert times_of(output) == times_of(source)
    assert len(times_of(output)) == 10
    assert stated_length_s(output) == pytest.approx(length_s, abs=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, output.name])


def test_a_rate_that_is_no_whole_number_and_a_start_after_the_sound_are_kept(tmp_path, generator):
    source = write_video(
        tmp_path / "in.mp4",
        moving(5),
        pts=[n + 9 for n in range(5)],
        time_base=Fraction(1001, 30000),
        rate=Fraction(30000, 1001),
        audio="aac",
    )
    assert upscale(generator, source, tmp_path / "out.mp4") == 0
    assert times_of(tmp_path / "out.mp4") == times_of(source)
    assert float(times_of(source)[0]) == pytest.approx(0.3, abs=1e-3)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].average_rate == Fraction(30000, 1001)


def test_a_late_start_of_all_tracks_is_moved_to_0(tmp_path, generator):
    source = write_video(tmp_path / "in.ts", moving(8), audio="mp2")
    assert min(times_of(source)) > 0
    assert upscale(generator, source, tmp_path / "out.mp4", "--segment-frames", "3") == 0
    starts_s = []
    for path in (source, tmp_path / "out.mp4"):
        starts_s.append((float(min(times_of(path))), packets_of(path, "audio")[0][0]))
    assert starts_s[1] == pytest.approx(np.subtract(starts_s[0], min(starts_s[0])), abs=1e-3)
    assert np.diff(times_of(tmp_path / "out.mp4")) == pytest.approx(np.diff(times_of(source)), abs=1e-4)


@pytest.mark.parametrize("segment_frames", ["1", "2", "250"])
def test_one_frame(tmp_path, generator, segment_frames):
    source = write_video(tmp_path / "in.mkv", moving(1))
    assert upscale(generator, source, tmp_path / "out.mp4", "--segment-frames", segment_frames) == 0
    first, frames = decoded(tmp_path / "out.mp4")
    assert (len(frames), first.width, first.height) == (1, 64, 48)


@pytest.mark.parametrize(
    ("tags", "matrix", "full_range"),
    [
        (None, 6, False),
        ((1, 1, 1, 1), 1, False),
        ((6, 2, 6, 6), 6, True),
        ((9, 1, 9, 16), 9, False),
        ((9, 1, 9, 18), 9, False),
    ],
    ids=["untagged", "bt709", "full-range bt601", "bt2020 pq", "bt2020 hlg"],
)
def test_colours_neither_shift_nor_lose_their_tags(tmp_path, generator, tags, matrix, full_range):
    frames = moving(3, 48, 64)
    source = write_video(
        tmp_path / "in.mp4", frames, matrix=matrix, full_range=full_range, tags=tags, options={"crf": "1"},
        pixel_format="yuv444p"
    )  # fmt: skip
    assert upscale(generator, source, tmp_path / "out.mp4", "--quality", "1") == 0
    first, results = decoded(tmp_path / "out.mp4")
    found = (first.colorspace, first.color_range, first.color_primaries, first.color_trc)
    # What was not tagged is converted as players guess it for the small input, and tagged: they would guess otherwise
    # for a result of another size.
    assert found == (tags or (6, 1, 2, 2))
    _, inputs = decoded(source)
    shift = np.mean(results, axis=(0, 1, 2)) - np.mean(bicubic(inputs), axis=(0, 1, 2))
    assert np.abs(shift).max() < 0.5
    assert np.abs(np.mean(results, axis=(0, 1, 2)) - np.mean(bicubic(frames), axis=(0, 1, 2))).max() < 1


def test_large_untagged_video_is_taken_for_bt709(tmp_path, generator):
    source = write_video(tmp_path / "in.mp4", moving(1, 584, 32), matrix=1)
    assert upscale(generator, source, tmp_path / "out.mp4") == 0
    assert decoded(tmp_path / "out.mp4")[0].colorspace == 1


@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "yuv422p10le", "gray10le"])
def test_ten_bits_stay_ten_bits(tmp_path, generator, pixel_format):
    frames = moving(3, 32, 48, np.uint16)
    source = write_video(
        tmp_path / "in.mkv", frames, pixel_format=pixel_format, options={"crf": "1"}, tags=(6, 1, 2, 2)
    )
    assert upscale(generator, source, tmp_path / "out.mkv", "--quality", "1") == 0
    first, results = decoded(tmp_path / "out.mkv")
    assert first.format.name == pixel_format.replace("gray10le", "yuv420p10le")
    wanted = bicubic(frames)
    if pixel_format == "gray10le":
        wanted = [np.repeat((f @ [0.299, 0.587, 0.114])[..., None], 3, axis=2) for f in wanted]
    shift = np.mean(results, axis=(0, 1, 2)) - np.mean(wanted, axis=(0, 1, 2))
    assert np.abs(shift).max() < 65535 / 255
    # Finer than 8 bits can be: some levels between those that are multiples of 257.
    assert len(np.unique(np.asarray(results) // 64)) > 256


def test_ten_bits_are_not_lost_in_silence(tmp_path, generator, capsys):
    source = write_video(tmp_path / "in.mkv", moving(1, dtype=np.uint16), pixel_format="yuv420p10le")
    assert upscale(generator, source, tmp_path / "out.webm", "--codec", "libvpx-vp9") == 2
    assert "10 bits" in capsys.readouterr().err
    assert upscale(generator, source, tmp_path / "out.mp4", "--pixel-format", "yuv420p") == 0
    assert decoded(tmp_path / "out.mp4")[0].format.name == "yuv420p"


@pytest.mark.parametrize("full_range", [False, True])
def test_grey_stays_grey_and_as_bright(tmp_path, generator, full_range):
    frames = [np.repeat(f.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2) for f in moving(2, 32, 48)]
    source = write_video(
        tmp_path / "in.mkv", frames, pixel_format="gray", full_range=full_range, options={"crf": "1"},
        tags=(6, 2 if full_range else 1, 2, 2),
    )  # fmt: skip
    assert upscale(generator, source, tmp_path / "out.mp4", "--quality", "1") == 0
    _, results = decoded(tmp_path / "out.mp4")
    assert np.abs(np.mean(results, axis=(0, 1, 2)) - np.mean(frames)).max() < 1
    assert np.abs(np.ptp(np.asarray(results, int), axis=3)).max() <= 3


@pytest.mark.parametrize(
    ("turn", "upright"),
    [
        ((0, True, False), lambda f: f[:, ::-1]),
        ((-90, False, False), lambda f: np.rot90(f, -1)),
        ((180, False, False), lambda f: f[::-1, ::-1]),
        ((90, False, False), np.rot90),
    ],
    ids=["mirrored", "clockwise", "half", "counter-clockwise"],
)
def test_the_result_is_upright_in_its_pixels(tmp_path, generator, turn, upright):
    frames = moving(2, 32, 48)
    source = write_video(tmp_path / "in.mp4", frames, rotation=turn, options={"crf": "1"}, pixel_format="yuv444p")
    assert upscale(generator, source, tmp_path / "out.mp4", "--quality", "1") == 0
    first, results = decoded(tmp_path / "out.mp4")
    assert first.rotation == 0
    wanted = upright(bicubic(frames[:1])[0]).astype(float)
    assert results[0].shape == wanted.shape
    assert np.abs(results[0] - wanted).mean() < 3


def test_pixels_that_are_not_square_stay_so(tmp_path, generator):
    source = tmp_path / "in.mp4"
    with av.open(str(source), "w") as output:
        stream = output.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(16, 15)
        output.mux(stream.encode(av.VideoFrame.from_ndarray(moving(1)[0], format="rgb24")))
        output.mux(stream.encode(None))
    assert upscale(generator, source, tmp_path / "out.mkv") == 0
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(16, 15)


def test_odd_sizes(tmp_path, generator, capsys):
    source = write_video(tmp_path / "in.mkv", moving(2, 23, 31), codec="ffv1", pixel_format="yuv444p")
    assert upscale(generator, source, tmp_path / "out.mp4") == 0
    assert decoded(tmp_path / "out.mp4")[1][0].shape == (46, 62, 3)
    assert "note" not in capsys.readouterr().out


def test_interlaced_video_is_refused_or_made_progressive(tmp_path, generator, capsys):
    source = write_video(tmp_path / "in.mkv", moving(8, 32, 48), options={"x264-params": "tff=1:interlaced=1"})
    assert upscale(generator, source, tmp_path / "out.mp4") == 2
    assert "--deinterlace" in capsys.readouterr().err
    assert upscale(generator, source, tmp_path / "out.mkv", "--deinterlace", "--segment-frames", "3") == 0
    assert times_of(tmp_path / "out.mkv") == times_of(source)


def test_a_matrix_that_ffmpeg_cannot_convert_keeps_its_tag_and_its_samples(tmp_path, generator):
    source = write_video(tmp_path / "in.mp4", moving(2, 48, 64), tags=(8, 1, 1, 1), options={"crf": "1"})
    assert upscale(generator, source, tmp_path / "out.mp4", "--quality", "1") == 0
    frames = []
    for path in (source, tmp_path / "out.mp4"):
        with av.open(str(path)) as container:
            frames.append(next(container.decode(video=0)))
    assert [frame.colorspace for frame in frames] == [8, 8]
    means = [[part.mean() for part in np.split(frame.to_ndarray(), [frame.height])] for frame in frames]
    assert np.abs(np.subtract(*means)).max() < 1


def test_alpha_of_images_is_dropped_with_a_note(tmp_path, generator, capsys):
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "0.png"), np.full((24, 32, 4), 90, np.uint8))
    assert upscale(generator, tmp_path / "in", tmp_path / "out") == 0
    assert "note: the input has alpha, which is dropped" in said(capsys)[0]
    assert cv2.imread(str(tmp_path / "out" / "0.png"), cv2.IMREAD_UNCHANGED).shape == (48, 64, 3)


def test_alpha_is_left_out_and_that_is_said(tmp_path, generator, capsys):
    source = write_video(tmp_path / "in.mkv", moving(2), codec="ffv1", pixel_format="yuva420p")
    assert upscale(generator, source, tmp_path / "out.mp4") == 0
    assert "alpha" in capsys.readouterr().out


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


def test_sound_of_an_unknown_codec_is_dropped_with_a_note(tmp_path, generator, capsys):
    source = write_video(tmp_path / "in.mov", moving(4), audio="pcm_s16le")
    assert source.read_bytes().count(b"sowt") == 1
    source.write_bytes(source.read_bytes().replace(b"sowt", b"apac"))
    assert upscale(generator, source, tmp_path / "out.mp4") == 0
    assert "note: audio track 1 dropped: its codec is unknown" in said(capsys)[0]
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]


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


def test_a_start_behind_the_end_is_an_error(tmp_path, generator, clip, capsys):
    assert upscale(generator, clip, tmp_path / "out.mp4", "--start", "7") == 2
    assert "--start 7" in capsys.readouterr().err
