"""What every generator promises. A new one adds a row here."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from vsr_dist.core.errors import BadConfigError, BadInputError
from vsr_dist.models import (
    GENERATORS,
    RecurrentGenerator,
    build_generator,
)
from vsr_dist.models.basicvsr import BasicvsrConfig
from vsr_dist.models.compact import CompactConfig
from vsr_dist.models.espcn import EspcnConfig
from vsr_dist.models.paper_srgan import PaperSrganConfig
from vsr_dist.models.recurrent import RecurrentConfig
from vsr_dist.models.srresnet import SrresnetConfig
from vsr_dist.models.vsrnet import VsrnetConfig
from vsr_dist.ops.resample import bicubic_upsample

torch.set_num_threads(1)

# Small configurations: one row per variant that runs other code.
GENERATOR_ROWS = {
    "paper_base": PaperSrganConfig(channels=8, num_blocks=2, lstm=False),
    "paper_lstm": PaperSrganConfig(channels=4, num_blocks=1, lstm_hidden=6, input_px=8),
    "paper_printed": PaperSrganConfig(channels=4, num_blocks=1, lstm=False, alignment="as_printed"),
    "paper_corrected": PaperSrganConfig(channels=4, num_blocks=1, lstm=False, alignment="corrected"),
    "paper_gaussian": PaperSrganConfig(
        channels=4, num_blocks=1, lstm=False, alignment="corrected", smoothing="gaussian"
    ),
    "recurrent": RecurrentConfig(channels=8, num_blocks=3),
    "single_frame": RecurrentConfig(channels=8, num_blocks=1, recurrence="none"),
    "convlstm": RecurrentConfig(channels=8, num_blocks=2, recurrence="convlstm"),
    "packed": RecurrentConfig(channels=8, num_blocks=2, alignment="packed", smoothing="ema"),
    "learned": RecurrentConfig(channels=8, num_blocks=2, alignment="learned", smoothing="gaussian"),
    "rlsp": RecurrentConfig(channels=8, num_blocks=2, recurrence="rlsp", lookahead_frames=1),
    "rrn": RecurrentConfig(channels=8, num_blocks=2, recurrence="rrn"),
    "bidirectional": RecurrentConfig(channels=8, num_blocks=2, bidirectional=True),
    "bidirectional_learned": RecurrentConfig(
        channels=8, num_blocks=2, recurrence="convlstm", alignment="learned", bidirectional=True
    ),
    "espcn": EspcnConfig(channels=8, inner_channels=6),
    "vsrnet_3": VsrnetConfig(channels=8, inner_channels=6, num_frames=3),
    "vsrnet_5": VsrnetConfig(channels=8, inner_channels=6, num_frames=5),
    "srresnet": SrresnetConfig(channels=8, num_blocks=2),
    "compact": CompactConfig(channels=8, num_convs=2),
    "basicvsr": BasicvsrConfig(channels=8, num_blocks=2),
}
SCALES = {
    "paper_srgan": (1, 2, 4),
    "recurrent": (1, 2, 3, 4),
    "espcn": (1, 2, 3, 4),
    "vsrnet": (1, 2, 3, 4),
    "srresnet": (1, 2, 4, 8),
    "compact": (1, 2, 3, 4),
    "basicvsr": (1, 2, 4),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _generator(row, scale=2):
    return build_generator(GENERATOR_ROWS[row], scale)


def _side(generator):
    """A side of the input that suits the row: 8 px, or as many as the generator needs at least."""
    return generator.input_px or max(8, generator.min_px)


def _wake(model):
    """Move parameters off zero: zero-initialised projections block the gradient of what lies before them."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return model


