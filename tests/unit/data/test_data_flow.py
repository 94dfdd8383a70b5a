"""Flow turns with the picture: whatever the symmetry, warping a frame by it gives the neighbouring frame."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice, product

import cv2
import numpy as np
import pytest
import torch

from sharding.flow import UNITS_PER_PX
from sharding.pack import PackJob, pack
from sharding.plan import PackOptions
from vsr_dist.core.collectives import World
from vsr_dist.data.config import DataConfig
from vsr_dist.data.loader import TrainLoader
from vsr_dist.data.order import Window
from vsr_dist.data.shards import open_shard_set
from vsr_dist.data.windows import Augmentation, ClipArrays, copy_flow
from vsr_dist.ops.color import from_uint8
from vsr_dist.ops.warp import backward_warp

SYMMETRIES = [Augmentation(3, 6, *flags) for flags in product([False, True], repeat=4)]
NUM_FRAMES = 10
CROP_PX = 40
STEP_YX = (4, 12)  # high-resolution pixels per frame: 1 down and 3 to the right in low resolution


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Ten frames of 200 x 256 px that look through a moving window at one texture, clips of 6 frames, with flow."""
    folder = tmp_path_factory.mktemp("flow")
    noise = np.random.default_rng(5).normal(size=(300, 400, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 9)
    texture = np.interp(smooth, (smooth.min(), smooth.max()), (0, 255)).round().astype(np.uint8)
    (folder / "pan").mkdir()
    for number in range(NUM_FRAMES):
        top, left = STEP_YX[0] * number, STEP_YX[1] * number
        frame = texture[top : top + 200, left : left + 256]
        cv2.imwrite(str(folder / "pan" / f"{number}.png"), frame[:, :, ::-1])
    pack(PackJob(folder / "set", (folder / "pan",), options=PackOptions(clip_frames=6, flow="dis")))
    return folder / "set"


@pytest.fixture
def config(root):
    return DataConfig(root=str(root), clip_frames=4, crop_px=CROP_PX, batch_clips=2, flow=True)


def open_loader(config, world=World()):  # noqa: B008 - a frozen value
    return TrainLoader(config, open_shard_set(config), 2, world, 1)


def warp_errors(low_TCHW, flow_TKCHW):
    """Mean absolute differences (8-bit steps) inside the crop: neighbours warped by the flow, and not warped."""
    frames = from_uint8(low_TCHW) * 255
    flow = flow_TKCHW.float() / UNITS_PER_PX
    inside = (..., slice(6, -6), slice(6, -6))
    warped, still = [], []
    for target, source, direction in ((frames[:-1], frames[1:], 0), (frames[1:], frames[:-1], 1)):
        warped.append((backward_warp(source, flow[:, direction]) - target)[inside].abs().mean())
        still.append((source - target)[inside].abs().mean())
    return max(warped), min(still)


@pytest.mark.parametrize("choice", SYMMETRIES, ids=str)
def test_the_turned_flow_warps_the_turned_picture(config, choice):
    loader = open_loader(config)
    out = ClipArrays(
        np.zeros((4, CROP_PX, CROP_PX, 3), np.uint8),
        np.zeros((4, 4 * CROP_PX, 4 * CROP_PX, 3), np.uint8),
        np.zeros((3, 2, CROP_PX, CROP_PX, 2), np.int16),
    )
    loader.windows_of.read(Window(0, 1, 4), choice, out)
    low_TCHW = torch.from_numpy(out.low_THWC).permute(0, 3, 1, 2)
    flow_TKCHW = torch.from_numpy(out.flow_TKHW2).permute(0, 1, 4, 2, 3)
    warped, still = warp_errors(low_TCHW, flow_TKCHW)
    assert warped < 1.5
    assert still > 10 * warped


def test_symmetries_of_flow_by_hand():
    """One vector, (dx, dy) = (3, 1) forward and (-2, 5) backward, at row 0, column 1 of a 2 x 2 crop."""
    flow = np.zeros((2, 2, 2, 2, 2), np.int16)
    flow[0, 0, 0, 1], flow[0, 1, 0, 1] = (3, 1), (-2, 5)
    out = np.zeros_like(flow)
    copy_flow(flow, Augmentation(0, 0, flip_rows=True), out)
    assert out[0, 0, 1, 1].tolist() == [3, -1]
    copy_flow(flow, Augmentation(0, 0, flip_columns=True), out)
    assert out[0, 0, 0, 0].tolist() == [-3, 1]
    copy_flow(flow, Augmentation(0, 0, transpose=True), out)
    assert out[0, 0, 1, 0].tolist() == [1, 3]
    copy_flow(flow, Augmentation(0, 0, reverse_time=True), out)
    assert out[1, 1, 0, 1].tolist() == [3, 1]
    assert out[1, 0, 0, 1].tolist() == [-2, 5]
    flow[:] = -32768
    copy_flow(flow, Augmentation(0, 0, flip_rows=True), out)
    assert (out[..., 1] == 32767).all()


def test_batches_carry_the_flow_of_their_frames(config):
    batch = next(open_loader(config).batches(0))
    assert batch.flow_BTKCHW.shape == (2, 3, 2, 2, CROP_PX, CROP_PX)
    assert batch.flow_BTKCHW.dtype == torch.int16
    for low_TCHW, flow_TKCHW in zip(batch.low_BTCHW, batch.flow_BTKCHW, strict=True):
        warped, still = warp_errors(low_TCHW, flow_TKCHW)
        assert still > 10 * warped


def test_windows_across_clip_borders_are_left_out_and_counted(config):
    loader = open_loader(config)
    # Ten frames have seven windows of four; clips of six and four frames hold three and one of them.
    assert [window.start for window in loader.windows] == [0, 1, 2, 6]
    assert loader.num_windows_left_out == 3
    names = [name for batch in islice(loader.batches(0), 2) for name in batch.names]
    assert sorted(names) == [f"pan_s000-{start:08d}" for start in (0, 1, 2, 6)]
    without = open_loader(replace(config, flow=False))
    assert (len(without.windows), without.num_windows_left_out) == (7, 0)
    assert next(without.batches(0)).flow_BTKCHW is None


def test_a_walk_with_flow_starts_anew_in_every_clip(config):
    loader = open_loader(replace(config, order="ordered", clip_frames=2, batch_clips=1))
    samples = loader.order.samples(range(5))
    starts = {sample.window.start for sample in samples if sample.starts}
    assert starts == {0, 6}


def test_windows_longer_than_every_clip_are_refused(config):
    with pytest.raises(Exception, match=r"a window must be inside one packed clip, and the longest .* has 6 frames"):
        open_loader(replace(config, clip_frames=7))
