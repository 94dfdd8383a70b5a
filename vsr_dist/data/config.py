"""The configuration of the data: splits, windows, order, checks, prefetching and the cache of remote data sets."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from vsr_dist.core.config_io import io, speed
from vsr_dist.core.errors import BadConfigError

OrderName = Literal["shuffle", "block", "ordered"]
_FROM_ZERO = ("max_bad_samples", "frame_cache_mb")


@dataclass(frozen=True)
class DataConfig:
    """The `data` section of a configuration, see `docs/loading.md`.

    Attributes:
        root: folder of a packed data set, or `s3://bucket/prefix`, `http://...`, `https://...`.
        train_split: split with the training windows.
        val_split: split with the validation windows.
        clip_frames: frames per training window.
        crop_px: side of the square low-resolution crop, in pixels; the high-resolution crop is `scale` times larger.
        batch_clips: windows per optimiser step over all ranks and accumulated micro-batches.
        order: `shuffle` permutes the windows of an epoch; `block` permutes the shards, then the windows inside blocks
            of shards; `ordered` reads sequences in time order, one in each place of the batch.
        block_shards: shards per block of `order: block`.
        symmetries: augment with random flips, transposition and time reversal (no time reversal with `ordered`).
        flow: also load the packed low-resolution flow; windows across a clip border are left out.
        val_clips: number of fixed validation windows.
        val_crop_px: side of their centred low-resolution crop, in pixels.
        on_bad_sample: `error` stops at a damaged window, `replace` reads another one, selected by its position.
        max_bad_samples: maximum number of replaced windows on all ranks, since the start or resume of a run.
        check_hashes: `first_touch` compares each field with the index when a process first reads it; `never` does not.
        reader_threads: threads that copy or decode crops.
        read_ahead_batches: number of prefetched micro-batches.
        frame_cache_mb: size of the cache of decoded frames of png, webp and jpg shards, per split, in 1e6 bytes.
        cache_dir: folder for the shards of a remote data set, shared by all processes of a node.
        cache_gb: maximum size of this folder, in 1e9 bytes.
        fetch_tries: number of attempts to fetch an object of a remote data set.
        fetch_backoff_s: pause after the first failed attempt; doubled after each further one, up to 30 s.
        s3_endpoint: URL of an S3 server other than AWS; empty uses boto3's default (`AWS_ENDPOINT_URL`).
    """

    root: str = io("data")
    train_split: str = "train"
    val_split: str = "val"
    clip_frames: int = 5
    crop_px: int = 24
    batch_clips: int = 8
    order: OrderName = "shuffle"
    block_shards: int = 8
    symmetries: bool = True
    flow: bool = False
    val_clips: int = 16
    val_crop_px: int = 36
    # These may change at a resume: they do not change the samples of a run that reads no damaged window.
    on_bad_sample: Literal["error", "replace"] = io("error")
    max_bad_samples: int = io(100)
    check_hashes: Literal["first_touch", "never"] = io("first_touch")
    reader_threads: int = speed(1)
    read_ahead_batches: int = speed(4)
    frame_cache_mb: int = speed(256)
    cache_dir: str = io("~/.cache/vsr-dist")
    cache_gb: float = io(50.0)
    fetch_tries: int = io(5)
    fetch_backoff_s: float = io(0.5)
    s3_endpoint: str = io("")

    def __post_init__(self) -> None:
        """Raise BadConfigError that lists all numbers out of range and all options that exclude each other."""
        faults = [
            f"{field.name} is {getattr(self, field.name)}, expected at least {least}"
            for field in fields(self)
            if field.type == "int" and getattr(self, field.name) < (least := 0 if field.name in _FROM_ZERO else 1)
        ]
        if not self.cache_gb > 0:
            faults.append(f"cache_gb is {self.cache_gb}, expected more than 0")
        if not self.fetch_backoff_s >= 0:
            faults.append(f"fetch_backoff_s is {self.fetch_backoff_s}, expected at least 0")
        if self.flow and self.clip_frames == 1:
            faults.append("flow needs clip_frames of at least 2")
        if self.order == "ordered" and self.on_bad_sample == "replace":
            faults.append("on_bad_sample=replace breaks the sequential order of order=ordered; use on_bad_sample=error")
        if faults:
            raise BadConfigError(f"data: {'; '.join(faults)}")
