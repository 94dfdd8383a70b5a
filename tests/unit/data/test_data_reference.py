"""The training windows that the drift monitor compares held-out ones with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vsr_dist.core.errors import BadConfigError
from vsr_dist.core.world import World
from vsr_dist.data.config import DataConfig
from vsr_dist.data.loader import TrainLoader, validation_batch
from vsr_dist.data.reference import reference_batch
from vsr_dist.data.source import open_shard_set


@pytest.fixture
def config(pack_films):
    return DataConfig(root=str(pack_films("npy")), clip_frames=3, crop_px=8, val_crop_px=12, batch_clips=2, val_clips=5)


def loader_of(config, world=None):
    return TrainLoader(config, open_shard_set(config), 7, world or World(), 1)


def test_it_is_the_head_of_the_training_order_at_validations_size(config):
    loader = loader_of(config)
    batch = reference_batch(loader)
    order = [loader.reader.name(sample.window) for sample in loader.order.samples(range(100))]
    assert list(batch.names) == list(dict.fromkeys(order))[:5]
    held_out = validation_batch(config, open_shard_set(config), config.clip_frames)
    assert batch.low_BTCHW.shape == (5, 3, 3, 12, 12) == held_out.low_BTCHW.shape
    assert batch.real_BTCYX.shape == (5, 3, 3, 48, 48)
    assert not {name.split("-")[0] for name in batch.names} & {"walk_s002", "steps_s001"}
    assert batch.low_BTCHW.float().mean() > 0


def test_it_is_the_same_on_every_rank_and_time(config):
    first, again = reference_batch(loader_of(config)), reference_batch(loader_of(config))
    other = reference_batch(loader_of(config, World(1, 2)))
    for batch in (again, other):
        assert batch.names == first.names
        assert torch.equal(batch.low_BTCHW, first.low_BTCHW) and torch.equal(batch.real_BTCYX, first.real_BTCYX)


def test_no_window_comes_twice(config):
    batch = reference_batch(loader_of(replace(config, val_clips=1000)))
    assert len(set(batch.names)) == len(batch.names) == len(loader_of(config).windows)


def test_a_crop_that_no_training_frame_holds_is_refused(config):
    with pytest.raises(BadConfigError, match=r"data.val_crop_px is 64"):
        reference_batch(loader_of(replace(config, val_crop_px=64)))
