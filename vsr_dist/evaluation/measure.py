"""The loop of an evaluation: every frame enlarged in order, scored by the device and by threads, shown in pictures.

Axis letters: T time, H W low-resolution rows and columns, Y X high-resolution rows and columns, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vsr_dist.core.console import Progress
from vsr_dist.core.world import World
from vsr_dist.data.stream import share_sequences
from vsr_dist.evaluation.scoring import HostFrame, Scorer, Scores
from vsr_dist.evaluation.sources import EvaluationSource, Piece, SequenceInfo
from vsr_dist.evaluation.subject import OURS, Subject
from vsr_dist.inference.pictures.sequence_show import SequenceShow
from vsr_dist.inference.pictures.showcase import FrameSet
from vsr_dist.metrics.registry import in_order
from vsr_dist.metrics.table import FrameRow
from vsr_dist.ops.color import ByteArray, from_uint8, to_uint8
from vsr_dist.ops.picture import Picture


@dataclass(frozen=True)
class Measured:
    """Scores of every frame of a sequence, in order, and its row of the comparison picture (uint8 RGB, Y X 3)."""

    sequence: str
    rows: list[FrameRow]
    picture: Picture | None


@dataclass(frozen=True)
class _Frame:
    """One frame under every method, on the device (uint8, Y X C)."""

    number: int
    low_HWC: ByteArray | None
    real_YXC: Tensor
    fakes: Mapping[str, Tensor]
    scores: Scores


@dataclass
class _Pending:
    """A frame whose scores are not all there."""

    sequence: SequenceInfo
    number: int
    scores: Scores
    host: Future[Scores]


class Measurement:
    """What `measure` does, piece by piece: scores of one rank's sequences, and their pictures."""

    def __init__(self, source: EvaluationSource, subjects: Sequence[Subject], scorer: Scorer, trim_frames: int) -> None:
        self.source, self.subjects, self.scorer, self.trim_frames = source, list(subjects), scorer, trim_frames
        self._pending: list[_Pending] = []
        self._vmaf_done = 0
        self._workers = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

    def run(self, device: torch.device, pictures: Path | None, world: World) -> list[Measured]:
        """Every sequence of this rank, in order; pictures are written on the way, to a folder, or none."""
        lengths = {info.name: info.num_frames for info in self.source.sequences}
        mine = set(share_sequences(lengths, world.size)[world.rank])
        infos = {info.name: info for info in self.source.sequences if info.name in mine}
        shows: dict[str, SequenceShow] = {}
        total = sum(info.num_frames for info in infos.values())
        with (
            ThreadPoolExecutor(self._workers) as pool,
            Progress(total, "frame", enabled=world.is_main) as progress,
            ExitStack() as stack,
        ):
            name, position, before = None, 0, None
            for piece in self.source.pieces(mine):
                if piece.sequence != name:
                    self._end_sequence()
                    stack.close()
                    name, position, before = piece.sequence, 0, None
                    if pictures is not None:
                        shows[name] = stack.enter_context(SequenceShow(pictures, name, infos[name].fps))
                for frame in self._enlarge(piece, device):
                    before = self._measure_frame(frame, before, infos[name], position, pool, shows.get(name))
                    position += 1
                    progress.advance()
            self._end_sequence()
            stack.close()
            rows = self._rows(infos)
        return [Measured(name, rows[name], shows[name].picture if name in shows else None) for name in infos]

    def _enlarge(self, piece: Piece, device: torch.device) -> Iterator[_Frame]:
        real_TYXC = torch.from_numpy(piece.real_TYXC.copy()).to(device)
        fakes: dict[str, Tensor] = {}
        low_TCHW = None
        if piece.low_THWC is not None:
            low_TCHW = from_uint8(torch.from_numpy(piece.low_THWC.copy()).to(device)).permute(0, 3, 1, 2)
        for subject in self.subjects:
            if subject.upscaler is not None and low_TCHW is not None:
                fakes[subject.name] = to_uint8(subject.upscaler.upscale(low_TCHW)).permute(0, 2, 3, 1)
            elif piece.fake_TYXC is not None:
                fakes[subject.name] = torch.from_numpy(piece.fake_TYXC.copy()).to(device)
        scores = self.scorer.of_piece(real_TYXC, fakes)
        for place, real_YXC in enumerate(real_TYXC):
            low_HWC = None if piece.low_THWC is None else piece.low_THWC[place]
            now = {method: fake_TYXC[place] for method, fake_TYXC in fakes.items()}
            yield _Frame(piece.first_frame + place, low_HWC, real_YXC, now, scores[place])

    def _measure_frame(
        self,
        frame: _Frame,
        before: HostFrame | None,
        info: SequenceInfo,
        position: int,
        pool: ThreadPoolExecutor,
        show: SequenceShow | None,
    ) -> HostFrame | None:
        """Start the scores of one frame, unless it is cut away; returns it for the next one."""
        fakes = {method: fake_YXC.cpu().numpy() for method, fake_YXC in frame.fakes.items()}
        real_YXC = frame.real_YXC.cpu().numpy()
        if show is not None and frame.low_HWC is not None:
            show.add(self._shown(frame.low_HWC, fakes, real_YXC), frame.number)
        if not self.trim_frames <= position < info.num_frames - self.trim_frames:
            return None
        host = HostFrame(
            real_YXC, fakes, None if before is None else before.real, {} if before is None else before.fakes
        )
        found = self.scorer.on_device(frame.real_YXC, frame.fakes)
        scores = {method: {**frame.scores[method], **found[method]} for method in found}
        self._pending.append(_Pending(info, frame.number, scores, pool.submit(self.scorer.on_host, host)))
        self._add_vmaf(self.scorer.over_sequence(frame.real_YXC, frame.fakes))
        if len(self._pending) > 4 * self._workers:
            # Frames waiting to be scored are held in memory: do not run further ahead than this.
            self._pending[-4 * self._workers].host.result()
        return host

    def _shown(self, low_HWC: ByteArray, fakes: Mapping[str, ByteArray], real_YXC: ByteArray) -> FrameSet:
        """Baseline and what is measured beside it; a second network is measured, but not shown."""
        names = [subject.name for subject in self.subjects]
        shown = (names[0], names[1] if len(names) > 1 else OURS)
        return FrameSet(low_HWC, fakes[names[0]], fakes[names[1]] if len(names) > 1 else None, real_YXC, shown)

    def _add_vmaf(self, known: Mapping[str, list[float]]) -> None:
        """Values that became known late go to the frames that wait for them."""
        for place in range(max((len(values) for values in known.values()), default=0)):
            for method, values in known.items():
                self._pending[self._vmaf_done].scores[method]["vmaf"] = values[place]
            self._vmaf_done += 1

    def _end_sequence(self) -> None:
        self._add_vmaf(self.scorer.over_sequence(None, {}))
        self.scorer.reset()
        for subject in self.subjects:
            if subject.upscaler is not None:
                subject.upscaler.reset()

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
