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

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsr_dist.core.errors import BadConfigError, BadInputError
from vsr_dist.models.base import Generator, RecurrentGenerator, State, check_clip, check_positive, check_scale
from vsr_dist.models.blocks import ResidualBlock, zero_conv
from vsr_dist.ops.flow import MIN_SIDE_PX, FlowMethod, Smoothing, empty_history, estimate_flow, smooth_step
from vsr_dist.ops.resample import bicubic_upsample
from vsr_dist.ops.warp import backward_warp


class ConvRnn(nn.Module, ABC):
    """A recurrent cell with 3 x 3 convolutions for matrices, and a projection of its state that starts at zero.

    num_states: tensors that the state consists of, each (B, C, H, W).
    """

    num_states: int
    num_gates: int

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.from_input = nn.Conv2d(channels, self.num_gates * channels, 3, padding=1)
        self.from_state = nn.Conv2d(channels, self.num_gates * channels, 3, padding=1)
        self.project = zero_conv(channels, channels)

    def forward(
        self, features_NCHW: Tensor, num_frames: int, state: State | None, flows: Sequence[Tensor | None]
    ) -> tuple[Tensor, State]:
        """Features of B clips of `num_frames` frames to the correction (N, C, H, W) to be added, and the new state.

        flows: for each frame the flow (B, 2, H, W) from it to the one before, by which the state is warped onto its
        grid; None leaves the state where it is. state: that before the first frame, None for zeros.
        """
        gates_BTGHW = torch.unflatten(self.from_input(features_NCHW), 0, (-1, num_frames))
        if state is None:
            state = (torch.zeros_like(features_NCHW[: len(gates_BTGHW)]),) * self.num_states
        history = []
        for gates_BGHW, flow_B2HW in zip(gates_BTGHW.unbind(dim=1), flows, strict=True):
            if flow_B2HW is not None:
                state = tuple(backward_warp(part_BCHW, flow_B2HW) for part_BCHW in state)
            state = self._update(gates_BGHW, state)
            history.append(state[0])
        correction: Tensor = self.project(torch.stack(history, dim=1).flatten(0, 1))
        return correction, state

    @abstractmethod
    def _update(self, gates_BGHW: Tensor, state: State) -> State:
        """The state after one frame; its first tensor is what is shown to the network."""


class ConvGru(ConvRnn):
    """A gated recurrent unit on feature maps.

    Equations of `torch.nn.GRU` (Cho et al. 2014, reset gate after the matrix): r, z = sigmoid(W x + U h),
    n = tanh(W x + r * (U h)), h' = (1 - z) n + z h. The state is (h,).
    """

    num_states = 1
    num_gates = 3

    def _update(self, gates_BGHW: Tensor, state: State) -> State:
        (state_BCHW,) = state
        reset_x, update_x, new_x = gates_BGHW.chunk(3, dim=1)
        reset_h, update_h, new_h = self.from_state(state_BCHW).chunk(3, dim=1)
        update = torch.sigmoid(update_x + update_h)
        candidate = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
        return (torch.lerp(candidate, state_BCHW.to(candidate.dtype), update),)


class ConvLstm(ConvRnn):
    """A long short-term memory on feature maps.

    Equations of `torch.nn.LSTM`, with convolutions as in Shi et al. 2015 (arXiv:1506.04214) but without its peepholes:
    i, f, o = sigmoid(W x + U h), g = tanh(W x + U h), c' = f c + i g, h' = o tanh(c'). The gates lie in the order
    i, f, g, o. The bias of f starts at 1 (Jozefowicz et al. 2015), so that a fresh cell remembers. The state is (h, c).
    """

    num_states = 2
    num_gates = 4

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        if self.from_input.bias is not None and self.from_state.bias is not None:
            for bias, value in ((self.from_input.bias, 1.0), (self.from_state.bias, 0.0)):
                nn.init.constant_(bias[channels : 2 * channels], value)

    def _update(self, gates_BGHW: Tensor, state: State) -> State:
        hidden_BCHW, cell_BCHW = state
        enter, forget, new, leave = (gates_BGHW + self.from_state(hidden_BCHW)).chunk(4, dim=1)
        kept = torch.sigmoid(forget) * cell_BCHW.to(forget.dtype)
        cell_BCHW = kept + torch.sigmoid(enter) * torch.tanh(new)
        return torch.sigmoid(leave) * torch.tanh(cell_BCHW), cell_BCHW


