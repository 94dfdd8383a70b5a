"""A generator as a stream: one image for each frame, reset at cuts, resumed bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine_streams import ALL, CPU, GRU, PACKED, STEPWISE, WINDOWED, difference, make, run, stream_of
from safetensors.torch import load, save

from vsr_dist.core.errors import BadConfigError, BadInputError
from vsr_dist.inference.engine import CONTEXT_FRAMES, StreamOptions
from vsr_dist.models.base import RecurrentGenerator
from vsr_dist.models.recurrent import RecurrentConfig
from vsr_dist.ops.color import from_uint8, to_uint8


@pytest.fixture(scope="module")
def walk(films):
    """25 x 30 px, 27 frames, a cut at 15."""
    return np.ascontiguousarray(films["walk"][:, :25, :30])


def shot_by_shot(generator, frames, cuts):
    """The network applied to each whole shot, without the engine: step by step, or in one call if it has no step."""
    images = []
    generator.to(memory_format=torch.channels_last)  # As the engine does: another layout rounds differently.
    for shot in np.split(frames, cuts):
        low_TCHW, state = from_uint8(torch.from_numpy(shot.copy())).permute(0, 3, 1, 2), None
        if isinstance(generator, RecurrentGenerator):
            for low_CHW, next_CHW in zip(low_TCHW, [*low_TCHW[1:], low_TCHW[-1]], strict=True):
                fake_BCYX, state = generator.step(low_CHW[None], state, next_BCHW=next_CHW[None])
                images.append(fake_BCYX)
        else:
            images.append(generator(low_TCHW[None])[0])
    return to_uint8(torch.cat(images)).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("kind", STEPWISE)
def test_the_state_is_carried_and_dropped_at_cuts(kind, walk):
    generator, stream = make(STEPWISE[kind]), stream_of(make(STEPWISE[kind]))
    found = run(stream, walk)
    assert stream.num_cuts == stream.facts()["scene_cuts"] == 1
    assert difference(found, shot_by_shot(generator, walk, [15])) == 0
    carried = run(stream_of(make(STEPWISE[kind]), cuts=False), walk)
    assert difference(carried, shot_by_shot(generator, walk, [])) == 0
    assert (difference(carried, found) > 0) == (kind != "stateless")


@pytest.mark.parametrize("kind", WINDOWED)
@pytest.mark.parametrize("num_frames", [1, 2, 11, 18])
def test_there_is_one_image_for_each_frame(kind, num_frames, walk):
    stream = stream_of(make(WINDOWED[kind]), chunk_frames=3)
    for _ in range(2):  # another video may follow
        found = run(stream, walk[:num_frames])
        assert found.shape == (num_frames, 50, 60, 3)
        assert found.std() > 0


@pytest.mark.parametrize("kind", ["espcn", "vsrnet"])
@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_windows_give_the_images_of_whole_shots(kind, chunk, walk):
    generator = make(WINDOWED[kind])
    found = run(stream_of(generator, chunk_frames=chunk), walk)
    assert difference(found, shot_by_shot(generator, walk, [15])) <= 1


def test_windows_of_a_recurrence_have_all_the_context_that_shows(walk):
    generator = make(WINDOWED["bidirectional"])
    stream = stream_of(generator, chunk_frames=4)
    assert stream.facts()["past_frames"] > 0
    assert stream.facts()["future_frames"] > 0
    assert difference(run(stream, walk), shot_by_shot(generator, walk, [15])) <= 1


@pytest.mark.parametrize("kind", ALL)
def test_a_restored_stream_goes_on_bit_for_bit(kind, walk):
    generator = make(ALL[kind])
    stream, other = (stream_of(generator, chunk_frames=3) for _ in range(2))
    expected = run(stream, walk)
    # Before anything, mid-shot, with frames waiting for the answer whether they are a cut, and just behind the cut.
    for place in (0, 9, 16, 25):
        stream.num_cuts = 0
        images = [image for frame in walk[:place] for image in stream.push(frame)]
        state = load(save(stream.state()))
        for frame in walk[place:]:
            stream.push(frame)  # what happens later does not touch the state
        stream.finish()
        other.restore(state)
        rest = [image for frame in walk[place:] for image in other.push(frame)] + other.finish()
        assert np.array_equal(np.stack(images + rest), expected), place
        assert other.num_cuts == 1


def test_frames_that_wait_are_part_of_the_state(walk):
    stream = stream_of(make(GRU))
    num_out = sum(len(stream.push(frame)) for frame in walk[:17])
    assert num_out == 15
    assert stream.state()["waiting"].shape == (2, 25, 30, 3)
    assert len(stream.finish()) == 2


def test_the_callers_buffer_may_be_used_again(walk):
    for kind in ("gru", "bidirectional"):
        expected = run(stream_of(make(ALL[kind])), walk)
        stream, buffer, images = stream_of(make(ALL[kind])), np.empty_like(walk[0]), []
        for frame in walk:
            buffer[:] = frame
            images += stream.push(buffer)
        buffer[:] = 0
        assert np.array_equal(np.stack(images + stream.finish()), expected)


@pytest.mark.parametrize("kind", ["gru", "bidirectional"])
def test_sixteen_bits_in_and_out(kind, walk):
    generator = make(ALL[kind])
    eight, sixteen = (run(stream_of(generator), walk.astype(np.uint8 if f == 1 else np.uint16) * f) for f in (1, 257))
    assert sixteen.dtype == np.uint16
    assert np.abs(sixteen / 257.0 - eight).max() <= 0.51
    assert (sixteen % 257 != 0).mean() > 0.5, "no finer than eight bits"


@pytest.mark.parametrize("kind", ["gru", "packed", "paper", "vsrnet"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 40), (33, 7)])
def test_any_size_down_to_one_pixel(kind, height, width):
    frames = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), np.uint8)
    assert run(stream_of(make(ALL[kind])), frames).shape == (3, 2 * height, 2 * width, 3)


def test_read_only_and_flipped_frames_are_taken(walk):
    flipped = walk[:, ::-1]
    expected = run(stream_of(make(GRU)), np.ascontiguousarray(flipped))
    flipped.flags.writeable = False
    assert np.array_equal(run(stream_of(make(GRU)), flipped), expected)


def test_bfloat16_differs_by_little(walk):
    exact, rough = (run(stream_of(make(GRU), precision=precision), walk) for precision in ("fp32", "bf16"))
    assert 0 < difference(rough, exact) <= 12
    assert abs(rough.mean() - exact.mean()) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("features", "expected"), [({"avx512_bf16": True}, "bf16"), ({"avx2": True}, "fp32")])
def test_auto_takes_the_precision_that_the_processor_computes_in(features, expected, walk, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    facts = stream_of(make(GRU), precision="auto").facts()
    assert facts["precision"] == expected
    assert (
        facts["precision_reason"]
        == {
            "bf16": "the processor computes in bf16",
            "fp32": "the processor has no bf16 arithmetic",
        }[expected]
    )
    assert "precision_reason" not in stream_of(make(GRU)).facts()


def test_compiled_differs_by_rounding_only(walk):
    generator = make(RecurrentConfig(channels=4, num_blocks=1))
    found = run(stream_of(generator, compile=True), walk[:20])
    assert difference(found, run(stream_of(generator), walk[:20])) <= 1


def test_warming_up_hides_where_a_part_begins(films):
    frames = np.ascontiguousarray(films["steps"][:, :30, :30]).repeat(4, axis=0)[:50]
    stream = stream_of(make(GRU))
    expected = run(stream, frames)
    first = 30
    part = run(stream_of(make(GRU)), frames[first - stream.warm_up_frames :])[stream.warm_up_frames :]
    assert difference(part, expected[first:]) <= 1
    assert stream.warm_up_frames >= CONTEXT_FRAMES


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 5), np.uint8),
        np.zeros((4, 5, 4), np.uint8),
        np.zeros((4, 5, 3), np.float32),
        np.zeros((0, 5, 3), np.uint8),
        [[[1, 2, 3]]],
    ],
    ids=["grey", "rgba", "float", "empty", "list"],
)
def test_what_is_no_frame_is_refused(bad):
    with pytest.raises(BadInputError, match="expected"):
        stream_of(make(GRU)).push(bad)


@pytest.mark.parametrize("other", [np.zeros((25, 31, 3), np.uint8), np.zeros((25, 30, 3), np.uint16)])
def test_a_video_has_one_size_and_depth(walk, other):
    stream = stream_of(make(GRU))
    stream.push(walk[0])
    with pytest.raises(BadInputError, match=r"a frame of uint\d+ .* in a video of uint8 \(25, 30, 3\)"):
        stream.push(other)
    restored = stream_of(make(GRU))
    restored.restore(stream.state())
    with pytest.raises(BadInputError, match="in a video of"):
        restored.push(other)


def test_a_state_of_something_else_is_refused():
    with pytest.raises(
        BadInputError,
        match=r"expected the state of a stream, found tensors without cuts\.scores, cuts\.steps, num_cuts",
    ):
        stream_of(make(GRU)).restore({"weights": torch.zeros(3)})


@pytest.mark.parametrize(
    "fault", [{"tile_px": 0}, {"overlap_px": -1}, {"precision": "fp16"}, {"chunk_frames": 0}], ids=str
)
def test_options_that_cannot_be_are_refused(fault):
    with pytest.raises(BadConfigError, match="upscaling: expected"):
        StreamOptions(**fault)


def test_the_generator_is_made_ready():
    generator = make(PACKED).train()
    stream_of(generator)
    assert not generator.training
    assert torch.device(stream_of(generator).facts()["device"]) == CPU
