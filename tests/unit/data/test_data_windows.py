"""What is read from shards against the films that were packed into them."""

from __future__ import annotations

import shutil
from itertools import product

import numpy as np
import pytest

from sharding.degrade import bicubic_downscale
from sharding.index import read_index
from vsr_dist.core.errors import BadShardError
from vsr_dist.data.config import DataConfig
from vsr_dist.data.order import Window, WindowTable
from vsr_dist.data.shards import BadSampleError, OpenShard, open_shard_set
from vsr_dist.data.stream import SplitStream
from vsr_dist.data.windows import (
    Augmentation,
    ClipArrays,
    FrameCache,
    ShardWindows,
    center_crop,
    copy_frames,
    draw_augmentation,
)

SCALE = 4
CROP_PX = 12
# Sequence -> (film, first frame, frames), as the fixture `pack_films` documents it.
TRAIN = {"walk_s000": ("walk", 0, 15), "walk_s001": ("walk", 15, 5), "steps_s000": ("steps", 0, 10)}
VAL = {"walk_s002": ("walk", 20, 7), "steps_s001": ("steps", 10, 4)}
SYMMETRIES = [Augmentation(2, 3, *flags) for flags in product([False, True], repeat=4)]


@pytest.fixture(scope="module")
def truth(films):
    """Sequence -> (low_THWC, real_TYXC) made from the films without shards."""
    found = {}
    for name, (film, first, num_frames) in {**TRAIN, **VAL}.items():
        frames = films[film][first : first + num_frames]
        height, width = (size // SCALE * SCALE for size in frames.shape[1:3])
        real_TYXC = np.ascontiguousarray(frames[:, :height, :width])
        found[name] = (np.stack([bicubic_downscale(frame, SCALE) for frame in real_TYXC]), real_TYXC)
    return found


def open_windows(root, split="train", **options):
    return ShardWindows(open_shard_set(DataConfig(root=str(root))), split, **options)


def read(windows_of, window, choice, crop_px=CROP_PX):
    """(low_THWC, real_TYXC) in arrays of their own."""
    sides = (crop_px, crop_px * windows_of.scale)
    out = ClipArrays(*(np.zeros((window.num_frames, side, side, 3), dtype=np.uint8) for side in sides))
    windows_of.read(window, choice, out)
    return out.low_THWC, out.real_TYXC


def flip_byte(root, key, field, place=0.5):
    """Damage one member of a clip without a change of any size."""
    (clip,) = [clip for clip in read_index(root).clips if clip.key == key]
    member = clip.members[field][0]
    with (root / clip.shard).open("r+b") as file:
        file.seek(member.offset + int(member.num_bytes * place))
        value = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([value ^ 1]))
    return member.name


@pytest.mark.parametrize(("split", "expected"), [("train", TRAIN), ("val", VAL)])
def test_a_split_holds_the_sequences_in_order(pack_films, split, expected):
    windows_of = open_windows(pack_films("npy"), split)
    assert [sequence.name for sequence in windows_of.sequences] == list(expected)
    assert windows_of.sequence_num_frames == [num_frames for _, _, num_frames in expected.values()]
    sizes = {(s.low_height_px, s.low_width_px) for s in windows_of.sequences if s.name.startswith("walk")}
    assert sizes == {(16, 20)}


@pytest.mark.parametrize("codec", ["npy", "png", "webp"])
@pytest.mark.parametrize("num_frames", [1, 3, 7])
def test_every_window_equals_the_source_frames_across_clip_borders(pack_films, truth, codec, num_frames):
    windows_of = open_windows(pack_films(codec))
    windows = WindowTable(windows_of.runs(), num_frames)
    assert len(windows) == sum(max(0, n - num_frames + 1) for _, _, n in TRAIN.values())
    for number, window in enumerate(windows):
        low_THWC, real_TYXC = truth[windows_of.sequences[window.sequence].name]
        choice = Augmentation(number % 5, number % 7)
        low, real = read(windows_of, window, choice)
        frames = slice(window.start, window.start + num_frames)
        top, left = choice.top_px, choice.left_px
        np.testing.assert_array_equal(low, low_THWC[frames, top : top + CROP_PX, left : left + CROP_PX])
        rows, columns = (slice(SCALE * first, SCALE * (first + CROP_PX)) for first in (top, left))
        np.testing.assert_array_equal(real, real_TYXC[frames, rows, columns])


def test_what_is_read_stays_when_the_next_window_is_read(pack_films):
    windows_of = open_windows(pack_films("npy"))
    first = read(windows_of, Window(0, 2, 3), SYMMETRIES[0])
    kept = [part.copy() for part in first]
    read(windows_of, Window(1, 0, 3), SYMMETRIES[0])
    for part, expected in zip(first, kept, strict=True):
        np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize("choice", SYMMETRIES, ids=str)