class Aligner(nn.Module):
    """For each frame the flow from it to the one before.

    method: the classical method that stands in where no flow is given; None for the flow network, which takes no
    notice of flow that is given. The state is (previous frame, and the history of `smooth_step`).
    """

    def __init__(self, method: FlowMethod | None, smoothing: Smoothing) -> None:
        super().__init__()
        self.method, self.smoothing = method, smoothing
        self.network = FlowNet() if method is None else None

    def forward(
        self, low_BTCHW: Tensor, state: State | None, flow_BT2HW: Tensor | None
    ) -> tuple[list[Tensor | None], State]:
        """Frames in the order in which they are visited, to one flow each and the new state.

        flow_BT2HW: from each frame that has a predecessor, be it in `state`, to that one. Without a state the first
        frame has no predecessor, and its flow is None.
        """
        flows: list[Tensor | None] = []
        if state is None:
            frames_BTCHW, history = low_BTCHW, empty_history(low_BTCHW[:, 0], self.smoothing)
            flows.append(None)
        else:
            frames_BTCHW, history = torch.cat((state[0][:, None], low_BTCHW), dim=1), state[1:]
        if frames_BTCHW.shape[1] > 1:
            for flow_B2HW in self._flow(frames_BTCHW, flow_BT2HW).unbind(dim=1):
                smoothed_B2HW, history = smooth_step(flow_B2HW, history, self.smoothing)
                flows.append(smoothed_B2HW)
        return flows, (low_BTCHW[:, -1], *history)

    def _flow(self, frames_BTCHW: Tensor, flow_BT2HW: Tensor | None) -> Tensor:
        """Flow of all pairs of neighbours, before smoothing."""
        now_NCHW, before_NCHW = frames_BTCHW[:, 1:].flatten(0, 1), frames_BTCHW[:, :-1].flatten(0, 1)
        if self.network is not None:
            flow_N2HW: Tensor = self.network(now_NCHW, before_NCHW)
        elif flow_BT2HW is not None:
            _check_flow(flow_BT2HW, frames_BTCHW)
            return flow_BT2HW
        else:
            assert self.method is not None, "without a network there is a method"
            flow_N2HW = estimate_flow(now_NCHW, before_NCHW, self.method)
        return torch.unflatten(flow_N2HW, 0, (len(frames_BTCHW), -1))


def _check_flow(flow_BT2HW: Tensor, frames_BTCHW: Tensor) -> None:
    batch, num_frames, _, height, width = frames_BTCHW.shape
    expected = (batch, num_frames - 1, 2, height, width)
    if tuple(flow_BT2HW.shape) != expected:
        raise BadInputError(
            f"expected flow of shape {expected} (batch, pairs of frames, dx and dy, rows, columns) for these frames, "
            f"found {tuple(flow_BT2HW.shape)}"
        )


NUM_LEVELS = 3
WIDTH = 24


class FlowNet(nn.Module):
    """Coarse to fine: each level of an image pyramid corrects the flow of the level below (SPyNet's scheme).

    Ranjan and Black 2017, arXiv:1611.00850, with 3 levels of four 3 x 3 convolutions each in place of their 7 x 7 ones:
    37,806 parameters. The last convolution of each level starts at zero, so the untrained network gives zero flow. It
    learns from the loss of the images that its flow helps to make; there is no flow to imitate. Any size.
    """

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(_level() for _ in range(NUM_LEVELS))

    def forward(self, from_NCHW: Tensor, to_NCHW: Tensor) -> Tensor:
        """Pairs of RGB images in [0, 1] to (N, 2, H, W) float32 flow with `to(p + flow(p)) ~ from(p)`."""
        pyramid = [(from_NCHW, to_NCHW)]
        for _ in range(NUM_LEVELS - 1):
            pyramid.append((_halve(pyramid[-1][0]), _halve(pyramid[-1][1])))
        coarsest = pyramid[-1][0]
        flow_N2HW = torch.zeros_like(coarsest[:, :2], dtype=torch.float32)
        for level, (start_NCHW, end_NCHW) in zip(self.levels, reversed(pyramid), strict=True):
            if start_NCHW is not coarsest:
                height, width = start_NCHW.shape[-2:]
                doubled = F.interpolate(flow_N2HW, scale_factor=2.0, mode="bilinear", align_corners=False)
                flow_N2HW = 2.0 * doubled[..., :height, :width]
            seen = torch.cat((start_NCHW, backward_warp(end_NCHW, flow_N2HW), flow_N2HW), dim=1)
            # Under bfloat16 autocast the sum over the levels stays in float32: it is a coordinate.
            flow_N2HW = flow_N2HW + level(seen).float()
        return flow_N2HW


def _level() -> nn.Sequential:
    layers: list[nn.Module] = []
    for num_in in (8, WIDTH, WIDTH):
        layers += [nn.Conv2d(num_in, WIDTH, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, zero_conv(WIDTH, 2))


def _halve(images_NCHW: Tensor) -> Tensor:
    """Mean over 2 x 2; an odd last row or column is averaged by itself."""
    return F.avg_pool2d(images_NCHW, 2, ceil_mode=True, count_include_pad=False)


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
