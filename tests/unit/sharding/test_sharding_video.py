from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from sharding.errors import BadInputError
from sharding.images import list_images
from sharding.samples import find_samples
from sharding.sources import content_hash, find_sources, scan_frames
from sharding.video import iter_frames, iter_timed_frames, probe

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
    count = 0
    for frame in iter_frames(CLIPS[name]):
        assert frame.shape == (size[1], size[0], 3)
        assert frame.dtype == np.uint8
        count += 1
    assert count == num_frames


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
    for first in (0, 1, 29, 30, 77, len(every) - 1):
        entered = iter_timed_frames(CLIPS[name], first, every[first].pts)
        for expected, frame in zip(every[first : first + 20], entered, strict=False):
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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "missing.mp4", "does not exist"),
        (lambda p: written(p / "text.mp4", b"hello"), "is not a video that can be decoded"),
        (lambda p: written(p / "text.txt", b"hello\n" * 400), "is not a video that can be decoded"),
        (lambda p: written(p / "empty.mp4", b""), "is not a video that can be decoded"),
        (lambda p: write_images(p / "f", 1) / "0.png", "a text or a single picture"),
        (lambda p: written(p / "cut.mp4", CLIPS["bikes"].read_bytes()[:200_000]), "can be decoded"),
        (lambda p: (p / "empty").mkdir() or p / "empty", "holds no image"),
        (lambda p: write_images(p / "a" / "b", 1).parent, "subfolders, give them one by one"),
        (mixed, "expected one size"),
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
    with pytest.raises(BadInputError, match=r"both.ts changes its size at frame \d+: expected 64 x 48"):
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