def test_symmetries_keep_low_and_real_registered(pack_films, choice):
    """Reducing the augmented truth gives the augmented input, but for the border that the kernel reaches over."""
    low_THWC, real_TYXC = read(open_windows(pack_films("npy")), Window(0, 1, 6), choice)
    reduced_THWC = np.stack([bicubic_downscale(frame, SCALE) for frame in real_TYXC])
    inside = (slice(None), slice(2, -2), slice(2, -2))
    difference = reduced_THWC[inside].astype(int) - low_THWC[inside]
    assert np.abs(difference).max() <= 1
    # The pattern is strong enough for any other symmetry to be noticed.
    for view in (low_THWC[::-1], low_THWC[:, ::-1], low_THWC[:, :, ::-1], low_THWC.transpose(0, 2, 1, 3)):
        assert np.abs(reduced_THWC[inside].astype(int) - view[inside]).max() > 10


def turned(frames, choice):
    """The symmetries in their documented order, as plain views."""
    for wanted, turn in (
        (choice.flip_rows, lambda view: view[:, ::-1]),
        (choice.flip_columns, lambda view: view[:, :, ::-1]),
        (choice.transpose, lambda view: view.swapaxes(1, 2)),
        (choice.reverse_time, lambda view: view[::-1]),
    ):
        frames = turn(frames) if wanted else frames
    return frames


@pytest.mark.parametrize("codec", ["npy", "png"])
def test_symmetries_are_sixteen_different_views(pack_films, codec):
    """Of a window over three clips, so that the pieces are put together in the right order when time runs back."""
    windows_of = open_windows(pack_films(codec))
    window = Window(0, 2, 8)
    plain = read(windows_of, window, Augmentation(2, 3))
    found = {choice: read(windows_of, window, choice) for choice in SYMMETRIES}
    assert len({real.tobytes() for _, real in found.values()}) == 16
    for choice, parts in found.items():
        for part, expected in zip(parts, plain, strict=True):
            np.testing.assert_array_equal(part, turned(expected, choice))


@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_copies_of_any_size_equal_the_views(size):
    image = np.random.default_rng(0).integers(0, 256, (2, 70, 80, 3), dtype=np.uint8)
    image.flags.writeable = False
    for choice in SYMMETRIES:
        target = np.zeros((2, size, size, 3), dtype=np.uint8)
        source = image[:, 3 : 3 + size, 7 : 7 + size]
        copy_frames(source, choice, target)
        still = Augmentation(0, 0, choice.flip_rows, choice.flip_columns, choice.transpose)
        np.testing.assert_array_equal(target, turned(source, still))


def test_draws_cover_every_place_and_symmetry_evenly():
    choices = [draw_augmentation(seed, 14, 15, CROP_PX, symmetries=True) for seed in range(3000)]
    assert {choice.top_px for choice in choices} == {0, 1, 2}
    assert {choice.left_px for choice in choices} == {0, 1, 2, 3}
    for name in ("flip_rows", "flip_columns", "transpose", "reverse_time"):
        share = np.mean([getattr(choice, name) for choice in choices])
        assert 0.46 < share < 0.54
    assert draw_augmentation(5, 14, 15, CROP_PX, symmetries=True) == choices[5]
    plain = draw_augmentation(5, 14, 15, CROP_PX, symmetries=False)
    assert plain == Augmentation(choices[5].top_px, choices[5].left_px)
    forward = draw_augmentation(5, 14, 15, CROP_PX, symmetries=True, time_reversal=False)
    assert forward == choices[5]._replace(reverse_time=False)
    assert center_crop(16, 21, CROP_PX) == Augmentation(2, 4)


@pytest.mark.parametrize("codec", ["npy", "png"])
@pytest.mark.parametrize("field", ["hr", "lr"])
def test_a_flipped_byte_is_found_at_first_use_and_names_the_clip(pack_films, tmp_path, codec, field):
    root = shutil.copytree(pack_films(codec), tmp_path / "set")
    member = flip_byte(root, "walk_s000-00000004", field)
    windows_of = open_windows(root)
    read(windows_of, Window(0, 0, 4), SYMMETRIES[0])
    for _ in range(2):  # a second try must not be taken for a checked one
        with pytest.raises(BadSampleError, match=r"clip walk_s000-00000004 in .*train-000000.tar") as caught:
            read(windows_of, Window(0, 2, 4), SYMMETRIES[0])
        assert member in str(caught.value)
    with pytest.raises(BadShardError, match="clip walk_s000-00000004"):
        list(SplitStream(root, "train"))


@pytest.mark.parametrize(("check_hashes", "expected"), [(True, 4), (False, 0)])
def test_bytes_are_hashed_once_or_never(pack_films, monkeypatch, check_hashes, expected):
    hashed = []
    real = OpenShard.hexdigest
    monkeypatch.setattr(OpenShard, "hexdigest", lambda shard, member: hashed.append(member) or real(shard, member))
    windows_of = open_windows(pack_films("npy"), check_hashes=check_hashes)
    for start in (0, 1, 0):
        read(windows_of, Window(0, start, 6), SYMMETRIES[0])
    assert len(hashed) == expected  # two clips, two fields each


