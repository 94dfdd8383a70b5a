"""The base code's discriminator: github.com/leftthomas/SRGAN (model.py), one logit per frame, no condition.

Axes: B batch, T time, C channels, Y X high-resolution; N is B * T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from vsr_dist.core.errors import BadConfigError
from vsr_dist.models.base import Discriminator, check_clip, check_dropout, check_positive
from vsr_dist.models.blocks import NormName, norm_layers, score

SLOPE = 0.2
MAX_WIDTH_MULTIPLE = 8
MAX_LEVELS = 6


@dataclass(frozen=True)
class SrganDiscriminatorConfig:
    """Width, depth, normalisation and dropout.

    filters: output channels of the first level. levels: each has two main blocks, of stride 1 and 2, and twice the
    width of the level before, up to 8 times `filters`; 4 is the base code's. norm: applied from the second
    convolution on; `spectral` constrains every convolution instead. dropout: probability of dropping a whole
    feature map after each main block, the remedy that the paper proposes.
    """

    kind: Literal["srgan"] = "srgan"
    filters: int = 64
    levels: int = 4
    norm: NormName = "batch"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_positive(self.kind, filters=self.filters, levels=self.levels)
        check_dropout(self.kind, self.dropout)
        if self.levels > MAX_LEVELS:
            raise BadConfigError(f"model {self.kind!r}: expected levels 1 to {MAX_LEVELS}, found {self.levels}")


class SrganDiscriminator(Discriminator):
    """Scores every frame by itself. 5,215,425 parameters at the default width.

    Returns logits (B, T); the base code's sigmoid is part of the objective `paper`.
    """

    def __init__(self, config: SrganDiscriminatorConfig, scale: int) -> None:
        super().__init__()
        del scale  # Global pooling makes the layout the same for every scale.
        layers: list[nn.Module] = []
        num_in = 3
        for index in range(2 * config.levels):
            num_out = config.filters * min(2 ** (index // 2), MAX_WIDTH_MULTIPLE)
            conv = nn.Conv2d(num_in, num_out, 3, stride=1 + index % 2, padding=1)
            layers += norm_layers(conv, config.norm if index > 0 or config.norm == "spectral" else "none")
            layers.append(nn.LeakyReLU(SLOPE))
            if config.dropout > 0.0:
                layers.append(nn.Dropout2d(config.dropout))
            num_in = num_out
        # The base code has no normalisation in the two 1 x 1 convolutions.
        last: NormName = "spectral" if config.norm == "spectral" else "none"
        layers.append(nn.AdaptiveAvgPool2d(1))
        layers += [*norm_layers(nn.Conv2d(num_in, 2 * num_in, 1), last), nn.LeakyReLU(SLOPE)]
        layers += norm_layers(nn.Conv2d(2 * num_in, 1, 1), last)
        self.net = nn.Sequential(*layers)

    def forward(self, clip_BTCYX: Tensor, bicubic_BTCYX: Tensor, full_precision: bool = False) -> Tensor:
        """Logits (B, T) of a clip in [0, 1]; the enlarged input is not looked at."""
        del bicubic_BTCYX
        check_clip(clip_BTCYX)
        logits_N111 = score(self.net, clip_BTCYX.flatten(0, 1), full_precision)
        return logits_N111.view(clip_BTCYX.shape[:2])
