"""The inference engine: a trained generator applied to the frames of a video, for evaluation and for upscaling.

One frame in, one enlarged frame out, in constant memory whatever the length. Recurrent generators run step by step and
carry their state from frame to frame; the others run on windows of frames. State and windows end at scene cuts, which
are found by the detector that packing uses; large frames run in overlapping tiles.

Axis letters: B batch, T time, C channels, H W low-resolution, Y X high-resolution rows and columns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sharding.shots import MIN_SCORE, NUM_STEPS_AROUND, THUMBNAIL_SIZE_PX, StepScorer, find_cuts
from vsr_dist.core.errors import BadConfigError, BadInputError, number_type
from vsr_dist.inference.frames import Frame, check_frame, from_network, to_8_bits, to_network
from vsr_dist.inference.receptive_field import context_frames, context_px, moving_texture, probe_size
from vsr_dist.inference.tiles import BLEND_PX, Overlap, TiledNetwork
from vsr_dist.models.base import Generator, RecurrentGenerator
from vsr_dist.models.vsrnet import neighbour_flow
from vsr_dist.ops.flow import FlowMethod, estimate_flow

# Before a place from which on the same cuts are found as from the start of the video: the steps around the first one.
CONTEXT_FRAMES = NUM_STEPS_AROUND + 1


class CutFinder:
    """Says of every frame whether it begins a new shot, as `sharding.shots.find_cuts` would on the whole video.

    A step that changes little is no cut, whatever surrounds it, and is settled at once; a larger one when the eight
    steps behind it are known. Memory is constant.
    """

    def __init__(self) -> None:
        self._scorer = StepScorer()
        self._thumbnail_HWC: NDArray[np.uint8] | None = None
        # Scores of the steps not yet settled, with up to eight before them; steps are numbered from 0.
        self._scores: deque[float] = deque()
        self._first_step = 0
        self._num_settled = 0

    def push(self, frame_HWC: Frame) -> list[bool]:
        """Take the next frame; for each frame that is settled now, in order: does it begin a new shot?

        The first frame of a video begins no new one.
        """
        small_HWC: Frame = cv2.resize(frame_HWC, THUMBNAIL_SIZE_PX, interpolation=cv2.INTER_AREA)
        is_first = self._thumbnail_HWC is None
        self._thumbnail_HWC = to_8_bits(small_HWC)
        # The scorer makes its thumbnail from ours, which leaves it as it is.
        self._scorer.add(self._thumbnail_HWC)
        self._scores.extend(self._scorer.scores)
        self._scorer.scores.clear()
        return [False] if is_first else self._settle(at_end=False)

    def finish(self) -> list[bool]:
        """The frames that are left at the end of the video."""
        return self._settle(at_end=True)

    def _settle(self, *, at_end: bool) -> list[bool]:
        settled = []
        while (position := self._num_settled - self._first_step) < len(self._scores):
            is_large = self._scores[position] >= MIN_SCORE
            if is_large and not at_end and position + NUM_STEPS_AROUND >= len(self._scores):
                break
            scores = list(self._scores)
            first = max(0, position - NUM_STEPS_AROUND)
            window = scores[first : position + 1 + NUM_STEPS_AROUND]
            settled.append(is_large and position - first + 1 in find_cuts(window))
            self._num_settled += 1
            while self._num_settled - self._first_step > NUM_STEPS_AROUND:
                self._scores.popleft()
                self._first_step += 1
        return settled

    def state(self) -> dict[str, Tensor]:
        """Everything that shapes later answers."""
        state = {
            "scores": torch.tensor(list(self._scores), dtype=torch.float64),
            "steps": torch.tensor([self._first_step, self._num_settled]),
        }
        if self._thumbnail_HWC is not None:
            state["thumbnail"] = torch.from_numpy(self._thumbnail_HWC.copy())
        return state

    @classmethod
    def restored(cls, state: dict[str, Tensor]) -> CutFinder:
        """One that goes on as the finder whose state this was."""
        finder = cls()
        finder._scores.extend(state["scores"].tolist())
        finder._first_step, finder._num_settled = (int(number) for number in state["steps"])
        if "thumbnail" in state:
            finder._thumbnail_HWC = state["thumbnail"].numpy().copy()
            finder._scorer.add(finder._thumbnail_HWC)
        return finder


Precision = Literal["fp32", "bf16", "auto"]
# How long the start of a recurrence is visible. Measured on a trained ConvGRU of 32 channels (the configuration of the
# generator that comes with the package, 1,400 steps) at many places of three sample clips: images of a stream that
# began k frames ago differ from one that began long ago by at most 6.8 levels of 255 at the first frame, 1.9 after 4,
# 0.6 after 8, 0.25 after 12 and 0.1 after 16: a factor of three every four frames.
STATE_WARM_UP_FRAMES = 16


@dataclass(frozen=True)
class StreamOptions:
    """How a generator is run.

    tile_px: the largest side, in low-resolution pixels, of what the network sees at once; larger frames run in
    tiles. None takes what fits into the free memory. overlap_px: what neighbouring tiles share; None measures how far
    the network sees. precision: bf16 runs it under autocast; auto does so where the device computes in bf16. compile:
    by `torch.compile`, for fixed shapes. cuts: drop the state at scene cuts. chunk_frames: images per window, for
    generators that run on windows of frames.
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
        if self.precision not in ("fp32", "bf16", "auto"):
            faults.append(f"precision fp32, bf16 or auto, found {self.precision!r}")
        if self.chunk_frames < 1:
            faults.append(f"windows of at least 1 image, found {self.chunk_frames}")
        if faults:
            raise BadConfigError(f"upscaling: expected {'; '.join(faults)}")

    @classmethod
    def of(cls, source: Any) -> StreamOptions:  # noqa: ANN401 - parsed arguments, or options that include them
        """From the attributes of the same names; windows have the default length."""
        return cls(source.tile_px, source.overlap_px, source.precision, source.compile, source.cuts)


