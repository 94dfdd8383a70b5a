"""VGG16 features for the perceptual loss: a frozen trunk with weights from a file, never random ones.

Two trunks share one numbering of layers, that of torchvision's `vgg16().features`: the plain one, and the
shift-tolerant one (Ghildyal and Liu 2022, arXiv:2207.13686), in which each max pooling runs at stride 1 and a
binomial blur of stride 2 (Zhang 2019, arXiv:1904.11486) follows it. Weights of the latter come with the
distribution `stlpips-pytorch`; its file is read, its code is not imported.

Axes: N any number of images, C channels, Y X rows and columns.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsr_dist.core.errors import BadConfigError, BadInputError, extra_files

WeightsName = Literal["stlpips", "torchvision", "file"]
# VGG16, configuration D of Simonyan and Zisserman 2015 (arXiv:1409.1556), table 1; 0 marks a pooling.
WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
NUM_LAYERS = 31
# Channel statistics of ImageNet that both sets of weights were trained with (torchvision's documentation).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

STLPIPS_FILE = "vgg_shift_tolerant.pth"
TORCHVISION_FILE = "vgg16-397923af.pth"
_CONV_KEY = re.compile(r"^(?:features\.|net\.slice\d+\.)?(\d+)\.(weight|bias)$")


@dataclass(frozen=True)
class PerceptualConfig:
    """Which trunk, how deep, and whether inputs are standardised.

    weights: `stlpips` is the shift-tolerant trunk of `pip install "vsr-dist[perceptual]"`; `torchvision` the
    plain trunk from torchvision's download cache; `file` the plain trunk from `path`. layer: how many layers
    of `features` run, 31 (up to the fifth pooling) in the paper. normalise: subtract ImageNet's mean and
    divide by its deviation; False is as printed in listing 3, which feeds [0, 1] images to a network trained
    otherwise. rescale: factor of the perceptual loss that brings this trunk's scale to that of the MSE, as SRGAN's
    1/12.75 on VGG19's features does (`vsr_dist.losses.perceptual`).
    """

    weights: WeightsName = "stlpips"
    path: str | None = None
    layer: int = NUM_LAYERS
    normalise: bool = True
    rescale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.rescale < math.inf:
            raise BadConfigError(f"perceptual.rescale: expected a finite number above 0, found {self.rescale}")
        if not 1 <= self.layer <= NUM_LAYERS:
            raise BadConfigError(f"perceptual.layer: expected 1 to {NUM_LAYERS}, found {self.layer}")
        if (self.path is not None) != (self.weights == "file"):
            raise BadConfigError(
                "perceptual: give a path with weights 'file', and only then; found weights "
                f"{self.weights!r} and path {self.path!r}"
            )


class BlurPool(nn.Module):
    """Max over 2 x 2 at stride 1, then a 3 x 3 binomial filter at stride 2; 2 reflected pixels of padding."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0]) / 4.0
        self.register_buffer("kernel", torch.outer(line, line).expand(channels, 1, 3, 3).clone(), persistent=False)

    def forward(self, features_NCYX: Tensor) -> Tensor:
        """(N, C, Y, X) to (N, C, floor(Y / 2) + 1, floor(X / 2) + 1); Y and X at least 4."""
        peaks = F.max_pool2d(features_NCYX, kernel_size=2, stride=1)
        padded = F.pad(peaks, (2, 2, 2, 2), mode="reflect")
        return F.conv2d(padded, self.kernel.to(padded.dtype), stride=2, groups=padded.shape[1])


def vgg16_features(pool: Callable[[int], nn.Module]) -> nn.Sequential:
    """The 31 layers of VGG16 before its classifier, in torchvision's numbering; `pool(channels)` pools."""
    layers: list[nn.Module] = []
    num_in = 3
    for width in WIDTHS:
        if width == 0:
            layers.append(pool(num_in))
        else:
            layers += [nn.Conv2d(num_in, width, 3, padding=1), nn.ReLU()]
            num_in = width
    return nn.Sequential(*layers)


