"""The baselines against their papers' layers written out, and VSRnet's motion against pictures whose motion is known.

Axes: B batch, T time, K direction of flow, C channels, H W low-resolution, Y X high-resolution; N is B * T.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vsr_dist.cli import main
from vsr_dist.config import load_config
from vsr_dist.core.errors import BadConfigError
from vsr_dist.inference.generator_io import save_generator
from vsr_dist.models import build_generator
from vsr_dist.models.compact import CompactConfig
from vsr_dist.models.espcn import EspcnConfig
from vsr_dist.models.srresnet import SrresnetConfig
from vsr_dist.models.vsrnet import VsrnetConfig, flow_over, neighbour_flow
from vsr_dist.ops.resample import bicubic_upsample

ROOT = Path(__file__).parents[3]
BASELINES = sorted((ROOT / "configs" / "baselines").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def shuffle_by_hand(deep_NCHW, scale):
    """Pixel (scale y + i, scale x + j) of channel c is channel (c scale + i) scale + j at (y, x): Shi et al., eq. 4."""
    n, channels, height, width = deep_NCHW.shape
    out = torch.empty(n, channels // scale**2, height * scale, width * scale, dtype=deep_NCHW.dtype)
    for i in range(scale):
        for j in range(scale):
            out[:, :, i::scale, j::scale] = deep_NCHW[:, i * scale + j :: scale**2]
    return out


def test_espcn_is_its_papers_formula():
    espcn = build_generator(EspcnConfig(channels=5, inner_channels=4), 3).double()
    first, _, second, _, third, _ = espcn.net
    low = torch.rand(2, 2, 3, 6, 7, dtype=torch.float64)
    hidden = torch.tanh(F.conv2d(low.flatten(0, 1), first.weight, first.bias, padding=2))
    hidden = torch.tanh(F.conv2d(hidden, second.weight, second.bias, padding=1))
    expected = shuffle_by_hand(F.conv2d(hidden, third.weight, third.bias, padding=1), 3)
    torch.testing.assert_close(espcn(low).flatten(0, 1), expected, atol=1e-12, rtol=0)


class Ledig(nn.Module):
    """Figure 4 of Ledig et al., written with functions; names and order of the parameters are this file's own."""

    def __init__(self, state):
        super().__init__()
        self.state = state

    def conv(self, name, x):
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    def norm(self, name, x):
        """Batch statistics by hand, biased variance."""
        mean, variance = x.mean(dim=(0, 2, 3), keepdim=True), x.var(dim=(0, 2, 3), unbiased=False, keepdim=True)
        scale, shift = (self.state[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias"))
        return (x - mean) / torch.sqrt(variance + 1e-5) * scale + shift

    def prelu(self, name, x):
        return torch.where(x > 0, x, self.state[f"{name}.weight"] * x)

    def forward(self, x, num_blocks):
        shallow = self.prelu("head.1", self.conv("head.0", x))
        features = shallow
        for block in range(num_blocks):
            at = f"blocks.{block}.body"
            inner = self.prelu(f"{at}.2", self.norm(f"{at}.1", self.conv(f"{at}.0", features)))
            features = features + self.norm(f"{at}.4", self.conv(f"{at}.3", inner))
        features = shallow + self.norm("merge.1", self.conv("merge.0", features))
        for doubling in (0, 3):
            features = shuffle_by_hand(self.conv(f"upsample.{doubling}", features), 2)
            features = self.prelu(f"upsample.{doubling + 2}", features)
        return self.conv("tail", features)


def test_srresnet_is_its_papers_figure():
    generator = build_generator(SrresnetConfig(channels=6, num_blocks=2), 4).double()
    low = torch.rand(1, 3, 3, 7, 6, dtype=torch.float64)
    expected = Ledig(generator.state_dict())(low[0], 2)
    torch.testing.assert_close(generator(low)[0], expected, atol=1e-11, rtol=0)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_spandrel_loads_compact_and_gives_the_same_images(scale, tmp_path):
    """spandrel is what chaiNNer and others load image models with; it has an implementation of its own."""
    spandrel = importlib.import_module("spandrel")
    config = CompactConfig(channels=6, num_convs=3)
    generator = build_generator(config, scale)
    for parameter in generator.parameters():
        nn.init.normal_(parameter, std=0.2)
    save_generator(tmp_path, generator, config, {})
    loaded = spandrel.ModelLoader(device="cpu").load_from_file(tmp_path / "generator.safetensors")
    assert (loaded.architecture.id, loaded.scale, loaded.input_channels) == ("Compact", scale, 3)
    low = torch.rand(1, 2, 3, 7, 6)
    with torch.no_grad():
        torch.testing.assert_close(generator(low)[0], loaded.model(low[0]), atol=1e-6, rtol=0)


def test_vsrnet_layers_on_hand_made_neighbours():
    """With flow of zero nothing is warped: the input is the enlarged frames, the clip's ends repeated."""
    generator = build_generator(VsrnetConfig(channels=5, inner_channels=4, num_frames=5), 2).double()
    low = torch.rand(1, 3, 3, 6, 6, dtype=torch.float64)
    high = bicubic_upsample(low, 2)[0]
    first, _, second, _, third = generator.net
    fake = generator(low, torch.zeros(1, 2, 2, 2, 6, 6, dtype=torch.float64))
    for t, frames in enumerate(([0, 0, 0, 1, 2], [0, 0, 1, 2, 2], [0, 1, 2, 2, 2])):
        stack = torch.cat([high[frame] for frame in frames])[None]
        hidden = F.relu(F.conv2d(stack, first.weight, first.bias, padding=4))
        hidden = F.relu(F.conv2d(hidden, second.weight, second.bias))
        expected = F.conv2d(hidden, third.weight, third.bias, padding=2)
        torch.testing.assert_close(fake[:, t], expected, atol=1e-12, rtol=0)


def panning_clip(num_frames=5, size=40):
    """A smooth texture that moves 2 px to the left and 1 px up per frame: (1, T, 3, H, W) in [0, 1]."""
    noise = np.random.default_rng(0).normal(size=(size + 20, size + 20, 3))
    texture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.0), None, 0, 1, cv2.NORM_MINMAX)
    frames = [texture[t : t + size, 2 * t : 2 * t + size] for t in range(num_frames)]
    return torch.from_numpy(np.stack(frames)).float().permute(0, 3, 1, 2)[None]