def add_stream_arguments(add: Callable[..., Any]) -> None:
    """The options of a command that `StreamOptions.of` reads, by the `add_argument` of its parser."""
    add("--tile", dest="tile_px", type=number_type(int, 1), metavar="PX", help="largest side of a tile, in input "
        "pixels (default: what fits into the free memory)")  # fmt: skip
    add("--tile-overlap", dest="overlap_px", type=number_type(int, 0), metavar="PX", help="overlap of tiles, in "
        "input pixels (default: from the receptive field, which is measured)")  # fmt: skip
    add("--precision", choices=["fp32", "bf16", "auto"], default="fp32", help="bf16 is faster on devices that compute "
        "in it; auto takes it there (default: %(default)s)")  # fmt: skip
    add("--compile", action="store_true", help="compile the network: slower start, then faster")
    add("--no-cuts", dest="cuts", action="store_false", help="do not reset the state at scene cuts")


def choose_precision(precision: Precision, device: torch.device) -> tuple[Precision, str]:
    """(fp32 or bf16, why `auto` chose it, empty for the others)."""
    if precision != "auto":
        return precision, ""
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        found = torch.cpu.get_capabilities()
        has_bf16 = bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16"))
    name = "GPU" if device.type == "cuda" else "processor"
    return ("bf16", f"the {name} computes in bf16") if has_bf16 else ("fp32", f"the {name} has no bf16 arithmetic")


