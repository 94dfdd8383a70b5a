"""Batches of training windows, read ahead by threads, and the fixed windows that validation uses.

The loader is never given to `Accelerator.prepare`: every rank asks the pure plan for its own slice of each global
batch, so there is nothing to shard again.
Axis letters: B batch, T time, C channels, H W low-resolution, Y X high-resolution rows and columns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vsr_dist.core.errors import BadConfigError
from vsr_dist.core.fields import io, speed
from vsr_dist.core.world import World
from vsr_dist.data.augment import Frames, center, draw
from vsr_dist.data.plan import (
    Window,
    batch_positions,
    list_windows,
    micro_batch_clips,
    sample_at,
    spread_windows,
)
from vsr_dist.data.windows import ShardWindows


@dataclass(frozen=True)
class DataConfig:
    """What is read for training and validation.

    Attributes:
        root: folder of a packed shard set.
        train_split: split that the training windows come from.
        val_split: held-out split; validation never touches `train_split`.
        clip_frames: frames per training window.
        crop_px: side of the square low-resolution crop, in pixels; the high-resolution crop is `scale` times it.
        batch_clips: windows per optimiser step over all ranks and accumulated micro-batches.
        shuffle: permute the windows in each epoch; false walks each sequence front to back.
        symmetries: draw flips, transposition and time reversal.
        val_clips: number of fixed held-out windows.
        val_crop_px: side of their centred low-resolution crop, in pixels.
        reader_threads: threads that copy or decode crops.
        read_ahead_batches: micro-batches kept ready.
    """

    root: str = io("data")
    train_split: str = "train"
    val_split: str = "val"
    clip_frames: int = 5
    crop_px: int = 24
    batch_clips: int = 8
    shuffle: bool = True
    symmetries: bool = True
    val_clips: int = 16
    val_crop_px: int = 36
    reader_threads: int = speed(1)
    read_ahead_batches: int = speed(4)

    def __post_init__(self) -> None:
        """Refuse numbers with which nothing could be read."""
        numbers = {name: value for name, value in vars(self).items() if type(value) is int}
        low = [f"{name} is {value}" for name, value in numbers.items() if value < 1]
        if low:
            raise BadConfigError(f"data: {', '.join(low)}; expected at least 1")


@dataclass(frozen=True)
class ClipBatch:
    """low_BTCHW and real_BTCYX, uint8 RGB on the CPU; `names` says which window each element is."""

    low_BTCHW: torch.Tensor
    real_BTCYX: torch.Tensor
    names: tuple[str, ...]


class TrainLoader:
    """An endless, resumable stream of micro-batches for one rank."""

    def __init__(self, config: DataConfig, seed: int, world: World, accumulation_steps: int) -> None:
        """Open the training split; what cannot be honoured (sizes, batch cut) is an error here."""
        self.config, self.seed, self.world = config, seed, world
        self.accumulation_steps = accumulation_steps
        micro_batch_clips(config.batch_clips, world.size, accumulation_steps)
        self.windows_of = ShardWindows(Path(config.root), config.train_split)
        _check_sizes(self.windows_of, config.crop_px, config.clip_frames, "data.crop_px")
        self.windows = list_windows(self.windows_of.sequence_num_frames, config.clip_frames)

    def batches(self, first_step: int) -> Generator[ClipBatch, None, None]:
        """Micro-batches of `first_step`, `first_step + 1`, ... in order, read ahead in threads."""
        pool = ThreadPoolExecutor(self.config.reader_threads, thread_name_prefix="clip-reader")
        pending: deque[Future[ClipBatch]] = deque()
        step, micro = first_step, 0
        try:
            while True:
                while len(pending) < self.config.read_ahead_batches:
                    pending.append(pool.submit(self.read, step, micro))
                    micro += 1
                    if micro == self.accumulation_steps:
                        step, micro = step + 1, 0
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def read(self, step: int, micro: int) -> ClipBatch:
        """This rank's micro-batch `micro` of step `step`, a pure function of the plan and the shard set."""
        config = self.config
        positions = batch_positions(
            step,
            micro,
            self.world.rank,
            batch_clips=config.batch_clips,
            world_size=self.world.size,
            accumulation_steps=self.accumulation_steps,
        )
        clips, names = [], []
        for position in positions:
            sample = sample_at(position, len(self.windows), self.seed, config.shuffle)
            window = self.windows[sample.window]
            info = self.windows_of.sequences[window.sequence]
            choice = draw(
                sample.augment_seed,
                info.low_height_px,
                info.low_width_px,
                config.crop_px,
                symmetries=config.symmetries,
            )
            clips.append(self.windows_of.read(window, choice, config.crop_px))
            names.append(f"{info.name}-{window.start:08d}")
        return _stack(clips, names)


def validation_batch(config: DataConfig, clip_frames: int) -> ClipBatch:
    """The fixed held-out windows, the same for every rank, step and run: spread over sequences, centred crops."""
    windows_of = ShardWindows(Path(config.root), config.val_split)
    _check_sizes(windows_of, config.val_crop_px, clip_frames, "data.val_crop_px")
    windows: list[Window] = spread_windows(windows_of.sequence_num_frames, clip_frames, config.val_clips)
    clips, names = [], []
    for window in windows:
        info = windows_of.sequences[window.sequence]
        choice = center(info.low_height_px, info.low_width_px, config.val_crop_px)
        clips.append(windows_of.read(window, choice, config.val_crop_px))
        names.append(f"{info.name}-{window.start:08d}")
    return _stack(clips, names)


def _stack(clips: list[tuple[Frames, Frames]], names: list[str]) -> ClipBatch:
    low_BTHWC = torch.from_numpy(np.stack([low for low, _ in clips]))
    real_BTYXC = torch.from_numpy(np.stack([real for _, real in clips]))
    return ClipBatch(low_BTHWC.permute(0, 1, 4, 2, 3), real_BTYXC.permute(0, 1, 4, 2, 3), tuple(names))


def _check_sizes(windows_of: ShardWindows, crop_px: int, clip_frames: int, key: str) -> None:
    """Every sequence must hold the crop, and at least one must be long enough for a window."""
    small = [s for s in windows_of.sequences if min(s.low_height_px, s.low_width_px) < crop_px]
    if small:
        listed = ", ".join(f"{s.name} ({s.low_width_px}x{s.low_height_px})" for s in small)
        raise BadConfigError(
            f"{key} is {crop_px}, larger than the low-resolution frames of {listed} in split "
            f"'{windows_of.split}' of {windows_of.root}; choose a smaller crop or pack larger videos"
        )
    if max(windows_of.sequence_num_frames, default=0) < clip_frames:
        raise BadConfigError(
            f"data.clip_frames is {clip_frames}, but the longest sequence in split '{windows_of.split}' of "
            f"{windows_of.root} has {max(windows_of.sequence_num_frames, default=0)} frames"
        )