@pytest.mark.parametrize("given", [False, True])
def test_vsrnet_warps_its_neighbours_onto_the_frame(given):
    clip = panning_clip()
    flow = None
    if given:
        flow = torch.empty(1, 4, 2, 2, 40, 40)
        flow[:, :, 0, 0], flow[:, :, 0, 1], flow[:, :, 1, 0], flow[:, :, 1, 1] = -2.0, -1.0, 2.0, 1.0
    generator = build_generator(VsrnetConfig(num_frames=5), 4)
    stack = generator._compensated(clip, neighbour_flow(clip, "farneback") if flow is None else flow).unflatten(
        1, (5, 3)
    )
    middle, inner = stack[2], slice(40, 120)
    unmoved = (bicubic_upsample(clip, 4)[0] - middle[2])[..., inner, inner].pow(2).mean(dim=(1, 2, 3))
    error = (middle - middle[2])[..., inner, inner].pow(2).mean(dim=(1, 2, 3))
    assert (error[[0, 1, 3, 4]] < 0.05 * unmoved[[0, 1, 3, 4]]).all(), (error, unmoved)
    if given:
        assert error.max() < 1e-6
        torch.testing.assert_close(flow_over(flow, 2)[0, :3, 0].mean(), torch.tensor(-4.0))
        # Towards the clip's end the way is shorter; from the last frame there is none.
        assert [float(flow_over(flow, 2)[0, t, 0].mean()) for t in (2, 3, 4)] == [-4.0, -2.0, 0.0]
        assert [float(flow_over(flow, -2)[0, t, 1].mean()) for t in (0, 1, 2)] == [0.0, 1.0, 2.0]


def test_flow_steps_are_chained_along_the_path():
    """The second step is read where the first one leads: flow grows to the right, 1 px per 10 px."""
    column = torch.arange(40.0).expand(40, 40)
    flow = torch.zeros(1, 2, 2, 2, 40, 40)
    flow[:, :, 0, 0] = column / 10
    expected = column / 10 + (column + column / 10) / 10
    torch.testing.assert_close(flow_over(flow, 2)[0, 0, 0, :, :30], expected[:, :30], atol=1e-4, rtol=0)


@pytest.mark.parametrize("config", [VsrnetConfig(channels=6), SrresnetConfig(channels=6, num_blocks=1)])
def test_frames_one_by_one_equal_all_at_once(config):
    generator = build_generator(config, 4).eval()
    low = torch.rand(2, 3, 3, 25, 24)
    calls = []
    handle = generator.tail if config.kind == "srresnet" else generator.net
    handle.register_forward_hook(lambda _module, _inputs, out: calls.append(len(out)))
    with torch.no_grad():
        apart = generator(low)
        generator.training = True  # The branch alone: its layers stay in evaluation mode.
        torch.testing.assert_close(generator(low), apart, atol=1e-6, rtol=0)
    assert calls == [1] * 6 + [6]


def test_mistakes_are_answered():
    for call, words in (
        (lambda: VsrnetConfig(num_frames=4), "3 or 5, found 4"),
        (lambda: EspcnConfig(inner_channels=0), "inner_channels 0"),
        (lambda: build_generator(SrresnetConfig(), 3), "1, 2, 4, 8"),
    ):
        with pytest.raises(BadConfigError, match=words):
            call()


@pytest.mark.parametrize("path", BASELINES, ids=lambda path: path.stem)
def test_baseline_configurations_train_on_the_image_alone_but_srgan(path):
    config = load_config(path)
    active = {name for name, weight in config.loss.weights().items() if weight > 0}
    assert active == ({"image", "perceptual"} if path.stem == "srgan" else {"image"})
    assert config.adversarial.is_on == (path.stem == "srgan")


def test_training_bicubic_is_refused_in_one_line(capsys):
    command = ["train", "--config", str(BASELINES[0]), "--set", "generator={kind: bicubic}"]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "generator.kind is 'bicubic'" in line and "espcn" in line
