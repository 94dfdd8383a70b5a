"""Pictures of an evaluation, on frames that were built so that the right picture is known."""

from __future__ import annotations

import gc
import tracemalloc
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from vsr_dist.inference import pictures
from vsr_dist.inference.pictures import (
    FOLDERS,
    CropPicker,
    DifferenceMaps,
    FrameSet,
    SequenceShow,
    TimeProfile,
    VideoWriter,
    clear_pictures,
    crop_side_px,
    divider_at,
    wipe_picture,
    worst_places,
)

SCALE, HEIGHT, WIDTH = 4, 96, 120


def frame_set(bicubic=None, fake=None, real=None, *, height=HEIGHT, width=WIDTH):
    """Grey frames of 100 but for what is given."""
    plain = np.full((height, width, 3), 100, np.uint8)
    low = np.full((height // SCALE, width // SCALE, 3), 100, np.uint8)
    pictures = [plain.copy() if picture is None else picture for picture in (bicubic, fake, real)]
    return FrameSet(low, *pictures)


def with_square(top, left, level, side=20):
    picture = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    picture[top : top + side, left : left + side] = level
    return picture


def pick(frames):
    picker = CropPicker()
    for number, frame in enumerate(frames):
        picker.add(frame, number, frame.differences())
    return picker


def holds(place, top, left, side=20):
    return place.top <= top and place.left <= left and top + side <= place.top + place.side_px


def test_the_crop_is_where_the_error_was_put():
    picker = pick([frame_set(), frame_set(bicubic=with_square(60, 80, 160)), frame_set()])
    number, place = picker.places[0]
    assert number == 1 and holds(place, 60, 80)
    assert (place.top % SCALE, place.left % SCALE, place.side_px) == (0, 0, 32)


def test_the_choice_favours_no_method():
    """What the network spoils counts as what bicubic misses, and exchanging the two changes no place."""
    bad_bicubic, bad_fake = with_square(4, 4, 160), with_square(70, 90, 170)
    there = pick([frame_set(bicubic=bad_bicubic, fake=bad_fake)])
    back = pick([frame_set(bicubic=bad_fake, fake=bad_bicubic)])
    assert there.places == back.places
    assert holds(there.places[0][1], 70, 90) and holds(there.places[1][1], 4, 4)


def test_crops_do_not_overlap_over_all_frames():
    rng = np.random.default_rng(0)
    frames = [frame_set(fake=rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)) for _ in range(6)]
    places = [place for _, place in pick(frames).places]
    assert len(places) == 3
    assert not any(one.overlaps(other) for one in places for other in places if one is not other)
    assert [place.error for place in places] == sorted((place.error for place in places), reverse=True)


def test_a_worse_frame_takes_the_place_of_an_earlier_one():
    picker = pick([frame_set(fake=with_square(40, 40, level)) for level in (130, 180, 150)])
    number, place = picker.places[0]
    assert number == 1 and holds(place, 40, 40)
    assert place.error == pytest.approx(80**2 * 400 / 32**2 / 2)  # the mean of two methods, one without an error


def test_places_are_the_best_of_all_positions():
    error = np.random.default_rng(1).random((48, 64)).astype(np.float32)
    (best,) = worst_places(cv2.resize(error, (16, 12), interpolation=cv2.INTER_AREA), 16, 4, 1)
    sums = {(y, x): error[y : y + 16, x : x + 16].mean() for y in range(0, 33, 4) for x in range(0, 49, 4)}
    assert (best.top, best.left) == max(sums, key=sums.get)
    assert best.error == pytest.approx(max(sums.values()), rel=1e-5)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 100), (40, 40)])
def test_small_frames_have_crops(height, width):
    frame = frame_set(height=height, width=width)
    picker = pick([frame])
    assert 0 < len(picker.places) <= 3
    assert crop_side_px(frame) % SCALE == 0
    assert picker.picture("tiny").dtype == np.uint8


def test_the_profile_is_the_row_of_every_frame():
    """Only rows 40 to 47 move; the candidate among them is 44."""
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(20):
        real = np.full((HEIGHT, WIDTH, 3), 50, np.uint8)
        real[40:48] = rng.integers(0, 256, (8, WIDTH, 3), np.uint8)
        bicubic, fake = (rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for _ in range(2))
        frames.append(frame_set(bicubic, fake, real))
    profile = TimeProfile()
    for number, frame in enumerate(frames):
        profile.add(frame, number)
    assert profile.row == 44
    found = profile.profiles()
    assert list(found) == ["bicubic", "ours", "ground truth"]
    assert np.array_equal(found["bicubic"], np.stack([frame.baseline_YXC[44] for frame in frames]))
    assert np.array_equal(found["ours"], np.stack([frame.fake_YXC[44] for frame in frames]))
    assert np.array_equal(found["ground truth"], np.stack([frame.real_YXC[44] for frame in frames]))


