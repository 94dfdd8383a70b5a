"""Videos and folders, as they should be, and as cameras, recorders and bad disks leave them."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from sharding.errors import BadInputError
from sharding.images import list_images
from sharding.scan import content_hash, scan_frames
from sharding.sources import ScannedSource, find_samples, find_sources
from sharding.video import (
    HAS_ALPHA,
    IS_TAKEN_FOR_BT709,
    iter_frames,
    iter_thumbnails,
    iter_timed_frames,
    note_lines,
    probe,
)

CLIPS = {path.stem: path for path in find_samples()}


def write_images(folder: Path, count: int, size: tuple[int, int] = (16, 24), prefix: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = np.full((*size, 3), (10 * number, 5, 250), np.uint8)  # BGR
        assert cv2.imwrite(str(folder / f"{prefix}{number}.png"), image)
    return folder


def rotated_copy(source: Path, target: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write the upper left of the display matrix into the track header of an mp4."""
    data = bytearray(source.read_bytes())
    start = data.index(b"tkhd") + 4
    place = start + 4 + 4 * 4 + 4 + 8 + 8  # version, times and ids, duration, reserved, layer and volume
    a, b, c, d = (value << 16 for value in matrix)
    struct.pack_into(">9i", data, place, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    target.write_bytes(data)
    return target


@pytest.mark.parametrize(
    ("name", "num_frames", "fps", "size"),
    [
        ("bikes", 250, Fraction(25), (640, 272)),
        ("bigbuckbunny", 132, Fraction(25), (1280, 720)),
        ("carphone_pristine", 120, Fraction(30000, 1001), (176, 144)),
        ("carphone_distorted", 120, Fraction(30000, 1001), (176, 144)),
    ],
)
def test_probe_says_what_decoding_finds(name: str, num_frames: int, fps: Fraction, size: tuple[int, int]) -> None:
    info = probe(CLIPS[name])
    assert (info.num_frames, info.fps, (info.width, info.height)) == (num_frames, fps, size)
    first = next(iter_frames(CLIPS[name]))
    assert (first.shape, first.dtype) == ((size[1], size[0], 3), np.uint8)
    thumbnails = list(iter_thumbnails(CLIPS[name]))
    assert len(thumbnails) == num_frames
    assert {(thumbnail.width, thumbnail.height) for thumbnail in thumbnails} == {size}


def test_frames_are_rgb_as_opencv_decodes_them() -> None:
    reader = cv2.VideoCapture(str(CLIPS["bikes"]))
    if not reader.isOpened():
        pytest.skip("this OpenCV cannot open video")
    for number, frame in enumerate(iter_frames(CLIPS["bikes"])):
        done, reference = reader.read()
        assert done
        assert np.abs(frame.astype(int) - reference[..., ::-1]).mean() < 3
        if number == 40:
            break


@pytest.mark.parametrize("name", ["bikes", "carphone_pristine", "carphone_distorted"])
def test_entering_half_way_gives_the_frames_of_a_full_pass(name: str) -> None:
    every = list(iter_timed_frames(CLIPS[name]))
    for first in (0, 29, 30, 77, len(every) - 1):
        entered = iter_timed_frames(CLIPS[name], first, every[first].pts)
        for expected, frame in zip(every[first : first + 12], entered, strict=False):
            assert (frame.pts, frame.time_s) == (expected.pts, expected.time_s)
            np.testing.assert_array_equal(frame.rgb, expected.rgb)


def test_a_pts_that_is_not_there_is_found_by_counting() -> None:
    every = list(iter_timed_frames(CLIPS["carphone_distorted"]))
    wrong = every[20].pts
    assert wrong is not None
    found = next(iter(iter_timed_frames(CLIPS["carphone_distorted"], 20, wrong + 1)))
    np.testing.assert_array_equal(found.rgb, every[20].rgb)


@pytest.mark.parametrize(
    ("matrix", "turns"),
    [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)],
    ids=["clockwise", "upside down", "counterclockwise"],
)
def test_rotation_metadata_is_applied(tmp_path: Path, matrix, turns: int) -> None:
    """The mp4 matrix (a b, c d) sends x to (a, b): (0 1, -1 0) is a phone film to be turned clockwise."""
    turned = rotated_copy(CLIPS["carphone_pristine"], tmp_path / "turned.mp4", matrix)
    plain = next(iter(iter_frames(CLIPS["carphone_pristine"])))
    frame = next(iter(iter_frames(turned)))
    np.testing.assert_array_equal(frame, np.rot90(plain, turns))
    info = probe(turned)
    assert (info.height, info.width) == frame.shape[:2]