class PerceptualTrunk(nn.Module):
    """The first `config.layer` layers of a trained VGG16, frozen and in evaluation mode for good.

    source: which weights, how deep and where they were read, for the log.
    Raises MissingExtraError when the weights' distribution is not installed, BadConfigError when the file is
    missing or not a VGG16's.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: PerceptualConfig) -> None:
        super().__init__()
        shift_tolerant = config.weights == "stlpips"
        path = _weights_path(config)
        trunk = vgg16_features(BlurPool if shift_tolerant else lambda channels: nn.MaxPool2d(2, 2))
        weights = _conv_weights(path, shift_tolerant)
        if wrong := [key for key, value in trunk.state_dict().items() if value.shape != weights[key].shape]:
            found = tuple(weights[wrong[0]].shape)
            raise BadConfigError(f"perceptual weights: {path} is not a VGG16: layer {wrong[0]} has shape {found}")
        trunk.load_state_dict(weights)
        self.features = trunk[: config.layer]
        inputs = "standardised" if config.normalise else "as they are"
        self.source = f"{config.weights} VGG16, {config.layer} layers, inputs {inputs}, weights {path}"
        num_poolings = sum(isinstance(layer, BlurPool | nn.MaxPool2d) for layer in self.features)
        self.min_px = _min_px(num_poolings, shift_tolerant)
        self.normalise, self.rescale = config.normalise, config.rescale
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()
        # A fifth faster on a CPU, and the layout that tensor cores want.
        self.features.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> PerceptualTrunk:
        """Stay in evaluation mode whatever the surrounding module does."""
        del mode
        super().train(False)
        return self

    def forward(self, images_NCYX: Tensor) -> Tensor:
        """Float RGB images in [0, 1] to features; gradients reach the images. BadInputError if too small."""
        smallest = min(images_NCYX.shape[-2:])
        if smallest < self.min_px:
            raise BadInputError(
                f"perceptual loss: {len(self.features)} VGG layers need images of at least {self.min_px} "
                f"pixels, found {smallest}; enlarge the crop or lower perceptual.layer"
            )
        if self.normalise:
            images_NCYX = (images_NCYX - self.mean) / self.deviation
        features: Tensor = self.features(images_NCYX)
        return features


def _min_px(num_poolings: int, shift_tolerant: bool) -> int:
    """The smallest side that survives all poolings: BlurPool maps n to n // 2 + 1 and needs n >= 4."""
    side = 1
    for _ in range(num_poolings):
        side = max(4, 2 * (side - 1)) if shift_tolerant else 2 * side
    return side


def _weights_path(config: PerceptualConfig) -> Path:
    if config.weights == "stlpips":
        instead = "set loss.perceptual to 0"
        return extra_files("perceptual", "stlpips-pytorch", STLPIPS_FILE, "the perceptual loss", instead)[0]
    if config.weights == "torchvision":
        path = Path(torch.hub.get_dir()) / "checkpoints" / TORCHVISION_FILE
        hint = (
            "nothing is downloaded here: run "
            "`python -c \"import torchvision as t; t.models.vgg16(weights='DEFAULT')\"` "
            "where there is a network, or set perceptual.weights to 'stlpips'"
        )
    else:
        path = Path(str(config.path))
        hint = "perceptual.path must name a VGG16 state dict in torchvision's layout"
    if not path.is_file():
        raise BadConfigError(f"perceptual weights: no file {path}; {hint}")
    return path


def _conv_weights(path: Path, shift_tolerant: bool) -> dict[str, Tensor]:
    """The convolutions' weights under torchvision's numbers. `stlpips` counts a pooling as two layers."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise BadConfigError(f"perceptual weights: {path} is not a file of tensors that torch can load") from error
    number_here, number_there, renumber = 0, 0, {}
    for width in WIDTHS:
        if width > 0:
            renumber[number_there] = number_here
        number_here += 2 if width > 0 else 1
        number_there += 2 if width > 0 or shift_tolerant else 1
    weights = _renumbered(state if isinstance(state, Mapping) else {}, renumber)
    expected = {f"{number}.{part}" for number in renumber.values() for part in ("weight", "bias")}
    if missing := sorted(expected - set(weights)):
        raise BadConfigError(
            f"perceptual weights: {path} is not a VGG16 state dict: {len(missing)} of {len(expected)} "
            f"tensors are missing, first {missing[0]}"
        )
    return weights


def _renumbered(state: Mapping[str, Tensor], renumber: Mapping[int, int]) -> dict[str, Tensor]:
    weights = {}
    for key, value in state.items():
        match = _CONV_KEY.match(key)
        if match and int(match[1]) in renumber:
            weights[f"{renumber[int(match[1])]}.{match[2]}"] = value
    return weights
