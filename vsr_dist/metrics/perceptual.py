"""ST-LPIPS: how different two images look, of little concern for a shift by a pixel. Lower is better.

Ghildyal and Liu 2022 (arXiv:2207.13686): LPIPS (Zhang et al. 2018, arXiv:1801.03924) on an AlexNet whose first
convolution has stride 1 and in which every reduction is a blur of stride 2. Trunk and heads are those of the
distribution `stlpips-pytorch` (`pip install "vsr-dist[perceptual]"`); its weight file is read, its code not imported.

Axes: N any number of images, C channels, Y X rows and columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsr_dist.core.distribution import STLPIPS, distribution_file
from vsr_dist.metrics.trunk_files import check_size, copy_tensor, read_tensors

WEIGHTS_FILE = "alex_shift_tolerant.pth"
# Reflected padding needs more pixels than it adds, in the last blur as well.
MIN_PX = 32
# Of each convolution: number in the file, output and input channels, kernel size, padding, and whether a maximum over
# 3 x 3 and a blur come before it. The first one's blur lies between it and its ReLU.
_CONVS = (
    ("slice1.0", 64, 3, 11, 2, False),
    ("slice2.5", 192, 64, 5, 2, True),
    ("slice3.9", 384, 192, 3, 1, True),
    ("slice4.11", 256, 384, 3, 1, False),
    ("slice5.13", 256, 256, 3, 1, False),
)
_EPSILON = 1e-10

Features = tuple[Tensor, ...]


class LpipsDistance(nn.Module, ABC):
    """LPIPS on whatever features: `features` and `distance` apart, for images that are compared more than once."""

    heads: nn.ModuleList

    @abstractmethod
    def features(self, images_NCYX: Tensor) -> Features:
        """Normalised feature maps of float RGB images in [0, 1], one for each head."""

    def distance(self, first: Features, second: Features) -> Tensor:
        """(N,) distances of images by their features, from 0."""
        parts = zip(self.heads, first, second, strict=True)
        return torch.stack([head((one - other).square()).mean((1, 2, 3)) for head, one, other in parts]).sum(0)

    def forward(self, first_NCYX: Tensor, second_NCYX: Tensor) -> Tensor:
        """(N,) distances of float RGB images in [0, 1]."""
        return self.distance(self.features(first_NCYX), self.features(second_NCYX))


class ShiftTolerantLpips(LpipsDistance):
    """Frozen, in evaluation mode. `features` and `distance` apart, for truth that is compared more than once.

    Raises MissingExtraError when the weights' distribution is not installed, BadConfigError when the file is not what
    it should be.
    """

    shift: Tensor
    deviation: Tensor
    kernel: Tensor

    def __init__(
        self, what: str = "train.perceptual_metric stlpips", instead: str = "set train.perceptual_metric=none"
    ) -> None:
        """`what` asked for it, and what to do `instead` of installing its weights: for the error without them."""
        super().__init__()
        fix = f'run `pip install "vsr-dist[perceptual]"` or {instead}'
        state = read_tensors(distribution_file(STLPIPS, WEIGHTS_FILE, what, fix), "ST-LPIPS", "reinstall it")
        copy = partial(copy_tensor, what=f"ST-LPIPS: {WEIGHTS_FILE}", fix="reinstall stlpips-pytorch 0.0.2")
        self.convs = nn.ModuleList(
            nn.Conv2d(num_in, num_out, size, padding=padding) for _, num_out, num_in, size, padding, _ in _CONVS
        )
        heads = [nn.Conv2d(num_out, 1, 1, bias=False) for _, num_out, *_ in _CONVS]
        self.heads = nn.ModuleList(heads)
        for number, (head, (name, *_)) in enumerate(zip(heads, _CONVS, strict=True)):
            for part in ("weight", "bias"):
                copy(getattr(self.convs[number], part), state, f"net.{name}.{part}")
            copy(head.weight, state, f"lin{number}.model.1.weight")
        # The file's own constants, for images in [-1, 1].
        for name, key in (("shift", "scaling_layer.shift"), ("deviation", "scaling_layer.scale")):
            self.register_buffer(name, torch.zeros(1, 3, 1, 1))
            copy(getattr(self, name), state, key)
        line = torch.tensor([1.0, 2.0, 1.0]) / 4.0
        self.register_buffer("kernel", torch.outer(line, line))
        self.requires_grad_(False)
        self.eval()

    def features(self, images_NCYX: Tensor) -> Features:
        """Five normalised feature maps of float RGB images in [0, 1], at least 32 x 32 pixels."""
        check_size(images_NCYX, MIN_PX, "ST-LPIPS")
        current = (2.0 * images_NCYX - 1.0 - self.shift) / self.deviation
        found_features = []
        for number, (conv, (*_, reduced)) in enumerate(zip(self.convs, _CONVS, strict=True)):
            if reduced:
                current = self._blur(F.max_pool2d(current, kernel_size=3, stride=1))
            current = conv(current)
            current = F.relu(self._blur(current) if number == 0 else current)
            found_features.append(current / (current.square().sum(1, keepdim=True).sqrt() + _EPSILON))
        return tuple(found_features)

    def _blur(self, features_NCYX: Tensor) -> Tensor:
        """A binomial filter of stride 2; n pixels become n // 2 + 1."""
        padded = F.pad(features_NCYX, (2, 2, 2, 2), mode="reflect")
        channels = padded.shape[1]
        return F.conv2d(padded, self.kernel.expand(channels, 1, 3, 3), stride=2, groups=channels)