@pytest.mark.parametrize(
    ("matrix", "upright"),
    [
        ((-1, 0, 0, 1), lambda f: f[:, ::-1]),
        ((1, 0, 0, -1), lambda f: f[::-1]),
        ((0, 1, 1, 0), lambda f: f.swapaxes(0, 1)),
    ],
    ids=["mirrored", "flipped", "transposed"],
)
def test_a_mirrored_film_is_mirrored(tmp_path: Path, matrix, upright) -> None:
    mirrored = rotated_copy(CLIPS["carphone_pristine"], tmp_path / "mirrored.mp4", matrix)
    frame, plain = (next(iter(iter_frames(path))) for path in (mirrored, CLIPS["carphone_pristine"]))
    np.testing.assert_array_equal(frame, upright(plain))
    assert (probe(mirrored).height, probe(mirrored).width) == frame.shape[:2]


def tagged(path: Path, size: tuple[int, int], matrix: int | None, encoded_as: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv444p"
        if matrix is not None:
            stream.codec_context.colorspace = matrix
        rgb = av.VideoFrame.from_ndarray(np.full((*size, 3), (224, 64, 32), np.uint8), format="rgb24")
        frame = VideoReformatter().reformat(rgb, format="yuv444p", dst_colorspace=encoded_as, dst_color_range=1)
        frame.colorspace = 2 if matrix is None else matrix
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("size", "encoded_as"), [((720, 64), 1), ((64, 1280), 1), ((576, 720), 5)])
def test_an_untagged_film_has_the_colours_that_players_show(
    tmp_path: Path, size: tuple[int, int], encoded_as: int
) -> None:
    """BT.709 from more than 1279 x 576 on, BT.601 below."""
    path = tagged(tmp_path / "v.mp4", size, None, encoded_as)
    assert np.abs(next(iter(iter_frames(path))).mean(axis=(0, 1)) - (224, 64, 32)).max() < 2
    assert probe(path).notes == ((IS_TAKEN_FOR_BT709,) if encoded_as == 1 else ())


def test_a_matrix_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"v.mp4 has colours of H.273 matrix 8 .* ffmpeg"):
        find_sources([tagged(tmp_path / "v.mp4", (48, 64), 8, 1)])


@pytest.mark.parametrize("name", ["2024-01-01T12:30:00.mp4", "file:x.mp4", "a|b.mp4", "concat:a|b.mp4", "%d.mp4"])
def test_a_name_is_never_a_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(CLIPS["carphone_pristine"].read_bytes())
    assert probe(Path(name)).num_frames == 120
    assert len(list(iter_thumbnails(Path(name)))) == 120


def test_a_folder_of_videos_gives_each_of_them(tmp_path: Path) -> None:
    for name in ("b10", "b9"):
        (tmp_path / f"{name}.mp4").write_bytes(CLIPS["carphone_pristine"].read_bytes())
    (tmp_path / "notes.txt").write_text("")
    assert [source.path.name for source in find_sources([tmp_path])] == ["b9.mp4", "b10.mp4"]


def test_alpha_of_images_is_noted(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "f", 1)
    assert probe(folder).notes == ()
    cv2.imwrite(str(folder / "0.png"), np.full((16, 24, 4), 90, np.uint8))
    assert probe(folder).notes == (HAS_ALPHA,)
    assert note_lines(dict.fromkeys("abcde", (HAS_ALPHA,))) == [f"note: a, b, c and 2 more: {HAS_ALPHA}"]


