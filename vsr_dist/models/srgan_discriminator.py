"""The base code's discriminator: github.com/leftthomas/SRGAN (model.py), one logit per frame, no condition.

Axes: B batch, T time, C channels, Y X high-resolution; N is B * T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from vsr_dist.models.base import Discriminator, check_clip, check_dropout, check_positive
from vsr_dist.models.blocks import NormName, norm_layers

# Output width in units of `filters`, and stride, of the main blocks.
LAYOUT = ((1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1), (8, 2))
SLOPE = 0.2


@dataclass(frozen=True)
class SrganDiscriminatorConfig:
    """Width, normalisation and dropout.

    norm: applied from the second convolution on; `spectral` constrains every convolution instead. dropout:
    probability of dropping a whole feature map after each main block, the remedy that the paper proposes.
    """

    kind: Literal["srgan"] = "srgan"
    filters: int = 64
    norm: NormName = "batch"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_positive(self.kind, filters=self.filters)
        check_dropout(self.kind, self.dropout)


class SrganDiscriminator(Discriminator):
    """Scores every frame by itself. 5,215,425 parameters at the default width.

    Returns logits (B, T); the base code's sigmoid is part of the objective `paper`.
    """

    def __init__(self, config: SrganDiscriminatorConfig, scale: int) -> None:
        super().__init__()
        del scale  # Global pooling makes the layout the same for every scale.
        layers: list[nn.Module] = []
        num_in = 3
        for index, (multiple, stride) in enumerate(LAYOUT):
            num_out = multiple * config.filters
            conv = nn.Conv2d(num_in, num_out, 3, stride=stride, padding=1)
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

    def forward(self, clip_BTCYX: Tensor, bicubic_BTCYX: Tensor) -> Tensor:
        """Logits (B, T) of a clip in [0, 1]; the enlarged input is not looked at."""
        del bicubic_BTCYX
        check_clip(clip_BTCYX)
        logits_N111: Tensor = self.net(clip_BTCYX.flatten(0, 1))
        return logits_N111.view(clip_BTCYX.shape[:2])
