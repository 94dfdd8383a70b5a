"""Measuring an evaluation: every frame upscaled in order, scored on the device and by threads, and shown in pictures.

Axis letters: T time, H W low-resolution, Y X high-resolution rows and columns, C channels, N images.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vsr_dist.core.collectives import World
from vsr_dist.core.console import Progress
from vsr_dist.core.errors import BadConfigError, MissingExtraError
from vsr_dist.data.stream import share_sequences
from vsr_dist.evaluation.results import FrameRow
from vsr_dist.evaluation.sources import EvaluationSource, Piece, SequenceInfo
from vsr_dist.evaluation.subjects import OURS, Subject
from vsr_dist.inference.frames import to_8_bits
from vsr_dist.inference.pictures import FrameSet, SequenceShow
from vsr_dist.metrics.fidelity import batch_fidelity, check_against_scikit_image
from vsr_dist.metrics.perceptual import Features
from vsr_dist.metrics.registry import METRICS, NETWORKS, Metric, RegionName, in_order, measure_clip
from vsr_dist.metrics.registry import Protocol as Preset
from vsr_dist.metrics.temporal import Region, TruthMotion
from vsr_dist.ops.color import ByteArray, from_uint8
from vsr_dist.ops.picture import Picture

# Method -> metric -> value.
Scores = dict[str, dict[str, float]]
# Beside the methods, in tables of what is computed of all sides.
_TRUTH = ""
TLP_FACTOR = 100.0


class _Network(Protocol):
    def features(self, images_NCYX: Tensor) -> Features: ...

    def distance(self, first: Features, second: Features) -> Tensor: ...


@dataclass(frozen=True)
class _Frame:
    """One frame under every method, uint8 RGB on the host. position: in its sequence; number: as the source counts."""

    position: int
    number: int
    low_HWC: ByteArray | None
    real_YXC: ByteArray
    fakes: Mapping[str, ByteArray]


def available(names: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, str]]:
    """(Metrics that can be measured here, reason for each of the others)."""
    reasons: dict[str, str] = {}
    for name in names:
        try:
            if METRICS[name].needs in NETWORKS:
                METRICS[name].function()
        except (BadConfigError, MissingExtraError) as error:
            reasons[name] = str(error)
    return tuple(name for name in names if name not in reasons), reasons


class Scorer:
    """Measures one set under one protocol. Opening it fails where weights or packages are missing."""

    def __init__(self, names: tuple[str, ...], preset: Preset, scale: int, device: torch.device) -> None:
        self._how = (preset, scale)
        by_need: dict[str, list[Metric]] = {}
        for name in names:
            by_need.setdefault(METRICS[name].needs, []).append(METRICS[name])
        # PSNR and SSIM: on a GPU in batches, on the CPU by the threads, frame by frame.
        fidelity, is_on_cpu = by_need.get("fidelity", []), device.type == "cpu"
        self._batched = tuple(metric.name for metric in fidelity if not is_on_cpu)
        self._checked = tuple(metric.name for metric in fidelity if is_on_cpu)
        self._frames = by_need.get("frames", []) + (fidelity if is_on_cpu else [])
        self._pairs = by_need.get("pairs", []) + by_need.get("flow", [])
        deep = by_need.get("distance", []) + by_need.get("step", [])
        self._networks: list[tuple[_Network, list[Metric]]] = [
            (function().to(device), [metric for metric in deep if metric.function is function])
            for function in dict.fromkeys(metric.function for metric in deep)
        ]
        self._streamed = by_need.get("stream", [])
        for metric in self._streamed:
            metric.function()
        self.reset()

    def reset(self) -> None:
        """The next frame opens a sequence."""
        self._before: dict[_Network, dict[str, Features]] = {}
        self._streams: dict[tuple[str, str], Any] = {}

    def _region(self, name: RegionName, shape: tuple[int, ...]) -> Region:
        preset, scale = self._how
        return preset.region(name, shape[0], shape[1], scale)

    def on_gpu(self, real_TYXC: Tensor, fakes: Mapping[str, Tensor]) -> list[Scores]:
        """PSNR and SSIM of several frames at once on a GPU (uint8 RGB tensors there); on the CPU threads do it."""
        scores: list[Scores] = [{method: {} for method in fakes} for _ in real_TYXC]
        if self._batched:
            rows, columns = self._region("inside", tuple(real_TYXC.shape[1:]))
            for method, fake_TYXC in fakes.items():
                pair = (fake_TYXC[:, rows, columns], real_TYXC[:, rows, columns])
                found = batch_fidelity(*pair, self._batched, self._how[0].round_luma)
                for place, values in enumerate(found):
                    scores[place][method] = values
        return scores

    @torch.no_grad()
    def on_device(self, real_YXC: Tensor, fakes: Mapping[str, Tensor]) -> Scores:
        """Metrics of networks for the next frame of a sequence, uint8 RGB tensors on the device, in time order."""
        scores: Scores = {method: {} for method in fakes}
        for network, metrics in self._networks:
            region = self._region("whole", tuple(real_YXC.shape))
            before = self._before.setdefault(network, {})
            for side, image_YXC in {_TRUTH: real_YXC, **fakes}.items():
                now = network.features(_image(image_YXC[region]))
                step = float(network.distance(before[side], now)) if side in before else None
                if any(metric.needs == "step" for metric in metrics):
                    before[side] = now
                if side == _TRUTH:
                    real, real_step = now, step
                    continue
                for metric in metrics:
                    if metric.needs == "distance":
                        scores[side][metric.name] = float(network.distance(now, real))
                    elif step is not None and real_step is not None:
                        scores[side][metric.name] = TLP_FACTOR * abs(real_step - step)
        return scores

    def over_sequence(self, real_YXC: Tensor | None, fakes: Mapping[str, Tensor]) -> dict[tuple[str, str], list[float]]:
        """The next known values, in order, by method and metric; None as the truth ends the sequence."""
        if real_YXC is None:
            return {key: stream.end() for key, stream in self._streams.items()}
        found = {}
        for metric in self._streamed:
            region = self._region("whole", tuple(real_YXC.shape))
            for method, fake_YXC in fakes.items():
                key = (method, metric.name)
                if key not in self._streams:
                    self._streams[key] = metric.function()
                found[key] = self._streams[key].push(fake_YXC[region], real_YXC[region])
        return found

    def on_host(self, frame: _Frame, before: _Frame | None) -> Scores:
        """Metrics of one frame that a thread computes; `before` is None for the first of a sequence."""
        scores: Scores = {}
        real_TYXC = frame.real_YXC[None]
        for method, fake_YXC in frame.fakes.items():
            scores[method] = measure_clip(self._frames, *self._how, fake_YXC[None], real_TYXC)
            if before is None and self._checked:  # the first frame stands for the others
                region = self._region("inside", fake_YXC.shape)
                found = {name: scores[method][name] for name in self._checked}
                check_against_scikit_image(fake_YXC[region], frame.real_YXC[region], found, self._how[0].round_luma)
        if before is not None and self._pairs:
            real_TYXC = np.stack((before.real_YXC, frame.real_YXC))
            motion = TruthMotion(real_TYXC)
            for method, fake_YXC in frame.fakes.items():
                fake_TYXC = np.stack((before.fakes[method], fake_YXC))
                scores[method] |= measure_clip(self._pairs, *self._how, fake_TYXC, real_TYXC, motion)
        return scores


def _image(frame_YXC: Tensor) -> Tensor:
    return from_uint8(frame_YXC).permute(2, 0, 1)[None]


@dataclass(frozen=True)
class Measured:
    """Scores of every frame of a sequence, in order, and its row of the comparison picture (uint8 RGB, Y X 3)."""

    sequence: str
    rows: list[FrameRow]
    picture: Picture | None


@dataclass
class _Pending:
    """A frame some of whose scores are not computed yet."""

    sequence: SequenceInfo
    number: int
    scores: Scores
    host: Future[Scores]


class _Alignment:
    """Pairs the frames of a sequence with every method's results, which may come late."""

    def __init__(self, subjects: Sequence[Subject]) -> None:
        self._subjects = subjects
        self._inputs: deque[tuple[int, ByteArray | None, ByteArray]] = deque()
        self._results: dict[str, deque[ByteArray]] = {subject.name: deque() for subject in subjects}
        self._num_frames = 0

    def batches(self, pieces: Iterator[Piece]) -> Iterator[list[_Frame]]:
        """All frames of one sequence, in order, each as soon as every result is known."""
        for piece in pieces:
            self._push(piece)
            yield self._pop()
        for subject in self._subjects:
            if subject.stream is not None:
                self._results[subject.name].extend(map(to_8_bits, subject.stream.finish()))
        yield self._pop()

    def _push(self, piece: Piece) -> None:
        for place, real_YXC in enumerate(piece.real_TYXC):
            low_HWC = None if piece.low_THWC is None else piece.low_THWC[place]
            shown_HWC = None if low_HWC is None else to_8_bits(low_HWC)
            self._inputs.append((piece.first_frame + place, shown_HWC, to_8_bits(real_YXC)))
            for subject in self._subjects:
                results = self._results[subject.name]
                if subject.stream is not None and low_HWC is not None:
                    results.extend(map(to_8_bits, subject.stream.push(low_HWC)))
                elif piece.fake_TYXC is not None:
                    results.append(to_8_bits(piece.fake_TYXC[place]))

    def _pop(self) -> list[_Frame]:
        complete = []
        for _ in range(min(len(results) for results in self._results.values())):
            number, low_HWC, real_YXC = self._inputs.popleft()
            fakes = {name: results.popleft() for name, results in self._results.items()}
            complete.append(_Frame(self._num_frames, number, low_HWC, real_YXC, fakes))
            self._num_frames += 1
        return complete


