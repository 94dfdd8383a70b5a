"""LPIPS 0.1 on AlexNet: how different two images look to people. Lower is better.

Zhang et al. 2018 (arXiv:1801.03924). The heads are those of the distribution `lpips` (`pip install
"vsr-dist[lpips]"`), whose file is read and whose code is not imported; the trunk is torchvision's AlexNet, from its
download cache.

Axes: N any number of images, C channels, Y X rows and columns.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsr_dist.core.errors import MissingExtraError
from vsr_dist.metrics.perceptual import Features, LpipsDistance
from vsr_dist.metrics.trunk_files import check_size, copy_tensor, read_tensors, torchvision_file

TRUNK_FILE = "alexnet-owt-7be5be79.pth"
HEADS_FILE = "lpips/weights/v0.1/alex.pth"
MIN_PX = 64
_WHAT = "LPIPS"
# Number in torchvision's `features`, output and input channels, kernel size, stride, padding, pooled before.
_CONVS = (
    (0, 64, 3, 11, 4, 2, False),
    (3, 192, 64, 5, 1, 2, True),
    (6, 384, 192, 3, 1, 1, True),
    (8, 256, 384, 3, 1, 1, False),
    (10, 256, 256, 3, 1, 1, False),
)
# lpips.ScalingLayer: ImageNet's mean and deviation for images in [-1, 1].
_SHIFT, _DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-10


class Lpips(LpipsDistance):
    """Frozen, in evaluation mode. `features` and `distance` apart, for images that are compared more than once.

    Raises MissingExtraError when the heads' distribution is not installed, BadConfigError when a file is missing or
    not what it should be.
    """

    shift: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        heads = read_tensors(wheel_file("lpips", HEADS_FILE, _WHAT), _WHAT)
        trunk = read_tensors(torchvision_file(TRUNK_FILE, "alexnet", _WHAT), _WHAT)
        self.convs = nn.ModuleList(
            nn.Conv2d(num_in, num_out, size, stride, padding) for _, num_out, num_in, size, stride, padding, _ in _CONVS
        )
        scorers = [nn.Conv2d(num_out, 1, 1, bias=False) for _, num_out, *_ in _CONVS]
        self.heads = nn.ModuleList(scorers)
        for number, (place, *_) in enumerate(_CONVS):
            for part in ("weight", "bias"):
                copy_tensor(getattr(self.convs[number], part), trunk, f"features.{place}.{part}", _WHAT)
            copy_tensor(scorers[number].weight, heads, f"lin{number}.model.1.weight", _WHAT)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(_DEVIATION).view(1, 3, 1, 1))
        self.requires_grad_(False)
        self.eval()

    def features(self, images_NCYX: Tensor) -> Features:
        """Five normalised feature maps of float RGB images in [0, 1], at least 64 x 64 pixels."""
        check_size(images_NCYX, MIN_PX, _WHAT)
        current = (2.0 * images_NCYX - 1.0 - self.shift) / self.deviation
        found_features = []
        for conv, (*_, pooled) in zip(self.convs, _CONVS, strict=True):
            if pooled:
                current = F.max_pool2d(current, kernel_size=3, stride=2)
            current = F.relu(conv(current))
            found_features.append(current / (current.square().sum(1, keepdim=True).sqrt() + _EPSILON))
        return tuple(found_features)


def wheel_file(distribution: str, place: str, what: str) -> Path:
    """A file of an installed distribution by its place in it, found without importing its code."""
    fix = 'run `pip install "vsr-dist[lpips]"` or leave the metric out of --metrics'
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtraError(f"{what}: {distribution}, which brings its weights, is missing; {fix}") from error
    found = [Path(str(file.locate())) for file in files if file.as_posix() == place]
    if not found or not found[0].is_file():
        raise MissingExtraError(f"{what}: {distribution} is installed without {place}; {fix}")
    return found[0]
