"""Recurrent cells on feature maps, at any size: what keeps the paper's LSTM idea without its fixed input.

Only the state update runs frame by frame; the convolutions of the input run on all frames of all clips at once.

Axes: B batch, T time, C channels, G gates, H W low-resolution rows and columns; N is B * T.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vsr_dist.models.base import State
from vsr_dist.models.blocks import zero_conv
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
