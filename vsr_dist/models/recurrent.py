"""A small recurrent generator that corrects the bicubic image.

A convolutional trunk without normalisation (EDSR's blocks, Lim et al. 2017) and a residual that is added to the bicubic
enlargement. Two families of recurrence: a ConvGRU or ConvLSTM in the middle of the trunk (`Recurrent`), or the whole
trunk inside the recurrence, as in RLSP and RRN (`BlocksInLoop`). Two projections start at zero: the untrained network
is bicubic enlargement, and its recurrence is off.

The recurrent state may be aligned: before each update it is warped onto the grid of the current frame by the flow from
there to the frame before, smoothed over time as the paper asks (`vsr_dist.ops.flow`).

Only what depends on the state runs frame by frame; everything else runs on all frames of all clips at once.

Axes: B batch, T time, C channels, G gates, H W low-resolution, Y X high-resolution, K the two directions of flow; N is
B * T.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsr_dist.core.errors import BadConfigError
from vsr_dist.models.alignment import Aligner
from vsr_dist.models.base import Generator, RecurrentGenerator, State, check_clip, check_positive, check_scale
from vsr_dist.models.blocks import ResidualBlock, zero_conv
from vsr_dist.ops.flow import MIN_SIDE_PX, FlowMethod, Smoothing
from vsr_dist.ops.resample import bicubic_upsample
from vsr_dist.ops.warp import backward_warp


class ConvRnn(nn.Module, ABC):
    """A recurrent cell with 3 x 3 convolutions for matrices, and a projection of its state that starts at zero.

    state_names: the tensors that the state consists of, each (B, C, H, W).
    """

    state_names: tuple[str, ...]
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
            state = (torch.zeros_like(features_NCHW[: len(gates_BTGHW)]),) * len(self.state_names)
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

    state_names = ("hidden state of the recurrence",)
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

    state_names = ("hidden state of the recurrence", "cell state of the recurrence")
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


SCALES = (1, 2, 3, 4)
CELLS: dict[str, type[ConvRnn]] = {"convgru": ConvGru, "convlstm": ConvLstm}
IN_LOOP = ("rlsp", "rrn")
# Index of the direction in the flow of a clip: from each frame to the next, and from that back.
FORWARD, BACKWARD = 0, 1


@dataclass(frozen=True)
class RecurrentConfig:
    """Sizes and parts of the recurrent generator.

    recurrence: `none` gives the single-frame trunk alone; `convgru` and `convlstm` put a cell into the middle of the
    trunk; `rlsp` and `rrn` run the trunk inside the recurrence (`BlocksInLoop`). lookahead_frames: 1 shows `rlsp` the
    next frame, so that images come one frame late. alignment: `packed` warps the state by classical flow, that
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
    recurrence: Literal["none", "convgru", "convlstm", "rlsp", "rrn"] = "convgru"
    lookahead_frames: int = 0
    alignment: Literal["none", "packed", "learned"] = "none"
    flow_method: FlowMethod = "dis"
    smoothing: Smoothing = "none"
    bidirectional: bool = False

    def __post_init__(self) -> None:
        check_positive(self.kind, channels=self.channels, num_blocks=self.num_blocks)
        faults = []
        if self.recurrence == "none" and (self.alignment != "none" or self.bidirectional):
            faults.append("alignment and bidirectional need a recurrence")
        if self.recurrence in IN_LOOP and self.bidirectional:
            faults.append("bidirectional needs the recurrence convgru or convlstm")
        if self.lookahead_frames not in ((0, 1) if self.recurrence == "rlsp" else (0,)):
            faults.append(
                f"expected lookahead_frames of 0, or 1 with the recurrence rlsp, found {self.lookahead_frames}"
            )
        if self.smoothing != "none" and self.alignment == "none":
            faults.append("smoothing acts on flow and needs an alignment, packed or learned")
        if faults:
            raise BadConfigError(f"model {self.kind!r}: {'; '.join(faults)}")


