"""Reading one sample of the stream: its augmentation, its window, and what is done about a damaged one."""

from __future__ import annotations

from vsr_dist.core.errors import BadConfigError, BadShardError
from vsr_dist.data.augment import draw
from vsr_dist.data.checks import BadSampleError
from vsr_dist.data.config import DataConfig
from vsr_dist.data.order import Order, Sample
from vsr_dist.data.plan import Window
from vsr_dist.data.shards import ShardSet
from vsr_dist.data.windows import ClipArrays, ShardWindows

_REPLACEMENT_TRIES = 20


class SampleReader:
    """Reads the samples of an order. What is read depends on the sample and the set only; safe in several threads."""

    def __init__(self, config: DataConfig, windows_of: ShardWindows, order: Order) -> None:
        self.config, self.windows_of, self.order = config, windows_of, order

    def read(self, sample: Sample, out: ClipArrays) -> Sample:
        """Fill `out`; returns the sample that was read, which is another one if the wanted one is damaged.

        Raises BadSampleError for a damaged one under `data.on_bad_sample: error`.
        """
        wanted = sample
        for attempt in range(1, _REPLACEMENT_TRIES + 1):
            try:
                self._read_window(sample, out)
            except BadSampleError:
                if self.config.on_bad_sample == "error":
                    raise
                sample = self.order.replacement(wanted, attempt)
            else:
                return sample
        raise BadShardError(
            f"{self.windows_of.root}: window {self.name(wanted.window)} and {_REPLACEMENT_TRIES - 1} read in its place "
            "are all damaged; run 'vsr-dist verify' on the set and pack it again"
        )

    def name(self, window: Window) -> str:
        """Sequence and first frame, as in the key of a clip."""
        return f"{self.windows_of.sequences[window.sequence].name}-{window.start:08d}"

    def _read_window(self, sample: Sample, out: ClipArrays) -> None:
        info = self.windows_of.sequences[sample.window.sequence]
        choice = draw(
            sample.augment_seed,
            info.low_height_px,
            info.low_width_px,
            self.config.crop_px,
            symmetries=self.config.symmetries,
            # A walk goes front to back.
            time_reversal=self.config.order != "ordered",
        )
        self.windows_of.read(sample.window, choice, out)


def open_split(shards: ShardSet, config: DataConfig, split: str) -> ShardWindows:
    """The windows of a split, as the configuration wants them read."""
    return ShardWindows(
        shards,
        split,
        check_hashes=config.check_hashes == "first_touch",
        frame_cache_bytes=config.frame_cache_mb * 1_000_000,
    )


def check_replaced(num_replaced: int, config: DataConfig) -> None:
    """Refuse more replaced windows than `data.max_bad_samples`."""
    if num_replaced > config.max_bad_samples:
        raise BadShardError(
            f"{num_replaced} windows of {config.root} were damaged and replaced, more than data.max_bad_samples "
            f"{config.max_bad_samples}; run 'vsr-dist verify' on the set and pack it again, or raise the limit"
        )


def check_sizes(windows_of: ShardWindows, crop_px: int, clip_frames: int, key: str) -> None:
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


def check_flow(windows_of: ShardWindows, clip_frames: int) -> None:
    """Flow must have been packed, in at least one clip that is long enough for a window."""
    if windows_of.index.flow == "none":
        raise BadConfigError(
            f"data.flow is true, but {windows_of.root} was packed without flow; pack it with --flow dis, or set "
            "data.flow=false"
        )
    longest = max(run.num_frames for run in windows_of.runs(inside_clips=True))
    if longest < clip_frames:
        raise BadConfigError(
            f"data.clip_frames is {clip_frames}, but with data.flow a window must lie inside one packed clip, and "
            f"the longest in split '{windows_of.split}' of {windows_of.root} has {longest} frames; pack with "
            f"--clip-frames {clip_frames} or more"
        )