class VideoStream:
    """A `FrameStream` that runs a generator, and that can be saved and restored in the middle of a video.

    scale: enlargement in both directions. warm_up_frames: to start in the middle of a video, push this many frames
    before that place and drop their results; what follows looks the same as from the start of the video. num_cuts:
    scene cuts found so far. cut_lags: of those that the last call found, how many frames before the newest one the new
    shot begins.
    """

    def __init__(self, generator: Generator, options: StreamOptions, device: torch.device) -> None:
        """The generator is put into evaluation mode and moved to the device."""
        precision, self._precision_reason = choose_precision(options.precision, device)
        options = replace(options, precision=precision)
        generator = generator.eval().requires_grad_(False).to(device)
        if device.type == "cpu" or precision == "bf16":
            # Convolutions are faster then; the layout of the weights decides.
            generator.to(memory_format=torch.channels_last)
        self.scale = generator.scale
        self._options, self._device = options, device
        kind: Callable[..., Runner] = StepRunner if isinstance(generator, RecurrentGenerator) else WindowRunner
        self._runner = kind(generator, device, options)
        # The detector finds the same cuts only if it sees the steps before that place.
        self.warm_up_frames = max(self._runner.warm_up_frames, CONTEXT_FRAMES if options.cuts else 0)
        self.num_cuts = 0
        self.cut_lags: list[int] = []
        self._reset()

    def _reset(self) -> None:
        self._cut_finder = CutFinder()
        # Frames of which the detector does not know yet whether they begin a shot.
        self._waiting: deque[Frame] = deque()
        self._frame_format: tuple[tuple[int, ...], Any] | None = None

    def push(self, frame_HWC: Frame) -> list[Frame]:
        """See `FrameStream`. All frames of a video have one size and dtype; BadInputError for another."""
        check_frame(frame_HWC, self._frame_format)
        self.cut_lags = []
        if self._frame_format is None:
            self._frame_format = (frame_HWC.shape, frame_HWC.dtype)
        if not self._options.cuts:
            return self._runner.push(frame_HWC, False)
        answers = self._cut_finder.push(frame_HWC)
        if not self._waiting and len(answers) == 1:
            return self._run(frame_HWC, answers[0])
        # A copy: the caller may reuse the buffer for the next frame.
        self._waiting.append(frame_HWC.copy())
        return self._run_waiting(answers)

    def _run_waiting(self, answers: list[bool]) -> list[Frame]:
        return [image for starts_shot in answers for image in self._run(self._waiting.popleft(), starts_shot)]

    def _run(self, frame_HWC: Frame, starts_shot: bool) -> list[Frame]:
        if starts_shot:
            self.num_cuts += 1
            # The frames that still wait come after this one.
            self.cut_lags.append(len(self._waiting))
        return self._runner.push(frame_HWC, starts_shot)

    def finish(self) -> list[Frame]:
        """See `FrameStream`. The number of cuts is kept, and the tile for further videos of the same size."""
        self.cut_lags = []
        rest = self._run_waiting(self._cut_finder.finish()) + self._runner.finish()
        self._reset()
        return rest

    def state(self) -> dict[str, Tensor]:
        """Everything that affects later results, waiting frames included: tensors on the CPU by name."""
        state = {f"runner.{name}": tensor for name, tensor in self._runner.state().items()}
        state |= {f"cuts.{name}": tensor for name, tensor in self._cut_finder.state().items()}
        state["num_cuts"] = torch.tensor([self.num_cuts])
        if self._waiting:
            state["waiting"] = torch.from_numpy(np.stack(list(self._waiting)))
        if self._frame_format is not None:
            state["frame"] = torch.tensor([*self._frame_format[0], self._frame_format[1].itemsize])
        if self._runner.network.tile_px is not None:
            # A tile that was chosen from the free memory must stay the same: results would differ in the last bit.
            state["tile_px"] = torch.tensor([self._runner.network.tile_px])
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue as the stream whose state this was, on a CPU bit for bit.

        The state must be of the same generator and options; BadInputError if it is not the state of a stream.
        """
        missing = {"num_cuts", "cuts.scores", "cuts.steps"} - state.keys()
        if missing:
            raise BadInputError(f"expected the state of a stream, found tensors without {', '.join(sorted(missing))}")
        self._reset()
        self.num_cuts = int(state["num_cuts"][0])
        self._cut_finder = CutFinder.restored(_below("cuts.", state))
        self._waiting.extend(frame.numpy().copy() for frame in state.get("waiting", ()))
        if "frame" in state:
            *shape, num_bytes = (int(number) for number in state["frame"])
            self._frame_format = (tuple(shape), np.dtype([np.uint8, np.uint16][num_bytes - 1]))
        self._runner.network.set_tile(int(state["tile_px"][0]) if "tile_px" in state else None)
        self._runner.restore(_below("runner.", state))

    def facts(self) -> dict[str, Any]:
        """What was chosen and what happened (tile size, retries, precision): plain JSON values, for people to read."""
        return {
            **self._runner.facts(),
            "precision": self._options.precision,
            **({"precision_reason": self._precision_reason} if self._precision_reason else {}),
            "compiled": self._options.compile,
            "device": str(self._device),
            "scene_cuts": self.num_cuts if self._options.cuts else "not detected",
            "warm_up_frames": self.warm_up_frames,
        }


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


class Runner(Protocol):
    """Enlarges the frames of one video in order, given where shots begin; the other methods as of a `VideoStream`."""

    warm_up_frames: int
    network: TiledNetwork

    def push(self, frame_HWC: Frame, starts_shot: bool) -> list[Frame]:
        """The next frame; returns the results that are finished."""
        ...

    def finish(self) -> list[Frame]:
        """The rest; afterwards another video may begin."""
        ...

    def state(self) -> dict[str, Tensor]: ...  # noqa: D102
    def restore(self, state: dict[str, Tensor]) -> None: ...  # noqa: D102
    def facts(self) -> dict[str, Any]: ...  # noqa: D102


class _RunMode:
    """How every call of a generator runs: without gradients, in which precision, compiled or not."""

    def __init__(self, device: torch.device, options: StreamOptions) -> None:
        self.device, self._options = device, options

    @contextmanager
    def active(self) -> Iterator[None]:
        """No gradients, and autocast for bf16."""
        # Compiled graphs do not accept tensors of inference mode.
        no_gradients: AbstractContextManager[Any] = torch.no_grad() if self._options.compile else torch.inference_mode()
        bf16 = self._options.precision == "bf16"
        with ExitStack() as stack:
            stack.enter_context(no_gradients)
            stack.enter_context(torch.autocast(self.device.type, torch.bfloat16, enabled=bf16))
            yield

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, compiled for fixed shapes if the options say so."""
        if not self._options.compile:
            return function
        compiled: Callable[..., Any] = torch.compile(function, dynamic=False)
        return compiled


