"""What a generator is as a graph: one streaming step, or one window of frames, with a contract for whoever runs it.

The step is `(frame, state...) -> (image, next state...)`: whoever runs it feeds each state back, and all zeros at the
beginning of a shot. Axis letters: B batch, T time, C channels, H W low-resolution, Y X high-resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vsr_dist.core.errors import BadConfigError, UserError
from vsr_dist.inference.receptive_field import context_frames, moving_texture
from vsr_dist.models.base import Generator, RecurrentGenerator


class ExportError(UserError):
    """This generator cannot become a graph."""


@dataclass(frozen=True)
class Contract:
    """What goes in and comes out, for whoever runs the graph.

    inputs and outputs: name -> shape, a number or the name of a free size; float32. multiple_px: what free sizes must
    be multiples of. rule: in words.
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


class _Window(nn.Module):
    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        return (self.generator(frames).clamp(0.0, 1.0),)


class Exportable:
    """A generator with everything that its export needs, checked. Raises ExportError with the reason if it cannot be.

    size: (H, W) of the frames, None for free ones. num_frames: T of the window of a generator that has no step.
    """

    def __init__(self, generator: Generator, size: tuple[int, int] | None, num_frames: int | None) -> None:
        self.generator = generator.eval().requires_grad_(False)
        self.is_step = isinstance(generator, RecurrentGenerator)
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
        self.module: nn.Module = _Step(generator) if isinstance(generator, RecurrentGenerator) else _Window(generator)
        self.module.eval()
        self.states = self._zero_states()
        self.example = (self.frames(1)[0], *some(self.states))

    def _window_frames(self) -> int:
        """As the engine runs it: 8 images and what they depend on, or a single one if frames are independent."""
        side_px = max(self.generator.min_px, self.generator.input_px or 24)
        with torch.no_grad():
            past, future = context_frames(self.generator, side_px, torch.device("cpu"))
        return past + 8 + future if past or future else 1

    def frames(self, count: int, size: tuple[int, int] | None = None) -> list[Tensor]:
        """Inputs that follow one another: (1, 3, H, W) each, or (1, T, 3, H, W) of a window."""
        height, width = size or self.example_size
        clip_BTCHW = moving_texture(count * self.num_frames, height, width, torch.device("cpu"))
        return list(clip_BTCHW.unbind(dim=1)) if self.is_step else list(torch.split(clip_BTCHW, self.num_frames, dim=1))

    @property
    def example_size(self) -> tuple[int, int]:
        """The frame for tracing; no two sizes in it are alike, so that none is taken for another."""
        side_px = max(self.generator.min_px, 24)
        return self.size or (-(-side_px // 4) * 4 + 16, -(-side_px // 4) * 4 + 32)

    def _zero_states(self) -> tuple[Tensor, ...]:
        """The state that is all zeros, if the generator takes it for the beginning of a shot."""
        if not isinstance(self.generator, RecurrentGenerator):
            return ()
        frames = self.frames(3)
        with torch.no_grad():
            _, state = self.generator.step(frames[0], None)
            zeros = tuple(torch.zeros_like(tensor) for tensor in state or ())
            from_none = list(play(self.module, frames, ()))
            from_zeros = list(play(self.module, frames, zeros))
        worst = max(float((a[0] - b[0]).abs().max()) for a, b in zip(from_none, from_zeros, strict=True))
        if worst > 1e-6:
            raise ExportError(
                "a step of this generator cannot be exported: its state at the beginning of a shot is not all zeros "
                f"(images would differ by {worst:.1e}), as with an alignment whose flow is smoothed over time; train "
                "with smoothing none"
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
        outputs: dict[str, list[int | str]] = {image: [1, *middle, 3, tall, wide]}
        for name, zeros in zip(self.state_names(), self.states, strict=True):
            inputs[name] = outputs[f"next_{name}"] = [*zeros.shape[:-2], height, width]
        about = "float32 RGB in [0, 1]"
        if self.is_step:
            rule = (
                f"One frame of a shot after another, {about}; each next_state_N goes back in as state_N. At the "
                "beginning of a shot all states are zeros."
            )
        else:
            several = f"{self.num_frames} consecutive frames of one shot, {about}; those at the ends lack neighbours."
            rule = several if self.num_frames > 1 else f"Frames by themselves, {about}."
        return Contract(scale, inputs, outputs, _describe(self), multiple_px, rule)


def _describe(exportable: Exportable) -> dict[str, str]:
    """What each state is, as far as the generator tells."""
    generator = exportable.generator
    num_hidden = getattr(getattr(generator, "memory", None), "num_states", 0)
    known = ["hidden state of the recurrence", "cell state of the recurrence"][:num_hidden]
    if getattr(generator, "aligner", None) is not None:
        known.append("the frame before")
    names = exportable.state_names()
    return dict(zip(names, [*known, *["state"] * len(names)][: len(names)], strict=True))


def _refuse_opencv(generator: Generator) -> None:
    if generator.flow_method is not None or getattr(generator, "alignment", "none") != "none":
        raise ExportError(
            "this generator cannot be exported: its optical flow is OpenCV's, which is no part of a network; train "
            "with alignment learned or none"
        )


def play(run: Callable[..., Any], frames: Sequence[Tensor], states: Sequence[Tensor]) -> Iterator[Any]:
    """All results of `run(frame, states)`, frame after frame, with the states fed back."""
    for frame in frames:
        results = run(frame, *some(states))
        states = results[1:]
        yield results


def some(states: Sequence[Any]) -> tuple[Any, ...]:
    """The states as an argument, or none at all where there are none."""
    return (tuple(states),) if states else ()
