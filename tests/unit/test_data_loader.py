"""The stream of training batches: the same for any number of ranks, threads and micro-batches, and from any step."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from vsr_dist.core.errors import BadConfigError, BadShardError
from vsr_dist.core.world import World
from vsr_dist.data.augment import Augmentation
from vsr_dist.data.loader import DataConfig, TrainLoader, validation_batch
from vsr_dist.data.plan import Window
from vsr_dist.data.windows import ShardWindows

SEED = 11


@pytest.fixture(params=["npy", "png"])
def config(request, pack_films):
    return DataConfig(root=str(pack_films(request.param)), clip_frames=3, crop_px=10, batch_clips=8)


def stream(config, num_steps, *, first_step=0, world_size=1, accumulation_steps=1):
    """Per step: the names and both tensors of the global batch, put together from all ranks' micro-batches."""
    readers = [
        TrainLoader(config, SEED, World(rank, world_size), accumulation_steps).batches(first_step)
        for rank in range(world_size)
    ]
    for _ in range(num_steps):
        batches = [batch for reader in readers for batch in islice(reader, accumulation_steps)]
        names = [name for batch in batches for name in batch.names]
        yield names, *(torch.cat([getattr(batch, key) for batch in batches]) for key in ("low_BTCHW", "real_BTCYX"))
    for reader in readers:
        reader.close()


def assert_equal_streams(found, expected):
    for (names, low, real), (names_2, low_2, real_2) in zip(found, expected, strict=True):
        assert names == names_2
        assert torch.equal(low, low_2)
        assert torch.equal(real, real_2)


def test_batches_have_the_documented_form(config):
    (names, low_BTCHW, real_BTCYX), *_ = stream(config, 1)
    assert len(names) == 8
    assert low_BTCHW.shape == (8, 3, 3, 10, 10)
    assert real_BTCYX.shape == (8, 3, 3, 40, 40)
    assert low_BTCHW.dtype == real_BTCYX.dtype == torch.uint8


@pytest.mark.parametrize(
    ("world_size", "accumulation_steps", "threads", "ahead"),
    [(1, 1, 2, 4), (1, 4, 1, 1), (2, 1, 1, 4), (2, 2, 2, 3), (4, 1, 1, 1), (8, 1, 2, 2)],
)
def test_the_stream_is_the_same_for_any_ranks_threads_and_micro_batches(
    config, world_size, accumulation_steps, threads, ahead
):
    other = replace(config, reader_threads=threads, read_ahead_batches=ahead)
    found = stream(other, 5, world_size=world_size, accumulation_steps=accumulation_steps)
    assert_equal_streams(found, list(stream(config, 5)))


def test_a_restart_goes_on_with_the_same_batches(config):
    whole = list(stream(config, 7))
    # Five steps pass the end of the first epoch: 13 + 3 + 8 windows are three batches.
    assert_equal_streams(stream(config, 2, first_step=5, world_size=2), whole[5:])


def test_an_epoch_holds_every_window_once_and_in_order_if_wished(config):
    expected = [f"walk_s000-{start:08d}" for start in range(13)]
    expected += [f"walk_s001-{start:08d}" for start in range(3)] + [f"steps_s000-{start:08d}" for start in range(8)]
    names = [name for names, _, _ in stream(config, 6) for name in names]
    assert sorted(names[:24]) == sorted(names[24:]) == sorted(expected)
    assert names[:24] != names[24:]
    ordered = [name for names, _, _ in stream(replace(config, shuffle=False), 3) for name in names]
    assert ordered == expected


def test_a_batch_is_what_its_names_say(config):
    windows_of = ShardWindows(TrainLoader(config, SEED, World(), 1).windows_of.root, "train")
    places = {info.name: number for number, info in enumerate(windows_of.sequences)}
    names, low_BTCHW, _ = next(iter(stream(replace(config, symmetries=False), 1)))
    for name, low_TCHW in zip(names, low_BTCHW, strict=True):
        sequence, start = name.split("-")
        info = windows_of.sequences[places[sequence]]
        window = Window(places[sequence], int(start), 3)
        corners = [(top, left) for top in range(info.low_height_px - 9) for left in range(info.low_width_px - 9)]
        clips = [windows_of.read(window, Augmentation(*corner), 10)[0] for corner in corners]
        assert sum(np.array_equal(clip, low_TCHW.permute(0, 2, 3, 1)) for clip in clips) == 1


def test_other_seeds_give_other_orders_and_crops(config):
    one = TrainLoader(config, 1, World(), 1).read(0, 0)
    two = TrainLoader(config, 2, World(), 1).read(0, 0)
    assert one.names != two.names


def test_a_closed_stream_leaves_no_thread(config):
    def readers():
        return [thread for thread in threading.enumerate() if thread.name.startswith("clip-reader")]

    batches = TrainLoader(replace(config, reader_threads=2), SEED, World(), 1).batches(0)
    next(batches)
    assert readers()
    batches.close()
    assert not readers()


def test_validation_windows_are_fixed_centred_and_spread(config):
    wanted = replace(config, val_clips=4, val_crop_px=16)
    batch = validation_batch(wanted, 3)
    assert batch.names == ("walk_s002-00000000", "walk_s002-00000004", "steps_s001-00000000", "steps_s001-00000001")
    assert batch.low_BTCHW.shape == (4, 3, 3, 16, 16)
    assert batch.real_BTCYX.shape == (4, 3, 3, 64, 64)
    windows_of = ShardWindows(TrainLoader(config, 0, World(), 1).windows_of.root, "val")
    low_THWC, _ = windows_of.read(Window(0, 4, 3), Augmentation(0, 2), 16)
    np.testing.assert_array_equal(batch.low_BTCHW[1].permute(0, 2, 3, 1), low_THWC)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"crop_px": 17}, r"data.crop_px is 17, larger than .* walk_s000 \(20x16\).*steps_s000 \(18x16\).*'train'"),
        ({"clip_frames": 16}, r"data.clip_frames is 16, but the longest sequence in split 'train' .* has 15 frames"),
        ({"batch_clips": 9}, r"data.batch_clips is 9; expected a multiple of .* 2 x 2 = 4"),
    ],
)
def test_what_cannot_be_honoured_is_refused(config, change, expected):
    with pytest.raises(BadConfigError, match=expected):
        TrainLoader(replace(config, **change), SEED, World(0, 2), 2)


def test_validation_that_cannot_be_honoured_is_refused(config):
    with pytest.raises(BadConfigError, match=r"data.val_crop_px is 36, larger than .* walk_s002 \(20x16\).*'val'"):
        validation_batch(config, 3)
    with pytest.raises(BadConfigError, match=r"longest sequence in split 'val' .* has 7 frames"):
        validation_batch(replace(config, val_crop_px=16), 8)
    with pytest.raises(BadShardError, match=r"no split 'test'"):
        validation_batch(replace(config, val_split="test"), 3)


def test_numbers_below_one_are_refused_all_at_once():
    with pytest.raises(BadConfigError, match=r"data: crop_px is 0, reader_threads is -1; expected at least 1"):
        DataConfig(crop_px=0, reader_threads=-1)
