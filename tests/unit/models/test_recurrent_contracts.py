"""What the recurrent generator promises in every configuration: streams, starts as bicubic, knows its past only."""

from __future__ import annotations

import itertools

import pytest
import torch
from engine_streams import make as make_active

from vsr_dist.core.errors import BadConfigError, BadInputError
from vsr_dist.models import RecurrentGenerator, build_generator
from vsr_dist.models.recurrent import FORWARD, RecurrentConfig
from vsr_dist.ops.flow import estimate_flow
from vsr_dist.ops.resample import bicubic_upsample

torch.set_num_threads(1)

CELLS = ("convgru", "convlstm", "rlsp", "rrn")
LOOKAHEAD = {"recurrence": "rlsp", "lookahead_frames": 1}
ALIGNMENTS = [("none", "none"), *itertools.product(("packed", "learned"), ("none", "ema", "gaussian"))]
VARIANTS = [(cell, *alignment) for cell in CELLS for alignment in ALIGNMENTS]


def make(recurrence="convgru", alignment="none", smoothing="none", scale=2, **fields):
    config = RecurrentConfig(
        channels=8, num_blocks=2, recurrence=recurrence, alignment=alignment, smoothing=smoothing, **fields
    )
    return make_active(config, scale)


def moving_clip(num_frames=6, height=26, width=30, num_clips=2):
    """Smooth texture that moves by (2, 1) px per frame: something for a flow method to find."""
    noise = torch.randn(num_clips, 3, 80, 80, generator=torch.Generator().manual_seed(3))
    smooth = torch.nn.functional.avg_pool2d(noise, 7, stride=1) * 2.5 + 0.5
    views = [smooth[:, :, t : t + height, 2 * t : 2 * t + width] for t in range(num_frames)]
    return torch.stack(views, dim=1).clamp(0, 1)


def steps(generator, low_BTCHW, back_BT2HW=None):
    state, frames, shapes = None, [], []
    num_frames = low_BTCHW.shape[1]
    for t in range(num_frames):
        flow = None if back_BT2HW is None or t == 0 else back_BT2HW[:, t - 1]
        following = low_BTCHW[:, t + 1] if generator.lookahead_frames and t + 1 < num_frames else None
        frame, state = generator.step(low_BTCHW[:, t], state, flow, following)
        frames.append(frame)
        shapes.append([(tuple(tensor.shape), tensor.dtype) for tensor in state or ()])
    assert all(shape == shapes[0] for shape in shapes), "a state whose shape changes cannot be exported"
    return torch.stack(frames, dim=1)


@pytest.mark.parametrize(("recurrence", "alignment", "smoothing"), VARIANTS)
def test_stepping_equals_the_whole_clip(recurrence, alignment, smoothing):
    generator, low = make(recurrence, alignment, smoothing), moving_clip()
    assert isinstance(generator, RecurrentGenerator)
    torch.testing.assert_close(steps(generator, low), generator(low), atol=1e-5, rtol=0)


@pytest.mark.parametrize("alignment", ["none", "packed", "learned"])
def test_with_lookahead_stepping_equals_the_whole_clip_and_one_later_frame_matters(alignment):
    generator, low = make(alignment=alignment, **LOOKAHEAD), moving_clip()
    assert generator.lookahead_frames == 1 and not generator.carries_state
    torch.testing.assert_close(steps(generator, low), generator(low), atol=1e-5, rtol=0)
    changed = low.clone()
    changed[:, 3] = 1.0 - changed[:, 3]
    difference = (generator(low) - generator(changed)).abs().amax(dim=(0, 2, 3, 4))
    assert difference[:2].max() == 0.0
    assert (difference[2:] > 1e-4).all()


@pytest.mark.parametrize("recurrence", ["rlsp", "rrn"])
def test_a_clip_in_two_parts_with_the_state_carried_equals_the_whole(recurrence):
    generator, low = make(recurrence), moving_clip()
    assert generator.carries_state
    first, state = generator(low[:, :2], return_state=True)
    second, state = generator(low[:, 2:], state=state, return_state=True)
    torch.testing.assert_close(torch.cat((first, second), dim=1), generator(low), atol=1e-6, rtol=0)
    assert len(state) == len(generator.state_names)


