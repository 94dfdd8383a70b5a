"""The engine: a trained generator as a `FrameStream`.

One frame in, one enlarged frame out, in constant memory whatever the length. The recurrent state is carried from frame
to frame and dropped at scene cuts, found by the detector that packing uses; large frames run in overlapping tiles.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vsr_dist.core.errors import BadConfigError, BadInputError
from vsr_dist.inference.streaming.pixels import check_frame
from vsr_dist.inference.streaming.runners import Precision, RunnerOptions, make_runner, stacked
from vsr_dist.inference.streaming.shots import CONTEXT_FRAMES, CutFinder
from vsr_dist.inference.streaming.stream import Frame
from vsr_dist.models.base import Generator


@dataclass(frozen=True)
class StreamOptions:
    """How a generator is run.

    tile_px: the largest side, in low-resolution pixels, of what the network sees at once; larger frames run in
    tiles. None takes what fits into the free memory. overlap_px: what neighbouring tiles share; None measures how far
    the network sees. precision: bf16 runs it under autocast. compile: by `torch.compile`, for fixed shapes. cuts: drop
    the state at scene cuts. chunk_frames: images per window, for generators that run on windows of frames.
    """

    tile_px: int | None = None
    overlap_px: int | None = None
    precision: Precision = "fp32"
    compile: bool = False
    cuts: bool = True
    chunk_frames: int = 8

    def __post_init__(self) -> None:
        faults = []
        if self.tile_px is not None and self.tile_px < 1:
            faults.append(f"a tile of at least 1 px, found {self.tile_px}")
        if self.overlap_px is not None and self.overlap_px < 0:
            faults.append(f"an overlap of at least 0 px, found {self.overlap_px}")
        if self.precision not in ("fp32", "bf16"):
            faults.append(f"precision fp32 or bf16, found {self.precision!r}")
        if self.chunk_frames < 1:
            faults.append(f"windows of at least 1 image, found {self.chunk_frames}")
        if faults:
            raise BadConfigError(f"upscaling: expected {'; '.join(faults)}")


def open_stream(generator: Generator, options: StreamOptions, device: torch.device) -> VideoStream:
    """A stream that runs the generator, which is put into evaluation mode and moved to the device."""
    return VideoStream(generator.eval().requires_grad_(False).to(device), options, device)


class VideoStream:
    """See `vsr_dist.inference.streaming.stream.FrameStream`, which this is."""

    def __init__(self, generator: Generator, options: StreamOptions, device: torch.device) -> None:
        self.scale = generator.scale
        self._options, self._device = options, device
        parts = RunnerOptions(
            options.tile_px, options.overlap_px, options.precision, options.compile, options.chunk_frames
        )
        self._runner = make_runner(generator, device, parts)
        # The same cuts are only found with the steps before the place in view.
        self.warm_up_frames = max(self._runner.warm_up_frames, CONTEXT_FRAMES if options.cuts else 0)
        self.num_cuts = 0
        self.cut_lags: list[int] = []
        self._begin()

    def _begin(self) -> None:
        self._finder = CutFinder()
        self._waiting: deque[Frame] = deque()  # for the answer whether they begin a shot
        self._like: tuple[tuple[int, ...], Any] | None = None

    def push(self, frame_HWC: Frame) -> list[Frame]:
        """See `FrameStream`."""
        check_frame(frame_HWC, self._like)
        self.cut_lags = []
        if self._like is None:
            self._like = (frame_HWC.shape, frame_HWC.dtype)
        if not self._options.cuts:
            return self._runner.take(frame_HWC, False)
        answers = self._finder.push(frame_HWC)
        if not self._waiting and len(answers) == 1:
            return self._take(frame_HWC, answers[0])
        # A copy: whoever gave the frame may write the next one over it.
        self._waiting.append(frame_HWC.copy())
        return self._settle(answers)

    def _settle(self, answers: list[bool]) -> list[Frame]:
        return [image for starts_shot in answers for image in self._take(self._waiting.popleft(), starts_shot)]

    def _take(self, frame_HWC: Frame, starts_shot: bool) -> list[Frame]:
        if starts_shot:
            self.num_cuts += 1
            # Behind a frame that waited stand those that wait still.
            self.cut_lags.append(len(self._waiting))
        return self._runner.take(frame_HWC, starts_shot)

    def finish(self) -> list[Frame]:
        """See `FrameStream`. The number of cuts and what is known of the memory are kept."""
        self.cut_lags = []
        rest = self._settle(self._finder.finish()) + self._runner.finish()
        self._begin()
        return rest

    def state(self) -> dict[str, Tensor]:
        """See `FrameStream`. Names of tensors that safetensors can keep."""
        state = {f"runner.{name}": tensor for name, tensor in self._runner.state().items()}
        state |= {f"cuts.{name}": tensor for name, tensor in self._finder.state().items()}
        state["num_cuts"] = torch.tensor([self.num_cuts])
        if self._waiting:
            state["waiting"] = stacked(list(self._waiting))
        if self._like is not None:
            state["frame"] = torch.tensor([*self._like[0], self._like[1].itemsize])
        if self._runner.network.tile_px is not None:
            # What was chosen from free memory must not change in the middle: results differ in the last bit.
            state["tile_px"] = torch.tensor([self._runner.network.tile_px])
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        """See `FrameStream`. The state must be of the same generator and options; BadInputError if it is not one."""
        missing = {"num_cuts", "cuts.scores", "cuts.steps"} - state.keys()
        if missing:
            raise BadInputError(f"the state of a stream lacks {', '.join(sorted(missing))}; it is of something else")
        self._begin()
        self.num_cuts = int(state["num_cuts"][0])
        self._finder = CutFinder.restored(_below("cuts.", state))
        self._waiting.extend(frame.numpy().copy() for frame in state.get("waiting", ()))
        if "frame" in state:
            *shape, num_bytes = (int(number) for number in state["frame"])
            self._like = (tuple(shape), torch.empty(0, dtype=[torch.uint8, torch.uint16][num_bytes - 1]).numpy().dtype)
        self._runner.network.set_tile(int(state["tile_px"][0]) if "tile_px" in state else None)
        self._runner.restore(_below("runner.", state))

    def facts(self) -> dict[str, Any]:
        """See `FrameStream`."""
        return {
            **self._runner.facts(),
            "precision": self._options.precision,
            "compiled": self._options.compile,
            "device": str(self._device),
            "scene_cuts": self.num_cuts if self._options.cuts else "not looked for",
            "warm_up_frames": self.warm_up_frames,
        }


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
