"""The paper's generator: listing 2 on the blocks of its base code, github.com/leftthomas/SRGAN (model.py).

The listing is followed as printed: one LSTM over flattened feature maps, whose decoded output *replaces* the
features, so the network is tied to one input size and 99.8 % of its parameters lie in LSTM and decoder. Its
one renaming: the listing counts residual blocks with `sequence_length`, here `num_blocks`.

Axes: B batch, T time, C channels, H W low-resolution, Y X high-resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vsr_dist.core.errors import BadConfigError, BadInputError
from vsr_dist.models.base import Generator, State, check_clip, check_positive, check_scale
from vsr_dist.ops.motion import MotionSmoothing, align_low_clip

SCALES = (1, 2, 4)


@dataclass(frozen=True)
class PaperSrganConfig:
    """Sizes of the paper's generator.

    lstm: False leaves the base model, a fully convolutional one. input_px: side of the low-resolution input,
    used only with the LSTM. alignment: motion alignment of the input clip (`vsr_dist.ops.motion`).
    smoothing: how its motion is averaged over time, `ema` as in listing 1 or `gaussian` as in the paper's text.
    """

    kind: Literal["paper_srgan"] = "paper_srgan"
    channels: int = 64
    num_blocks: int = 5
    lstm: bool = True
    lstm_hidden: int = 256
    input_px: int = 64
    alignment: Literal["none", "as_printed", "corrected"] = "none"
    smoothing: MotionSmoothing = "ema"

    def __post_init__(self) -> None:
        check_positive(
            self.kind,
            channels=self.channels,
            num_blocks=self.num_blocks,
            lstm_hidden=self.lstm_hidden,
            input_px=self.input_px,
        )
        if self.alignment == "none" and self.smoothing != "ema":
            raise BadConfigError(
                f"model {self.kind!r}: smoothing {self.smoothing!r} acts on motion and needs an alignment, as_printed "
                "or corrected"
            )


class ResidualBlock(nn.Module):
    """conv, batch norm, PReLU, conv, batch norm, plus the input; (B, C, H, W) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.PReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Add the block's correction to its input."""
        correction: Tensor = self.body(features_BCHW)
        return features_BCHW + correction


def _doubling_block(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 4 * channels, 3, padding=1), nn.PixelShuffle(2), nn.PReLU(num_parameters=1)
    )


class PaperSrgan(Generator):
    """Listing 2. With the default configuration and scale 4 it has 336,804,875 parameters.

    With the LSTM only `input_px` x `input_px` inputs fit; others raise BadInputError. Output in (0, 1).
    """

    def __init__(self, config: PaperSrganConfig, scale: int) -> None:
        check_scale(config.kind, scale, SCALES)
        super().__init__()
        self.scale = scale
        self.input_px = config.input_px if config.lstm else None
        self.alignment, self.smoothing = config.alignment, config.smoothing
        width = config.channels
        self.head = nn.Sequential(nn.Conv2d(3, width, 9, padding=4), nn.PReLU())
        self.blocks = nn.Sequential(*[ResidualBlock(width) for _ in range(config.num_blocks)])
        self.merge = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
        num_doublings = scale.bit_length() - 1
        self.upsample = nn.Sequential(*[_doubling_block(width) for _ in range(num_doublings)])
        self.tail = nn.Conv2d(width, 3, 9, padding=4)
        self.lstm: nn.LSTM | None = None
        if config.lstm:
            num_features = width * config.input_px**2
            self.lstm = nn.LSTM(num_features, config.lstm_hidden, batch_first=True)
            self.decoder = nn.Linear(config.lstm_hidden, num_features)

    @property
    def carries_state(self) -> bool:  # type: ignore[override]
        """True with the LSTM. The alignment of listing 1 begins anew in every clip."""
        return self.lstm is not None

    def forward(  # type: ignore[override]
        self,
        low_BTCHW: Tensor,
        flow_BTKCHW: Tensor | None = None,
        *,
        state: State | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, State | None]:
        """Clip (B, T, 3, H, W) in [0, 1] to (B, T, 3, H * scale, W * scale) in (0, 1)."""
        check_clip(low_BTCHW)
        self._check_size(low_BTCHW)
        if self.alignment != "none":
            low_BTCHW = align_low_clip(low_BTCHW, self.alignment, self.smoothing)
        batch = low_BTCHW.shape[:2]
        shallow: Tensor = self.head(low_BTCHW.flatten(0, 1))
        features = shallow + self.merge(self.blocks(shallow))
        if self.lstm is not None:
            before = None if state is None else (state[0][None], state[1][None])
            hidden, (last_hidden, last_cell) = self.lstm(features.flatten(1).unflatten(0, batch), before)
            state = (last_hidden[0], last_cell[0])
            features = self.decoder(hidden).view_as(features)
        image: Tensor = self.tail(self.upsample(features))
        fake_BTCYX = torch.unflatten((torch.tanh(image) + 1.0) / 2.0, 0, batch)
        return (fake_BTCYX, state) if return_state else fake_BTCYX

    def _check_size(self, low_BTCHW: Tensor) -> None:
        height, width = low_BTCHW.shape[-2:]
        if self.input_px is not None and (height, width) != (self.input_px, self.input_px):
            raise BadInputError(
                f"paper_srgan with its LSTM accepts only {self.input_px} x {self.input_px} low-resolution "
                f"inputs, found {height} x {width}; crop or tile, set input_px, or set lstm to false"
            )
