"""The two ways in which generators run over a video: step by step with a state, or on windows of frames.

Axis letters: B batch, T time, C channels, H W low-resolution, Y X high-resolution rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vsr_dist.inference.streaming.pixels import from_network, to_network
from vsr_dist.inference.streaming.probe import context_frames, context_px, moving_texture, probe_size
from vsr_dist.inference.streaming.stream import Frame
from vsr_dist.inference.streaming.tiled import TiledNetwork
from vsr_dist.inference.streaming.tiles import BLEND_PX, Overlap
from vsr_dist.models.base import Generator, RecurrentGenerator
from vsr_dist.models.vsrnet import neighbour_flow
from vsr_dist.ops.flow_classical import FlowMethod, estimate_flow

Precision = Literal["fp32", "bf16"]
# How long the beginning of a recurrence shows. Measured on a trained ConvGRU of 32 channels (the configuration of the
# generator that comes with the package, 1,400 steps) at many places of three sample clips: images of a stream that
# began k frames ago differ from one that began long ago by at most 6.8 levels of 255 at the first frame, 1.9 after 4,
# 0.6 after 8, 0.25 after 12 and 0.1 after 16: a factor of three every four frames.
STATE_WARM_UP_FRAMES = 16


class Runner(Protocol):
    """Enlarges the frames of one video in order, told where shots begin; `state` and `facts` as of a FrameStream."""

    warm_up_frames: int
    network: TiledNetwork

    def take(self, frame_HWC: Frame, starts_shot: bool) -> list[Frame]:
        """The next frame; returns what is finished."""
        ...

    def finish(self) -> list[Frame]:
        """The rest; afterwards another video may begin."""
        ...

    def state(self) -> dict[str, Tensor]: ...  # noqa: D102
    def restore(self, state: dict[str, Tensor]) -> None: ...  # noqa: D102
    def facts(self) -> dict[str, Any]: ...  # noqa: D102


@dataclass(frozen=True)
class RunnerOptions:
    """See `vsr_dist.inference.streaming.engine.StreamOptions`."""

    tile_px: int | None
    overlap_px: int | None
    precision: Precision
    compile: bool
    chunk_frames: int


class _Setting:
    """What surrounds every call of a generator: no gradients, its precision, its compiled form."""

    def __init__(self, device: torch.device, options: RunnerOptions) -> None:
        self.device, self._options = device, options

    @contextmanager
    def active(self) -> Iterator[None]:
        """No gradients, and autocast if it is asked for."""
        # Compiled graphs and tensors of inference mode do not go together.
        quiet: AbstractContextManager[Any] = torch.no_grad() if self._options.compile else torch.inference_mode()
        bf16 = self._options.precision == "bf16"
        with ExitStack() as stack:
            stack.enter_context(quiet)
            stack.enter_context(torch.autocast(self.device.type, torch.bfloat16, enabled=bf16))
            yield

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, compiled for fixed shapes if that is asked for."""
        if not self._options.compile:
            return function
        compiled: Callable[..., Any] = torch.compile(function, dynamic=False)
        return compiled


def _make_network(
    generator: Generator, device: torch.device, options: RunnerOptions, measure: Callable[[], int]
) -> TiledNetwork:
    fixed_px, shared_px = generator.input_px, options.overlap_px

    def overlap() -> Overlap:
        if fixed_px is not None:
            # Such a network is tied to its tile, and no overlap makes tiles agree: a quarter to blend in.
            shared = fixed_px // 4 if shared_px is None else min(shared_px, fixed_px // 2)
            return Overlap(0, shared)
        return Overlap(measure(), BLEND_PX) if shared_px is None else Overlap.of(shared_px)

    return TiledNetwork(generator.scale, device, options.tile_px, overlap, fixed_px=fixed_px, min_px=generator.min_px)


def _at_least(low: Tensor, side_px: int) -> Tensor:
    """Frames (..., 3, H, W), their last row and column repeated until each side has `side_px`."""
    height, width = low.shape[-2:]
    if min(height, width) >= side_px:
        return low
    padding = (0, max(0, side_px - width), 0, max(0, side_px - height))
    flat = F.pad(low.flatten(0, -4), padding, mode="replicate")
    return torch.unflatten(flat, 0, low.shape[:-3])