@pytest.mark.parametrize("fields", [{"recurrence": "rlsp"}, {"recurrence": "rrn"}, LOOKAHEAD], ids=str)
def test_blocks_in_the_loop_are_their_formula(fields):
    """f = body(relu(conv([frames, h, o]))), image = bicubic + shuffle(tail(f))."""
    generator, low = make(**fields), moving_clip()
    weight = torch.cat((generator.head.weight, generator.recur.weight), dim=1)
    bias = generator.head.bias + generator.recur.bias
    num_clips, num_frames, _, height, width = low.shape
    hidden, folded = torch.zeros(num_clips, 8, height, width), torch.zeros(num_clips, 12, height, width)
    expected, before = [], torch.zeros_like(low[:, 0])
    for t in range(num_frames):
        frames = [before, low[:, t]] + ([low[:, min(t + 1, num_frames - 1)]] if "lookahead_frames" in fields else [])
        seen = torch.cat((*frames, hidden, folded), dim=1)
        features = generator.body(torch.relu(torch.nn.functional.conv2d(seen, weight, bias, padding=1)))
        residual = generator.tail(features)
        image = bicubic_upsample(low[:, t], 2) + torch.pixel_shuffle(residual, 2)
        if fields["recurrence"] == "rrn":
            hidden, folded = torch.relu(generator.to_state(features)), residual
        else:
            hidden, folded = features, torch.pixel_unshuffle(image, 2)
        before = low[:, t]
        expected.append(image)
    torch.testing.assert_close(generator(low), torch.stack(expected, dim=1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("recurrence", "alignment", "smoothing"), VARIANTS)
def test_only_the_past_matters(recurrence, alignment, smoothing):
    generator, low = make(recurrence, alignment, smoothing), moving_clip()
    changed = low.clone()
    changed[:, 3] = 1.0 - changed[:, 3]
    difference = (generator(low) - generator(changed)).abs().amax(dim=(0, 2, 3, 4))
    assert difference[:3].max() == 0.0
    assert (difference[3:] > 1e-4).all()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"recurrence": "convlstm"},
        LOOKAHEAD,
        {"recurrence": "rrn"},
        {"alignment": "packed"},
        {"alignment": "learned", "smoothing": "gaussian"},
        {"bidirectional": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_the_untrained_generator_is_bicubic(fields, scale):
    torch.manual_seed(0)
    generator, low = build_generator(RecurrentConfig(channels=8, **fields), scale), moving_clip(2)
    torch.testing.assert_close(generator(low), bicubic_upsample(low, scale), atol=0, rtol=0)


@pytest.mark.parametrize("method", ["dis", "farneback"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_given_flow_is_what_would_be_estimated(method, bidirectional):
    generator = make(alignment="packed", smoothing="ema", flow_method=method, bidirectional=bidirectional)
    low = moving_clip()
    ahead, behind = low[:, 1:].flatten(0, 1), low[:, :-1].flatten(0, 1)
    flows = [estimate_flow(behind, ahead, method), estimate_flow(ahead, behind, method)]
    flow_BTKCHW = torch.stack([flow.unflatten(0, (2, -1)) for flow in flows], dim=2)
    expected = generator(low)
    torch.testing.assert_close(generator(low, flow_BTKCHW), expected, atol=1e-6, rtol=0)
    assert (generator(low, torch.zeros_like(flow_BTKCHW)) - expected).abs().max() > 1e-4
    if not bidirectional:
        torch.testing.assert_close(steps(generator, low, flow_BTKCHW[:, :, 1]), expected, atol=1e-5, rtol=0)
        other = flow_BTKCHW.clone()
        other[:, :, FORWARD] = 7.0
        torch.testing.assert_close(generator(low, other), expected, atol=1e-6, rtol=0)


def test_who_uses_flow_and_who_streams():
    assert make(alignment="packed").uses_flow and make(alignment="packed", flow_method="farneback").uses_flow
    assert make(alignment="packed", flow_method="farneback").flow_method == "farneback"
    low, flow = moving_clip(3), torch.full((2, 2, 2, 2, 26, 30), 3.0)
    for generator in (make(), make(alignment="learned"), make(bidirectional=True)):
        assert not generator.uses_flow
        assert torch.equal(generator(low, flow), generator(low))
    assert not isinstance(make(bidirectional=True), RecurrentGenerator)
    assert not hasattr(make(bidirectional=True), "step")


@pytest.mark.parametrize("fields", [{}, {"alignment": "packed"}, {"alignment": "learned", "smoothing": "ema"}], ids=str)
def test_both_directions_of_time_are_seen(fields):
    generator, low = make(bidirectional=True, **fields), moving_clip()
    changed = low.clone()
    changed[:, 3] = 1.0 - changed[:, 3]
    difference = (generator(low) - generator(changed)).abs().amax(dim=(0, 2, 3, 4))
    assert (difference > 1e-5).all()


def test_two_directions_are_symmetric_in_time():
    """With the same weights in both cells a clip played backwards gives the result played backwards."""
    generator, low = make(alignment="packed", smoothing="gaussian", bidirectional=True), moving_clip()
    generator.memory_back.load_state_dict(generator.memory.state_dict())
    torch.testing.assert_close(generator(low.flip(1)), generator(low).flip(1), atol=1e-5, rtol=0)


def test_the_right_flow_brings_the_state_along():
    """A state that only copies the features of the frame before: aligned, it lies on those of the current frame."""
    low = moving_clip(2)
    inside = (..., slice(6, -6), slice(6, -6))
    errors = {}
    for alignment in ("none", "packed"):
        generator = make(alignment=alignment)
        with torch.no_grad():
            features = generator.before(generator.head(low.flatten(0, 1))).unflatten(0, (2, 2))
            flows = [None]
            if generator.aligner is not None:
                _, carried = generator.aligner(low[:, :1], None, None)
                flows, _ = generator.aligner(low[:, 1:], carried, None)
            kept = {}

            def keep(gates, state, kept=kept):
                kept["state"] = state[0]
                return state

            generator.memory._update = keep
            generator.memory(features[:, 1], 1, (features[:, 0],), flows)
        errors[alignment] = (kept["state"] - features[:, 1])[inside].pow(2).mean()
    assert errors["packed"] < 0.1 * errors["none"]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: RecurrentConfig(recurrence="none", alignment="packed"), BadConfigError, "need a recurrence"),
        (lambda: RecurrentConfig(recurrence="none", bidirectional=True), BadConfigError, "need a recurrence"),
        (lambda: RecurrentConfig(smoothing="ema"), BadConfigError, "needs an alignment"),
        (lambda: make(alignment="packed")(torch.rand(1, 2, 3, 23, 40)), BadInputError, "at least 24 px.*23 x 40"),
        (
            lambda: make(alignment="packed")(moving_clip(3), torch.zeros(2, 3, 2, 2, 26, 30)),
            BadInputError,
            r"\(2, 2, 2, 26, 30\).*found \(2, 3, 2, 26, 30\)",
        ),
    ],
)
def test_mistakes_are_answered(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("variant", [("convgru", "learned", "gaussian"), ("convlstm", "packed", "ema")], ids=str)
def test_channels_last_changes_nothing(variant):
    generator, low = make(*variant), moving_clip()
    expected = generator(low)
    found = generator.to(memory_format=torch.channels_last)(low)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS[:7:2], ids=str)
