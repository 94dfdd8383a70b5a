"""Moved to `vsr_dist.inference.engine`."""

from vsr_dist.inference.engine import Precision, StreamOptions, VideoStream

open_stream = VideoStream
__all__ = ["Precision", "StreamOptions", "VideoStream", "open_stream"]
