"""Tiles: equal to the whole frame, without seams, at any size, as large as memory allows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine_streams import CPU, GRU, LEARNED, PACKED, WINDOWED, difference, make, run, stream_of
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.sources import find_samples
from sharding.video import iter_frames
from vsr_dist.core.errors import UserError
from vsr_dist.inference import tiles
from vsr_dist.inference.tiles import (
    ALIGN_PX,
    Axis,
    Grid,
    Overlap,
    free_bytes,
    is_out_of_memory,
    peak_bytes_per_px,
    run_in_tiles,
)
from vsr_dist.models.recurrent import Recurrent


@pytest.fixture(scope="module")
def bikes():
    """30 frames of a moving scene, 120 x 168 px: riders that cross the seams."""
    path = next(path for path in find_samples() if path.stem == "bikes")
    frames = [frame[90:210, 200:368] for number, frame in enumerate(iter_frames(path)) if 140 <= number < 170]
    return np.ascontiguousarray(np.stack(frames))


def gradient_ratio(images, tile_px, overlap_px, scale=2):
    """The mean difference of neighbouring columns in the blends of the tiles, over that of the whole picture."""
    axis = Axis.cover(images.shape[2] // scale, tile_px, Overlap.of(overlap_px))
    steps = np.abs(np.diff(images.astype(np.float64), axis=2)).mean(axis=(0, 1, 3))
    shared = [(b, a + axis.length_px) for a, b in zip(axis.starts, axis.starts[1:], strict=False)]
    at_seams = np.concatenate([steps[first * scale : last * scale - 1] for first, last in shared])
    return at_seams.mean() / steps.mean()


@pytest.mark.parametrize(("config", "allowed"), [(GRU, 1), (LEARNED, 2), (PACKED, 2)], ids=["gru", "learned", "packed"])
def test_tiled_equals_whole_over_thirty_frames(config, allowed, bikes):
    generator = make(config)
    whole, stream = run(stream_of(generator), bikes), stream_of(generator, tile_px=72)
    tiles = run(stream, bikes)
    facts = stream.facts()
    assert facts["num_tiles"] >= 6
    assert difference(tiles, whole) <= allowed
    # No edge that the whole picture does not have at the same place.
    places = (72, facts["overlap_px"])
    assert gradient_ratio(tiles, *places) == pytest.approx(gradient_ratio(whole, *places), rel=2e-3)


def test_the_seam_test_sees_seams(bikes):
    """Without overlap, tiles of the same generator differ by far more than is allowed."""
    generator = make(GRU)
    whole, bare = run(stream_of(generator), bikes[:6]), run(stream_of(generator, tile_px=72, overlap_px=0), bikes[:6])
    assert difference(bare, whole) > 20


@pytest.mark.parametrize("kind", ["espcn", "vsrnet", "bidirectional"])
def test_windows_in_tiles_equal_whole_ones(kind, bikes):
    generator = make(WINDOWED[kind])
    whole, tiles = (run(stream_of(generator, tile_px=tile_px), bikes[:10]) for tile_px in (None, 96))
    assert difference(tiles, whole) <= 2


def test_a_fixed_size_is_tiled_with_a_blend(bikes):
    stream = stream_of(make(WINDOWED["paper"]))
    assert run(stream, bikes[:3]).shape == (3, 240, 336, 3)
    assert stream.facts()["tile_px"] == 16
    assert stream.facts()["overlap_px"] == 4


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 400), st.integers(0, 60), st.integers(16, 100), st.integers(1, 4))
def test_weights_sum_to_one_and_discard_the_context(size_px, shared_px, core_px, scale):
    overlap = Overlap.of(shared_px)
    axis = Axis.cover(size_px, shared_px + core_px, overlap)
    total, ends = torch.zeros(size_px * scale), axis.starts[-1] + axis.length_px
    assert (axis.starts[0], ends) == (0, size_px)
    for start, weight in zip(axis.starts, axis.weights(scale, overlap), strict=True):
        assert start % ALIGN_PX == 0
        assert weight.min() >= 0
        total[start * scale : start * scale + len(weight)] += weight
        if start > 0:
            assert not weight[: overlap.context_px * scale].any()
        if start + axis.length_px < size_px:
            assert not weight[len(weight) - overlap.context_px * scale :].any()
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(40, 40), (41, 90), (97, 43), (30, 200)])
def test_any_frame_is_put_together_again(height, width):
    image = torch.rand(1, 3, height, width)

    def function(low, extra):
        assert low.shape[-2:] == (min(height, grid.rows.length_px), min(width, grid.columns.length_px))
        return [low.repeat_interleave(2, -1).repeat_interleave(2, -2), low * 2, extra]

    grid = Grid(height, width, 40, Overlap(4, 8))
    fine, same, extra = run_in_tiles(grid, 2, [image, torch.arange(5)], function)
    torch.testing.assert_close(fine, image.repeat_interleave(2, -1).repeat_interleave(2, -2), atol=1e-6, rtol=0)
    torch.testing.assert_close(same, image * 2, atol=1e-6, rtol=0)
    assert torch.equal(extra, torch.arange(5))


class Hungry(Recurrent):
    """Runs out of memory above a size, as a GPU would or as a CPU would."""

    limit_px = 10**9
    error: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def step(self, low_BCHW, state, flow_B2HW=None, next_BCHW=None):
        if low_BCHW.shape[-1] * low_BCHW.shape[-2] > self.limit_px:
            raise self.error
        return super().step(low_BCHW, state, flow_B2HW)


def hungry(limit_px, error=None):
    generator = make(GRU)
    generator.__class__ = Hungry
    generator.limit_px = limit_px
    if error is not None:
        generator.error = error
    return generator


CPU_ERROR = RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried")


@pytest.mark.parametrize("error", [None, CPU_ERROR, MemoryError()], ids=["cuda", "cpu", "python"])
def test_out_of_memory_halves_the_tile_and_takes_the_same_frame_again(error, bikes):
    generator = hungry(10**9, error)
    whole, stream, images = run(stream_of(make(GRU)), bikes), stream_of(generator), []
    for number, frame in enumerate(bikes):
        if number == 10:
            generator.limit_px = 100 * 130  # somebody else takes memory while we run
        images += stream.push(frame)
    images += stream.finish()
    assert difference(np.stack(images), whole) <= 1
    assert stream.facts()["out_of_memory_retries"] == 1
    assert stream.facts()["tile_px"] == 84
    assert stream.facts()["num_tiles"] > 1


@pytest.mark.parametrize(("measurable", "side_px"), [(True, 32), (False, 168)], ids=["tiles", "not even measured"])
def test_at_the_smallest_tile_it_is_the_users_turn(measurable, side_px, bikes):
    generator = hungry(10**9)
    stream = stream_of(generator)
    if measurable:
        assert stream._runner.network.min_tile_px == 32
    generator.limit_px = 600
    words = rf"too little memory for a tile of {side_px} x {side_px} px, .*bf16, a smaller generator"
    with pytest.raises(UserError, match=words):
        stream.push(bikes[0])


def test_other_errors_are_not_taken_for_lack_of_memory(bikes):
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run(stream_of(hungry(30 * 30, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))), bikes[:1])
    assert not is_out_of_memory(ValueError("out of memory"))


def test_the_tile_follows_from_free_memory(bikes, monkeypatch):
    whole = run(stream_of(make(GRU)), bikes[:3])
    sides = []
    for megabytes in (1, 6, 1000):
        monkeypatch.setattr(tiles, "free_bytes", lambda device, room=megabytes * 1e6: room)
        stream = stream_of(make(GRU))
        assert difference(run(stream, bikes[:3]), whole) <= 1
        sides.append(stream.facts()["tile_px"])
        if megabytes == 1:
            assert sides[0] == stream.facts()["overlap_px"] + 16  # the smallest: what tiles share, and a core
    assert sides[0] < sides[1] < sides[2] == 168  # the whole frame


def test_a_resumed_stream_keeps_its_tile(bikes, monkeypatch):
    monkeypatch.setattr(tiles, "free_bytes", lambda device: 1e6)
    stream = stream_of(make(GRU))
    stream.push(bikes[0])
    state = stream.state()
    monkeypatch.undo()
    other = stream_of(make(GRU))
    other.restore(state)
    for frame in bikes[1:4]:
        assert np.array_equal(stream.push(frame), other.push(frame))
    assert other.facts()["tile_px"] == stream.facts()["tile_px"] < 168


def test_bytes_per_pixel_count_what_lives_at_the_same_time():
    def chain():
        image = torch.zeros(1, 8, 32, 32)
        for _ in range(20):
            image = image + 1  # two of them at a time
        return [image]

    need = peak_bytes_per_px(chain, 32 * 32, CPU)
    assert need.results == 8 * 4
    assert need.peak == pytest.approx(1.5 * 2 * 8 * 4)
    assert 0 < free_bytes(CPU) <= 4 * 2**30


def test_an_overlap_may_be_asked_for(bikes):
    stream = stream_of(make(GRU), tile_px=72, overlap_px=40)
    run(stream, bikes[:1])
    assert stream.facts()["overlap_px"] == 40


def test_a_video_of_another_size_gets_a_tile_of_its_own(bikes):
    """The tile that fits a small video would cut a larger one behind it for no reason."""
    stream, large = stream_of(make(GRU)), bikes[:3]
    run(stream, np.ascontiguousarray(bikes[:3, :24, :32]))
    assert stream.facts()["tile_px"] == 32
    assert np.array_equal(run(stream, large), run(stream_of(make(GRU)), large))
    assert stream.facts()["tile_px"] == 168
