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
    remux,
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


def spans(path):
    """(begin, end) in s of the first video and the first audio track, by their packets."""
    found = []
    with av.open(str(path)) as container:
        for kind in ("video", "audio"):
            packets = [p for p in container.demux(**{kind: 0}) if p.size]
            times = [(p.pts * p.time_base, (p.pts + p.duration) * p.time_base) for p in packets]
            found.append((float(min(times)[0]), float(max(end for _, end in times))))
            container.seek(0)
    return found


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("offset_s", [50_000, 95_441.8])
def test_a_clock_that_begins_late_or_wraps_around_begins_at_0(tmp_path, generator, offset_s, suffix):
    """MPEG-TS counts 33 bits of 1/90000 s: 95,443.7 s; its muxer begins 1.4 s late."""
    plain = write_video(tmp_path / "plain.mp4", moving(30), audio="aac")
    source = remux(plain, tmp_path / "in.ts", Fraction(str(offset_s)))
    assert upscale(generator, source, tmp_path / f"out{suffix}") == 0
    (video, audio) = spans(tmp_path / f"out{suffix}")
    assert len(times_of(tmp_path / f"out{suffix}")) == 30
    assert min(video[0], audio[0]) == pytest.approx(0, abs=0.002)
    assert video[1] - video[0] == pytest.approx(1, abs=0.05)
    assert audio[1] < 1.1
    assert video[0] - audio[0] == pytest.approx(spans(plain)[0][0] - spans(plain)[1][0], abs=0.002)


def test_a_part_with_the_times_of_the_whole_begins_at_0(tmp_path, generator):
    source = remux(write_video(tmp_path / "plain.mp4", moving(30), audio="aac"), tmp_path / "in.mp4", 50_000)
    assert float(min(times_of(source))) == 50_000
    assert upscale(generator, source, tmp_path / "out.mp4") == 0
    assert [(round(a, 1), round(b, 1)) for a, b in spans(tmp_path / "out.mp4")] == [(0, 1), (0, 1)]


@pytest.mark.parametrize(("one_s", "other_s"), [(100, 20), (20, 100), (20, 20), (20, 20.5)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_jump_of_the_clock_leaves_no_gap(tmp_path, generator, capsys, one_s, other_s, suffix):
    plain = write_video(tmp_path / "plain.mp4", moving(30), audio="aac")
    parts = [remux(plain, tmp_path / f"{shift}.ts", Fraction(str(shift))).read_bytes() for shift in (one_s, other_s)]
    (tmp_path / "in.ts").write_bytes(b"".join(parts))
    output = tmp_path / f"out{suffix}"
    assert upscale(generator, tmp_path / "in.ts", output, "--segment-frames", "7") == 0
    assert "changes its clock once" in said(capsys)[0]
    steps = np.diff([float(time) for time in times_of(output)])
    assert len(steps) == 59
    assert steps == pytest.approx(np.full(59, 1 / 30), abs=0.002)
    (video, audio) = spans(output)
    assert (video[1], audio[1]) == (pytest.approx(2, abs=0.06), pytest.approx(2, abs=0.06))
    sound = np.asarray([time for time, _ in packets_of(output, "audio")])
    assert len(sound) >= 2 * len(packets_of(plain, "audio")) - 4
    assert np.diff(sound).min() > 0
    assert np.diff(sound).max() < 0.1


def test_sound_that_a_lossless_cut_hides_is_left_out(tmp_path, generator):
    whole = write_video(tmp_path / "whole.mp4", moving(30), audio="aac", options={"g": "10", "bf": "0"})
    source = remux(whole, tmp_path / "in.mp4", Fraction(-1, 3))
    assert upscale(generator, source, tmp_path / "out.mkv") == 0
    (video, audio) = spans(tmp_path / "out.mkv")
    assert (len(times_of(tmp_path / "out.mkv")), video[0]) == (20, 0)
    assert -0.1 <= audio[0] <= 0.03


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


def test_large_untagged_video_is_taken_for_bt709(tmp_path, generator, capsys):
    source = write_video(tmp_path / "in.mp4", moving(1, 584, 32), matrix=1)
    assert upscale(generator, source, tmp_path / "out.mp4") == 0
    assert decoded(tmp_path / "out.mp4")[0].colorspace == 1
    assert said(capsys)[0].count("the input has no colour tags and is read as BT.709") == 1


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


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        (".mp4", "libx264"),
        (".mkv", "libx264"),
        (".webm", "libvpx-vp9"),
        (".webm", "libsvtav1"),
        (".mkv", "libsvtav1"),
        (".mkv", "ffv1"),
        (".mkv", "prores_ks"),
        (".mov", "prores_ks"),
    ],
)
@pytest.mark.parametrize(("width", "aspect"), [(64, Fraction(16, 15)), (255, Fraction(8, 9))])
def test_pixels_that_are_not_square_stay_so(tmp_path, generator, suffix, codec, width, aspect):
    source = write_video(tmp_path / "in.mp4", moving(1, 45, width), pixel_format="yuv444p", sample_aspect=aspect)
    output = tmp_path / f"out{suffix}"
    assert upscale(generator, source, output, "--codec", codec) == 0
    with av.open(str(output)) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        assert (frame.width, frame.height) == (2 * width, 90)
        assert float(stream.sample_aspect_ratio) == pytest.approx(float(aspect), rel=0.003)
        assert "stereo_mode" not in stream.metadata


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


