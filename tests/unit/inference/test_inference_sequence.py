"""Whole sequences through a generator, piece by piece and tile by tile; the generator's files; encoded video."""

from __future__ import annotations

import json
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vsr_dist.core.errors import BadCheckpointError, UserError
from vsr_dist.inference.encode import VideoWriter
from vsr_dist.inference.generator_io import load_generator, save_generator
from vsr_dist.inference.sequence import BicubicUpscaler, GeneratorUpscaler, upscale_in_tiles
from vsr_dist.models import build_generator
from vsr_dist.models.paper_srgan import PaperSrganConfig
from vsr_dist.models.recurrent import RecurrentConfig

RECURRENT = RecurrentConfig(channels=6, num_blocks=2)
CONVOLUTIONAL = PaperSrganConfig(channels=4, num_blocks=1, lstm=False)
FIXED_SIZE = PaperSrganConfig(channels=4, num_blocks=1, lstm_hidden=8, input_px=8)
ALIGNED = [
    RecurrentConfig(channels=6, num_blocks=2, recurrence="convlstm", alignment="learned", smoothing="gaussian"),
    RecurrentConfig(channels=6, num_blocks=2, alignment="packed", smoothing="ema"),
]
BIDIRECTIONAL = RecurrentConfig(channels=6, num_blocks=2, alignment="learned", bidirectional=True)
CUTS = [[9], [1] * 9, [4, 5], [8, 1], [2, 3, 4]]


def make(config, scale=4):
    """A generator in eval mode with no weight at zero: fresh ones would be plain bicubic."""
    torch.manual_seed(0)
    generator = build_generator(config, scale)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return generator.eval().requires_grad_(False)


def clip(num_frames=9, height=10, width=13):
    return torch.rand(num_frames, 3, height, width, generator=torch.Generator().manual_seed(1))