def test_a_damaged_picture_is_found_without_hashes_if_it_cannot_be_decoded(pack_films, tmp_path):
    root = shutil.copytree(pack_films("png"), tmp_path / "set")
    member = flip_byte(root, "walk_s000-00000004", "hr", place=0)
    with pytest.raises(BadSampleError, match=f"clip walk_s000-00000004 in .*{member}"):
        read(open_windows(root, check_hashes=False), Window(0, 2, 4), SYMMETRIES[0])


@pytest.mark.parametrize(("cache_frames", "num_decoded"), [(0, 12), (2, 12), (16, 8)])
def test_only_the_frames_of_a_window_are_decoded_and_the_last_used_kept(
    pack_films, monkeypatch, cache_frames, num_decoded
):
    """Windows of frames 1-3 and 2-4, low and high: 12 decodes without a cache, 8 with one that holds them."""
    decoded = []
    real = OpenShard.payload
    monkeypatch.setattr(OpenShard, "payload", lambda shard, member: decoded.append(member.name) or real(shard, member))
    windows_of = open_windows(pack_films("png"), frame_cache_bytes=cache_frames * 64 * 80 * 3)
    for start in (1, 2):
        read(windows_of, Window(0, start, 3), SYMMETRIES[0])
    assert len(decoded) == num_decoded
    assert {name.partition(".")[0] for name in decoded} == {"walk_s000-00000000", "walk_s000-00000004"}
    assert not [name for name in decoded if "0.hr.000" in name]


def test_frames_are_thrown_away_least_recently_used_first():
    cache = FrameCache(3 * 12)
    frames = {name: np.full((2, 2, 3), number, dtype=np.uint8) for number, name in enumerate("abcd")}
    for name in "abc":
        cache.put(name, frames[name])
    assert cache.get("a") is frames["a"]
    cache.put("d", frames["d"])
    cache.put("big", np.zeros((5, 5, 3), dtype=np.uint8))
    assert [name for name in ("a", "b", "c", "d", "big") if cache.get(name) is not None] == ["a", "c", "d"]


@pytest.mark.parametrize("reader", [open_windows, SplitStream])
def test_an_unknown_split_is_answered_with_the_known_ones(pack_films, reader):
    with pytest.raises(BadShardError, match=r"no split 'test'; expected one of: train, val"):
        reader(pack_films("npy"), "test")


@pytest.mark.parametrize("codec", ["npy", "webp"])
@pytest.mark.parametrize(("split", "expected"), [("train", TRAIN), ("val", VAL)])
def test_the_stream_gives_every_frame_in_order(pack_films, truth, codec, split, expected):
    stream = SplitStream(pack_films(codec), split)
    windows_of = open_windows(pack_films(codec), split)
    clips = list(stream)
    assert list(dict.fromkeys(clip.sequence for clip in clips)) == list(expected)
    for number, (name, (film, first, num_frames)) in enumerate(expected.items()):
        mine = [clip for clip in clips if clip.sequence == name]
        assert {clip.source for clip in mine} == {film}
        assert [clip.first_frame for clip in mine] == list(range(first, first + num_frames, 4))
        low_THWC = np.concatenate([clip.low_THWC for clip in mine])
        real_TYXC = np.concatenate([clip.real_TYXC for clip in mine])
        np.testing.assert_array_equal(low_THWC, truth[name][0])
        np.testing.assert_array_equal(real_TYXC, truth[name][1])
        low, real = read(windows_of, Window(number, 0, num_frames), Augmentation(0, 0))
        np.testing.assert_array_equal(low, low_THWC[:, :CROP_PX, :CROP_PX])
        np.testing.assert_array_equal(real, real_TYXC[:, : SCALE * CROP_PX, : SCALE * CROP_PX])
    assert stream.fps("walk") == 25


@pytest.mark.parametrize(
    ("clip_number", "field", "expected"),
    [
        (None, "", r"train-000000.tar is not a complete tar"),
        (0, "lr", r"train-000000.tar: clip walk_s000-00000000 has no lr.npy"),
        (1, "hr", r"3 clips of the index are not in the shards, first walk_s000-00000004"),
    ],
)
def test_a_damaged_tar_header_ends_the_stream_with_an_error(pack_films, tmp_path, clip_number, field, expected):
    root = shutil.copytree(pack_films("npy"), tmp_path / "set")
    place = 0 if clip_number is None else read_index(root).clips[clip_number].members[field][0].offset - 512
    with (root / "train-000000.tar").open("r+b") as file:
        file.seek(place)
        file.write(b"\xff" * 100)
    with pytest.raises(BadShardError, match=expected):
        list(SplitStream(root, "train"))
