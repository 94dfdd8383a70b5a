"""Long and cut films made from the real sample clips, for benchmarks that need more than they hold."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import av
import numpy as np

from sharding.sources import find_samples
from sharding.video import iter_frames

CLIPS = {path.stem: path for path in find_samples()}


def repeat_clip(name: str, target: Path, times: int) -> Path:
    """The packets of a clip, `times` times over, as they are: nothing is coded anew, a cut at each joint."""
    start = 0
    with av.open(str(target), "w") as outward:
        stream = None
        for _ in range(times):
            end = 0
            with av.open(str(CLIPS[name])) as inward:
                stream = stream or outward.add_stream_from_template(inward.streams.video[0])
                for packet in inward.demux(video=0):
                    if packet.dts is None:
                        continue
                    end = max(end, packet.pts + packet.duration)
                    packet.pts += start
                    packet.dts += start
                    packet.stream = stream
                    outward.mux(packet)
            start += end
    return target


def endless_shot(name: str) -> Iterator[np.ndarray]:
    """The frames of a clip forward, backward, forward and so on: one take without a cut. All are held."""
    frames = list(iter_frames(CLIPS[name]))
    return cycle([*frames, *frames[-2:0:-1]])


def encode(frames: Iterator[np.ndarray], num_frames: int, target: Path) -> Path:
    """The first `num_frames` of `frames` as quickly made H.264, a key frame every 250."""
    with av.open(str(target), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "20"}
        for number, rgb in enumerate(islice(frames, num_frames)):
            if number == 0:
                stream.height, stream.width = rgb.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode(None))
    return target