def in_pieces(upscaler, low_TCHW, cut):
    return torch.cat([upscaler.upscale(piece) for piece in low_TCHW.split(cut)])


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_a_recurrent_generator_gives_the_whole_clip_however_it_is_cut(cut):
    generator, low_TCHW = make(RECURRENT), clip()
    whole_TCYX = generator(low_TCHW[None])[0].clamp(0, 1)
    pieces_TCYX = in_pieces(GeneratorUpscaler(generator), low_TCHW, cut)
    torch.testing.assert_close(pieces_TCYX, whole_TCYX, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", ALIGNED, ids=lambda config: config.alignment)
@pytest.mark.parametrize("cut", CUTS[1:3], ids=str)
def test_alignment_crosses_the_cuts(config, cut):
    generator, low_TCHW = make(config), clip(9, 26, 25)
    whole_TCYX = generator(low_TCHW[None])[0].clamp(0, 1)
    pieces_TCYX = in_pieces(GeneratorUpscaler(generator), low_TCHW, cut)
    torch.testing.assert_close(pieces_TCYX, whole_TCYX, rtol=0, atol=1e-5)


def test_a_bidirectional_generator_runs_on_each_piece_by_itself():
    generator, low_TCHW = make(BIDIRECTIONAL), clip()
    upscaler = GeneratorUpscaler(generator)
    whole_TCYX = generator(low_TCHW[None])[0].clamp(0, 1)
    torch.testing.assert_close(upscaler.upscale(low_TCHW), whole_TCYX, rtol=0, atol=1e-6)
    pieces_TCYX = in_pieces(upscaler, low_TCHW, [4, 5])
    second_TCYX = generator(low_TCHW[None, 4:])[0].clamp(0, 1)
    torch.testing.assert_close(pieces_TCYX[4:], second_TCYX, rtol=0, atol=1e-6)
    assert (pieces_TCYX - whole_TCYX).abs().max() > 1e-4


def test_the_past_matters_until_it_is_reset():
    upscaler, low_TCHW = GeneratorUpscaler(make(RECURRENT)), clip()
    first = upscaler.upscale(low_TCHW)
    later = upscaler.upscale(low_TCHW)
    assert (first - later).abs().max() > 1e-3
    upscaler.reset()
    torch.testing.assert_close(upscaler.upscale(low_TCHW), first, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cut", CUTS[1:3], ids=str)
def test_generators_without_memory_do_not_depend_on_the_cuts_either(cut):
    low_TCHW = clip()
    for upscaler in (BicubicUpscaler(4), GeneratorUpscaler(make(CONVOLUTIONAL))):
        whole_TCYX = upscaler.upscale(low_TCHW)
        assert whole_TCYX.shape == (9, 3, 40, 52)
        torch.testing.assert_close(in_pieces(upscaler, low_TCHW, cut), whole_TCYX, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [RECURRENT, CONVOLUTIONAL, FIXED_SIZE])
@pytest.mark.parametrize("scale", [2, 4])
def test_results_are_images_without_gradient(config, scale):
    low_TCHW = 3 * clip(num_frames=2) - 1  # out of range on purpose
    upscaler = GeneratorUpscaler(make(config, scale))
    fake_TCYX = upscaler.upscale(low_TCHW)
    assert upscaler.scale == scale
    assert fake_TCYX.shape == (2, 3, 10 * scale, 13 * scale)
    assert fake_TCYX.min() >= 0
    assert fake_TCYX.max() <= 1
    assert not fake_TCYX.requires_grad


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 24), (9, 15), (13, 8), (3, 5), (7, 25)])
def test_tiles_cover_any_size_and_are_the_generators_own(height, width):
    generator, low_TCHW = make(FIXED_SIZE), clip(3, height, width)
    found_TCYX = upscale_in_tiles(generator, low_TCHW, 8)
    assert found_TCYX.shape == (3, 3, 4 * height, 4 * width)
    for top in range(0, height, 8):
        for left in range(0, width, 8):
            rows = torch.arange(top, top + 8).clamp(max=height - 1)
            columns = torch.arange(left, left + 8).clamp(max=width - 1)
            tile_TCHW = low_TCHW[:, :, rows][:, :, :, columns]  # border pixels repeated
            tile_TCYX = generator(tile_TCHW[None])[0]
            part_TCYX = found_TCYX[:, :, 4 * top : 4 * top + 32, 4 * left : 4 * left + 32]
            expected_TCYX = tile_TCYX[:, :, : part_TCYX.shape[2], : part_TCYX.shape[3]]
            torch.testing.assert_close(part_TCYX, expected_TCYX, rtol=0, atol=1e-6)


def test_a_generator_of_fixed_size_runs_on_tiles():
    low_TCHW = clip(num_frames=2, height=9, width=11)
    generator = make(FIXED_SIZE)
    expected_TCYX = upscale_in_tiles(generator, low_TCHW, 8)
    torch.testing.assert_close(GeneratorUpscaler(generator).upscale(low_TCHW), expected_TCYX, rtol=0, atol=1e-5)


def test_bicubic_is_clamped():
    low_TCHW = F.one_hot(torch.arange(3)).float().reshape(1, 1, 3, 3).expand(1, 3, 3, 3)
    fake_TCYX = BicubicUpscaler(4).upscale(low_TCHW)
    assert fake_TCYX.min() == 0
    assert fake_TCYX.max() == 1


@pytest.mark.parametrize("config", [RECURRENT, CONVOLUTIONAL, FIXED_SIZE, ALIGNED[0], BIDIRECTIONAL])
def test_a_saved_generator_is_loaded_whole(tmp_path, config):
    generator = make(config, 2)
    save_generator(tmp_path, generator, config, {"run": "demo", "steps": 5})
    assert {path.name for path in tmp_path.iterdir()} == {"generator.safetensors", "generator.json"}
    low_BTCHW = torch.rand(1, 2, 3, 8, 8)
    for path in (tmp_path, tmp_path / "generator.safetensors"):
        loaded, description = load_generator(path)
        for name, tensor in generator.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
        torch.testing.assert_close(loaded(low_BTCHW), generator(low_BTCHW), rtol=0, atol=1e-6)
        assert loaded.scale == description["scale"] == 2
        assert description["provenance"] == {"run": "demo", "steps": 5}
        assert not loaded.training
        assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.fixture