def test_folders_are_read_in_natural_order(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "f", 12, prefix="frame")
    assert [path.stem for path in list_images(folder)][:3] == ["frame0", "frame1", "frame2"]
    frames = list(iter_frames(folder))
    assert [int(frame[0, 0, 2]) for frame in frames] == [10 * n for n in range(12)]
    assert frames[0][0, 0, 0] == 250  # red first
    assert [int(f.rgb[0, 0, 2]) for f in iter_timed_frames(folder, 10)] == [100, 110]
    assert probe(folder).num_frames == 12
    assert probe(folder).fps is None


def corrupt(folder: Path) -> Path:
    write_images(folder, 2)
    (folder / "1.png").write_bytes(b"no image")
    return folder


def mixed(folder: Path) -> Path:
    write_images(folder, 2)
    cv2.imwrite(str(folder / "5.png"), np.zeros((8, 8, 3), np.uint8))
    return folder


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def unknown_codec(folder: Path) -> Path:
    data = CLIPS["carphone_pristine"].read_bytes()
    assert data.count(b"avc1") >= 1
    return written(folder / "v.mp4", data.replace(b"avc1", b"xyz1"))


def test_a_subfolder_with_the_name_of_an_image_is_left_out(tmp_path: Path) -> None:
    (write_images(tmp_path / "f", 2) / "extra.png").mkdir()
    assert probe(tmp_path / "f").num_frames == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "missing.mp4", "does not exist"),
        (lambda p: written(p / "text.mp4", b"hello"), "is not a video that can be decoded"),
        (lambda p: written(p / "text.txt", b"hello\n" * 400), "is not a video that can be decoded"),
        (lambda p: written(p / "empty.mp4", b""), "is not a video that can be decoded"),
        (lambda p: write_images(p / "f", 1) / "0.png", "a text or a single image"),
        (lambda p: written(p / "cut.mp4", CLIPS["bikes"].read_bytes()[:200_000]), "can be decoded"),
        (unknown_codec, "this FFmpeg does not know its video codec"),
        (lambda p: os.mkfifo(p / "pipe.mp4") or p / "pipe.mp4", "is a pipe or a device"),
        (lambda p: os.mkfifo(write_images(p / "f", 1) / "1.png") or p / "f", "1.png is a pipe or a device"),
        (lambda p: (write_images(p / "f", 1) / "1.png").symlink_to("gone") or p / "f", "1.png is a link to gone"),
        (lambda p: (p / "empty").mkdir() or p / "empty", "has no images"),
        (lambda p: write_images(p / "a" / "b", 1).parent, "subfolders: give each one as a source"),
        (mixed, "expected images of one size"),
        (corrupt, "is not an image"),
    ],
)
def test_bad_sources_are_named_in_one_line(tmp_path: Path, make, message: str) -> None:
    source = make(tmp_path) if make not in (mixed, corrupt) else make(tmp_path / "folder")
    with pytest.raises(BadInputError, match=message) as caught:
        for _ in iter_frames(source):
            pass
    assert "\n" not in str(caught.value)
    assert str(source.name) in str(caught.value)