class _Aligned(Generator):
    """A generator whose recurrent state may be aligned."""

    aligner: Aligner | None

    def _make_aligner(self, config: RecurrentConfig) -> None:
        self.aligner = None
        if config.alignment == "packed":
            self.aligner = Aligner(config.flow_method, config.smoothing)
            self.flow_method, self.min_px = config.flow_method, MIN_SIDE_PX
        elif config.alignment == "learned":
            self.aligner = Aligner(None, config.smoothing)
            # The flow network sees pairs of frames only.
            self.min_frames = 2

    def _flows(
        self, low_BTCHW: Tensor, carried: State | None, flow_BT2HW: Tensor | None
    ) -> tuple[Sequence[Tensor | None], State]:
        """The flow from each frame to the one before, and the aligner's state; without alignment Nones and no state."""
        if self.aligner is None:
            return [None] * low_BTCHW.shape[1], ()
        flows, carried = self.aligner(low_BTCHW, carried or None, flow_BT2HW)
        return flows, carried

    def _aligner_state_names(self) -> tuple[str, ...]:
        if self.aligner is None:
            return ()
        return ("frame before", *self.aligner.history_names)


class _Trunk(_Aligned):
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
        self._make_aligner(config)

    def _features(self, low_NCHW: Tensor) -> Tensor:
        features: Tensor = self.before(self.head(low_NCHW))
        return features

    def _remember(
        self, cell: ConvRnn, features_NCHW: Tensor, low_BTCHW: Tensor, state: State | None, flow_BT2HW: Tensor | None
    ) -> tuple[Tensor, State]:
        """One direction: the cell's correction of the features, and its state with the aligner's behind it."""
        num_hidden = len(cell.state_names)
        hidden, carried = (None, None) if state is None else (state[:num_hidden], state[num_hidden:])
        flows, carried = self._flows(low_BTCHW, carried, flow_BT2HW)
        correction_NCHW, hidden = cell(features_NCHW, low_BTCHW.shape[1], hidden, flows)
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

    @property
    def state_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """See `RecurrentGenerator`."""
        return () if self.memory is None else (*self.memory.state_names, *self._aligner_state_names())

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
        if self.is_checkpointing:
            fake_BTCYX, state = self.step_through(low_BTCHW, state, flow_BT2HW)
        else:
            fake_BTCYX, state = self._run(low_BTCHW, state, flow_BT2HW)
        return (fake_BTCYX, state) if return_state else fake_BTCYX

    def step(
        self,
        low_BCHW: Tensor,
        state: State | None,
        flow_B2HW: Tensor | None = None,
        next_BCHW: Tensor | None = None,
    ) -> tuple[Tensor, State | None]:
        """One frame (B, 3, H, W) to its image and the next state; None starts a shot; `none` keeps None."""
        del next_BCHW  # No look-ahead.
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


