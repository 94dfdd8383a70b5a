"""How far a generator sees, in space and in time: measured on the network itself, on a small moving texture.

What a tile or a window of frames must have around the part that counts follows from this, for any architecture; a
network that reaches further than the limits here is cut off there, and the blend of the tiles hides the rest.

Axis letters: B batch, T time, C channels, H W low-resolution, Y X high-resolution rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_LEVEL = 1.0 / 255.0
# A quarter of the smallest step of 8 bits: rounding hides it but for a value that lies on the edge.
_NEGLIGIBLE = _LEVEL / 4
# States have no unit: relative to their largest value.
_NEGLIGIBLE_STATE = 1e-3
MAX_CONTEXT_PX = 64
MAX_CONTEXT_FRAMES = 12
_STEP_PX = 4
_PROBE_HEIGHT, _PROBE_WIDTH = 48, 256
_MOTION_PX = 4


def moving_texture(num_frames: int, height: int, width: int, device: torch.device) -> Tensor:
    """(1, T, 3, H, W) float in [0, 1]: smooth noise that moves to the left; the same numbers every time."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 3, height + 4, width + 4 + _MOTION_PX * num_frames, generator=generator)
    texture = ((F.avg_pool2d(noise, 5, stride=1) - 0.5) * 3.0 + 0.5).clamp(0.0, 1.0)
    views = [texture[..., _MOTION_PX * t : _MOTION_PX * t + width] for t in range(num_frames)]
    return torch.stack(views, dim=1).to(device)


def context_px(
    function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], scale: int, tolerance: float = _NEGLIGIBLE
) -> int:
    """How near a cut edge results differ from those on the whole frame, rounded up to a multiple of 4.

    inputs: as for `run_in_tiles`, laid out over a frame whose width is a multiple of 8. The frame is cut in the
    middle, and the results of its right half are compared.
    """
    shape = inputs[0].shape[-2:]
    width = shape[1] // 2
    whole = function(*inputs)
    right = function(*[image[..., width:] if image.shape[-2:] == shape else image for image in inputs])
    reach = 0
    for number, (full, part) in enumerate(zip(whole, right, strict=True)):
        factor = next((f for f in (1, scale) if full.shape[-2:] == (shape[0] * f, shape[1] * f)), None)
        if factor is None:
            continue
        reference = full[..., width * factor :].float()
        limit = tolerance if number == 0 else _NEGLIGIBLE_STATE * float(reference.abs().max())
        error = (reference - part.float()).abs().flatten(0, -2).amax(dim=0)
        wrong = (error > limit).nonzero()
        if len(wrong):
            reach = max(reach, int(wrong[-1]) // factor + 1)
    return min(-(-reach // _STEP_PX) * _STEP_PX, MAX_CONTEXT_PX)


def probe_size(min_px: int) -> tuple[int, int]:
    """(H, W) of frames for `context_px`."""
    return max(_PROBE_HEIGHT, min_px), max(_PROBE_WIDTH, 8 * min_px)


def context_frames(function: Callable[[Tensor], Tensor], side_px: int, device: torch.device) -> tuple[int, int]:
    """(past, future): from how many frames before and behind the image of a frame still changes visibly.

    function: a clip (1, T, 3, H, W) to its images. The frame in the middle of a clip is exchanged for its negative,
    the largest of changes, and the images that change by more than half a level of 8 bits are counted.
    """
    low_BTCHW = moving_texture(2 * MAX_CONTEXT_FRAMES + 1, side_px, side_px, device)
    other_BTCHW = low_BTCHW.clone()
    other_BTCHW[:, MAX_CONTEXT_FRAMES] = 1.0 - other_BTCHW[:, MAX_CONTEXT_FRAMES]
    change_T = (function(low_BTCHW) - function(other_BTCHW)).float().abs().amax(dim=(0, 2, 3, 4))
    touched = (change_T > _LEVEL / 2).nonzero().flatten().tolist()
    if not touched:
        return 0, 0
    # A later image that changes depends on the past, an earlier one on the future.
    return max(0, touched[-1] - MAX_CONTEXT_FRAMES), max(0, MAX_CONTEXT_FRAMES - touched[0])
