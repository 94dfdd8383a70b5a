"""`recurrent` as one would write it down at first: what benchmarks/step_time.py measures the real one against."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vsr_dist.ops.resample import bicubic_upsample


class NaiveRecurrent:
    """The blocks of `recurrent` one frame after the other; gates by one convolution of (input, state)."""

    def __init__(self, generator: torch.nn.Module) -> None:
        self.net = generator
        cell = generator.memory
        reset_x, update_x, self.new_x = cell.from_input.weight.chunk(3)
        reset_h, update_h, self.new_h = cell.from_state.weight.chunk(3)
        bias_x, bias_h = cell.from_input.bias.chunk(3), cell.from_state.bias.chunk(3)
        self.reset = torch.cat([reset_x, reset_h], dim=1), bias_x[0] + bias_h[0]
        self.update = torch.cat([update_x, update_h], dim=1), bias_x[1] + bias_h[1]
        self.new_bias_x, self.new_bias_h = bias_x[2], bias_h[2]

    def __call__(self, low_TCHW: torch.Tensor) -> torch.Tensor:
        net, state, images = self.net, None, []
        for low in low_TCHW.split(1):
            features = net.before(net.head(low))
            state = torch.zeros_like(features) if state is None else state
            both = torch.cat([features, state], dim=1)
            reset = torch.sigmoid(F.conv2d(both, *self.reset, padding=1))
            update = torch.sigmoid(F.conv2d(both, *self.update, padding=1))
            new_x = F.conv2d(features, self.new_x, self.new_bias_x, padding=1)
            new_h = F.conv2d(state, self.new_h, self.new_bias_h, padding=1)
            state = (1 - update) * torch.tanh(new_x + reset * new_h) + update * state
            residual = net.tail(net.after(features + net.memory.project(state)))
            images.append(bicubic_upsample(low, net.scale) + residual)
        return torch.cat(images)