class BlocksInLoop(_Aligned, RecurrentGenerator):
    """Bicubic enlargement plus a residual from a trunk inside the recurrence, as in RLSP and RRN.

    For each frame: f = body(relu(head(frames) + recur(h, o))), image = bicubic + tail(f), where the frames are
    concatenated along the channels. Of both papers this keeps the recurrence; the residual blocks are this project's.

    `rlsp` (Fuoli et al. 2019, arXiv:1909.08080): frames are the one before, the current one and, with look-ahead, the
    next; h is f of the frame before, o the image of the frame before, folded by space-to-depth. `rrn` (Isobe et al.
    2020, arXiv:2008.05765): frames are the one before and the current one; h is relu(conv(f)), o the folded residual.

    Before the first frame everything is zero; after the last frame the last one is repeated. `recur` and `tail`
    start at zero. The state is (h, o, frame before), of which h and o are aligned.
    """

    state_names: tuple[str, ...]

    def __init__(self, config: RecurrentConfig, scale: int) -> None:
        check_scale(config.kind, scale, SCALES)
        super().__init__()
        self.scale, self.lookahead_frames = scale, config.lookahead_frames
        width, num_folded = config.channels, 3 * scale**2
        self.head = nn.Conv2d(3 * (2 + config.lookahead_frames), width, 3, padding=1)
        self.recur = zero_conv(width + num_folded, width)
        self.body = nn.Sequential(*[ResidualBlock(width) for _ in range(config.num_blocks)])
        self.tail = zero_conv(width, num_folded)
        self.to_state = nn.Conv2d(width, width, 3, padding=1) if config.recurrence == "rrn" else None
        # The state after the last frame of a clip is unused.
        self.min_frames = 1 if self.to_state is None else 2
        self._make_aligner(config)
        folded = "image before" if self.to_state is None else "residual before"
        names = ("hidden state of the recurrence", f"{folded}, folded by space-to-depth", "frame before")
        self.state_names = (*names, *self._aligner_state_names())

    @property
    def carries_state(self) -> bool:  # type: ignore[override]
        """True unless a frame outside the clip is needed: by the aligner the one before, by the look-ahead the next."""
        return self.aligner is None and self.lookahead_frames == 0

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
        if self.is_checkpointing:
            fake_BTCYX, state = self.step_through(low_BTCHW, state, flow_BT2HW)
        else:
            fake_BTCYX, state = self._run(low_BTCHW, low_BTCHW[:, -1], state, flow_BT2HW)
        return (fake_BTCYX, state) if return_state else fake_BTCYX

    def step(
        self,
        low_BCHW: Tensor,
        state: State | None,
        flow_B2HW: Tensor | None = None,
        next_BCHW: Tensor | None = None,
    ) -> tuple[Tensor, State | None]:
        """See `RecurrentGenerator`."""
        flow_BT2HW = None if flow_B2HW is None else flow_B2HW[:, None]
        following_BCHW = low_BCHW if next_BCHW is None else next_BCHW
        fake_BTCYX, state = self._run(low_BCHW[:, None], following_BCHW, state, flow_BT2HW)
        return fake_BTCYX[:, 0], state

    def _run(
        self, low_BTCHW: Tensor, following_BCHW: Tensor, state: State | None, flow_BT2HW: Tensor | None
    ) -> tuple[Tensor, State]:
        """following_BCHW: the frame after the clip."""
        batch, num_frames, _, height, width = low_BTCHW.shape
        if state is None:
            sizes = (self.recur.out_channels, self.tail.out_channels, 3)
            state = tuple(low_BTCHW.new_zeros(batch, channels, height, width) for channels in sizes)
        flows, carried = self._flows(low_BTCHW, state[3:], flow_BT2HW)
        hidden_BCHW, folded_BCHW, before_BCHW = state[:3]
        seen = [torch.cat((before_BCHW[:, None], low_BTCHW[:, :-1]), dim=1), low_BTCHW]
        if self.lookahead_frames:
            seen.append(torch.cat((low_BTCHW[:, 1:], following_BCHW[:, None]), dim=1))
        fed_BTCHW = torch.unflatten(self.head(torch.cat(seen, dim=2).flatten(0, 1)), 0, (batch, num_frames))
        base_BTCYX = torch.unflatten(bicubic_upsample(low_BTCHW.flatten(0, 1), self.scale), 0, (batch, num_frames))
        images = []
        for fed_BCHW, base_BCYX, flow_B2HW in zip(fed_BTCHW.unbind(1), base_BTCYX.unbind(1), flows, strict=True):
            if flow_B2HW is not None:
                hidden_BCHW = backward_warp(hidden_BCHW, flow_B2HW)
                folded_BCHW = backward_warp(folded_BCHW, flow_B2HW)
            recurrent_BCHW = self.recur(torch.cat((hidden_BCHW, folded_BCHW.to(hidden_BCHW.dtype)), dim=1))
            features_BCHW = self.body(F.relu(fed_BCHW + recurrent_BCHW))
            residual_BCHW = self.tail(features_BCHW)
            image_BCYX = base_BCYX + F.pixel_shuffle(residual_BCHW, self.scale)
            if self.to_state is None:
                hidden_BCHW, folded_BCHW = features_BCHW, F.pixel_unshuffle(image_BCYX, self.scale)
            else:
                hidden_BCHW, folded_BCHW = F.relu(self.to_state(features_BCHW)), residual_BCHW
            images.append(image_BCYX)
        return torch.stack(images, dim=1), (hidden_BCHW, folded_BCHW, low_BTCHW[:, -1], *carried)


def build_recurrent(config: RecurrentConfig, scale: int) -> Generator:
    """The generator of a configuration; only that of one direction is a `RecurrentGenerator`."""
    if config.recurrence in IN_LOOP:
        return BlocksInLoop(config, scale)
    return BidirectionalRecurrent(config, scale) if config.bidirectional else Recurrent(config, scale)
