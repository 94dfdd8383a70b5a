"""The loop of an evaluation: every frame enlarged in order, scored by threads, shown in videos.

Axis letters: T time, H W low-resolution rows and columns, Y X high-resolution rows and columns, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from vsr_dist.core.console import Progress
from vsr_dist.core.world import World
from vsr_dist.data.augment import Frames
from vsr_dist.data.stream import SplitStream, StreamedClip
from vsr_dist.evaluation.subject import Subject
from vsr_dist.inference.sequence import BicubicUpscaler, SequenceUpscaler
from vsr_dist.inference.showcase import FrameSet, SideBySideVideo, comparison_row
from vsr_dist.metrics.fidelity import frame_fidelity
from vsr_dist.metrics.table import FrameRow
from vsr_dist.metrics.temporal import tdiff, tof
from vsr_dist.ops.color import from_uint8, to_uint8
from vsr_dist.ops.picture import Picture


@dataclass(frozen=True)
class _Treated:
    """One frame with its predecessor in the sequence, if there is one, under every treatment."""

    source: str
    sequence: str
    number: int
    is_middle: bool
    frame: FrameSet
    before: FrameSet | None


@dataclass(frozen=True)
class Measured:
    """Scores of every frame of a sequence, in order, and its row of the comparison picture (uint8 RGB, Y X 3)."""

    sequence: str
    rows: list[FrameRow]
    picture: Picture


def measure(stream: SplitStream, subject: Subject, device: torch.device, out: Path, world: World) -> list[Measured]:
    """Every sequence of the stream, in order; videos are written on the way."""
    total = sum(clip.num_frames for clip in stream.clips)
    pending: list[tuple[str, Future[list[FrameRow]]]] = []
    pictures: dict[str, Picture] = {}
    workers = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    with (
        ThreadPoolExecutor(workers) as pool,
        Progress(total, "frame", enabled=world.is_main) as progress,
        ExitStack() as stack,
    ):
        video, video_sequence = None, None
        for treated in _treat(stream, subject, device):
            if treated.sequence != video_sequence:
                stack.close()
                path = out / "videos" / f"{treated.sequence}.mp4"
                video = stack.enter_context(SideBySideVideo(path, stream.fps(treated.source)))
                video_sequence = treated.sequence
            assert video is not None
            video.write(treated.frame)
            if treated.is_middle:
                pictures[treated.sequence] = comparison_row(treated.frame, treated.sequence)
            pending.append((treated.sequence, pool.submit(_score, treated, subject.name)))
            if len(pending) > 4 * workers:
                # Frames waiting to be scored are held in memory: do not run further ahead than this.
                pending[-4 * workers][1].result()
            progress.advance()
        rows: dict[str, list[FrameRow]] = {}
        for sequence, future in pending:
            rows.setdefault(sequence, []).extend(future.result())
    return [Measured(sequence, found, pictures[sequence]) for sequence, found in rows.items()]


def _treat(stream: SplitStream, subject: Subject, device: torch.device) -> Iterator[_Treated]:
    """Every frame of the split in order, enlarged by bicubic and by the subject."""
    bicubic = BicubicUpscaler(stream.index.scale)
    lengths: dict[str, int] = {}
    for entry in stream.clips:
        lengths[entry.sequence] = lengths.get(entry.sequence, 0) + entry.num_frames
    sequence, before, position = None, None, 0
    for clip in stream:
        if clip.sequence != sequence:
            sequence, before, position = clip.sequence, None, 0
            subject.upscaler.reset()
        for number, frame in enumerate(_enlarge(clip, bicubic, subject.upscaler, device)):
            middle = position == lengths[clip.sequence] // 2
            yield _Treated(clip.source, clip.sequence, clip.first_frame + number, middle, frame, before)
            before, position = frame, position + 1


def _enlarge(
    clip: StreamedClip, bicubic: SequenceUpscaler, upscaler: SequenceUpscaler, device: torch.device
) -> Iterator[FrameSet]:
    low_TCHW = from_uint8(torch.from_numpy(clip.low_THWC.copy()).to(device)).permute(0, 3, 1, 2)
    bicubic_TYXC = _to_frames(bicubic.upscale(low_TCHW))
    only_bicubic = isinstance(upscaler, BicubicUpscaler)
    fake_TYXC = [None] * len(bicubic_TYXC) if only_bicubic else list(_to_frames(upscaler.upscale(low_TCHW)))
    for pictures in zip(clip.low_THWC, bicubic_TYXC, fake_TYXC, clip.real_TYXC, strict=True):
        yield FrameSet(*pictures)


def _to_frames(images_TCYX: torch.Tensor) -> Frames:
    frames: Frames = to_uint8(images_TCYX).permute(0, 2, 3, 1).cpu().numpy()
    return frames


def _score(treated: _Treated, name: str) -> list[FrameRow]:
    """Scores of one frame: bicubic's, and the subject's unless it is bicubic itself."""
    methods = {"bicubic": "bicubic_YXC"} | ({} if name == "bicubic" else {name: "fake_YXC"})
    rows = []
    for method, attribute in methods.items():
        fake_YXC, real_YXC = getattr(treated.frame, attribute), treated.frame.real_YXC
        scale = real_YXC.shape[0] // treated.frame.low_HWC.shape[0]
        scores = asdict(frame_fidelity(fake_YXC, real_YXC, scale))
        if treated.before is not None:
            fake_pair = np.stack([getattr(treated.before, attribute), fake_YXC])
            real_pair = np.stack([treated.before.real_YXC, real_YXC])
            scores["tof"] = tof(fake_pair, real_pair, trim_frames=0)
            scores["tdiff"] = tdiff(fake_pair, real_pair)
        rows.append(FrameRow(treated.source, treated.sequence, treated.number, method, scores))
    return rows