def write_video(path: Path, size: tuple[int, int], count: int) -> bytes:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for number in range(count):
            image = np.full((*size, 3), 30 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path.read_bytes()


def test_a_video_that_changes_its_size_is_refused(tmp_path: Path) -> None:
    one = write_video(tmp_path / "one.ts", (48, 64), 6)
    two = write_video(tmp_path / "two.ts", (96, 128), 6)
    (source,) = find_sources([written(tmp_path / "both.ts", one + two)])
    with pytest.raises(BadInputError, match=r"both.ts changes its frame size at frame \d+: expected 64 x 48"):
        scan_frames(source, "")


def test_a_source_whose_times_do_not_rise_is_decoded_from_its_beginning(tmp_path: Path) -> None:
    one = write_video(tmp_path / "one.ts", (48, 64), 6)
    (source,) = find_sources([written(tmp_path / "both.ts", one + one)])
    scan = scan_frames(source, "aa")
    assert scan.num_frames > 6
    assert scan.pts == ()


def test_find_sources_names_all_faults_at_once(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    twin = written(tmp_path / "other" / "bikes.mp4", CLIPS["bikes"].read_bytes())
    text = written(tmp_path / "text.mp4", b"hello")
    with pytest.raises(BadInputError) as caught:
        find_sources([CLIPS["bikes"], twin, text, tmp_path / "missing.mp4"])
    for word in ("would both be named 'bikes'", "text.mp4", "missing.mp4 does not exist"):
        assert word in str(caught.value)


def test_scan_is_complete_and_its_hash_follows_the_content(tmp_path: Path) -> None:
    (source,) = find_sources([CLIPS["carphone_pristine"]])
    scan = scan_frames(source, "aa")
    assert (scan.num_frames, scan.height, scan.width, scan.shots) == (120, 144, 176, ((0, 120),))
    assert len(scan.pts) == 120
    assert scan.describe()["fps"] == "30000/1001"
    folder = write_images(tmp_path / "f", 3)
    first = content_hash(folder)
    assert content_hash(folder) == first
    (folder / "1.png").write_bytes((folder / "0.png").read_bytes())
    assert content_hash(folder) != first


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """The first 50 frames of bikes, which cuts at 30."""
    return [frame for _, frame in zip(range(50), iter_frames(CLIPS["bikes"]), strict=False)]


def encode(
    path: Path,
    frames: list[np.ndarray],
    codec: str = "libx264",
    rate: Fraction | int = 25,
    pixels: str = "yuv420p",
    pts: list[int] | None = None,
    **options: str,
) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pixels
        stream.options = options
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def remux(source: Path, target: Path, **options: str) -> Path:
    """The same packets in another container."""
    with av.open(str(source)) as inward, av.open(str(target), "w", options=options) as outward:
        stream = outward.add_stream_from_template(inward.streams.video[0])
        for packet in inward.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                outward.mux(packet)
    return target


def scan(path: Path, num_threads: int = 1) -> ScannedSource:
    (source,) = find_sources([path])
    return scan_frames(source, "", num_threads)


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(25, 2), Fraction(1000, 33), 50])
def test_odd_frame_rates_are_kept_as_fractions(tmp_path: Path, frames: list[np.ndarray], rate: Fraction) -> None:
    scanned = scan(encode(tmp_path / "v.mp4", frames[:20], rate=rate))
    assert scanned.num_frames == 20
    assert scanned.fps == rate
    times = [frame.time_s for frame in iter_timed_frames(tmp_path / "v.mp4")]
    np.testing.assert_allclose(times, np.arange(20) / float(rate), atol=1e-3)


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_a_variable_frame_rate_gives_the_real_times(tmp_path: Path, frames: list[np.ndarray], suffix: str) -> None:
    """As a phone or a screen recorder writes it: 20, 33, 40 ms, and a pause of 4 s."""
    steps = [20, 33, 40, 40, 33, 4000, 20, 20, 33]
    pts = [0, *np.cumsum(steps).tolist()]
    path = encode(tmp_path / f"vfr.{suffix}", frames[: len(pts)], pts=pts)
    got = list(iter_timed_frames(path))
    np.testing.assert_allclose([frame.time_s for frame in got], np.array(pts) / 1000, atol=1e-3)
    scanned = scan(path)
    assert (scanned.num_frames, len(scanned.pts)) == (10, 10)
    entered = next(iter(iter_timed_frames(path, 7, scanned.pts[7])))
    np.testing.assert_array_equal(entered.rgb, got[7].rgb)


@pytest.mark.parametrize("codec", ["libx264", "ffv1"])
def test_ten_bits_are_rounded_to_eight(tmp_path: Path, frames: list[np.ndarray], codec: str) -> None:
    options = {"crf": "4", "preset": "ultrafast"} if codec == "libx264" else {}
    path = encode(tmp_path / "deep.mkv", frames[:5], codec, pixels="yuv444p10le", **options)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).format.name == "yuv444p10le"
    for original, decoded in zip(frames[:5], iter_frames(path), strict=True):
        assert decoded.dtype == np.uint8
        difference = decoded.astype(float) - original
        assert np.abs(difference).mean() < (0.3 if codec == "ffv1" else 1.5)
        assert abs(difference.mean()) < 0.1


