"""Measuring an evaluation: every frame upscaled in order, scored on the device and by threads, and shown in pictures.

Axis letters: T time, H W low-resolution, Y X high-resolution rows and columns, C channels, N images.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import cv2
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
from vsr_dist.metrics.fidelity import FIDELITY, batch_fidelity, check_against_scikit_image, frame_fidelity
from vsr_dist.metrics.perceptual import Dists, Features, Lpips, ShiftTolerantLpips, VmafStream, load_vmaf
from vsr_dist.metrics.registry import METRICS, Region, RegionName, in_order
from vsr_dist.metrics.registry import Protocol as Preset
from vsr_dist.metrics.temporal import flicker, flow_distance, tdiff, visible, warp_pair
from vsr_dist.ops.color import ByteArray, from_uint8
from vsr_dist.ops.motion import farneback
from vsr_dist.ops.picture import Picture

# Method -> metric -> value.
Scores = dict[str, dict[str, float]]
NETWORKS: dict[str, Callable[[], Any]] = {
    "stlpips": lambda: ShiftTolerantLpips("ST-LPIPS", "leave stlpips and tlp_st out of --metrics"),
    "lpips": Lpips,
    "dists": Dists,
    "vmaf": load_vmaf,
}
# Network -> (metric of a frame, metric of a pair).
_DISTANCES = {"stlpips": ("stlpips", "tlp_st"), "lpips": ("lpips", "tlp"), "dists": ("dists", None)}
TLP_FACTOR = 100.0


class _Network(Protocol):
    def features(self, images_NCYX: Tensor) -> Features: ...

    def distance(self, first: Features, second: Features) -> Tensor: ...


@dataclass(frozen=True)
class HostFrame:
    """One frame and the one before it, the truth and every method's, uint8 RGB (Y, X, C) on the host."""

    real: ByteArray
    fakes: Mapping[str, ByteArray]
    real_before: ByteArray | None
    fakes_before: Mapping[str, ByteArray]


def available(names: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, str]]:
    """(Metrics that can be measured here, reason for each of the others)."""
    reasons: dict[str, str] = {}
    for network in dict.fromkeys(METRICS[name].network for name in names):
        if network is None:
            continue
        try:
            NETWORKS[network]()
        except (BadConfigError, MissingExtraError) as error:
            reasons[network] = str(error)
    left_out = {name: reasons[found] for name in names if (found := METRICS[name].network) in reasons and found}
    return tuple(name for name in names if name not in left_out), left_out


class Scorer:
    """Measures one set under one protocol. Opening it fails where weights or packages are missing."""

    def __init__(self, names: tuple[str, ...], preset: Preset, scale: int, device: torch.device) -> None:
        self._names, self._preset, self._scale, self._device = names, preset, scale, device
        wanted = dict.fromkeys(METRICS[name].network for name in names)
        self._networks: dict[str, _Network] = {
            name: NETWORKS[name]().to(device) for name in wanted if name is not None and name != "vmaf"
        }
        self._fidelity = tuple(name for name in FIDELITY if name in names)
        # On the CPU the threads do it, frame by frame.
        self._fidelity_on_device = device.type != "cpu"
        self._has_vmaf = "vmaf" in wanted
        if self._has_vmaf:
            load_vmaf()
        self.reset()

    def reset(self) -> None:
        """The next frame opens a sequence."""
        self._before: dict[tuple[str, str], Features] = {}
        self._vmaf: dict[str, VmafStream] = {}

    def _region(self, name: RegionName, shape: tuple[int, ...]) -> Region:
        return self._preset.region(name, shape[0], shape[1], self._scale)

    def on_gpu(self, real_TYXC: Tensor, fakes: Mapping[str, Tensor]) -> list[Scores]:
        """PSNR and SSIM of several frames at once on a GPU (uint8 RGB tensors there); on the CPU threads do it."""
        scores: list[Scores] = [{method: {} for method in fakes} for _ in real_TYXC]
        if self._fidelity and self._fidelity_on_device:
            rows, columns = self._region("fidelity", tuple(real_TYXC.shape[1:]))
            for method, fake_TYXC in fakes.items():
                pair = (fake_TYXC[:, rows, columns], real_TYXC[:, rows, columns])
                found = batch_fidelity(*pair, self._fidelity, self._preset.round_luma)
                for place, values in enumerate(found):
                    scores[place][method] = values
        return scores

    def on_device(self, real_YXC: Tensor, fakes: Mapping[str, Tensor]) -> Scores:
        """Metrics of networks for the next frame of a sequence, uint8 RGB tensors on the device, in time order."""
        scores: Scores = {method: {} for method in fakes}
        if not self._networks:
            return scores
        region = self._region("other", tuple(real_YXC.shape))
        for name, network in self._networks.items():
            with torch.no_grad():
                self._distances(name, network, real_YXC[region], {m: f[region] for m, f in fakes.items()}, scores)
        return scores

    def _distances(
        self, name: str, network: _Network, real_YXC: Tensor, fakes: Mapping[str, Tensor], scores: Scores
    ) -> None:
        frame_metric, pair_metric = _DISTANCES[name]
        real = network.features(_image(real_YXC))
        real_before = self._before.get((name, ""))
        wants_pair = pair_metric is not None and pair_metric in self._names
        if wants_pair and real_before is not None:
            real_step = float(network.distance(real_before, real))
        for method, fake_YXC in fakes.items():
            fake = network.features(_image(fake_YXC))
            if frame_metric in self._names:
                scores[method][frame_metric] = float(network.distance(fake, real))
            if wants_pair and pair_metric and real_before is not None:
                fake_step = float(network.distance(self._before[name, method], fake))
                scores[method][pair_metric] = TLP_FACTOR * abs(real_step - fake_step)
            if wants_pair:
                self._before[name, method] = fake
        if wants_pair:
            self._before[name, ""] = real

    def over_sequence(self, real_YXC: Tensor | None, fakes: Mapping[str, Tensor]) -> dict[str, list[float]]:
        """VMAF's next known values per method, in order; None as the truth ends the sequence."""
        if not self._has_vmaf:
            return {}
        if real_YXC is None:
            return {method: stream.end() for method, stream in self._vmaf.items()}
        region = self._region("other", tuple(real_YXC.shape))
        found = {}
        for method, fake_YXC in fakes.items():
            stream = self._vmaf.setdefault(method, VmafStream())
            found[method] = stream.push(fake_YXC[region], real_YXC[region])
        return found

    def on_host(self, frame: HostFrame) -> Scores:
        """Metrics of one frame that a thread computes."""
        scores: Scores = {method: {} for method in frame.fakes}
        if self._fidelity and not self._fidelity_on_device:
            region = self._region("fidelity", frame.real.shape)
            for method, fake_YXC in frame.fakes.items():
                pair = (fake_YXC[region], frame.real[region])
                measured = frame_fidelity(*pair, self._fidelity, self._preset.round_luma)
                if frame.real_before is None:  # the first frame of a sequence stands for the others
                    check_against_scikit_image(*pair, measured, self._preset.round_luma)
                scores[method] |= measured
        if frame.real_before is not None:
            self._over_time(frame, frame.real_before, scores)
        return scores

    def _over_time(self, frame: HostFrame, real_before: ByteArray, scores: Scores) -> None:
        if "tof" in self._names or "warp" in self._names:
            grays = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (real_before, frame.real)]
            forward_YX2 = farneback(*grays)
        if "tof" in self._names:
            region = self._region("flow", frame.real.shape)
            for method, fake_YXC in frame.fakes.items():
                pair = (frame.fakes_before[method], fake_YXC)
                flow_YX2 = farneback(*(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in pair))
                scores[method]["tof"] = flow_distance(flow_YX2, forward_YX2, region)
        region = self._region("other", frame.real.shape)
        if "tdiff" in self._names:
            real_pair = np.stack([real_before[region], frame.real[region]])
            for method, fake_YXC in frame.fakes.items():
                fake_pair = np.stack([frame.fakes_before[method][region], fake_YXC[region]])
                scores[method]["tdiff"] = tdiff(fake_pair, real_pair)
        if "flicker" in self._names:
            for method, fake_YXC in frame.fakes.items():
                before_YXC = frame.fakes_before[method]
                level = flicker(before_YXC[region], fake_YXC[region], real_before[region], frame.real[region])
                if level is not None:
                    scores[method]["flicker"] = level
        if "warp" in self._names:
            mask_YX = visible(forward_YX2, farneback(grays[1], grays[0]))
            for method, fake_YXC in frame.fakes.items():
                scores[method]["warp"] = warp_pair(frame.fakes_before[method], fake_YXC, forward_YX2, mask_YX, region)