def test_every_kind_has_a_row_and_default_configurations_name_themselves():
    assert {row.kind for row in GENERATOR_ROWS.values()} == set(GENERATORS)
    for kind, entry in GENERATORS.items():
        config = entry.config_type()
        assert config.kind == kind and dataclasses.fields(config)[0].name == "kind"
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.kind = "other"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (PaperSrganConfig(), 336_804_875),
        (PaperSrganConfig(lstm=False), 734_219),
        (RecurrentConfig(), 171_984),
        (RecurrentConfig(recurrence="convlstm"), 190_480),
        (RecurrentConfig(alignment="learned"), 171_984 + 37_806),
        (RecurrentConfig(alignment="packed", bidirectional=True), 236_720),
        (EspcnConfig(), 37_200),
        (VsrnetConfig(), 82_307),
        (SrresnetConfig(), 1_549_462),
        (CompactConfig(), 621_424),
        (BasicvsrConfig(), 6_291_311),
    ],
)
def test_number_of_parameters(config, expected):
    with torch.device("meta"):
        generator = build_generator(config, 4)
    assert sum(parameter.numel() for parameter in generator.parameters()) == expected


@pytest.mark.parametrize("row", GENERATOR_ROWS)
def test_generator_shape_and_attributes(row):
    for scale in SCALES[GENERATOR_ROWS[row].kind]:
        generator = _generator(row, scale)
        assert generator.scale == scale
        side = _side(generator)
        low = torch.rand(2, 3, 3, side, side)
        fake = generator(low)
        assert fake.shape == (2, 3, 3, side * scale, side * scale) and fake.dtype == torch.float32
        assert fake.isfinite().all()
        if generator.input_px is None:
            fake = generator(torch.rand(1, 1, 3, side + 1, side + 3))
            assert fake.shape == (1, 1, 3, (side + 1) * scale, (side + 3) * scale)


@pytest.mark.parametrize("row", GENERATOR_ROWS)
def test_generator_gradient_reaches_every_parameter(row):
    generator = _wake(_generator(row))
    generator(torch.rand(2, 3, 3, _side(generator), _side(generator))).pow(2).mean().backward()
    dead = [name for name, p in generator.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias in front of batch norm is cancelled by it, and only rounding is left.
    assert [name for name in dead if not name.endswith("bias")] == []
    assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.parameters())


@pytest.mark.parametrize("row", GENERATOR_ROWS)
def test_generator_under_bfloat16_autocast(row):
    generator = _wake(_generator(row)).eval()
    low = torch.rand(1, 3, 3, _side(generator), _side(generator))
    with torch.no_grad():
        exact = generator(low)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = generator(low)
    assert half.isfinite().all()
    torch.testing.assert_close(half.float(), exact, atol=0.05, rtol=0.05)


def image_and_gradients(network, low):
    fake = network(low)
    return fake, *torch.autograd.grad(fake.pow(2).mean(), list(network.parameters()))