@pytest.mark.parametrize(
    ("codec", "suffix", "options"),
    [("libx264", "mkv", {"x264-params": "tff=1"}), ("mpeg2video", "ts", {"flags": "+ildct+ilme"})],
)
def test_interlaced_video_is_refused_with_the_way_out(
    tmp_path: Path, frames: list[np.ndarray], codec: str, suffix: str, options: dict[str, str]
) -> None:
    path = encode(tmp_path / f"tv.{suffix}", frames[:6], codec, **options)
    with pytest.raises(BadInputError, match=r"is interlaced .*ffmpeg -i .*tv\.\w+ -vf bwdif=.* tv_progressive\.mkv"):
        probe(path)
    with pytest.raises(BadInputError, match="is interlaced"):
        list(iter_thumbnails(path))


def flip_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(byte ^ 0x5A for byte in data[middle : middle + 400])
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])


def zero_tail(path: Path) -> None:
    data = path.read_bytes()
    size = len(data) * 7 // 10
    path.write_bytes(data[:size] + bytes(len(data) - size))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_an_undamaged_copy_in_another_container_is_complete(tmp_path: Path, suffix: str) -> None:
    assert scan(remux(CLIPS["bikes"], tmp_path / f"v.{suffix}")).num_frames == 250


def with_sound(path: Path, frames: list[np.ndarray], suffix: str = "mkv") -> Path:
    """A film whose sound lasts as long; without the length of each track, as other programs write it."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        video.height, video.width, video.pix_fmt = *frames[0].shape[:2], "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=8000)
        for rgb in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 320), np.int16), format="s16", layout="mono")
            silence.sample_rate = 8000
            container.mux(sound.encode(silence))
        container.mux(video.encode(None))
        container.mux(sound.encode(None))
    data = path.read_bytes()
    assert data.count(b"DURATION") == 2
    path.write_bytes(data.replace(b"DURATION", b"NOTATIME"))
    return path


@pytest.mark.parametrize("num_frames", [40, 50])
def test_an_mkv_cut_off_is_named_with_the_missing_time(
    tmp_path: Path, frames: list[np.ndarray], num_frames: int
) -> None:
    path = with_sound(tmp_path / "v.mkv", frames[:num_frames])
    assert scan(path).num_frames == num_frames
    cut = path.read_bytes()
    path.write_bytes(cut[: len(cut) * 7 // 10])
    with pytest.raises(BadInputError, match=r"v.mkv is truncated after \d+ frames: .* the last 0.\d\d s are missing"):
        scan(path)


@pytest.mark.parametrize("damage", [flip_middle, cut_off, zero_tail])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_damage_that_ffmpeg_passes_over_is_found(
    tmp_path: Path, damage: Callable[[Path], None], suffix: str, num_threads: int
) -> None:
    options = {"movflags": "faststart"} if suffix == "mp4" else {}
    path = remux(CLIPS["bikes"], tmp_path / f"v.{suffix}", **options)
    damage(path)
    with pytest.raises(
        BadInputError, match=r"(is truncated after \d+ frames|is damaged at frame \d+).*ffmpeg"
    ) as caught:
        scan(path, num_threads)
    assert "\n" not in str(caught.value)


def test_a_sound_track_that_goes_on_is_no_damage(tmp_path: Path, frames: list[np.ndarray]) -> None:
    path = tmp_path / "long_sound.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt = *frames[0].shape[:2], "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=8000)
        for rgb in frames[:5]:
            container.mux(video.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(video.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000 * 6), np.int16), format="s16", layout="mono")
        silence.sample_rate = 8000
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    assert scan(path).num_frames == 5


def test_thumbnails_are_those_of_the_frames() -> None:
    for small, frame in zip(iter_thumbnails(CLIPS["bikes"]), iter_timed_frames(CLIPS["bikes"]), strict=True):
        assert (small.height, small.width, small.pts) == (*frame.rgb.shape[:2], frame.pts)
        reference = cv2.resize(frame.rgb, (64, 36), interpolation=cv2.INTER_AREA)
        assert np.abs(small.rgb.astype(float) - reference).mean() < 1.5


def test_rgb_is_that_of_the_formula() -> None:
    """BT.601, limited range, against float64; FFmpeg's quick conversion darkens by more than one level."""
    with av.open(str(CLIPS["bikes"])) as container:
        frame = next(container.decode(video=0))
    planes = frame.to_ndarray().astype(float)
    height, width = frame.height, frame.width
    luma = (planes[:height] - 16) * 255 / 219
    chroma = (planes[height:].reshape(2, height // 2, width // 2) - 128) * 255 / 224
    blue, red = chroma.repeat(2, axis=1).repeat(2, axis=2)
    green = luma - 0.344136 * blue - 0.714136 * red
    reference = np.clip(np.stack([luma + 1.402 * red, green, luma + 1.772 * blue], axis=-1), 0, 255)
    difference = next(iter_frames(CLIPS["bikes"])) - reference
    assert abs(difference.mean()) < 0.05
    assert np.abs(difference).mean() < 0.5


SCRIPT = """
import ctypes, hashlib, sys
import av
library = next(line.split()[-1] for line in open("/proc/self/maps") if "libavutil" in line)
if sys.argv[1] == "plain":
    ctypes.CDLL(library).av_force_cpu_flags(0)
from sharding.video import iter_frames
digest = hashlib.sha256()
for path in sys.argv[2:]:
    for number, frame in zip(range(12), iter_frames(path)):
        digest.update(frame.tobytes())
print(digest.hexdigest())
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="finds FFmpeg's library through /proc")
def test_frames_are_the_same_bytes_on_a_processor_without_simd(tmp_path: Path, frames: list[np.ndarray]) -> None:
    paths = [
        CLIPS["bikes"],
        encode(tmp_path / "a.ts", frames[:6], "mpeg2video"),
        encode(tmp_path / "b.mkv", frames[:6], pixels="yuv420p10le"),
        encode(tmp_path / "c.avi", frames[:6], "mjpeg", pixels="yuvj420p"),
    ]
    digests = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT, mode, *map(str, paths)], capture_output=True, text=True, check=True
        ).stdout
        for mode in ("plain", "simd")
    }
    assert len(digests) == 1


def test_times_that_do_not_rise_are_not_kept(tmp_path: Path, frames: list[np.ndarray]) -> None:
    one = encode(tmp_path / "one.ts", frames[:6], "mpeg2video").read_bytes()
    (tmp_path / "both.ts").write_bytes(one + one)
    scanned = scan(tmp_path / "both.ts")
    assert scanned.pts == ()
    times = [frame.time_s for frame in iter_timed_frames(tmp_path / "both.ts")]
    assert any(later <= earlier for earlier, later in pairwise(times) if None not in (earlier, later))


def test_a_cover_picture_is_no_film(tmp_path: Path, frames: list[np.ndarray]) -> None:
    plain = VideoReformatter().reformat(av.VideoFrame.from_ndarray(frames[0], format="rgb24"), format="rgb24")
    picture = io.BytesIO()
    plain.to_image().save(picture, "PNG")
    path = tmp_path / "song.flac"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("flac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        silence.sample_rate = 8000
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    # FFmpeg writes no cover by these calls; a FLAC block of type 6 behind the stream's own is one.
    data = path.read_bytes()
    blob = picture.getvalue()
    mime = b"image/png"
    body = b"".join(
        [(3).to_bytes(4, "big"), len(mime).to_bytes(4, "big"), mime, bytes(4), bytes(16), len(blob).to_bytes(4, "big")]
    )
    block = bytes([6]) + (len(body) + len(blob)).to_bytes(3, "big") + body + blob
    path.write_bytes(data[:42] + block + data[42:])
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(BadInputError, match="it has no video stream"):
        probe(path)
