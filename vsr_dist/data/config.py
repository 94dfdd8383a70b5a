"""What is read for training and validation, in which order, and how it is fetched and checked."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from vsr_dist.core.errors import BadConfigError
from vsr_dist.core.fields import io, speed

OrderName = Literal["shuffle", "block", "ordered"]
_FROM_ZERO = ("max_bad_samples", "frame_cache_mb")


@dataclass(frozen=True)
class DataConfig:
    """The `data` section of a configuration; `docs/loading.md` explains the choices.

    Attributes:
        root: folder of a packed shard set, or `s3://bucket/prefix`, `http://...`, `https://...`.
        train_split: split that the training windows come from.
        val_split: held-out split; validation never touches `train_split`.
        clip_frames: frames per training window.
        crop_px: side of the square low-resolution crop, in pixels; the high-resolution crop is `scale` times it.
        batch_clips: windows per optimiser step over all ranks and accumulated micro-batches.
        order: `shuffle` permutes the windows of an epoch, `block` permutes shards and then the windows inside blocks
            of them, `ordered` walks sequences front to back, one in each place of the batch.
        block_shards: shards per block of `order: block`.
        symmetries: draw flips, transposition and time reversal (never time reversal in `ordered`).
        flow: deliver the packed low-resolution flow; windows that run over a clip border are left out.
        val_clips: number of fixed held-out windows.
        val_crop_px: side of their centred low-resolution crop, in pixels.
        on_bad_sample: `error` stops at a damaged window, `replace` reads another one that its position decides.
        max_bad_samples: replaced windows that a run accepts, all ranks together, since its start or resume.
        check_hashes: `first_touch` compares every field with the index when a process first reads it; `never`
            leaves that to `vsr-dist verify`.
        reader_threads: threads that copy or decode crops.
        read_ahead_batches: micro-batches kept ready.
        frame_cache_mb: decoded frames of png, webp and jpg shards that are kept, per split, in 1e6 bytes.
        cache_dir: folder for the shards of a remote set, shared by all processes of a node.
        cache_gb: size that this folder may reach, in 1e9 bytes.
        fetch_tries: attempts to fetch one object of a remote set.
        fetch_backoff_s: pause after the first failed attempt; doubled after each further one, at most 30 s.
        s3_endpoint: address of another S3 server than AWS; empty takes boto3's own (`AWS_ENDPOINT_URL`).
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
    # A run that replaces computes what a run without damage would, until the other one would have stopped: a
    # stopped run may be resumed with another choice.
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
        """Refuse numbers with which nothing could be read, and choices that exclude each other; all at once."""
        faults = [
            f"{field.name} is {getattr(self, field.name)}, expected at least {least}"
            for field in fields(self)
            if field.type == "int" and getattr(self, field.name) < (least := 0 if field.name in _FROM_ZERO else 1)
        ]
        if not self.cache_gb > 0:
            faults.append(f"cache_gb is {self.cache_gb}, expected above 0")
        if not self.fetch_backoff_s >= 0:
            faults.append(f"fetch_backoff_s is {self.fetch_backoff_s}, expected at least 0")
        if self.flow and self.clip_frames == 1:
            faults.append("flow needs clip_frames of at least 2")
        if self.order == "ordered" and self.on_bad_sample == "replace":
            faults.append("on_bad_sample=replace would tear the walks of order=ordered; use on_bad_sample=error")
        if faults:
            raise BadConfigError(f"data: {'; '.join(faults)}")