class StepRunner:
    """Frame by frame, with the state of a `RecurrentGenerator` of the whole frame, whatever the tiles are."""

    def __init__(self, generator: RecurrentGenerator, device: torch.device, options: RunnerOptions) -> None:
        self.generator, self.device = generator, device
        self._setting = _Setting(device, options)
        self._step = self._setting.compiled(generator.step)
        self.network = _make_network(generator, device, options, self._measure_context)
        self._state: tuple[Tensor, ...] | None = None
        self._low_before: Tensor | None = None
        side_px = max(generator.min_px, 24)
        with self._setting.active():
            _, state = generator.step(moving_texture(1, side_px, side_px, device)[:, 0], None)
        self._has_state = bool(state)
        self.warm_up_frames = STATE_WARM_UP_FRAMES if state else 0

    def _measure_context(self) -> int:
        with self._setting.active():
            low_BTCHW = moving_texture(2, *probe_size(self.generator.min_px), self.device)
            _, state = self.generator.step(low_BTCHW[:, 0], None)
            flow = self._flow(low_BTCHW[:, 1], low_BTCHW[:, 0])
            has_flow = flow is not None
            inputs = [low_BTCHW[:, 1], *([flow] if flow is not None else []), *(state or ())]
            return context_px(lambda *tensors: self._call(has_flow, *tensors), inputs, self.generator.scale)

    def _flow(self, low_BCHW: Tensor, before_BCHW: Tensor | None) -> Tensor | None:
        """Of the whole frame, for generators that use classical flow: that of a tile would be another near its edge."""
        method: FlowMethod | None = self.generator.flow_method  # type: ignore[assignment]
        if method is None or before_BCHW is None:
            return None
        return estimate_flow(low_BCHW, before_BCHW, method)

    def _call(self, has_flow: bool, low_BCHW: Tensor, *rest: Tensor) -> list[Tensor]:
        """Frame, flow if there is one, state if there is one, to image and new state."""
        flow = rest[0] if has_flow else None
        state = rest[1:] if has_flow else rest
        # Without a state the step is another program, needed once per shot: not worth its compilation.
        step = self._step if state or not self._has_state else self.generator.step
        fake_BCYX, following = step(low_BCHW, state or None, flow)
        return [fake_BCYX, *(following or ())]

    def take(self, frame_HWC: Frame, starts_shot: bool) -> list[Frame]:
        """See `Runner`: the image is there at once."""
        if starts_shot:
            self._forget()
        height, width = (side * self.generator.scale for side in frame_HWC.shape[:2])
        with self._setting.active():
            side_px = max(self.generator.min_px, self.generator.input_px or 1)
            low_BCHW = _at_least(to_network(frame_HWC, self.device), side_px)
            flow = self._flow(low_BCHW, self._low_before)
            inputs = [low_BCHW, *([flow] if flow is not None else []), *(self._state or ())]
            results = self.network.run(inputs, lambda *tensors: self._call(flow is not None, *tensors))
            self._state = tuple(results[1:])
            if self.generator.flow_method is not None:
                self._low_before = low_BCHW
            return [from_network(results[0][0, :, :height, :width], frame_HWC.dtype)]

    def _forget(self) -> None:
        self._state = self._low_before = None

    def finish(self) -> list[Frame]:
        """See `Runner`: nothing waits."""
        self._forget()
        return []

    def state(self) -> dict[str, Tensor]:
        """See `Runner`."""
        state = {f"state.{number}": tensor for number, tensor in enumerate(self._state or ())}
        if self._low_before is not None:
            state["low_before"] = self._low_before
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """See `Runner`."""
        names = sorted((name for name in state if name.startswith("state.")), key=lambda name: int(name[6:]))
        self._state = tuple(state[name].to(self.device, copy=True) for name in names) or None
        before = state.get("low_before")
        self._low_before = None if before is None else before.to(self.device, copy=True)

    def facts(self) -> dict[str, Any]:
        """See `Runner`."""
        return {"mode": "step by step", **self.network.facts()}


