"""Moved to `vsr_dist.inference`."""

from vsr_dist.inference.engine import VideoStream as FrameStream
from vsr_dist.inference.frames import Frame

__all__ = ["Frame", "FrameStream"]
