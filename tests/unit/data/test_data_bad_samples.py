"""A damaged clip met in training: the run stops and names it, or another window takes its place on every rank."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import islice

import pytest
import torch

from sharding.index import read_index
from vsr_dist.core.collectives import World
from vsr_dist.core.errors import BadShardError
from vsr_dist.data.config import DataConfig
from vsr_dist.data.loader import TrainLoader
from vsr_dist.data.shards import open_shard_set

NUM_STEPS = 6
BATCH_CLIPS = 8
BAD_CLIP = "walk_s000-00000004"  # frames 4 to 7 of a sequence of 15


def damage(root, keys):
    """Flip one byte in the middle of the first high-resolution member of some clips."""
    for clip in read_index(root).clips:
        if clip.key in keys:
            member = clip.members["hr"][0]
            with (root / clip.shard).open("r+b") as file:
                file.seek(member.offset + member.num_bytes // 2)
                value = file.read(1)[0]
                file.seek(-1, 1)
                file.write(bytes([value ^ 1]))


@pytest.fixture
def root(pack_films, tmp_path):
    copy = shutil.copytree(pack_films("npy"), tmp_path / "set")
    damage(copy, {BAD_CLIP})
    return copy


@pytest.fixture
def config(root):
    return DataConfig(root=str(root), clip_frames=3, crop_px=10, batch_clips=BATCH_CLIPS, on_bad_sample="replace")


def read_steps(config, world_size=1, accumulation_steps=1, num_steps=NUM_STEPS):
    """Per step the names and pictures of the global batch; and the replaced windows of all ranks."""
    loaders = [
        TrainLoader(config, open_shard_set(config), 3, World(rank, world_size), accumulation_steps)
        for rank in range(world_size)
    ]
    streams = [loader.batches(0) for loader in loaders]
    steps = []
    for _ in range(num_steps):
        parts = [
            (batch.names, batch.real_BTCYX.clone())
            for batches in streams
            for batch in islice(batches, accumulation_steps)
        ]
        steps.append(([name for names, _ in parts for name in names], torch.cat([real for _, real in parts])))
    for batches in streams:
        batches.close()
    return steps, sum(loader.num_replaced for loader in loaders)


def touches_the_bad_clip(name):
    sequence, start = name.split("-")
    return sequence == "walk_s000" and 4 - 2 <= int(start) <= 7


def test_the_default_stops_with_shard_and_clip_named(config):
    with pytest.raises(BadShardError, match=rf"clip {BAD_CLIP} in .*train-000000.tar: the bytes of {BAD_CLIP}.hr.npy"):
        read_steps(replace(config, on_bad_sample="error"))


def test_the_others_stay_and_the_damaged_are_replaced(config, pack_films):
    found, num_replaced = read_steps(config)
    whole, _ = read_steps(replace(config, root=str(pack_films("npy"))))
    expected_replaced = 0
    for (names, real), (names_2, real_2) in zip(found, whole, strict=True):
        for place, (name, wanted) in enumerate(zip(names, names_2, strict=True)):
            assert not touches_the_bad_clip(name)
            if touches_the_bad_clip(wanted):
                expected_replaced += 1
            else:
                assert name == wanted
                assert torch.equal(real[place], real_2[place])
    assert num_replaced == expected_replaced == 12  # two epochs of six windows


@pytest.mark.parametrize(("world_size", "accumulation_steps", "threads"), [(2, 1, 1), (4, 2, 1), (1, 2, 3)])
def test_replacement_is_the_same_on_every_rank(config, world_size, accumulation_steps, threads):
    found, num_replaced = read_steps(replace(config, reader_threads=threads), world_size, accumulation_steps)
    expected, expected_replaced = read_steps(config)
    assert [names for names, _ in found] == [names for names, _ in expected]
    assert all(torch.equal(one, two) for (_, one), (_, two) in zip(found, expected, strict=True))
    assert num_replaced == expected_replaced


def test_more_than_the_limit_is_an_error(config):
    assert read_steps(replace(config, max_bad_samples=12))[1] == 12
    with pytest.raises(BadShardError, match=r"windows of .* replaced, more than data.max_bad_samples 3"):
        read_steps(replace(config, max_bad_samples=3))


def test_a_set_without_a_whole_window_ends_with_an_error(config, root):
    damage(root, {clip.key for clip in read_index(root).clips} - {BAD_CLIP})
    with pytest.raises(BadShardError, match=r"window \w+-\d+ and its 19 replacements are all damaged"):
        read_steps(config, num_steps=1)
