"""The training windows that the drift monitor compares the held-out ones with."""

from __future__ import annotations

from dataclasses import replace

import torch

from vsr_dist.core.errors import BadConfigError
from vsr_dist.data.loader import TrainLoader
from vsr_dist.data.reader import SampleReader
from vsr_dist.data.ring import BatchShape, ClipBatch, Slot

# Of this many windows at the head of the order at most; a set of small frames need not be searched to its end.
_SEARCHED_PER_WINDOW = 8


def reference_batch(loader: TrainLoader) -> ClipBatch:
    """`data.val_clips` training windows, cropped to `data.val_crop_px`, the same for every rank and step.

    They are the first that training reads (so that no other shard is fetched for them) and whose frames hold the crop,
    augmented as training augments; fewer only if there are fewer different ones. On the CPU, without flow.
    """
    config, windows_of = loader.config, loader.windows_of
    reader = SampleReader(replace(config, crop_px=config.val_crop_px), windows_of, loader.order)
    searched = min(len(loader.windows), _SEARCHED_PER_WINDOW * config.val_clips)
    large = {
        sample.window: sample
        for sample in reversed(loader.order.samples(range(searched)))
        if min(_low_size(loader, sample.window.sequence)) >= config.val_crop_px
    }
    samples = sorted(large.values(), key=lambda sample: sample.position)[: config.val_clips]
    if not samples:
        raise BadConfigError(
            f"data.val_crop_px is {config.val_crop_px}, larger than the low-resolution frames that "
            f"'{config.train_split}' of {windows_of.root} begins with; the drift monitor compares training and "
            "held-out crops of one size: choose a smaller one"
        )
    slot = Slot(BatchShape(len(samples), config.clip_frames, config.val_crop_px, windows_of.scale), torch.device("cpu"))
    read = [reader.read(sample, out) for sample, out in zip(samples, slot.clips, strict=True)]
    return slot.deliver([reader.name(sample.window) for sample in read], [True] * len(read))


def _low_size(loader: TrainLoader, sequence: int) -> tuple[int, int]:
    info = loader.windows_of.sequences[sequence]
    return info.low_height_px, info.low_width_px
