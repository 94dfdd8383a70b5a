"""The files of a generator: saved, loaded, and refused when they do not fit."""

from __future__ import annotations

import json

import pytest
import torch

from vsr_dist.core.errors import BadCheckpointError, UserError
from vsr_dist.inference.generator_io import load_generator, save_generator
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


def make(config, scale=4):
    """A generator in eval mode with no weight at zero: fresh ones would be plain bicubic."""
    torch.manual_seed(0)
    generator = build_generator(config, scale)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return generator.eval().requires_grad_(False)


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
    with pytest.raises(BadCheckpointError, match=r"film.mp4 is not a generator; expected a run directory or a"):
        load_generator(folder / "film.mp4")
    (folder / "generator.json").unlink()
    with pytest.raises(BadCheckpointError, match=r"generator.json cannot be read; it must be next to the weights"):
        load_generator(folder)
    (folder / "generator.safetensors").unlink()
    with pytest.raises(BadCheckpointError, match=r"no generator.safetensors in .*; expected a finished run directory"):
        load_generator(folder)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"format_version": 99}, r"has format version 99; this release reads 1"),
        ({"format_version": None}, r"cannot be read"),
        ({"generator": None}, r"has no generator.kind or no integer scale"),
        ({"generator": {"channels": 6}}, r"has no generator.kind or no integer scale"),
        ({"scale": None}, r"has no generator.kind or no integer scale"),
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
