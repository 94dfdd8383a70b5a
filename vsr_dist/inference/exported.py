"""Exporting a generator as a graph, ONNX or a program of torch.export, and checking what was written.

The graph is one streaming step, `(frame, state...) -> (image, next state...)`, or one window of frames, with a contract
for the program that runs it: it feeds each state back, and zeros at the beginning of a shot. With look-ahead the frame
that follows is a second input.

Axis letters: B batch, T time, C channels, H W low-resolution, Y X high-resolution.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from vsr_dist.core.errors import BadConfigError, UserError, import_extra
from vsr_dist.inference.receptive_field import context_frames, moving_texture
from vsr_dist.models.base import Generator, RecurrentGenerator

Format = Literal["onnx", "torch"]
FORMAT_VERSION = 1
# The description inside a graph: a property of the ONNX model, an extra file of the .pt2.
METADATA_NAME = "vsr_dist.json"
# Antialiased resizing, which bicubic enlargement uses, came with 18; grid sampling by "linear" with 20.
OPSET = 20
# Largest difference from the generator in any image or state that a written graph may have.
TOLERANCE = 1e-4
_CHECKED_FRAMES = 4
# ONNX files are protocol buffers, which are limited to 2 GiB.
_MAX_BYTES = 1_900_000_000
_MAX_SIDE_PX = 16384


class ExportError(UserError):
    """This generator cannot be exported."""


@dataclass(frozen=True)
class Contract:
    """The inputs and outputs of a graph, for the program that runs it.

    inputs and outputs: name -> shape, a number or the name of a free size; float32. multiple_px: what free sizes must
    be multiples of. rule: how to run it, in words.
    """

    scale: int
    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    states: dict[str, str]
    multiple_px: int
    rule: str


class _Step(nn.Module):
    def __init__(self, generator: RecurrentGenerator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, frame: Tensor, states: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
        image_BCYX, following = self.generator.step(frame, tuple(states) or None)
        return (image_BCYX.clamp(0.0, 1.0), *(following or ()))


class _StepWithNext(_Step):
    def forward(  # type: ignore[override]
        self, frame: Tensor, next_frame: Tensor, states: Sequence[Tensor] = ()
    ) -> tuple[Tensor, ...]:
        image_BCYX, following = self.generator.step(frame, tuple(states) or None, next_BCHW=next_frame)
        return (image_BCYX.clamp(0.0, 1.0), *(following or ()))


class _Window(nn.Module):
    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        return (self.generator(frames).clamp(0.0, 1.0),)


class Exportable:
    """A generator prepared for export. Raises ExportError with the reason if it cannot be exported.

    size: (H, W) of the frames, None for free ones. num_frames: T of the window of a generator that has no step.
    """

    def __init__(self, generator: Generator, size: tuple[int, int] | None, num_frames: int | None) -> None:
        self.generator = generator.eval().requires_grad_(False)
        self.is_step = isinstance(generator, RecurrentGenerator)
        self.lookahead = isinstance(generator, RecurrentGenerator) and generator.lookahead_frames == 1
        _refuse_opencv(generator)
        if self.is_step and num_frames is not None:
            raise BadConfigError("--frames is for generators that run on windows; this one is exported as a step")
        fixed_px = generator.input_px
        if fixed_px is not None and size not in (None, (fixed_px, fixed_px)):
            raise BadConfigError(f"this generator takes {fixed_px} x {fixed_px} px only, found {size[0]} x {size[1]}")
        self.size = size if fixed_px is None else (fixed_px, fixed_px)
        if self.size is not None and min(self.size) < generator.min_px:
            raise BadConfigError(f"this generator takes sides of at least {generator.min_px} px, found {self.size}")
        self.num_frames = 1 if self.is_step else num_frames or self._window_frames()
        self.module: nn.Module = _Window(generator)
        if isinstance(generator, RecurrentGenerator):
            self.module = _StepWithNext(generator) if self.lookahead else _Step(generator)
        self.module.eval()
        self.states = self._zero_states()
        # Of two calls, so that the next frame is another tensor: a tracer takes one that comes twice for one input.
        self.example = (*self.inputs(2)[0], *_if_any(self.states))

    def _window_frames(self) -> int:
        """As in the engine: 8 images and the frames that they depend on, or one if frames are independent."""
        side_px = max(self.generator.min_px, self.generator.input_px or 24)
        with torch.no_grad():
            past, future = context_frames(self.generator, side_px, torch.device("cpu"))
        return past + 8 + future if past or future else 1

    def inputs(self, count: int, size: tuple[int, int] | None = None) -> list[tuple[Tensor, ...]]:
        """What is given beside the states, call after call: a frame (1, 3, H, W), with look-ahead also the next one.

        Of a generator without a step: a window (1, T, 3, H, W).
        """
        height, width = size or self.example_size
        clip_BTCHW = moving_texture(count * self.num_frames, height, width, torch.device("cpu"))
        if not self.is_step:
            return [(window,) for window in torch.split(clip_BTCHW, self.num_frames, dim=1)]
        frames = list(clip_BTCHW.unbind(dim=1))
        if not self.lookahead:
            return [(frame,) for frame in frames]
        return list(zip(frames, [*frames[1:], frames[-1]], strict=True))

    @property
    def example_size(self) -> tuple[int, int]:
        """The frame for tracing; its sides differ, so that the tracer cannot confuse them."""
        side_px = max(self.generator.min_px, 24)
        return self.size or (-(-side_px // 4) * 4 + 16, -(-side_px // 4) * 4 + 32)

    def _zero_states(self) -> tuple[Tensor, ...]:
        """A state of zeros; ExportError unless the generator treats it as the beginning of a shot."""
        if not isinstance(self.generator, RecurrentGenerator):
            return ()
        inputs = self.inputs(3)
        with torch.no_grad():
            _, state = self.generator.step(inputs[0][0], None)
            zeros = tuple(torch.zeros_like(tensor) for tensor in state or ())
            from_none = list(play(self.module, inputs, ()))
            from_zeros = list(play(self.module, inputs, zeros))
        worst = max(float((a[0] - b[0]).abs().max()) for a, b in zip(from_none, from_zeros, strict=True))
        if worst > 1e-6:
            raise ExportError(
                "a step of this generator cannot be exported: its initial state is not all zeros (images would "
                f"differ by {worst:.1e}), for example with flow that is smoothed over time; train with smoothing "
                "none"
            )
        return zeros

    def state_names(self) -> list[str]:
        """Of the inputs; the outputs are called `next_` and the same."""
        return [f"state_{number}" for number in range(len(self.states))]

    def contract(self, multiple_px: int) -> Contract:
        """See `Contract`."""
        height, width = self.size or ("height", "width")
        scale = self.generator.scale
        tall, wide = (side * scale if isinstance(side, int) else f"{scale}*{side}" for side in (height, width))
        middle = [] if self.is_step else [self.num_frames]
        first, image = ("frame", "image") if self.is_step else ("frames", "images")
        inputs: dict[str, list[int | str]] = {first: [1, *middle, 3, height, width]}
        if self.lookahead:
            inputs["next_frame"] = inputs[first]
        outputs: dict[str, list[int | str]] = {image: [1, *middle, 3, tall, wide]}
        for name, zeros in zip(self.state_names(), self.states, strict=True):
            inputs[name] = outputs[f"next_{name}"] = [*zeros.shape[:-2], height, width]
        about = "float32 RGB in [0, 1]"
        if self.is_step:
            rule = (
                f"The frames of a shot in order, {about}; pass each next_state_N back as state_N. At the start of a "
                "shot all states are zeros."
            )
            if self.lookahead:
                rule += " next_frame is the frame that follows; at the end of a shot it is the frame itself."
        else:
            several = f"{self.num_frames} consecutive frames of one shot, {about}; those at the ends lack neighbours."
            rule = several if self.num_frames > 1 else f"Independent frames, {about}."
        described = self.generator.state_names if isinstance(self.generator, RecurrentGenerator) else ()
        states = dict(zip(self.state_names(), described, strict=True))
        return Contract(scale, inputs, outputs, states, multiple_px, rule)


def _refuse_opencv(generator: Generator) -> None:
    if generator.flow_method is not None or getattr(generator, "alignment", "none") != "none":
        raise ExportError(
            "this generator cannot be exported: its optical flow is computed by OpenCV, outside of the network; "
            "train with alignment learned or none"
        )


def play(run: Callable[..., Any], inputs: Sequence[tuple[Tensor, ...]], states: Sequence[Tensor]) -> Iterator[Any]:
    """All results of `run(*one of the inputs, states)`, one after the other, with the states fed back."""
    for given in inputs:
        results = run(*given, *_if_any(states))
        states = results[1:]
        yield results


def _if_any(states: Sequence[Any]) -> tuple[Any, ...]:
    """The states as one argument, or no argument if there are none."""
    return (tuple(states),) if states else ()


def _sizes(exportable: Exportable) -> Iterator[tuple[Any, int]]:
    """(Free sizes as torch.export takes them, what they are multiples of), in the order in which they are tried.

    First any size, then multiples of 4, which networks that halve the image twice need.
    """
    if exportable.size is not None:
        yield None, 1
        return
    for multiple in (1, 4):
        least = -(-max(exportable.generator.min_px, 8) // multiple)
        sides = [Dim(name, min=least, max=_MAX_SIDE_PX // multiple) for name in ("height", "width")]
        rows, columns = sides if multiple == 1 else [multiple * side for side in sides]

        def free(tensor: Tensor, rows: Any = rows, columns: Any = columns) -> dict[int, Any]:  # noqa: ANN401
            return {tensor.dim() - 2: rows, tensor.dim() - 1: columns}

        given = [free(tensor) for tensor in exportable.inputs(1)[0]]
        yield (*given, *_if_any([free(state) for state in exportable.states])), multiple


def _first_that_works(exportable: Exportable, write: Callable[[Any, int], None]) -> int:
    """Call `write(free sizes, multiple)` until one succeeds; returns the multiple."""
    failure: Exception | None = None
    for shapes, multiple_px in _sizes(exportable):
        try:
            with torch.no_grad(), warnings.catch_warnings():
                # Warnings for authors of exporters: names of axes, buffers of LSTMs.
                warnings.simplefilter("ignore")
                write(shapes, multiple_px)
            return multiple_px
        # torch.export has no common base for what it raises: guards, unsupported operators, Python it cannot follow.
        except Exception as error:  # noqa: BLE001
            failure = error
    reason = " ".join(str(failure.__cause__ or failure).split())[:300] if failure else ""
    advice = "give --height and --width" if exportable.size is None else "its code cannot be expressed as a graph"
    raise ExportError(f"torch.export cannot trace this generator; {advice} ({reason})") from failure


def _metadata(exportable: Exportable, multiple_px: int, description: dict[str, Any]) -> str:
    contract = asdict(exportable.contract(multiple_px))
    kept = {key: description[key] for key in ("generator", "provenance") if key in description}
    return json.dumps({"format_version": FORMAT_VERSION, **contract, **kept}, indent=1)


def write_torch(exportable: Exportable, path: Path, description: dict[str, Any]) -> int:
    """Write a `.pt2` for `torch.export.load`; returns what free sizes must be multiples of."""

    def write(shapes: Any, multiple_px: int) -> None:  # noqa: ANN401
        program = torch.export.export(exportable.module, exportable.example, dynamic_shapes=shapes, strict=False)
        torch.export.save(program, path, extra_files={METADATA_NAME: _metadata(exportable, multiple_px, description)})

    return _first_that_works(exportable, write)


def write_onnx(exportable: Exportable, path: Path, description: dict[str, Any]) -> int:
    """Write an ONNX model in one file; returns what free sizes must be multiples of."""
    need_onnx()
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in exportable.module.state_dict().values())
    if num_bytes > _MAX_BYTES:
        raise ExportError(
            f"ONNX files are limited to 2 GiB, and this generator has {num_bytes:,} bytes: use --format torch"
        )

    def write(shapes: Any, multiple_px: int) -> None:  # noqa: ANN401
        contract = exportable.contract(multiple_px)
        program = torch.onnx.export(
            exportable.module,
            exportable.example,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=list(contract.inputs),
            output_names=list(contract.outputs),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
        assert program is not None, "dynamo=True returns the program"
        name = METADATA_NAME.removesuffix(".json")
        program.model.metadata_props[name] = _metadata(exportable, multiple_px, description)
        program.save(str(path))

    return _first_that_works(exportable, write)


def need_onnx() -> None:
    """Raise MissingExtraError unless what ONNX needs is installed."""
    for name in ("onnx", "onnxruntime", "onnxscript"):
        import_extra("onnx", name, "export to ONNX", "use --format torch")


def largest_difference(exportable: Exportable, format: Format, path: Path, multiple_px: int) -> float:
    """Largest difference of the written file, loaded again, from the generator: all images and states of four frames.

    With free sizes the frames have another size than that of tracing.
    """
    size = exportable.size
    if size is None:
        height, width = exportable.example_size
        size = (height + 3 * multiple_px, width + multiple_px)
    inputs = exportable.inputs(_CHECKED_FRAMES, size)
    states = tuple(tensor.new_zeros((*tensor.shape[:-2], *size)) for tensor in exportable.states)
    run = _onnx_runner(path) if format == "onnx" else torch.export.load(path).module()
    worst = 0.0
    with torch.no_grad():
        pairs = zip(play(exportable.module, inputs, states), play(run, inputs, states), strict=True)
        for ours, theirs in pairs:
            worst = max(worst, *(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)))
    return worst


def _onnx_runner(path: Path) -> Callable[..., tuple[Tensor, ...]]:
    onnxruntime = import_extra("onnx", "onnxruntime", "export to ONNX")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run(*given: Any) -> tuple[Tensor, ...]:  # noqa: ANN401 - tensors, and the states as one tuple of tensors
        tensors = [tensor for one in given for tensor in (one if isinstance(one, tuple) else (one,))]
        arrays = [np.ascontiguousarray(tensor.numpy()) for tensor in tensors]
        return tuple(torch.from_numpy(result) for result in session.run(None, dict(zip(names, arrays, strict=True))))

    return run