def _image(frame_YXC: Tensor) -> Tensor:
    return from_uint8(frame_YXC).permute(2, 0, 1)[None]


@dataclass(frozen=True)
class Measured:
    """Scores of every frame of a sequence, in order, and its row of the comparison picture (uint8 RGB, Y X 3)."""

    sequence: str
    rows: list[FrameRow]
    picture: Picture | None


@dataclass(frozen=True)
class _Frame:
    """One frame under every method, uint8 RGB: on the host, and on the device where networks or a GPU measure it."""

    position: int
    number: int
    low_HWC: ByteArray | None
    real_YXC: ByteArray
    fakes: Mapping[str, ByteArray]


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
        self._vmaf_done = 0
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
        self._add_vmaf(self.scorer.over_sequence(None, {}))
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
        before: HostFrame | None,
        info: SequenceInfo,
        pool: ThreadPoolExecutor,
    ) -> HostFrame | None:
        """Start the scores of one frame, unless the protocol trims it; returns it for the next one."""
        if not self.trim_frames <= frame.position < info.num_frames - self.trim_frames:
            return None
        host = HostFrame(
            frame.real_YXC, frame.fakes, None if before is None else before.real, {} if before is None else before.fakes
        )
        found = self.scorer.on_device(real_YXC, fakes)
        both = {method: {**scores[method], **found[method]} for method in found}
        self._pending.append(_Pending(info, frame.number, both, pool.submit(self.scorer.on_host, host)))
        self._add_vmaf(self.scorer.over_sequence(real_YXC, fakes))
        if len(self._pending) > 4 * self._num_workers:
            # Frames that wait for their scores are held in memory: limit their number.
            self._pending[-4 * self._num_workers].host.result()
        return host

    def _shown(self, frame: _Frame) -> FrameSet:
        """Baseline and the next method; a second network is measured, but not shown."""
        assert frame.low_HWC is not None
        names = [subject.name for subject in self.subjects]
        second = frame.fakes[names[1]] if len(names) > 1 else None
        shown = (names[0], names[1] if len(names) > 1 else OURS)
        return FrameSet(frame.low_HWC, frame.fakes[names[0]], second, frame.real_YXC, shown)

    def _add_vmaf(self, known: Mapping[str, list[float]]) -> None:
        """Values that became known late go to the frames that wait for them."""
        for place in range(max((len(values) for values in known.values()), default=0)):
            for method, values in known.items():
                self._pending[self._vmaf_done].scores[method]["vmaf"] = values[place]
            self._vmaf_done += 1

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