@pytest.mark.parametrize("row", GENERATOR_ROWS)
def test_generator_in_channels_last(row):
    """Images and every gradient are those of the usual layout, of frames that come in either."""
    generator = _wake(_generator(row))
    low = torch.rand(2, 3, 3, _side(generator), _side(generator))

    expected = image_and_gradients(generator, low)
    generator.to(memory_format=torch.channels_last)
    for clip in (low, low.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)):
        for found, known in zip(image_and_gradients(generator, clip), expected, strict=True):
            torch.testing.assert_close(found, known, atol=2e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("row", ["paper_lstm", "espcn", "vsrnet_3", "srresnet"])
def test_generator_compiled(row):
    """Image and gradients as without compilation; OpenCV stays outside the graph."""
    generator = _wake(_generator(row))
    low = torch.rand(2, 3, 3, _side(generator), _side(generator))

    # The graphs are what these networks decide; C++ code would take most of a minute of CPU for each.
    compiled = torch.compile(generator, backend="aot_eager")
    for found, known in zip(image_and_gradients(compiled, low), image_and_gradients(generator, low), strict=True):
        torch.testing.assert_close(found, known, atol=2e-4, rtol=1e-3)
    torch.compiler.reset()


@pytest.mark.parametrize("row", GENERATOR_ROWS)
def test_generator_is_deterministic_and_survives_its_state_dict(row):
    first, second = _wake(_generator(row)).eval(), _generator(row).eval()
    low = torch.rand(1, 2, 3, _side(first), _side(first))
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        assert torch.equal(first(low), second(low))


@pytest.mark.parametrize("row", ["recurrent", "single_frame"])
def test_stepping_equals_the_whole_clip(row):
    generator = _wake(_generator(row, 4)).eval()
    assert isinstance(generator, RecurrentGenerator)
    low = torch.rand(2, 6, 3, 9, 7)
    state, frames = None, []
    with torch.no_grad():
        whole = generator(low)
        for t in range(low.shape[1]):
            frame, state = generator.step(low[:, t], state)
            frames.append(frame)
    torch.testing.assert_close(torch.stack(frames, dim=1), whole, atol=1e-5, rtol=0)
    assert (state is None) == (row == "single_frame")


def test_untrained_recurrent_generator_is_bicubic_and_its_memory_off():
    low = torch.rand(1, 3, 3, 8, 8)
    for scale in SCALES["recurrent"]:
        generator = build_generator(RecurrentConfig(channels=8), scale)
        torch.testing.assert_close(generator(low), bicubic_upsample(low, scale), atol=0, rtol=0)
    nn.init.normal_(generator.tail[0].weight)
    alone = generator(low[:, 2:])
    torch.testing.assert_close(generator(low)[:, 2:], alone, atol=1e-5, rtol=0)


def test_woken_memory_carries_the_past_and_only_the_past():
    generator = _wake(_generator("recurrent")).eval()
    low = torch.rand(1, 4, 3, 8, 8)
    changed = low.clone()
    changed[:, 1] = 1.0 - changed[:, 1]
    difference = (generator(low) - generator(changed)).abs().amax(dim=(0, 2, 3, 4))
    assert difference[0] < 1e-6
    assert (difference[1:] > 1e-4).all()


def test_single_frame_generators_see_one_frame():
    for row in ("single_frame", "paper_base"):
        generator, low = _wake(_generator(row)).eval(), torch.rand(1, 3, 3, 8, 8)
        torch.testing.assert_close(generator(low)[:, 2:], generator(low[:, 2:]), atol=1e-5, rtol=0)


def test_paper_lstm_carries_the_past():
    generator = _generator("paper_lstm").eval()
    low = torch.rand(1, 3, 3, 8, 8)
    assert (generator(low)[:, 2] - generator(low[:, 2:])[:, 0]).abs().max() > 1e-6


def test_paper_output_range_and_alignment():
    low = (torch.rand(1, 3, 3, 24, 24) * 255).round() / 255
    base = build_generator(PaperSrganConfig(channels=4, num_blocks=1, lstm=False), 2).eval()
    fakes = [base(low)]
    for alignment in ("as_printed", "corrected"):
        aligned = build_generator(PaperSrganConfig(channels=4, num_blocks=1, lstm=False, alignment=alignment), 2)
        aligned.load_state_dict(base.state_dict())
        fakes.append(aligned.eval()(low))
    assert all(((fake > 0) & (fake < 1)).all() for fake in fakes)
    for fake in fakes[1:]:
        torch.testing.assert_close(fake[:, 0], fakes[0][:, 0])
        assert (fake[:, 1:] - fakes[0][:, 1:]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: build_generator(PaperSrganConfig(), 3), BadConfigError, "1, 2, 4"),
        (lambda: build_generator(RecurrentConfig(), 8), BadConfigError, "found 8"),
        (lambda: RecurrentConfig(channels=0), BadConfigError, "channels 0"),
        (lambda: _generator("paper_lstm")(torch.rand(1, 2, 3, 9, 8)), BadInputError, "8 x 8.*9 x 8"),
        (lambda: _generator("recurrent")(torch.rand(2, 3, 9, 8)), BadInputError, "batch, time"),
    ],
)
def test_mistakes_are_answered(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_unknown_kind_names_the_nearest():
    @dataclasses.dataclass(frozen=True)
    class Odd:
        kind: str = "recurent"

    with pytest.raises(BadConfigError, match="did you mean 'recurrent'"):
        build_generator(Odd(), 4)