def test_the_profile_of_a_short_or_still_sequence_is_of_the_middle():
    profile = TimeProfile()
    profile.add(frame_set(), 7)
    assert {title: rows.shape for title, rows in profile.profiles().items()} == dict.fromkeys(
        ("bicubic", "ours", "ground truth"), (1, WIDTH, 3)
    )
    assert abs(profile.row - HEIGHT / 2) <= pictures.PROFILE_ROW_STEP_PX


def test_wide_frames_show_the_columns_that_move(monkeypatch):
    monkeypatch.setattr(pictures, "PROFILE_MAX_COLUMNS", 40)
    profile = TimeProfile()
    for number in range(17):
        real = np.full((HEIGHT, WIDTH, 3), 50, np.uint8)
        real[:, 70:100] = 10 * number
        profile.add(frame_set(real=real), number)
    assert 60 <= profile.first_column <= 70
    assert profile.profiles()["ground truth"].shape == (17, 40, 3)


def test_a_long_profile_ends(monkeypatch):
    monkeypatch.setattr(pictures, "PROFILE_MAX_FRAMES", 24)
    profile = TimeProfile()
    for number in range(40):
        profile.add(frame_set(), number)
    assert len(profile.profiles()["ours"]) == 24


def test_difference_maps_share_one_scale():
    maps = DifferenceMaps()
    frames = [
        frame_set(bicubic=with_square(8, 8, 140), fake=with_square(8, 8, 110)),
        frame_set(bicubic=with_square(8, 8, 200), fake=with_square(60, 60, 90)),
    ]
    for number, frame in enumerate(frames):
        maps.add(frame, number, frame.differences())
    assert maps.frame_number == 1
    worst, mean = maps.worst(), maps.mean()
    assert worst["bicubic"][10, 10] == pytest.approx(100) and worst["bicubic"][50, 50] == 0
    assert worst["ours"][65, 65] == pytest.approx(10) and mean["ours"][65, 65] == pytest.approx(5)
    assert mean["bicubic"][10, 10] == pytest.approx(70)
    assert maps.top() == pytest.approx(100)  # one number for both methods, of the frame with the larger error


def test_the_picture_of_the_maps_has_the_same_colour_for_the_same_difference():
    """Equal differences of both methods look alike although their largest ones differ."""
    maps = DifferenceMaps()
    frame = frame_set(bicubic=with_square(0, 0, 130, 48), fake=with_square(0, 0, 130, 48))
    frame.fake_YXC[70:90, 70:90] = 240
    maps.add(frame, 0, frame.differences())
    picture = cv2.imdecode(np.frombuffer(maps.png("x"), np.uint8), cv2.IMREAD_COLOR)
    colour = cv2.applyColorMap(np.array([[round(255 * 30 / maps.top())]], np.uint8), cv2.COLORMAP_INFERNO)[0, 0]
    like = np.abs(picture.astype(int) - colour.astype(int)).max(axis=2) <= 6
    # Truth, bicubic and the network stand side by side, before the colour bar.
    columns = np.split(like, [round(picture.shape[1] * share) for share in (0.3, 0.6, 0.92)], axis=1)
    truth, bicubic, ours = (int(part.sum()) for part in columns[:3])
    assert bicubic > 20_000 and truth < 100
    assert ours == pytest.approx(bicubic, rel=0.02)


def test_the_divider_moves_and_parts_the_picture():
    frame = frame_set(bicubic=with_square(0, 0, 100), fake=np.full((HEIGHT, WIDTH, 3), 200, np.uint8))
    assert divider_at(0, 10.0) == 0.5
    shares = [divider_at(number, 10.0) for number in range(40)]
    assert min(shares) == pytest.approx(0.05) and max(shares) == pytest.approx(0.95)
    for share in (0.05, 0.5, 0.95):
        row = wipe_picture(frame, share)[100, :, 0]
        edge = round(share * len(row))
        assert set(row[: edge - 3]) == {100} and set(row[edge + 3 :]) == {200}
        assert set(row[edge - 2 : edge + 2]) == {0, 255}