def _make_network(
    generator: Generator, device: torch.device, options: StreamOptions, measure: Callable[[], int]
) -> TiledNetwork:
    fixed_px, shared_px = generator.input_px, options.overlap_px

    def overlap() -> Overlap:
        if fixed_px is not None:
            # No overlap makes the tiles of such a network agree: blend over a quarter of the tile.
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
    """Frame by frame, with the state of a `RecurrentGenerator` kept for the whole frame, whatever the tiles are.

    With look-ahead a frame waits for the one that follows it, or for the end of its shot.
    """

    def __init__(self, generator: RecurrentGenerator, device: torch.device, options: StreamOptions) -> None:
        self.generator, self.device = generator, device
        self._run_mode = _RunMode(device, options)
        self._step = self._run_mode.compiled(generator.step)
        self.network = _make_network(generator, device, options, self._measure_context)
        self._state: tuple[Tensor, ...] | None = None
        self._low_before: Tensor | None = None
        self._waiting: Frame | None = None
        side_px = max(generator.min_px, 24)
        with self._run_mode.active():
            _, state = generator.step(moving_texture(1, side_px, side_px, device)[:, 0], None)
        self._has_state = bool(state)
        self.warm_up_frames = STATE_WARM_UP_FRAMES if state else 0

    def _measure_context(self) -> int:
        with self._run_mode.active():
            low_BTCHW = moving_texture(3, *probe_size(self.generator.min_px), self.device)
            _, state = self.generator.step(low_BTCHW[:, 0], None)
            inputs, call = self._prepare(low_BTCHW[:, 1], low_BTCHW[:, 2], low_BTCHW[:, 0], state or ())
            return context_px(call, inputs, self.generator.scale)

    def _flow(self, low_BCHW: Tensor, before_BCHW: Tensor | None) -> Tensor | None:
        """Flow of the whole frame, for generators that use classical flow: near the edge of a tile it would differ."""
        method: FlowMethod | None = self.generator.flow_method  # type: ignore[assignment]
        if method is None or before_BCHW is None:
            return None
        return estimate_flow(low_BCHW, before_BCHW, method)

    def _prepare(
        self, low_BCHW: Tensor, next_BCHW: Tensor, before_BCHW: Tensor | None, state: tuple[Tensor, ...]
    ) -> tuple[list[Tensor], Callable[..., list[Tensor]]]:
        """Tensors to be cut into tiles, and the function of them that gives the image and the new state."""
        flow = self._flow(low_BCHW, before_BCHW)
        optional = {"next_BCHW": next_BCHW if self.generator.lookahead_frames else None, "flow_B2HW": flow}
        given = {name: tensor for name, tensor in optional.items() if tensor is not None}
        # Without a state the step is another graph, used once per shot: not worth compiling.
        step = self._step if state or not self._has_state else self.generator.step

        def call(low_BCHW: Tensor, *rest: Tensor) -> list[Tensor]:
            named = dict(zip(given, rest, strict=False))
            fake_BCYX, following = step(low_BCHW, rest[len(given) :] or None, **named)
            return [fake_BCYX, *(following or ())]

        return [low_BCHW, *given.values(), *state], call

    def push(self, frame_HWC: Frame, starts_shot: bool) -> list[Frame]:
        """See `Runner`: the result comes at once, or one frame late with look-ahead."""
        finished = []
        if starts_shot:
            finished = self.finish()
        if not self.generator.lookahead_frames:
            return [*finished, self._run(frame_HWC, frame_HWC)]
        if self._waiting is not None:
            finished = [self._run(self._waiting, frame_HWC)]
        # A copy: the caller may reuse the buffer for the next frame.
        self._waiting = frame_HWC.copy()
        return finished

    def _run(self, frame_HWC: Frame, next_HWC: Frame) -> Frame:
        """The image of a frame; next_HWC: the one that follows in the shot, or the same frame at its end."""
        height, width = (side * self.generator.scale for side in frame_HWC.shape[:2])
        with self._run_mode.active():
            side_px = max(self.generator.min_px, self.generator.input_px or 1)
            low_BCHW = _at_least(to_network(frame_HWC, self.device), side_px)
            next_BCHW = low_BCHW if next_HWC is frame_HWC else _at_least(to_network(next_HWC, self.device), side_px)
            inputs, call = self._prepare(low_BCHW, next_BCHW, self._low_before, self._state or ())
            results = self.network.run(inputs, call)
            self._state = tuple(results[1:])
            if self.generator.flow_method is not None:
                self._low_before = low_BCHW
            return from_network(results[0][0, :, :height, :width], frame_HWC.dtype)

    def finish(self) -> list[Frame]:
        """See `Runner`: the frame that waits."""
        finished = [] if self._waiting is None else [self._run(self._waiting, self._waiting)]
        self._state = self._low_before = self._waiting = None
        return finished

    def state(self) -> dict[str, Tensor]:
        """See `Runner`."""
        state = {f"state.{number}": tensor for number, tensor in enumerate(self._state or ())}
        if self._low_before is not None:
            state["low_before"] = self._low_before
        if self._waiting is not None:
            state["waiting"] = torch.from_numpy(self._waiting)
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """See `Runner`."""
        names = sorted((name for name in state if name.startswith("state.")), key=lambda name: int(name[6:]))
        self._state = tuple(state[name].to(self.device, copy=True) for name in names) or None
        before = state.get("low_before")
        self._low_before = None if before is None else before.to(self.device, copy=True)
        self._waiting = state["waiting"].numpy().copy() if "waiting" in state else None

    def facts(self) -> dict[str, Any]:
        """See `Runner`."""
        lookahead = {"lookahead_frames": 1} if self.generator.lookahead_frames else {}
        return {"mode": "step by step", **lookahead, **self.network.facts()}