def folder(tmp_path):
    save_generator(tmp_path, make(RECURRENT), RECURRENT, {})
    return tmp_path


def change_description(folder, **changes):
    path = folder / "generator.json"
    description = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in description.items() if value is not None}))


def test_absent_files_are_named(folder):
    with pytest.raises(BadCheckpointError, match=r"no file .*other.safetensors; expected a run directory"):
        load_generator(folder / "other.safetensors")
    (folder / "film.mp4").write_bytes(b"frames")
    with pytest.raises(BadCheckpointError, match=r"film.mp4 is no generator; expected a run directory or a"):
        load_generator(folder / "film.mp4")
    (folder / "generator.json").unlink()
    with pytest.raises(BadCheckpointError, match=r"generator.json cannot be read; it must lie beside the weights"):
        load_generator(folder)
    (folder / "generator.safetensors").unlink()
    with pytest.raises(BadCheckpointError, match=r"no generator.safetensors in .*; expected a finished run directory"):
        load_generator(folder)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"format_version": 99}, r"has format version 99; this release reads 1"),
        ({"format_version": None}, r"cannot be read"),
        ({"generator": None}, r"lacks generator.kind or a whole number as scale"),
        ({"generator": {"channels": 6}}, r"lacks generator.kind or a whole number as scale"),
        ({"scale": None}, r"lacks generator.kind or a whole number as scale"),
        ({"generator": {"kind": "vdsr"}}, r"unknown generator kind 'vdsr'; this release knows paper_srgan, recurrent"),
        ({"generator": {"kind": "recurrent", "channels": "many"}}, r"generator.channels: Expected int"),
        ({"generator": {"kind": "recurrent", "depth": 3}}, r"generator.json: .*depth"),
        ({"generator": {"kind": "recurrent", "channels": 7}}, r"does not hold the weights that generator.json"),
        ({"scale": 3}, r"does not hold the weights that generator.json describes"),
        ({"scale": 7}, r"expected a scale of 1, 2, 3, 4, found 7"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(folder, changes, expected):
    change_description(folder, **changes)
    with pytest.raises(UserError, match=expected):
        load_generator(folder)


@pytest.mark.parametrize("content", ["", "[]", "3", "{"])
def test_a_description_that_is_none_is_refused(folder, content):
    (folder / "generator.json").write_text(content)
    with pytest.raises(BadCheckpointError, match=r"generator.json cannot be read"):
        load_generator(folder)


@pytest.mark.parametrize("num_bytes", [0, 7, 1000])
def test_truncated_weights_are_refused(folder, num_bytes):
    path = folder / "generator.safetensors"
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(BadCheckpointError, match=r"does not hold the weights that generator.json describes"):
        load_generator(folder)


@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30000, 1001)])
@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 47)])
def test_a_written_video_can_be_read(tmp_path, fps, height, width):
    path = tmp_path / "film.mp4"
    shades = range(20, 240, 20)
    with VideoWriter(path, fps) as writer:
        for shade in shades:
            writer.write(np.full((height, width, 3), shade, np.uint8))
        assert not path.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["film.mp4"]
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == fps
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [frame.shape for frame in frames] == [(height // 2 * 2, width // 2 * 2, 3)] * len(shades)
    for frame, shade in zip(frames, shades, strict=True):
        assert abs(frame.mean() - shade) < 3


@pytest.mark.parametrize("num_frames", [0, 1, 40])
def test_an_exception_leaves_nothing(tmp_path, num_frames):
    def film():
        with VideoWriter(tmp_path / "film.mp4", Fraction(25)) as writer:
            for _ in range(num_frames):
                writer.write(np.zeros((32, 48, 3), np.uint8))
            raise KeyError("the network failed")

    with pytest.raises(KeyError, match="the network failed"):
        film()
    assert list(tmp_path.iterdir()) == []
