"""A conditional patch discriminator on groups of three consecutive frames.

It is shown what the generator added, the difference to the bicubic enlargement, and the enlargement itself as
the condition; it scores patches, not images, and by default has no normalisation, so that no statistic of the
batch hides the difference between real and fake. Three frames let it see flicker. The idea of frame triplets
with the enlarged input is TecoGAN's (Chu et al. 2020, arXiv:1811.09393).

Axes: B batch, T time, C channels, Y X high-resolution; N is B * (T - 2) groups; P Q rows and columns of
patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vsr_dist.core.errors import BadConfigError, BadInputError
from vsr_dist.models.base import Discriminator, check_clip, check_dropout, check_positive
from vsr_dist.models.blocks import norm_layers, score

FRAMES_PER_GROUP = 3
SLOPE = 0.2
# Residuals to bicubic are a few percent of the range; this brings them to the size of the condition.
RESIDUAL_GAIN = 4.0
MAX_WIDTH_MULTIPLE = 4
MAX_LEVELS = 6


@dataclass(frozen=True)
class SpatiotemporalConfig:
    """Width of the first layer, number of stride-2 levels (a logit covers 2^levels pixels), norm, dropout."""

    kind: Literal["spatiotemporal"] = "spatiotemporal"
    filters: int = 24
    levels: int = 3
    norm: Literal["none", "spectral", "group"] = "none"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_positive(self.kind, filters=self.filters, levels=self.levels)
        check_dropout(self.kind, self.dropout)
        if self.levels > MAX_LEVELS:
            raise BadConfigError(f"model {self.kind!r}: expected levels 1 to {MAX_LEVELS}, found {self.levels}")


class Spatiotemporal(Discriminator):
    """Patch logits (B, T - 2, P, Q) of all overlapping triplets; P is Y / 2^levels, rounded down."""

    min_frames = FRAMES_PER_GROUP

    def __init__(self, config: SpatiotemporalConfig, scale: int) -> None:
        super().__init__()
        del scale  # It sees high-resolution images only, at `levels` strides of its own.
        self.levels = config.levels
        self.min_px = 2**config.levels
        width = config.filters
        first = nn.Conv2d(2 * 3 * FRAMES_PER_GROUP, width, 3, padding=1)
        # Group norm right behind the input would hide the patch's brightness and contrast.
        layers = [
            *norm_layers(first, "spectral" if config.norm == "spectral" else "none"),
            nn.LeakyReLU(SLOPE),
        ]
        for level in range(1, config.levels + 1):
            num_out = config.filters * min(2**level, MAX_WIDTH_MULTIPLE)
            layers += norm_layers(nn.Conv2d(width, num_out, 4, stride=2, padding=1), config.norm)
            layers.append(nn.LeakyReLU(SLOPE))
            if config.dropout > 0.0:
                layers.append(nn.Dropout2d(config.dropout))
            width = num_out
        layers += norm_layers(nn.Conv2d(width, 1, 3, padding=1), "spectral" if config.norm == "spectral" else "none")
        self.net = nn.Sequential(*layers)

    def forward(self, clip_BTCYX: Tensor, bicubic_BTCYX: Tensor, full_precision: bool = False) -> Tensor:
        """Logits (B, T - 2, P, Q) of a clip in [0, 1] given its enlarged input of the same shape."""
        check_clip(clip_BTCYX, self.min_frames)
        self._check_size(clip_BTCYX, bicubic_BTCYX)
        frames_BTCYX = torch.cat(((clip_BTCYX - bicubic_BTCYX) * RESIDUAL_GAIN, bicubic_BTCYX - 0.5), dim=2)
        num_groups = clip_BTCYX.shape[1] - FRAMES_PER_GROUP + 1
        groups = [frames_BTCYX[:, offset : offset + num_groups] for offset in range(FRAMES_PER_GROUP)]
        groups_NCYX = torch.cat(groups, dim=2).flatten(0, 1)
        logits_N1PQ = score(self.net, groups_NCYX, full_precision)
        return torch.unflatten(logits_N1PQ.squeeze(1), 0, (-1, num_groups))

    def _check_size(self, clip_BTCYX: Tensor, bicubic_BTCYX: Tensor) -> None:
        if clip_BTCYX.shape != bicubic_BTCYX.shape:
            shapes = f"{tuple(clip_BTCYX.shape)} and {tuple(bicubic_BTCYX.shape)}"
            raise BadInputError(f"expected a clip and its enlarged input of the same shape, found {shapes}")
        smallest = min(clip_BTCYX.shape[-2:])
        if smallest < self.min_px:
            raise BadInputError(
                f"spatiotemporal discriminator with {self.levels} levels: expected images of at least "
                f"{self.min_px} pixels, found {smallest}; enlarge the crop or lower levels"
            )
