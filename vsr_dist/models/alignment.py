"""Flow for the alignment of a recurrent state: taken as given, estimated or learned, and smoothed over time.

Axes: B batch, T time, C channels, H W low-resolution rows and columns, 2 the flow components (dx, dy) in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vsr_dist.core.errors import BadInputError
from vsr_dist.models.base import State
from vsr_dist.models.flownet import FlowNet
from vsr_dist.ops.flow_classical import FlowMethod, estimate_flow
from vsr_dist.ops.flow_smooth import Smoothing, empty_history, smooth_step


class Aligner(nn.Module):
    """For each frame the flow from it to the one before.

    method: the classical method that stands in where no flow is given; None for the flow network, which takes no
    notice of flow that is given. The state is (previous frame, and the history of `flow_smooth`).
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
