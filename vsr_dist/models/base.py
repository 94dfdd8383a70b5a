"""What every generator and every discriminator offers.

Axes: B batch, T time, C channels, H W low-resolution, Y X high-resolution, K the two directions of flow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vsr_dist.core.errors import BadConfigError, BadInputError

# What a recurrent generator carries from frame to frame. Plain tensors, as many of the same shapes at every frame of
# a sequence, so that a step can be exported.
State = tuple[Tensor, ...]


class Generator(nn.Module, ABC):
    """Maps a low-resolution clip to a high-resolution one.

    scale: enlargement in both directions. input_px: side of the only square input that the network accepts,
    or None for any size. min_px: the smallest side that it accepts. min_frames: length of the shortest clip from which
    every parameter gets a gradient; shorter ones are enlarged all the same. flow_method: name of the optical flow
    that `forward` can be given, as in `vsr-dist pack --flow`, or None if it ignores flow. carries_state: `forward` can
    continue a sequence: with `return_state=True` it returns (clip, state), and takes such a state as `state`, whose
    tensors have the batch first and are zero where a sequence begins. can_checkpoint: `forward` can keep the
    activations of one frame only and compute the others again in the backward pass; it does so while
    `checkpoint_activations` is set and gradients are recorded.
    """

    scale: int
    input_px: int | None = None
    min_px: int = 1
    min_frames: int = 1
    flow_method: str | None = None
    carries_state: bool = False
    can_checkpoint: bool = False
    checkpoint_activations: bool = False

    @property
    def uses_flow(self) -> bool:
        """True if the result depends on the flow that `forward` is given."""
        return self.flow_method is not None

    @abstractmethod
    def forward(self, low_BTCHW: Tensor, flow_BTKCHW: Tensor | None = None) -> Tensor:
        """Float RGB in [0, 1] in, float RGB (B, T, C, H * scale, W * scale) out, not clamped.

        flow_BTKCHW: (B, T - 1, 2, 2, H, W), float, low-resolution pixels; `[:, t, 0]` leads from frame t to t + 1,
        `[:, t, 1]` back, components (dx, dy). A generator that uses flow estimates it itself where it is None; the
        others leave it alone.
        """


class RecurrentGenerator(Generator):
    """A generator that can also run frame by frame; stepping through a clip equals one call on the whole.

    lookahead_frames: 1 if a frame's image also depends on the frame that follows, otherwise 0. state_names: what the
    tensors of the state are, in their order.
    """

    lookahead_frames: int = 0
    state_names: tuple[str, ...] = ()
    can_checkpoint = True

    @abstractmethod
    def step(
        self,
        low_BCHW: Tensor,
        state: State | None,
        flow_B2HW: Tensor | None = None,
        next_BCHW: Tensor | None = None,
    ) -> tuple[Tensor, State | None]:
        """One frame and the state before it (None at the start of a shot) to its image and state.

        next_BCHW: the frame that follows, for a generator with look-ahead; None at the end of a shot.

        flow_B2HW: the flow that leads from this frame to the one before, as in `forward`; None has it estimated by a
        generator that uses flow. At the start of a shot there is none.
        """

    @property
    def is_checkpointing(self) -> bool:
        """True if a call of `forward` now keeps the activations of one frame only."""
        return self.checkpoint_activations and torch.is_grad_enabled()

    def step_through(
        self, low_BTCHW: Tensor, state: State | None, flow_BT2HW: Tensor | None
    ) -> tuple[Tensor, State | None]:
        """`forward` frame by frame; the backward pass computes the activations of each frame again.

        flow_BT2HW: (B, T - 1, 2, H, W), from each frame to the one before.
        """
        num_frames, images = low_BTCHW.shape[1], []
        for t in range(num_frames):
            flow_B2HW = None if flow_BT2HW is None or t == 0 else flow_BT2HW[:, t - 1]
            following_BCHW = low_BTCHW[:, t + 1] if self.lookahead_frames and t + 1 < num_frames else None
            # Without the state of the random numbers: no generator draws any.
            image_BCYX, state = checkpoint(
                self.step,
                low_BTCHW[:, t],
                state,
                flow_B2HW,
                following_BCHW,
                use_reentrant=False,
                preserve_rng_state=False,
            )
            images.append(image_BCYX)
        return torch.stack(images, dim=1), state


class Discriminator(nn.Module, ABC):
    """Scores high-resolution clips: logits, high for real.

    min_frames, min_px: the smallest clip it accepts. multiple_px: what its sides must be multiples of.
    """

    min_frames: int = 1
    min_px: int = 1
    multiple_px: int = 1

    @abstractmethod
    def forward(self, clip_BTCYX: Tensor, bicubic_BTCYX: Tensor, full_precision: bool = False) -> Tensor:
        """A clip, real or fake, and its enlarged input, both float RGB in [0, 1], to logits with B first.

        full_precision: run in float32 under autocast as well (`vsr_dist.models.blocks.score`).
        """


def check_scale(kind: str, scale: int, allowed: Collection[int]) -> None:
    """Raise BadConfigError unless `scale` is one that the generator `kind` can build."""
    if scale not in allowed:
        choices = ", ".join(str(value) for value in sorted(allowed))
        raise BadConfigError(
            f"generator {kind!r}: expected a scale of {choices}, found {scale}; pack the data at another "
            "scale or choose another generator"
        )


def check_clip(clip: Tensor, min_frames: int = 1) -> None:
    """Raise BadInputError unless `clip` is (B, T, 3, rows, columns) with at least `min_frames` frames."""
    if clip.dim() != 5 or clip.shape[2] != 3:
        raise BadInputError(f"expected a clip (batch, time, 3, rows, columns), found {tuple(clip.shape)}")
    if clip.shape[1] < min_frames:
        raise BadInputError(
            f"expected clips of at least {min_frames} frames, found {clip.shape[1]}; raise the number of "
            "frames per clip or choose a discriminator that scores single frames"
        )


def check_positive(kind: str, **numbers: int) -> None:
    """Raise BadConfigError naming every number below 1."""
    bad = [f"{name} {value}" for name, value in numbers.items() if value < 1]
    if bad:
        raise BadConfigError(f"model {kind!r}: expected numbers of at least 1, found {', '.join(bad)}")


def check_dropout(kind: str, dropout: float) -> None:
    """Raise BadConfigError unless `dropout` is a probability below 1."""
    if not 0.0 <= dropout < 1.0:
        raise BadConfigError(f"model {kind!r}: expected a dropout from 0 to below 1, found {dropout}")