class WindowRunner:
    """Windows of frames for generators without `step`: with context on both sides, of which the middle counts.

    A window never crosses the beginning of a shot. Only integer frames are kept, `past + chunk + future` at most.
    """

    def __init__(self, generator: Generator, device: torch.device, options: RunnerOptions) -> None:
        self.generator, self.device = generator, device
        self._setting = _Setting(device, options)
        self.side_px = max(generator.min_px, generator.input_px or 1)
        with self._setting.active():
            self.past, self.future = context_frames(generator, generator.input_px or max(self.side_px, 24), device)
        # Where frames do not see each other there is nothing to wait for.
        self.chunk = options.chunk_frames if self.past or self.future else 1
        self._forward = self._setting.compiled(generator)
        self.network = _make_network(generator, device, options, self._measure_context)
        self.warm_up_frames = self.past + self.chunk if self.past or self.future else 0
        self._frames: list[Frame] = []
        self._num_done = 0  # of these frames: context of those that wait

    @property
    def window(self) -> int:
        """Frames of a full window."""
        return self.past + self.chunk + self.future

    def _measure_context(self) -> int:
        with self._setting.active():
            low_BTCHW = moving_texture(min(self.window, 9), *probe_size(self.generator.min_px), self.device)
            flow = self._flow(low_BTCHW)
            inputs = [low_BTCHW, *([flow] if flow is not None else [])]
            return context_px(lambda *tensors: [self.generator(*tensors)], inputs, self.generator.scale)

    def _flow(self, low_BTCHW: Tensor) -> Tensor | None:
        method: FlowMethod | None = self.generator.flow_method  # type: ignore[assignment]
        return None if method is None else neighbour_flow(low_BTCHW, method)

    def take(self, frame_HWC: Frame, starts_shot: bool) -> list[Frame]:
        """See `Runner`: images come `chunk` at a time, `future` frames late."""
        finished = self.finish() if starts_shot else []
        # A copy: whoever gave the frame may write the next one over it.
        self._frames.append(frame_HWC.copy() if self.window > 1 else frame_HWC)
        if len(self._frames) - self._num_done >= self.chunk + self.future:
            finished += self._run(self.chunk)
        return finished

    def finish(self) -> list[Frame]:
        """See `Runner`."""
        num_waiting = len(self._frames) - self._num_done
        finished = self._run(num_waiting) if num_waiting else []
        self._frames, self._num_done = [], 0
        return finished

    def _run(self, count: int) -> list[Frame]:
        """The images of the next `count` frames; what is no longer anybody's context is dropped."""
        frames, first = self._frames, self._num_done
        height, width = (side * self.generator.scale for side in frames[0].shape[:2])
        with self._setting.active():
            low_BTCHW = torch.cat([to_network(frame, self.device) for frame in frames])[None]
            low_BTCHW = _at_least(low_BTCHW, self.side_px)
            flow = self._flow(low_BTCHW)
            # Shorter windows, at the ends of shots, would each be compiled anew.
            forward = self._forward if len(frames) == self.window else self.generator
            images_BTCYX = self.network.run(
                [low_BTCHW, *([flow] if flow is not None else [])],
                lambda *tensors: [forward(*tensors)[:, first : first + count]],
            )[0]
            dtype = frames[0].dtype
            finished = [from_network(image[:, :height, :width], dtype) for image in images_BTCYX[0]]
        first_kept = max(0, first + count - self.past)
        self._frames, self._num_done = frames[first_kept:], first + count - first_kept
        return finished

    def state(self) -> dict[str, Tensor]:
        """See `Runner`."""
        if not self._frames:
            return {}
        return {"frames": torch.from_numpy(np.stack(self._frames)), "done": torch.tensor([self._num_done])}

    def restore(self, state: dict[str, Tensor]) -> None:
        """See `Runner`."""
        self._frames = [frame.numpy().copy() for frame in state["frames"]] if "frames" in state else []
        self._num_done = int(state["done"][0]) if "done" in state else 0

    def facts(self) -> dict[str, Any]:
        """See `Runner`."""
        windows = {"past_frames": self.past, "chunk_frames": self.chunk, "future_frames": self.future}
        return {"mode": "windows of frames", **windows, **self.network.facts()}


def make_runner(generator: Generator, device: torch.device, options: RunnerOptions) -> Runner:
    """The way in which this generator runs."""
    kind: Callable[..., Runner] = StepRunner if isinstance(generator, RecurrentGenerator) else WindowRunner
    return kind(generator, device, options)


def stacked(frames: Sequence[Frame]) -> Tensor:
    """Frames of one size as one tensor (n, H, W, 3), a copy."""
    return torch.from_numpy(np.stack(frames))