@pytest.mark.parametrize(("matrix", "primaries", "written"), [(8, 1, None), (14, 9, None), (12, 9, 9), (12, 1, 1)])
def test_a_matrix_that_cannot_be_read_is_refused_and_a_derived_one_gets_its_own_tag(
    tmp_path, generator, capsys, matrix, primaries, written
):
    source = write_video(tmp_path / "in.mp4", moving(1, 48, 64), tags=(matrix, 1, primaries, 1))
    if written is None:
        assert upscale(generator, source, tmp_path / "out.mp4") == 2
        assert f"in.mp4 has colours of H.273 matrix {matrix}" in said(capsys)[1]
        assert list(tmp_path.iterdir()) == [source]
    else:
        assert upscale(generator, source, tmp_path / "out.mp4") == 0
        assert decoded(tmp_path / "out.mp4")[0].colorspace == written


def test_colour_tags_that_change_on_the_way_are_followed(tmp_path, generator):
    """Two parts of the same picture, each by its own matrix: the result has one colour."""
    grey_green = np.full((48, 64, 3), (60, 160, 90), np.uint8)
    parts = b""
    for number, matrix in enumerate((1, 6)):
        options = {"matrix": matrix, "tags": (matrix, 1, 1, 1), "pts": [number * 6 + n for n in range(6)]}
        part = write_video(tmp_path / "part.ts", [grey_green] * 6, options={"crf": "1"}, **options)
        parts += part.read_bytes()
    (tmp_path / "in.ts").write_bytes(parts)
    assert upscale(generator, tmp_path / "in.ts", tmp_path / "out.mp4", "--quality", "1") == 0
    first, results = decoded(tmp_path / "out.mp4")
    assert (first.colorspace, len(results)) == (1, 12)
    assert np.abs(np.mean(results, axis=(1, 2)) - (60, 160, 90)).max() < 2


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


