"""Videos that must not be packed as they are: interlaced ones, and damage that FFmpeg passes over in silence."""

from __future__ import annotations

import re
from pathlib import Path

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from sharding.errors import BadInputError

# Containers round times, and some count the pause before the first frame; a loss below this is not told from it.
END_TOLERANCE_S = 1.0
# Containers whose header states lengths; of others FFmpeg guesses them from the size of the file.
_STATING_FORMATS = ("mov", "matroska", "avi", "asf")


class DamageWatch:
    """Looks at the frames of one full pass over a video stream, in order, and raises BadInputError."""

    def __init__(self, source: Path, stream: VideoStream) -> None:
        self._source = source
        self._stream = stream
        self._num_frames = 0
        self._end_s: float | None = None

    def see(self, frame: av.VideoFrame) -> None:
        """Take the next frame."""
        if frame.interlaced_frame:
            raise BadInputError(
                f"{self._source} is interlaced (frame {self._num_frames} says so): its odd and even rows are of "
                f"different moments; expected a progressive video: convert it, such as with ffmpeg -i "
                f"{self._source} -vf bwdif=mode=send_frame -c:v ffv1 {self._other_name('progressive')}"
            )
        if frame.is_corrupt:
            raise BadInputError(
                f"{self._source} is damaged at frame {self._num_frames}; expected a whole video file: get it again, "
                f"or keep what is before, such as with ffmpeg -i {self._source} -frames:v {self._num_frames} "
                f"-c:v ffv1 {self._other_name('part')}"
            )
        self._num_frames += 1
        if frame.time is not None and frame.time_base is not None:
            self._end_s = frame.time + float((frame.duration or 0) * frame.time_base)

    def broken_off(self, reason: str) -> BadInputError:
        """The error for a stream that cannot be read on."""
        return BadInputError(
            f"{self._source} breaks off after {self._num_frames} frames: {reason}; expected a whole video file: get "
            f"it again, or keep what is there, such as with ffmpeg -i {self._source} -frames:v "
            f"{max(self._num_frames - 1, 1)} -c:v ffv1 {self._other_name('part')}"
        )

    def check_end(self, container: InputContainer) -> None:
        """Compare the end of the last frame with the length that the container states for the stream."""
        stated_s = stated_end_s(self._stream, container)
        if stated_s is not None and self._end_s is not None and self._end_s < stated_s - END_TOLERANCE_S:
            raise self.broken_off(f"it ends at {self._end_s:.2f} s, and its header says {stated_s:.2f} s")

    def _other_name(self, word: str) -> str:
        return f"{self._source.stem}_{word}.mkv"


def stated_end_s(stream: VideoStream, container: InputContainer) -> float | None:
    """When the stream ends by its header, on the clock of its frames; None if that is not said."""
    if not any(name in _STATING_FORMATS for name in container.format.name.split(",")):
        return None
    if stream.duration is not None and stream.time_base is not None:
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    # Matroska states the length of a track in a tag, as hours:minutes:seconds.
    match = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if match is not None:
        return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
    # The length of the whole file is that of its longest stream, so it speaks for the video only if it is alone.
    if len(container.streams) == 1 and container.duration is not None:
        return float((container.duration + (container.start_time or 0)) / av.time_base)
    return None
