"""DISTS: structure and texture similarity of deep features, as a distance. Lower is better.

Ding et al. 2020 (arXiv:2004.07728). The weights of the features are those of the distribution `DISTS-pytorch` (`pip
install "vsr-dist[lpips]"`), whose file is read and whose code is not imported; the trunk is torchvision's VGG16, from
its download cache, with a blur (Hann window, L2 norm) in place of each pooling.

Axes: N any number of images, C channels, Y X rows and columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsr_dist.metrics.lpips import wheel_file
from vsr_dist.metrics.perceptual import Features
from vsr_dist.metrics.trunk_files import check_size, copy_tensor, read_tensors, torchvision_file

TRUNK_FILE = "vgg16-397923af.pth"
WEIGHTS_FILE = "DISTS_pytorch/weights.pt"
MIN_PX = 32
_WHAT = "DISTS"
# Per stage: (number in torchvision's `features`, output channels) of its convolutions. A blur opens all but the first.
_STAGES = (
    ((0, 64), (2, 64)),
    ((5, 128), (7, 128)),
    ((10, 256), (12, 256), (14, 256)),
    ((17, 512), (19, 512), (21, 512)),
    ((24, 512), (26, 512), (28, 512)),
)
_NUM_FEATURES = 3 + sum(stage[-1][1] for stage in _STAGES)
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SMALL = 1e-6


class Dists(nn.Module):
    """Frozen, in evaluation mode.

    Raises MissingExtraError when the weights' distribution is not installed, BadConfigError when a file is missing or
    not what it should be.
    """

    mean: Tensor
    deviation: Tensor
    kernel: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(self) -> None:
        super().__init__()
        weights = read_tensors(wheel_file("DISTS-pytorch", WEIGHTS_FILE, _WHAT), _WHAT)
        trunk = read_tensors(torchvision_file(TRUNK_FILE, "vgg16", _WHAT), _WHAT)
        self.stages = nn.ModuleList()
        num_in = 3
        for stage in _STAGES:
            convs = nn.ModuleList()
            for place, num_out in stage:
                conv = nn.Conv2d(num_in, num_out, 3, padding=1)
                for part in ("weight", "bias"):
                    copy_tensor(getattr(conv, part), trunk, f"features.{place}.{part}", _WHAT)
                convs.append(conv)
                num_in = num_out
            self.stages.append(convs)
        for name in ("alpha", "beta"):
            self.register_buffer(name, torch.zeros(1, _NUM_FEATURES, 1, 1))
            copy_tensor(getattr(self, name), weights, name, _WHAT)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(_DEVIATION).view(1, 3, 1, 1))
        # The inner part of a Hann window of five: 0.5, 1, 0.5.
        line = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("kernel", torch.outer(line, line))
        self.requires_grad_(False)
        self.eval()

    def features(self, images_NCYX: Tensor) -> Features:
        """The images themselves and five maps, of float RGB images in [0, 1], at least 32 x 32 pixels."""
        check_size(images_NCYX, MIN_PX, _WHAT)
        current = (images_NCYX - self.mean) / self.deviation
        found_features = [images_NCYX]
        for number, convs in enumerate(self.stages):
            if number:
                current = self._blur(current)
            for conv in convs.children():
                current = F.relu(conv(current))
            found_features.append(current)
        return tuple(found_features)

    def distance(self, first: Features, second: Features) -> Tensor:
        """(N,) distances of images by their features; 0 for equal ones."""
        widths = [features.shape[1] for features in first]
        total = self.alpha.sum() + self.beta.sum()
        alphas, betas = (torch.split(weight[0, :, 0, 0] / total, widths) for weight in (self.alpha, self.beta))
        similarity = torch.zeros(len(first[0]), device=self.alpha.device)
        for one, other, alpha, beta in zip(first, second, alphas, betas, strict=True):
            mean_1, mean_2 = one.mean((2, 3)), other.mean((2, 3))
            spread_1 = (one - mean_1[..., None, None]).square().mean((2, 3))
            spread_2 = (other - mean_2[..., None, None]).square().mean((2, 3))
            covariance = (one * other).mean((2, 3)) - mean_1 * mean_2
            texture = (2 * mean_1 * mean_2 + _SMALL) / (mean_1.square() + mean_2.square() + _SMALL)
            structure = (2 * covariance + _SMALL) / (spread_1 + spread_2 + _SMALL)
            similarity += (alpha * texture + beta * structure).sum(1)
        return 1.0 - similarity

    def forward(self, first_NCYX: Tensor, second_NCYX: Tensor) -> Tensor:
        """(N,) distances of float RGB images in [0, 1]."""
        return self.distance(self.features(first_NCYX), self.features(second_NCYX))

    def _blur(self, features_NCYX: Tensor) -> Tensor:
        """L2 pooling of stride 2: the root of the blurred squares."""
        channels = features_NCYX.shape[1]
        kernel = self.kernel.expand(channels, 1, 3, 3)
        blurred = F.conv2d(features_NCYX.square(), kernel, stride=2, padding=1, groups=channels)
        return (blurred + 1e-12).sqrt()
