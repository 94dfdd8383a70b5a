"""The stream of training batches: the same for any number of ranks, threads and micro-batches, and from any step."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vsr_dist.core.collectives import World
from vsr_dist.core.errors import BadConfigError, BadShardError
from vsr_dist.data.config import DataConfig
from vsr_dist.data.loader import TrainLoader, reference_batch, validation_batch
from vsr_dist.data.order import Window
from vsr_dist.data.shards import OpenShard, open_shard_set
from vsr_dist.data.windows import Augmentation, ClipArrays, ShardWindows

SEED = 11
ORDERS = ("shuffle", "block", "ordered")


@pytest.fixture(params=["npy", "png"])
def config(request, pack_films):
    return DataConfig(root=str(pack_films(request.param)), clip_frames=3, crop_px=10, batch_clips=8, block_shards=1)


def open_loader(config, seed=SEED, world=World(), accumulation_steps=1):  # noqa: B008 - a frozen value
    return TrainLoader(config, open_shard_set(config), seed, world, accumulation_steps)


def stream(config, num_steps, *, first_step=0, world_size=1, accumulation_steps=1):
    """Per step: names, both tensors and the starts of the global batch, put together from all micro-batches."""
    readers = [
        open_loader(config, SEED, World(rank, world_size), accumulation_steps).batches(first_step)
        for rank in range(world_size)
    ]
    for _ in range(num_steps):
        names, parts = [], []
        for reader in readers:
            for batch in islice(reader, accumulation_steps):
                names += batch.names
                # A batch is valid until the next is asked for, so it is copied.
                parts.append([batch.low_BTCHW.clone(), batch.real_BTCYX.clone(), batch.starts_B])
        yield names, *(torch.cat(tensors) for tensors in zip(*parts, strict=True))
    for reader in readers:
        reader.close()


def assert_equal_streams(found, expected):
    for (names, *tensors), (names_2, *tensors_2) in zip(found, expected, strict=True):
        assert names == names_2
        assert all(torch.equal(one, two) for one, two in zip(tensors, tensors_2, strict=True))


def test_batches_have_the_documented_form(config):
    (names, low_BTCHW, real_BTCYX, starts_B), *_ = stream(config, 1)
    assert len(names) == 8
    assert low_BTCHW.shape == (8, 3, 3, 10, 10)
    assert real_BTCYX.shape == (8, 3, 3, 40, 40)
    assert low_BTCHW.dtype == real_BTCYX.dtype == torch.uint8
    assert starts_B.tolist() == [True] * 8


@pytest.mark.parametrize("order", ORDERS)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    plan=st.sampled_from([(1, 1), (1, 4), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1)]),
    threads=st.integers(1, 3),
    ahead=st.integers(1, 5),
    clip_frames=st.integers(1, 5),
    crop_px=st.integers(4, 16),
    first_step=st.integers(0, 50),
)
def test_the_stream_is_the_same_for_any_ranks_threads_and_micro_batches(
    pack_films, order, plan, threads, ahead, clip_frames, crop_px, first_step
):
    one = DataConfig(root=str(pack_films("npy")), order=order, clip_frames=clip_frames, crop_px=crop_px, block_shards=1)
    if order == "ordered":
        one = replace(one, clip_frames=min(clip_frames, 3))
    many = replace(one, reader_threads=threads, read_ahead_batches=ahead)
    found = stream(many, 3, first_step=first_step, world_size=plan[0], accumulation_steps=plan[1])
    assert_equal_streams(found, list(stream(one, 3, first_step=first_step)))


def test_codecs_give_the_same_batches(pack_films):
    streams = [
        list(stream(DataConfig(root=str(pack_films(codec)), clip_frames=3, crop_px=10), 4))
        for codec in ("npy", "png", "webp")
    ]
    assert_equal_streams(streams[1], streams[0])
    assert_equal_streams(streams[2], streams[0])


@pytest.mark.parametrize("order", ORDERS)
def test_a_restart_goes_on_with_the_same_batches(config, order):
    config = replace(config, order=order)
    whole = list(stream(config, 7))
    # Five steps pass the end of the first epoch: 13 + 3 + 8 windows are three batches.
    assert_equal_streams(stream(config, 2, first_step=5, world_size=2), whole[5:])


@pytest.mark.parametrize("order", ORDERS)
def test_a_restart_reads_nothing_of_what_came_before(config, order, monkeypatch):
    """No byte of a shard before the first batch is asked for, and then only the windows of the steps read ahead."""
    config = replace(config, order=order, read_ahead_batches=2)
    touched, windows = [], []
    for name in ("payload", "array", "hexdigest"):
        real = getattr(OpenShard, name)
        monkeypatch.setattr(OpenShard, name, lambda shard, m, real=real: touched.append(m.name) or real(shard, m))
    real_read = ShardWindows.read
    monkeypatch.setattr(ShardWindows, "read", lambda *a: windows.append(a[1]) or real_read(*a))
    loader = open_loader(config)
    batches = loader.batches(1000)
    assert not touched
    next(batches)
    batches.close()
    planned = [sample.window for sample in loader.order.samples(range(8000, 8024))]
    assert all(window in planned for window in windows)
    assert len(windows) <= 24


@pytest.mark.parametrize("order", ["shuffle", "block"])
def test_an_epoch_holds_every_window_once(config, order):
    expected = [f"walk_s000-{start:08d}" for start in range(13)]
    expected += [f"walk_s001-{start:08d}" for start in range(3)] + [f"steps_s000-{start:08d}" for start in range(8)]
    names = [name for names, *_ in stream(replace(config, order=order), 6) for name in names]
    assert sorted(names[:24]) == sorted(names[24:]) == sorted(expected)
    assert names[:24] != names[24:]


def test_an_ordered_stream_can_carry_a_state(config):
    """Lane by lane the frames go on where they stopped, in one crop, the same way round, until a start is flagged."""
    config = replace(config, order="ordered", clip_frames=2, batch_clips=2)
    steps = list(stream(config, 12))
    num_joins = 0
    for before, after in pairwise(steps):
        for lane in range(2):
            sequence, start = before[0][lane].split("-")
            if after[3][lane]:
                continue
            assert after[0][lane] == f"{sequence}-{int(start) + 2:08d}"
            # The films move by one pixel per frame: across the join the picture moves as it does inside a clip.
            clip = torch.cat([before[2][lane], after[2][lane]]).int()
            changes = [(clip[t + 1] - clip[t]).abs().float().mean() for t in range(3)]
            assert changes[1] < 1.5 * max(changes[0], changes[2])
            num_joins += 1
    assert num_joins > 12
    assert steps[0][3].all()


def frames_of(name, num_frames):
    """(sequence, first frame, frame after the last one) of a window."""
    sequence, start = name.rsplit("-", 1)
    return sequence, int(start), int(start) + num_frames


@pytest.mark.parametrize("first_step", [0, 3, 4, 5])
@pytest.mark.parametrize(("world_size", "accumulation_steps"), [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1)])
def test_a_start_is_flagged_where_a_lane_begins_a_sequence_and_nowhere_else(
    pack_films, world_size, accumulation_steps, first_step
):
    """Lane b is place b of the global batch. With seven windows per lane, sequences and epochs end inside the test."""
    config = DataConfig(root=str(pack_films("npy")), order="ordered", clip_frames=1, crop_px=10, batch_clips=4)
    lane_windows = open_loader(config).order.lane_windows
    assert lane_windows == 7  # 15 + 5 + 10 frames on four lanes
    num_steps = 2 * lane_windows + 2
    plan = {"world_size": world_size, "accumulation_steps": accumulation_steps}
    before = [None] * 4
    if first_step:
        # What one process delivered before the stop; the run resumes with another number of processes.
        before = list(stream(config, first_step))[-1][0]
    num_starts = 0
    for step, (names, _, _, starts_B) in enumerate(
        stream(config, num_steps - first_step, first_step=first_step, **plan), first_step
    ):
        for lane, (name, previous) in enumerate(zip(names, before, strict=True)):
            sequence, start, _ = frames_of(name, 1)
            continues = previous is not None and frames_of(previous, 1)[::2] == (sequence, start)
            assert bool(starts_B[lane]) == (step % lane_windows == 0 or not continues)
            num_starts += int(starts_B[lane])
        before = names
    assert 4 * (num_steps - first_step) > num_starts >= 4  # neither everywhere nor nowhere


def test_a_batch_is_what_its_names_say(config):
    windows_of = open_loader(config).windows_of
    places = {info.name: number for number, info in enumerate(windows_of.sequences)}
    names, low_BTCHW, *_ = next(iter(stream(replace(config, symmetries=False), 1)))
    out = ClipArrays(np.zeros((3, 10, 10, 3), np.uint8), np.zeros((3, 40, 40, 3), np.uint8))
    for name, low_TCHW in zip(names, low_BTCHW, strict=True):
        sequence, start = name.split("-")
        info = windows_of.sequences[places[sequence]]
        found = 0
        for top in range(info.low_height_px - 9):
            for left in range(info.low_width_px - 9):
                windows_of.read(Window(places[sequence], int(start), 3), Augmentation(top, left), out)
                found += np.array_equal(out.low_THWC, low_TCHW.permute(0, 2, 3, 1))
        assert found == 1


def test_other_seeds_give_other_orders_and_crops(config):
    assert next(open_loader(config, 1).batches(0)).names != next(open_loader(config, 2).batches(0)).names


def test_a_batch_is_left_alone_until_the_next_is_asked_for(config):
    """All other slots are filled while the consumer looks at one, and the memory of a batch is used again later."""
    loader = open_loader(replace(config, read_ahead_batches=2, reader_threads=2))
    batches = loader.batches(0)
    places = []
    for _ in range(7):
        batch = next(batches)
        kept = batch.real_BTCYX.clone()
        threading.Event().wait(0.02)
        assert torch.equal(batch.real_BTCYX, kept)
        places.append(batch.real_BTCYX.data_ptr())
    assert len(set(places)) == 3
    batches.close()


def test_a_closed_stream_leaves_no_thread(config):
    def readers():
        return [t for t in threading.enumerate() if t.name.startswith(("clip-reader", "shard-fetcher"))]

    batches = open_loader(replace(config, reader_threads=2)).batches(0)
    next(batches)
    assert readers()
    batches.close()
    assert not readers()


def test_validation_windows_are_fixed_centred_and_spread(config):
    wanted = replace(config, val_clips=4, val_crop_px=16)
    shards = open_shard_set(config)
    batch = validation_batch(wanted, shards, 3)
    assert batch.names == ("walk_s002-00000000", "walk_s002-00000004", "steps_s001-00000000", "steps_s001-00000001")
    assert batch.low_BTCHW.shape == (4, 3, 3, 16, 16)
    assert batch.real_BTCYX.shape == (4, 3, 3, 64, 64)
    out = ClipArrays(np.zeros((3, 16, 16, 3), np.uint8), np.zeros((3, 64, 64, 3), np.uint8))
    ShardWindows(shards, "val").read(Window(0, 4, 3), Augmentation(0, 2), out)
    np.testing.assert_array_equal(batch.low_BTCHW[1].permute(0, 2, 3, 1), out.low_THWC)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"crop_px": 17}, r"data.crop_px is 17, larger than .* walk_s000 \(20x16\).*steps_s000 \(18x16\).*'train'"),
        ({"clip_frames": 16}, r"data.clip_frames is 16, but the longest sequence in split 'train' .* has 15 frames"),
        ({"batch_clips": 9}, r"data.batch_clips is 9; expected a multiple of .* 2 x 2 = 4"),
        ({"flow": True}, r"data.flow is true, but .* was packed without flow; pack it with --flow dis"),
        (
            {"order": "ordered", "batch_clips": 12},
            r"data.batch_clips is 12, but .* has only 9 consecutive windows",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused(config, change, expected):
    with pytest.raises(BadConfigError, match=expected):
        open_loader(replace(config, **change), SEED, World(0, 2), 2)


def test_validation_that_cannot_be_honoured_is_refused(config):
    shards = open_shard_set(config)
    with pytest.raises(BadConfigError, match=r"data.val_crop_px is 36, larger than .* walk_s002 \(20x16\).*'val'"):
        validation_batch(config, shards, 3)
    with pytest.raises(BadConfigError, match=r"longest sequence in split 'val' .* has 7 frames"):
        validation_batch(replace(config, val_crop_px=16), shards, 8)
    with pytest.raises(BadShardError, match=r"no split 'test'"):
        validation_batch(replace(config, val_split="test"), shards, 3)


def test_settings_that_make_no_sense_are_refused_all_at_once():
    with pytest.raises(BadConfigError) as caught:
        DataConfig(crop_px=0, reader_threads=-1, max_bad_samples=-1, cache_gb=0, flow=True, clip_frames=1)
    assert str(caught.value) == (
        "data: crop_px is 0, expected at least 1; max_bad_samples is -1, expected at least 0; reader_threads is -1, "
        "expected at least 1; cache_gb is 0, expected more than 0; flow needs clip_frames of at least 2"
    )
    with pytest.raises(BadConfigError, match=r"on_bad_sample=replace breaks the sequential order of order=ordered"):
        DataConfig(order="ordered", on_bad_sample="replace")
    DataConfig(max_bad_samples=0, frame_cache_mb=0)


@pytest.fixture
def reference_config(pack_films):
    return DataConfig(root=str(pack_films("npy")), clip_frames=3, crop_px=8, val_crop_px=12, batch_clips=2, val_clips=5)


def test_the_reference_is_the_head_of_the_training_order_at_validations_size(reference_config):
    loader = open_loader(reference_config)
    batch = reference_batch(loader)
    order = [loader.reader.name(sample.window) for sample in loader.order.samples(range(100))]
    assert list(batch.names) == list(dict.fromkeys(order))[:5]
    held_out = validation_batch(reference_config, open_shard_set(reference_config), reference_config.clip_frames)
    assert batch.low_BTCHW.shape == (5, 3, 3, 12, 12) == held_out.low_BTCHW.shape
    assert batch.real_BTCYX.shape == (5, 3, 3, 48, 48)
    assert not {name.split("-")[0] for name in batch.names} & {"walk_s002", "steps_s001"}
    assert batch.low_BTCHW.float().mean() > 0


def test_the_reference_is_the_same_on_every_rank_and_time(reference_config):
    first, again = reference_batch(open_loader(reference_config)), reference_batch(open_loader(reference_config))
    other = reference_batch(open_loader(reference_config, world=World(1, 2)))
    for batch in (again, other):
        assert batch.names == first.names
        assert torch.equal(batch.low_BTCHW, first.low_BTCHW) and torch.equal(batch.real_BTCYX, first.real_BTCYX)


def test_no_window_of_the_reference_comes_twice(reference_config):
    batch = reference_batch(open_loader(replace(reference_config, val_clips=1000)))
    assert len(set(batch.names)) == len(batch.names) == len(open_loader(reference_config).windows)


def test_a_crop_that_no_training_frame_holds_is_refused(reference_config):
    with pytest.raises(BadConfigError, match=r"data.val_crop_px is 64"):
        reference_batch(open_loader(replace(reference_config, val_crop_px=64)))
