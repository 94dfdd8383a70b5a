"""The stores that our shards are compared with: each made from the same clips, each read in its own usual way.

Every reader yields batches (low, real): uint8, (B, T, H, W, 3), of random windows and crops. The packages lmdb,
litdata and mosaicml-streaming are not among this project's dependencies; a store whose package is missing raises
ImportError.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import cv2
import numpy as np
import torch
import webdataset as wds
from torch.utils.data import DataLoader, Dataset

from sharding.codec import CODECS
from sharding.schema import Index

LOW_PX, SCALE, NUM_FRAMES, BATCH_CLIPS = 64, 4, 7, 4
ENDLESS = 10**7
Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Clips:
    """Decoded clips of the set: key -> (low, real), views of the map of its npy shards."""

    root: Path
    index: Index
    arrays: dict[str, tuple[np.ndarray, np.ndarray]]


def read_clips(root: Path, index: Index, least_frames: int = NUM_FRAMES) -> Clips:
    """The clips of at least so many frames."""
    maps = {shard.name: np.memmap(root / shard.name, mode="r", dtype=np.uint8) for shard in index.shards}
    arrays = {}
    for clip in index.clips:
        fields = []
        for field in ("lr", "hr"):
            (member,) = clip.members[field]
            flat = maps[clip.shard][member.data_offset : member.data_offset + int(np.prod(member.shape))]
            fields.append(flat.reshape(member.shape))
        if len(fields[0]) >= least_frames:
            arrays[clip.key] = (fields[0], fields[1])
    return Clips(root, index, arrays)


def draw_crop(low_shape: tuple[int, ...], seed: int | None = None) -> tuple[int, int, int]:
    """(First frame, top, left) of a random crop in a clip (T, H, W, 3)."""
    draw = random.Random(seed).randrange if seed is not None else random.randrange
    return draw(low_shape[0] - NUM_FRAMES + 1), draw(low_shape[1] - LOW_PX + 1), draw(low_shape[2] - LOW_PX + 1)


def cut(low: np.ndarray, real: np.ndarray, start: int, top: int, left: int) -> tuple[np.ndarray, np.ndarray]:
    frames, side = slice(start, start + NUM_FRAMES), LOW_PX * SCALE
    return (
        low[frames, top : top + LOW_PX, left : left + LOW_PX],
        real[frames, top * SCALE : top * SCALE + side, left * SCALE : left * SCALE + side],
    )


def cut_random(sample: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    low, real = cut(sample["lr"], sample["hr"], *draw_crop(sample["lr"].shape))
    return np.ascontiguousarray(low), np.ascontiguousarray(real)


def in_batches(dataset: Dataset, num_workers: int) -> Batches:
    loader = DataLoader(dataset, BATCH_CLIPS, num_workers=num_workers, persistent_workers=num_workers > 0)
    while True:
        yield from loader


# --- a copy by hand: what the machine can do ---------------------------------------------------------------


Views = list[tuple[int, np.ndarray, np.ndarray]]


def copy_by_hand(crops: list[Views], num_batches: int = 1) -> Batches:
    """Crops given as views of the map copied into `num_batches` batches in turn: no order, no checks, no arithmetic.

    A crop is a list of (first frame in the window, low view, real view): one per clip that its window lies in.
    """
    shapes = [(BATCH_CLIPS, NUM_FRAMES, side, side, 3) for side in (LOW_PX, LOW_PX * SCALE)]
    ring = [[torch.empty(shape, dtype=torch.uint8) for shape in shapes] for _ in range(num_batches)]
    places = cycle((batch, batch[0].numpy()[n], batch[1].numpy()[n], n) for batch in ring for n in range(BATCH_CLIPS))
    for views, (batch, low_out, real_out, number) in zip(cycle(crops), places, strict=False):
        for first, low, real in views:
            low_out[first : first + len(low)] = low
            real_out[first : first + len(real)] = real
        if number == BATCH_CLIPS - 1:
            yield batch[0], batch[1]


# --- one picture per frame: loose files, LMDB ---------------------------------------------------------------


class Pictures(Dataset):
    """Windows of PNG frames, which `get` finds by name."""

    def __init__(self, clips: Clips) -> None:
        self.shapes = {key: low.shape for key, (low, _) in clips.arrays.items()}
        self.keys = sorted(self.shapes)

    def __len__(self) -> int:
        return ENDLESS

    def get(self, name: str) -> np.ndarray:
        raise NotImplementedError

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        key = self.keys[random.Random(number).randrange(len(self.keys))]
        start, top, left = draw_crop(self.shapes[key], number)
        parts = []
        for field, scale in (("lr", 1), ("hr", SCALE)):
            rows, columns = (slice(first * scale, (first + LOW_PX) * scale) for first in (top, left))
            parts.append(
                np.stack([self.get(f"{key}.{field}.{start + t:03d}")[rows, columns] for t in range(NUM_FRAMES)])
            )
        return parts[0], parts[1]


def each_picture(clips: Clips) -> Iterator[tuple[str, bytes]]:
    """(Name, PNG bytes as our png codec and BasicSR write them: OpenCV at level 1)."""
    for key, fields in clips.arrays.items():
        for field, frames in zip(("lr", "hr"), fields, strict=True):
            for number, frame in enumerate(frames):
                yield f"{key}.{field}.{number:03d}", CODECS["png"].encode(frame)


class LoosePictures(Pictures):
    def __init__(self, clips: Clips, folder: Path) -> None:
        super().__init__(clips)
        self.folder = folder

    def get(self, name: str) -> np.ndarray:
        return cv2.imread(str(self.folder / f"{name}.png"), cv2.IMREAD_COLOR_RGB)


class LmdbPictures(Pictures):
    def __init__(self, clips: Clips, folder: Path) -> None:
        super().__init__(clips)
        self.folder = folder
        self.transaction = None

    def get(self, name: str) -> np.ndarray:
        import lmdb  # noqa: PLC0415 - see the top of this file

        if self.transaction is None:  # opened in the worker that reads
            environment = lmdb.open(str(self.folder), readonly=True, lock=False, readahead=False, meminit=False)
            self.transaction = environment.begin(buffers=True)
        return cv2.imdecode(np.frombuffer(self.transaction.get(name.encode()), np.uint8), cv2.IMREAD_COLOR_RGB)


def build_loose(clips: Clips, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, data in each_picture(clips):
        (folder / f"{name}.png").write_bytes(data)


def build_lmdb(clips: Clips, folder: Path) -> None:
    import lmdb  # noqa: PLC0415 - see the top of this file

    with lmdb.open(str(folder), map_size=1 << 36) as environment, environment.begin(write=True) as transaction:
        for name, data in each_picture(clips):
            transaction.put(name.encode(), data)


# --- one array per clip: webdataset on our tar, litdata, MosaicML Streaming ---------------------------------


def read_webdataset(clips: Clips, num_workers: int) -> Batches:
    """Our own npy shards through the stock decoder of webdataset."""
    urls = [str(clips.root / shard.name) for shard in clips.index.shards]
    dataset = wds.WebDataset(urls, shardshuffle=False, empty_check=False).decode()
    long_enough = dataset.select(lambda sample: len(sample["lr.npy"]) >= NUM_FRAMES)
    return in_batches(long_enough.map(_cut_webdataset).repeat(), num_workers)


def _cut_webdataset(sample: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return cut_random({"lr": sample["lr.npy"], "hr": sample["hr.npy"]})


def _as_sample(item: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    return {"lr": np.ascontiguousarray(item[0]), "hr": np.ascontiguousarray(item[1])}


def build_litdata(clips: Clips, folder: Path) -> None:
    import litdata  # noqa: PLC0415 - see the top of this file

    litdata.optimize(
        fn=_as_sample, inputs=list(clips.arrays.values()), output_dir=str(folder), chunk_bytes="256MB", num_workers=1
    )


def read_litdata(folder: Path, num_workers: int) -> Batches:
    import litdata  # noqa: PLC0415 - see the top of this file

    dataset = litdata.StreamingDataset(str(folder), transform=cut_random)
    while True:
        yield from litdata.StreamingDataLoader(dataset, batch_size=BATCH_CLIPS, num_workers=num_workers)


def build_mosaic(clips: Clips, folder: Path) -> None:
    from streaming import MDSWriter  # noqa: PLC0415 - see the top of this file

    with MDSWriter(out=str(folder), columns={"lr": "ndarray", "hr": "ndarray"}, size_limit=1 << 28) as writer:
        for item in clips.arrays.values():
            writer.write(_as_sample(item))


def read_mosaic(folder: Path, num_workers: int) -> Batches:
    from streaming import StreamingDataset  # noqa: PLC0415 - see the top of this file

    class Cut(StreamingDataset):
        def __getitem__(self, at: int) -> tuple[np.ndarray, np.ndarray]:
            return cut_random(super().__getitem__(at))

    return in_batches(Cut(local=str(folder), batch_size=BATCH_CLIPS, shuffle=False), num_workers)