def test_without_a_network_the_truth_is_compared(tmp_path):
    low, plain = np.zeros((6, 8, 3), np.uint8), np.zeros((24, 32, 3), np.uint8)
    frame = FrameSet(low, plain, None, plain + 9)
    clear_pictures(tmp_path)
    with SequenceShow(tmp_path, "one", Fraction(25)) as show:
        show.add(frame, 0)
    assert show.picture.ndim == 3
    assert list(frame.treatments()) == ["bicubic", "ground truth"]
    assert wipe_picture(frame, 0.5)[100, -1, 0] == 9


def test_other_methods_have_their_own_names():
    plain = np.zeros((8, 8, 3), np.uint8)
    frame = FrameSet(plain, plain, plain, plain, names=("identity", "lanczos"))
    assert list(frame.treatments()) == ["identity", "lanczos", "ground truth"]
    assert list(frame.differences()) == ["identity", "lanczos"]


def frames_of(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_a_sequence_leaves_all_its_pictures(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "of_before.mp4").write_bytes(b"old")
    clear_pictures(tmp_path)
    with SequenceShow(tmp_path, "walk_s000", Fraction(10)) as show:
        for number in range(20):
            show.add(frame_set(fake=with_square(40, 40, 100 + 5 * number)), number + 5)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    pictures = {f"{folder}/walk_s000.png" for folder in FOLDERS if folder != "videos"}
    assert files == pictures | {"videos/walk_s000.mp4", "videos/walk_s000-wipe.mp4"}
    wipes = frames_of(tmp_path / "videos" / "walk_s000-wipe.mp4")
    assert len(wipes) == len(frames_of(tmp_path / "videos" / "walk_s000.mp4")) == 20
    # The divider is white on grey: its place in frames 0, 10 (a quarter of the way round) and the last.
    columns = [int(frame[-6].min(axis=1).argmax()) / frame.shape[1] for frame in wipes]
    assert columns[0] == pytest.approx(0.5, abs=0.02) and columns[10] == pytest.approx(0.95, abs=0.02)
    assert len({round(column, 2) for column in columns[:11]}) > 8
    assert all(cv2.imread(str(tmp_path / name)) is not None for name in pictures)


def test_after_an_error_nothing_is_left(tmp_path):
    clear_pictures(tmp_path)
    with pytest.raises(KeyError), SequenceShow(tmp_path, "x", Fraction(10)) as show:
        show.add(frame_set(), 0)
        raise KeyError
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("num_more", [0, 9])
def test_an_error_of_a_thread_is_raised_and_leaves_nothing(tmp_path, num_more):
    """A video cannot change its size: said at the end, or as soon as the frames behind it are not taken any more."""
    clear_pictures(tmp_path)
    with pytest.raises(ValueError, match="in a video of"), SequenceShow(tmp_path, "x", Fraction(10)) as show:
        show.add(frame_set(), 0)
        for number in range(num_more + 1):
            show.add(frame_set(height=48), number + 1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_memory_does_not_grow_with_the_frames():
    """Behind the frames that a profile holds, more frames take no more memory."""

    def peak_after(num_frames):
        gc.collect()
        tracemalloc.start()
        picker, profile, maps = CropPicker(), TimeProfile(), DifferenceMaps()
        rng = np.random.default_rng(0)
        for number in range(num_frames):
            frame = frame_set(fake=rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
            differences = frame.differences()
            picker.add(frame, number, differences)
            maps.add(frame, number, differences)
            profile.add(frame, number)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_after(2)  # what is made once
    short, long = peak_after(pictures.PROFILE_MAX_FRAMES), peak_after(3 * pictures.PROFILE_MAX_FRAMES)
    assert long < 1.05 * short


@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30000, 1001)])
@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 47)])
def test_a_written_video_can_be_read(tmp_path, fps, height, width):
    path = tmp_path / "film.mp4"
    shades = range(20, 240, 20)
    with VideoWriter(path, fps) as writer:
        for shade in shades:
            writer.write(np.full((height, width, 3), shade, np.uint8))
        assert not path.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["film.mp4"]
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == fps
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [frame.shape for frame in frames] == [(height // 2 * 2, width // 2 * 2, 3)] * len(shades)
    for frame, shade in zip(frames, shades, strict=True):
        assert abs(frame.mean() - shade) < 3


@pytest.mark.parametrize("num_frames", [0, 1, 40])
def test_an_exception_leaves_nothing(tmp_path, num_frames):
    def film():
        with VideoWriter(tmp_path / "film.mp4", Fraction(25)) as writer:
            for _ in range(num_frames):
                writer.write(np.zeros((32, 48, 3), np.uint8))
            raise KeyError("the network failed")

    with pytest.raises(KeyError, match="the network failed"):
        film()
    assert list(tmp_path.iterdir()) == []