def test_bfloat16_steps_equal_the_bfloat16_clip(variant):
    generator, low = make(*variant), moving_clip()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stepped, whole = steps(generator, low), generator(low)
    torch.testing.assert_close(stepped.float(), whole.float(), atol=0.02, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "backend"),
    [
        ({"recurrence": "convlstm", "alignment": "learned", "smoothing": "gaussian"}, "aot_eager_decomp_partition"),
        # OpenCV stays outside the graph.
        ({"alignment": "packed", "smoothing": "ema", "bidirectional": True}, "inductor"),
    ],
    ids=str,
)
def test_compiled_equals_eager(fields, backend):
    """Machine code for one, which takes most of a minute; for the other the graph that it would be made of."""
    generator, low = make(**fields), moving_clip(3, num_clips=1)
    compiled = torch.compile(generator, backend=backend)
    torch.testing.assert_close(compiled(low), generator(low), atol=1e-5, rtol=1e-5)
    torch.compiler.reset()


def gradients_of(generator, forward, low):
    generator.zero_grad()
    forward(low).square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in generator.named_parameters()}


@pytest.mark.parametrize(
    ("recurrence", "alignment", "smoothing"), [("none", "none", "none"), *VARIANTS[:1], *VARIANTS[2::6]]
)
def test_checkpointed_activations_change_no_gradient(recurrence, alignment, smoothing):
    generator, low = make(recurrence, alignment, smoothing).requires_grad_(), moving_clip(5)
    whole = gradients_of(generator, generator, low)
    plain = gradients_of(generator, lambda clip: steps(generator, clip), low)
    generator.checkpoint_activations = True
    kept = gradients_of(generator, generator, low)
    for name, gradient in kept.items():
        assert torch.equal(gradient, plain[name]), f"{name} differs from the same steps without checkpoints"
        torch.testing.assert_close(gradient, whole[name], atol=1e-6, rtol=1e-3, msg=name)
    with torch.no_grad():
        assert not generator.is_checkpointing


def test_checkpointed_activations_take_less_memory():
    """Bytes that autograd keeps for the backward pass of a deeper network."""
    generator = make_active(RecurrentConfig(channels=16, num_blocks=12, recurrence="rlsp"), 2).requires_grad_()

    def kept_bytes(num_frames):
        storages = {}

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            fake = generator(torch.rand(1, num_frames, 3, 32, 32))
        del fake
        return sum(storages.values())

    before = kept_bytes(7)
    generator.checkpoint_activations = True
    assert kept_bytes(30) < 1.3 * before