class WindowRunner:
    """Windows of frames for generators without `step`: frames of context on both sides, results of the middle.

    A window never crosses the start of a shot. Only integer frames are kept, `past + chunk + future` at most.
    """

    def __init__(self, generator: Generator, device: torch.device, options: StreamOptions) -> None:
        self.generator, self.device = generator, device
        self._run_mode = _RunMode(device, options)
        self.side_px = max(generator.min_px, generator.input_px or 1)
        with self._run_mode.active():
            self.past, self.future = context_frames(generator, generator.input_px or max(self.side_px, 24), device)
        # Where frames are independent there is nothing to wait for.
        self.chunk = options.chunk_frames if self.past or self.future else 1
        self._forward = self._run_mode.compiled(generator)
        self.network = _make_network(generator, device, options, self._measure_context)
        self.warm_up_frames = self.past + self.chunk if self.past or self.future else 0
        self._frames: list[Frame] = []
        self._num_done = 0  # of these frames: they are the context of the others

    @property
    def window(self) -> int:
        """Frames of a full window."""
        return self.past + self.chunk + self.future

    def _measure_context(self) -> int:
        with self._run_mode.active():
            low_BTCHW = moving_texture(min(self.window, 9), *probe_size(self.generator.min_px), self.device)
            flow = self._flow(low_BTCHW)
            inputs = [low_BTCHW, *([flow] if flow is not None else [])]
            return context_px(lambda *tensors: [self.generator(*tensors)], inputs, self.generator.scale)

    def _flow(self, low_BTCHW: Tensor) -> Tensor | None:
        method: FlowMethod | None = self.generator.flow_method  # type: ignore[assignment]
        return None if method is None else neighbour_flow(low_BTCHW, method)

    def push(self, frame_HWC: Frame, starts_shot: bool) -> list[Frame]:
        """See `Runner`: images come `chunk` at a time, `future` frames late."""
        finished = self.finish() if starts_shot else []
        # A copy: the caller may reuse the buffer for the next frame.
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
        """The images of the next `count` frames; frames that are no longer needed as context are dropped."""
        frames, first = self._frames, self._num_done
        height, width = (side * self.generator.scale for side in frames[0].shape[:2])
        with self._run_mode.active():
            low_BTCHW = torch.cat([to_network(frame, self.device) for frame in frames])[None]
            low_BTCHW = _at_least(low_BTCHW, self.side_px)
            flow = self._flow(low_BTCHW)
            # Shorter windows, at the ends of shots, would each need a compilation of their own.
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
