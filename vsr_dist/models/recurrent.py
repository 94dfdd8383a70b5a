"""A small recurrent generator that corrects the bicubic image.

Convolutional trunk without normalisation (EDSR's blocks, Lim et al. 2017), a ConvGRU or ConvLSTM in its middle, and a
residual that is added to the bicubic enlargement. Two projections start at zero, so that training starts from
known ground: the untrained network *is* bicubic enlargement, and its recurrence starts switched off.

The recurrent state may be aligned: before each update it is warped onto the grid of the current frame by the flow from
there to the frame before, smoothed over time as the paper asks (`vsr_dist.ops.flow`).

Only the state update runs frame by frame; everything else runs on all frames of all clips at once.

Axes: B batch, T time, C channels, H W low-resolution, Y X high-resolution, K the two directions of flow; N is B * T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vsr_dist.core.errors import BadConfigError
from vsr_dist.models.alignment import Aligner
from vsr_dist.models.base import Generator, RecurrentGenerator, State, check_clip, check_positive, check_scale
from vsr_dist.models.blocks import ResidualBlock, zero_conv
from vsr_dist.models.convrnn import ConvGru, ConvLstm, ConvRnn
from vsr_dist.ops.flow import MIN_SIDE_PX, FlowMethod, Smoothing
from vsr_dist.ops.resample import bicubic_upsample

SCALES = (1, 2, 3, 4)
CELLS: dict[str, type[ConvRnn]] = {"convgru": ConvGru, "convlstm": ConvLstm}
# Index of the direction in the flow of a clip: from each frame to the next, and from that back.
FORWARD, BACKWARD = 0, 1


@dataclass(frozen=True)
class RecurrentConfig:
    """Sizes and parts of the recurrent generator.

    recurrence: `none` gives the single-frame trunk alone. alignment: `packed` warps the state by classical flow, that
    of the shards in training (`data.flow`); where none is given, as in validation, evaluation and inference, it is
    estimated from the frames by the same method. `learned` warps it by a small network, trained with the rest.
    flow_method: the classical method, which must be the one that the shards were packed with; of no effect for other
    alignments. smoothing: the flow over time along its trajectory, by the exponential average of the paper's listing 1
    or the Gaussian of its text. bidirectional: a second recurrence from the last frame to the first; the whole
    clip must be there, so such a generator does not run frame by frame.
    """

    kind: Literal["recurrent"] = "recurrent"
    channels: int = 32
    num_blocks: int = 5
    recurrence: Literal["none", "convgru", "convlstm"] = "convgru"
    alignment: Literal["none", "packed", "learned"] = "none"
    flow_method: FlowMethod = "dis"
    smoothing: Smoothing = "none"
    bidirectional: bool = False

    def __post_init__(self) -> None:
        check_positive(self.kind, channels=self.channels, num_blocks=self.num_blocks)
        faults = []
        if self.recurrence == "none" and (self.alignment != "none" or self.bidirectional):
            faults.append("alignment and bidirectional need a recurrence, convgru or convlstm")
        if self.smoothing != "none" and self.alignment == "none":
            faults.append("smoothing acts on flow and needs an alignment, packed or learned")
        if faults:
            raise BadConfigError(f"model {self.kind!r}: {'; '.join(faults)}")


class _Trunk(Generator):
    """What both directions of time share. The order of the parts decides their initial weights."""

    def __init__(self, config: RecurrentConfig, scale: int) -> None:
        check_scale(config.kind, scale, SCALES)
        super().__init__()
        self.scale = scale
        width = config.channels
        num_after = config.num_blocks // 2
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.before = nn.Sequential(*[ResidualBlock(width) for _ in range(config.num_blocks - num_after)])
        self.memory = CELLS[config.recurrence](width) if config.recurrence != "none" else None
        self.after = nn.Sequential(*[ResidualBlock(width) for _ in range(num_after)])
        self.tail = nn.Sequential(zero_conv(width, 3 * scale**2), nn.PixelShuffle(scale))
        self.memory_back = CELLS[config.recurrence](width) if config.bidirectional else None
        self.aligner: Aligner | None = None
        if config.alignment == "packed":
            self.aligner = Aligner(config.flow_method, config.smoothing)
            self.flow_method, self.min_px = config.flow_method, MIN_SIDE_PX
        elif config.alignment == "learned":
            self.aligner = Aligner(None, config.smoothing)
            # The flow network sees pairs of frames only.
            self.min_frames = 2

    def _features(self, low_NCHW: Tensor) -> Tensor:
        features: Tensor = self.before(self.head(low_NCHW))
        return features

    def _remember(
        self, cell: ConvRnn, features_NCHW: Tensor, low_BTCHW: Tensor, state: State | None, flow_BT2HW: Tensor | None
    ) -> tuple[Tensor, State]:
        """One direction: the cell's correction of the features, and its state with the aligner's behind it."""
        num_frames = low_BTCHW.shape[1]
        hidden = None if state is None else state[: cell.num_states]
        if self.aligner is None:
            correction_NCHW, hidden = cell(features_NCHW, num_frames, hidden, [None] * num_frames)
            return correction_NCHW, hidden
        carried = None if state is None else state[cell.num_states :]
        flows, carried = self.aligner(low_BTCHW, carried, flow_BT2HW)
        correction_NCHW, hidden = cell(features_NCHW, num_frames, hidden, flows)
        return correction_NCHW, (*hidden, *carried)

    def _enlarge(self, low_NCHW: Tensor, features_NCHW: Tensor) -> Tensor:
        residual: Tensor = self.tail(self.after(features_NCHW))
        return bicubic_upsample(low_NCHW, self.scale) + residual


class Recurrent(_Trunk, RecurrentGenerator):
    """Bicubic enlargement plus a learnt, recurrent residual; any size, any number of frames, one by one if need be."""

    @property
    def carries_state(self) -> bool:  # type: ignore[override]
        """True with a memory that is not aligned: the aligner would need the frame before the clip."""
        return self.memory is not None and self.aligner is None

    def forward(  # type: ignore[override]
        self,
        low_BTCHW: Tensor,
        flow_BTKCHW: Tensor | None = None,
        *,
        state: State | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, State | None]:
        """Clip (B, T, 3, H, W) in [0, 1] to (B, T, 3, H * scale, W * scale), not clamped."""
        check_clip(low_BTCHW)
        flow_BT2HW = None if flow_BTKCHW is None else flow_BTKCHW[:, :, BACKWARD]
        fake_BTCYX, state = self._run(low_BTCHW, state, flow_BT2HW)
        return (fake_BTCYX, state) if return_state else fake_BTCYX

    def step(
        self, low_BCHW: Tensor, state: State | None, flow_B2HW: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        """One frame (B, 3, H, W) to its image and the next state; None starts a shot; `none` keeps None."""
        fake_BTCYX, state = self._run(low_BCHW[:, None], state, None if flow_B2HW is None else flow_B2HW[:, None])
        return fake_BTCYX[:, 0], state

    def _run(self, low_BTCHW: Tensor, state: State | None, flow_BT2HW: Tensor | None) -> tuple[Tensor, State | None]:
        low_NCHW = low_BTCHW.flatten(0, 1)
        features_NCHW = self._features(low_NCHW)
        if self.memory is not None:
            correction, state = self._remember(self.memory, features_NCHW, low_BTCHW, state, flow_BT2HW)
            features_NCHW = features_NCHW + correction
        fake_NCYX = self._enlarge(low_NCHW, features_NCHW)
        return torch.unflatten(fake_NCYX, 0, low_BTCHW.shape[:2]), state


class BidirectionalRecurrent(_Trunk):
    """The same with a second recurrence that runs from the last frame to the first; for whole clips."""

    def forward(self, low_BTCHW: Tensor, flow_BTKCHW: Tensor | None = None) -> Tensor:
        """Clip (B, T, 3, H, W) in [0, 1] to (B, T, 3, H * scale, W * scale), not clamped."""
        check_clip(low_BTCHW)
        assert self.memory is not None, "bidirectional: the configuration has asked for a recurrence"
        assert self.memory_back is not None, "bidirectional: built for it"
        low_NCHW, num_frames = low_BTCHW.flatten(0, 1), low_BTCHW.shape[1]
        features_NCHW = self._features(low_NCHW)
        flow_onward = flow_back = None
        if flow_BTKCHW is not None:
            # Backwards in time the frame before is the next one, to which the forward flow leads.
            flow_onward, flow_back = flow_BTKCHW[:, :, BACKWARD], flow_BTKCHW[:, :, FORWARD].flip(1)
        onward, _ = self._remember(self.memory, features_NCHW, low_BTCHW, None, flow_onward)
        reversed_NCHW = _reverse(features_NCHW, num_frames)
        back, _ = self._remember(self.memory_back, reversed_NCHW, low_BTCHW.flip(1), None, flow_back)
        fake_NCYX = self._enlarge(low_NCHW, features_NCHW + onward + _reverse(back, num_frames))
        return torch.unflatten(fake_NCYX, 0, low_BTCHW.shape[:2])


def _reverse(features_NCHW: Tensor, num_frames: int) -> Tensor:
    """The frames of each clip in the opposite order."""
    return torch.unflatten(features_NCHW, 0, (-1, num_frames)).flip(1).flatten(0, 1)


def build_recurrent(config: RecurrentConfig, scale: int) -> Generator:
    """The generator of a configuration; only that of one direction is a `RecurrentGenerator`."""
    return BidirectionalRecurrent(config, scale) if config.bidirectional else Recurrent(config, scale)
