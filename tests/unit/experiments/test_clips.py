"""experiments/clips.py: parts of real videos become folders and shard sets."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from benchmark_modules import import_experiment

from sharding.errors import BadInputError
from sharding.index import read_index
from sharding.sources import find_samples
from sharding.video import iter_frames


@pytest.fixture(scope="module")
def clips():
    return import_experiment("clips")


def test_parts_are_the_named_frames_and_packed_into_their_splits(clips, tmp_path):
    train = [clips.Part("car_a", "carphone_pristine", 3, 7)]
    held_out = [
        clips.Part("car_b", "carphone_pristine", 30, 33),
        clips.Part("car_half", "carphone_pristine", 5, 6, True),
    ]
    clips.pack_parts(train, held_out, tmp_path / "frames", tmp_path / "set")
    video = next(path for path in find_samples() if path.stem == "carphone_pristine")
    expected = list(islice(iter_frames(video), 34))
    found = list(iter_frames(tmp_path / "frames" / "car_a"))
    assert len(found) == train[0].num_frames
    np.testing.assert_array_equal(found, expected[3:8])
    halved = list(iter_frames(tmp_path / "frames" / "car_half"))
    means = np.stack(expected[5:7]).astype(float).reshape(2, 72, 2, 88, 2, 3).mean(axis=(2, 4))
    assert np.abs(np.asarray(halved) - means).max() <= 0.5
    np.testing.assert_array_equal(clips.central_square(expected[5], 100), expected[5][22:122, 38:138])
    assert clips.central_square(expected[5], 160).shape == (144, 160, 3)
    index = read_index(tmp_path / "set")
    split_frames = {(clip.split, clip.sequence): clip.num_frames for clip in index.clips}
    assert split_frames == {("train", "car_a_s000"): 5, ("val", "car_b_s000"): 4, ("val", "car_half_s000"): 2}


def test_a_missing_video_is_named_with_the_way_to_get_it(clips, monkeypatch, tmp_path):
    monkeypatch.setattr(clips, "OPENCV_DOC", tmp_path)
    with pytest.raises(BadInputError, match=r"vtest.*apt-get install opencv-doc"):
        clips.extract([clips.Part("street", "vtest", 0, 3)], tmp_path)


def test_a_part_beyond_the_end_of_its_video_is_an_error(clips, tmp_path):
    with pytest.raises(BadInputError, match="ends at frame 119, expected 125"):
        clips.extract([clips.Part("late", "carphone_pristine", 118, 125)], tmp_path)
