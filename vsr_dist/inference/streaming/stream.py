"""What takes the frames of one video and gives them back enlarged, whatever does the work."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

# RGB, (H, W, 3). uint16 has the full range 0 to 65535, for sources of more than 8 bits.
Frame = NDArray[np.uint8] | NDArray[np.uint16]


class FrameStream(Protocol):
    """Frames of one video in, enlarged frames out, in order: one out for each in, with a delay.

    scale: enlargement in both directions. warm_up_frames: whoever begins in the middle of a video pushes this many
    frames before the place and drops their results; what follows looks the same as from the start of the video.
    num_cuts: scene cuts found so far. cut_lags: of those that the last call found, how many frames before the newest
    one the new shot begins.
    """

    scale: int
    warm_up_frames: int
    cut_lags: list[int]

    @property
    def num_cuts(self) -> int:
        """Scene cuts so far."""
        ...

    def push(self, frame_HWC: Frame) -> list[Frame]:
        """Take the next frame; returns the results (Y, X, 3) that are finished now, none or several, of its dtype.

        All frames of a video have one size and dtype; another is a BadInputError.
        """
        ...

    def finish(self) -> list[Frame]:
        """The rest of the results, at the end of the video. Afterwards another video may begin."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that shapes later results, frames that wait for their turn included: copies on the CPU."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on as the stream whose state this was, on a CPU bit for bit."""
        ...

    def facts(self) -> dict[str, Any]:
        """What was chosen and what happened (tile size, retries, precision): plain JSON values, for people to read."""
        ...