@pytest.mark.parametrize(("suffix", "becomes"), [(".mp4", "aac"), (".mkv", "aac"), (".webm", "opus")])
def test_sound_that_no_container_holds_is_encoded_on_request(tmp_path, generator, capsys, suffix, becomes):
    source = write_video(tmp_path / "in.wmv", moving(30), codec="wmv2", audio="wmav2")
    output = tmp_path / f"out{suffix}"
    assert upscale(generator, source, output) == 2
    assert "--encode-audio" in said(capsys)[1]
    assert upscale(generator, source, output, "--encode-audio") == 0
    assert f"audio track 1 encoded from wmav2 to {'libopus' if becomes == 'opus' else 'aac'}" in said(capsys)[0]
    sound = {}
    for path in (source, output):
        with av.open(str(path)) as container:
            stream = container.streams.audio[0]
            frames = list(container.decode(stream))
            left = np.concatenate([frame.to_ndarray()[0] for frame in frames])
            rate, start = stream.rate, round(float(frames[0].pts * frames[0].time_base) * stream.rate)
            sound[path] = np.concatenate([np.zeros(max(0, start)), left])[max(0, -start) :][rate // 4 : rate // 2]
            assert stream.codec_context.codec.canonical_name == ("wmav2" if path == source else becomes)
    one, other = sound.values()
    # The same tone, as far as times in milliseconds say.
    assert max(np.corrcoef(one[100:-100], np.roll(other, lag)[100:-100])[0, 1] for lag in range(-99, 100, 3)) > 0.95


def test_a_second_track_of_an_unknown_codec_goes_and_the_first_stays(tmp_path, generator, capsys):
    plain = write_video(tmp_path / "plain.mov", moving(4), audio="aac")
    extra = write_video(tmp_path / "extra.mov", moving(4), audio="pcm_s16le")
    source = tmp_path / "in.mov"
    with av.open(str(plain)) as one, av.open(str(extra)) as other, av.open(str(source), "w") as output:
        kept = [*one.streams, other.streams.audio[0]]
        made = [output.add_stream_from_template(stream) for stream in kept]
        for inward, streams, targets in ((one, kept[:2], made[:2]), (other, kept[2:], made[2:])):
            for packet in inward.demux(streams):
                if packet.size:
                    packet.stream = targets[streams.index(packet.stream)]
                    output.mux(packet)
    source.write_bytes(source.read_bytes().replace(b"sowt", b"apac"))
    for suffix in (".mp4", ".mov", ".mkv"):
        assert upscale(generator, source, tmp_path / f"out{suffix}") == 0
        assert "note: audio track 2 dropped: its codec is unknown" in said(capsys)[0]
        assert payloads(tmp_path / f"out{suffix}", "audio") == payloads(plain, "audio")


# Supplemental enhancement information of H.264 with one pair of CEA-608 characters (ATSC A/53, part 4).
_CAPTION = b"\0\0\1\x06\x04\x0e\xb5\x00\x31GA94\x03\x41\xff\xfc\x94\x20\xff\x80"


def test_captions_and_mastering_data_are_dropped_with_a_word(tmp_path, generator, capsys):
    source = tmp_path / "in.ts"
    with av.open(str(source), "w") as output:
        stream = output.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        frames = [av.VideoFrame.from_ndarray(rgb, format="rgb24") for rgb in moving(4)]
        for packet in (packet for frame in [*frames, None] for packet in stream.encode(frame)):
            made = av.Packet(_CAPTION + bytes(packet))
            made.stream, made.time_base, made.is_keyframe = stream, packet.time_base, packet.is_keyframe
            made.pts, made.dts, made.duration = packet.pts, packet.dts, packet.duration
            output.mux(made)
    assert upscale(generator, source, tmp_path / "out.mp4") == 0
    assert "4 frames have closed captions, which are dropped" in said(capsys)[1]
    display = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1)"
    source = write_video(
        tmp_path / "in.mp4", moving(2, 48, 64, np.uint16), codec="libx265", pixel_format="yuv420p10le", matrix=9,
        tags=(9, 1, 9, 16), options={"x265-params": f"log-level=error:master-display={display}:max-cll=1000,400"},
    )  # fmt: skip
    assert upscale(generator, source, tmp_path / "hdr.mp4") == 0
    assert said(capsys)[0].count("the input has HDR10 mastering data, which is dropped") == 1


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


def texts(path):
    """{text: (begin in s, duration in s)} of the first subtitle track."""
    found = {}
    with av.open(str(path)) as container:
        stream = container.streams.subtitles[0]
        for packet in container.demux(stream):
            subtitles = stream.codec_context.decode2(packet) if packet.size else None
            for rect in subtitles.rects if subtitles else ():
                if text := rect.ass.split(b",", 8)[-1].decode().strip():
                    found[text] = (packet.pts * packet.time_base, packet.duration * packet.time_base)
    return found


def test_subtitles_keep_their_times_over_conversions(tmp_path, generator):
    times_ms = ((133, 201), (467, 199))
    one = write_video(tmp_path / "0.mkv", moving(24), subtitles="subrip", texts_ms=times_ms)
    wanted = {f"line {n}": tuple(Fraction(ms, 1000) for ms in times) for n, times in enumerate(times_ms)}
    for number, suffix in enumerate((".mp4", ".mkv", ".mov", ".webm"), 1):
        other = tmp_path / f"{number}{suffix}"
        assert upscale(generator, one, other) == 0
        assert texts(other) == wanted
        one = other


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_text_on_the_screen_at_the_start_is_shown_from_there(tmp_path, generator, suffix):
    source = write_video(tmp_path / "in.mkv", moving(24), subtitles="subrip")
    options = ("--start", "0.2", "--frames", "9")
    assert upscale(generator, source, tmp_path / f"out{suffix}", *options) == 0
    found = texts(tmp_path / f"out{suffix}")
    assert [(float(a), float(b)) for a, b in found.values()] == [
        (0, pytest.approx(0.1, abs=0.001)),
        (pytest.approx(0.2, abs=0.001), pytest.approx(0.1, abs=0.002)),
    ]


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