class Measurement:
    """Scores of one rank's sequences, piece by piece, and their pictures."""

    def __init__(
        self,
        source: EvaluationSource,
        subjects: Sequence[Subject],
        scorer: Scorer,
        trim_frames: int,
        device: torch.device,
    ) -> None:
        self.source, self.subjects, self.scorer, self.trim_frames = source, list(subjects), scorer, trim_frames
        self._device = device
        self._pending: list[_Pending] = []
        self._num_late: Counter[tuple[str, str]] = Counter()
        self._num_workers = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

    def run(self, pictures: Path | None, world: World) -> list[Measured]:
        """Every sequence of this rank, in order; pictures are written to a folder on the way, or none."""
        lengths = {info.name: info.num_frames for info in self.source.sequences}
        mine = set(share_sequences(lengths, world.size)[world.rank])
        infos = {info.name: info for info in self.source.sequences if info.name in mine}
        found: dict[str, Picture] = {}
        total = sum(info.num_frames for info in infos.values())
        with (
            ThreadPoolExecutor(self._num_workers) as pool,
            Progress(total, "frame", enabled=world.is_main) as progress,
        ):
            for name, pieces in groupby(self.source.pieces(mine), key=lambda piece: piece.sequence):
                with ExitStack() as stack:
                    show = None
                    if pictures is not None:
                        show = stack.enter_context(SequenceShow(pictures, name, infos[name].fps))
                    self._measure_sequence(pieces, infos[name], pool, show, progress)
                if show is not None:
                    found[name] = show.picture
            rows = self._rows(infos)
        return [Measured(name, rows[name], found.get(name)) for name in infos]

    def _measure_sequence(
        self,
        pieces: Iterator[Piece],
        info: SequenceInfo,
        pool: ThreadPoolExecutor,
        show: SequenceShow | None,
        progress: Progress,
    ) -> None:
        before = None
        for frames in _Alignment(self.subjects).batches(pieces):
            for frame, scores, real_YXC, fakes in self._on_device(frames):
                if show is not None and frame.low_HWC is not None:
                    show.add(self._shown(frame), frame.number)
                before = self._measure_frame(frame, scores, real_YXC, fakes, before, info, pool)
                progress.advance()
        self._add_late(self.scorer.over_sequence(None, {}))
        self.scorer.reset()

    def _on_device(self, frames: Sequence[_Frame]) -> Iterator[tuple[_Frame, Scores, Tensor, Mapping[str, Tensor]]]:
        """Each frame with what a GPU measures of several at once, and with its tensors on the device."""
        if not frames:
            return
        real_TYXC = torch.from_numpy(np.stack([frame.real_YXC for frame in frames])).to(self._device)
        fakes = {
            name: torch.from_numpy(np.stack([frame.fakes[name] for frame in frames])).to(self._device)
            for name in frames[0].fakes
        }
        scores = self.scorer.on_gpu(real_TYXC, fakes)
        for place, frame in enumerate(frames):
            now = {name: fake_TYXC[place] for name, fake_TYXC in fakes.items()}
            yield frame, scores[place], real_TYXC[place], now

    def _measure_frame(
        self,
        frame: _Frame,
        scores: Scores,
        real_YXC: Tensor,
        fakes: Mapping[str, Tensor],
        before: _Frame | None,
        info: SequenceInfo,
        pool: ThreadPoolExecutor,
    ) -> _Frame | None:
        """Start the scores of one frame, unless the protocol trims it; returns it for the next one."""
        if not self.trim_frames <= frame.position < info.num_frames - self.trim_frames:
            return None
        found = self.scorer.on_device(real_YXC, fakes)
        both = {method: {**scores[method], **found[method]} for method in found}
        self._pending.append(_Pending(info, frame.number, both, pool.submit(self.scorer.on_host, frame, before)))
        self._add_late(self.scorer.over_sequence(real_YXC, fakes))
        if len(self._pending) > 4 * self._num_workers:
            # Frames that wait for their scores are held in memory: limit their number.
            self._pending[-4 * self._num_workers].host.result()
        return frame

    def _shown(self, frame: _Frame) -> FrameSet:
        """Baseline and the next method; a second network is measured, but not shown."""
        assert frame.low_HWC is not None
        names = [subject.name for subject in self.subjects]
        second = frame.fakes[names[1]] if len(names) > 1 else None
        shown = (names[0], names[1] if len(names) > 1 else OURS)
        return FrameSet(frame.low_HWC, frame.fakes[names[0]], second, frame.real_YXC, shown)

    def _add_late(self, known: Mapping[tuple[str, str], list[float]]) -> None:
        """Values that became known late go to the frames that wait for them."""
        for (method, name), values in known.items():
            for value in values:
                self._pending[self._num_late[method, name]].scores[method][name] = value
                self._num_late[method, name] += 1

    def _rows(self, infos: Mapping[str, SequenceInfo]) -> dict[str, list[FrameRow]]:
        rows: dict[str, list[FrameRow]] = {name: [] for name in infos}
        for waiting in self._pending:
            host = waiting.host.result()
            for method, scores in waiting.scores.items():
                both = {**scores, **host[method]}
                kept = {name: both[name] for name in in_order(tuple(both))}
                info = waiting.sequence
                rows[info.name].append(FrameRow(info.source, info.name, waiting.number, method, kept))
        return rows
