"""The last step of a job: the segments of all parts become one file, with the other tracks of the input beside them."""

from __future__ import annotations

import io
import os
import shutil
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from numpy.typing import NDArray

from sharding.images import list_images
from sharding.video import film_stream, open_video, stated_end_s
from vsr_dist.core.errors import BadConfigError, BadInputError
from vsr_dist.inference.video.codecs import EncoderSettings, set_up
from vsr_dist.inference.video.media_facts import MediaFacts
from vsr_dist.inference.video.tracks import Track, TrackCopier, fresh_tags
from vsr_dist.inference.video.work_folder import Part

# mp4 counts the film's time at least this fine; the muxer doubles the units until it does.
_LEAST_TIMESCALE = 10_000


@dataclass(frozen=True)
class JoinJob:
    """What is put together: parts in time order, into the container `target` at `path`, which is not the final name.

    cut_start, cut_end: the result begins behind the input's beginning, or ends before its end, and so do its tracks;
    a cut beginning becomes time 0.
    """

    facts: MediaFacts
    parts: list[Part]
    target: str
    settings: EncoderSettings
    tracks: list[Track]
    path: Path
    cut_start: bool = False
    cut_end: bool = False


@dataclass(frozen=True)
class Timing:
    """Times of all packets in decoding order, in units of the time base."""

    pts: NDArray[np.int64]
    dts: NDArray[np.int64]
    durations: NDArray[np.int64]


def timing(pts: Iterable[int], last_duration: int) -> Timing:
    """Decoding times for packets whose presentation times are given in decoding order.

    Each encoder counts from its own beginning, so with uneven times its decoding times may lie before the end of the
    segment before. Anew over all: packet k is decoded at the k-th of the presentation times in order, `d` places
    earlier, where d is the deepest reordering. That grows strictly and is never after the packet's own presentation.
    The first d lie before the first presentation, as far as makes the sum of all steps the length that is shown: mp4
    keeps only that sum. With even times all is as x264 itself has it.
    """
    shown = np.asarray(pts, dtype=np.int64)
    if shown.size == 0:
        return Timing(shown, shown, shown)
    order = np.argsort(shown, kind="stable")
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(shown))
    ordered = shown[order]
    durations = np.append(np.diff(ordered), max(1, last_duration))[ranks]
    delay = int((np.arange(len(shown)) - ranks).max())
    ahead = int(ordered[-1] + max(1, last_duration) - ordered[len(shown) - 1 - delay] - durations[-1])
    early = ordered[0] - ahead + np.arange(delay) * ahead // max(1, delay)
    return Timing(shown, np.concatenate([early, ordered[: len(shown) - delay]]), durations)


def _muxer(target: str, settings: EncoderSettings) -> dict[str, str]:
    """Options of the container."""
    # Without dates, random numbers and version names the same job writes the same bytes. Sound that begins before 0, as
    # AAC does in mp4, shall not move the film.
    options = {"fflags": "+bitexact", "avoid_negative_ts": "disabled"}
    if target in ("mp4", "mov"):
        scale = settings.time_base.denominator
        while scale < _LEAST_TIMESCALE:
            scale *= 2
        # The start and the length of the film are else rounded to milliseconds.
        options["movie_timescale"] = str(scale)
    return options


def check_output(facts: MediaFacts, target: str, settings: EncoderSettings, tracks: list[Track]) -> None:
    """Write the head of the result to nowhere. Raises BadConfigError if the container does not take it."""
    with open_video(facts.path) if facts.is_video else _nothing() as source, io.BytesIO() as nowhere:
        try:
            with av.open(nowhere, "w", format=target, options=_muxer(target, settings)) as output:
                _begin(output, source, target, settings, tracks)
                output.start_encoding()
        except (av.error.FFmpegError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise BadConfigError(
                f"a {target} file with {settings.codec} cannot be written: {reason}; "
                "choose another --codec, another --pixel-format or another suffix, such as .mkv, which takes most"
            ) from error


class _nothing:  # noqa: N801 - a context manager in place of a container
    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        return None


def _begin(
    output: OutputContainer, source: InputContainer | None, target: str, settings: EncoderSettings, tracks: list[Track]
) -> tuple[Any, TrackCopier | None]:
    """Metadata, chapters and streams of the result: (the film's stream, the others)."""
    video = output.add_stream(settings.codec, rate=settings.rate)
    set_up(video.codec_context, settings)
    video.time_base = settings.time_base
    if settings.codec == "libx265" and target in ("mp4", "mov"):
        # The form of HEVC that Apple's players take.
        video.codec_context.codec_tag = "hvc1"
    if source is None:
        return video, None
    output.metadata.update(fresh_tags(source.metadata))
    from_stream = film_stream(source)
    video.metadata.update(fresh_tags(from_stream.metadata))
    video.disposition = from_stream.disposition
    return video, TrackCopier(source, output, tracks)


def join_video(job: JoinJob) -> int:
    """Write the result; returns its number of frames. Memory: 40 bytes for each frame."""
    shown, last_duration = _collect(job.parts, job.settings)
    if not shown:
        raise BadInputError(f"{job.facts.path}: no frame could be decoded; get it again")
    time_base = job.settings.time_base
    with (
        open_video(job.facts.path) if job.facts.is_video else _nothing() as source,
        av.open(str(job.path), "w", format=job.target, options=_muxer(job.target, job.settings)) as output,
    ):
        if source is not None and not job.cut_end:
            last_duration = _last_duration(source, shown, last_duration, time_base)
        times = timing(shown, last_duration)
        first, end = int(times.pts.min()), int((times.pts + times.durations).max())
        shift = first if job.cut_start else 0
        video, copier = _begin(output, source, job.target, job.settings, job.tracks)
        others: Iterator[av.Packet] = iter(())
        if source is not None and copier is not None:
            begin_s = float(first * time_base) if job.cut_start else -np.inf
            end_s = float(end * time_base) if job.cut_end else np.inf
            output.set_chapters(_chapters(source, begin_s, end_s, float(shift * time_base)))
            others = copier.packets(begin_s, end_s, float(shift * time_base))
        waiting = next(others, None)
        for packet in _video_packets(job.parts, times, shift, time_base):
            while waiting is not None and _time(waiting) <= packet.dts * packet.time_base:
                output.mux(waiting)
                waiting = next(others, None)
            packet.stream = video
            output.mux(packet)
        while waiting is not None:
            output.mux(waiting)
            waiting = next(others, None)
    return len(shown)


def _last_duration(source: InputContainer, shown: array[int], decoded: int, time_base: Fraction) -> int:
    """How long the last frame is shown, in units of the time base.

    `decoded` is the decoder's word, which is that of another frame where frames are reordered. The header's word counts
    unless it speaks of frames that are missing.
    """
    ordered = np.sort(np.asarray(shown, dtype=np.int64))
    longest = max(decoded, int(np.diff(ordered).max(initial=0)))
    stated_s = stated_end_s(film_stream(source), source)
    stated = 0 if stated_s is None else round(stated_s / time_base) - int(ordered[-1])
    # mp4 states ends in milliseconds.
    slack = round(Fraction(1, 1000) / time_base) + 1
    if not 0 < stated <= longest + slack:
        return decoded
    return decoded if abs(stated - decoded) <= slack else stated


def _chapters(source: InputContainer, begin_s: float, end_s: float, shift_s: float) -> list[dict[str, Any]]:
    """The chapters of the input that touch [begin_s, end_s), cut to that and moved earlier by `shift_s`."""
    kept = []
    for chapter in source.chapters():
        base = chapter["time_base"] or Fraction(1, av.time_base)
        start, end = float(chapter["start"] * base), float(chapter["end"] * base)
        if start < end_s and end > begin_s:
            moved = {"start": max(start, begin_s) - shift_s, "end": min(end, end_s) - shift_s}
            kept.append({**chapter, **{name: round(time_s / base) for name, time_s in moved.items()}})
    return kept


def _time(packet: av.Packet) -> Fraction:
    time: Fraction = (packet.dts if packet.dts is not None else packet.pts) * packet.time_base
    return time


def _collect(parts: list[Part], settings: EncoderSettings) -> tuple[array[int], int]:
    """Presentation times of all packets, and the duration of the last frame. The heads of all encoders must agree."""
    shown, last_duration, heads = array("q"), 1, set()
    for part in parts:
        for record in part.records():
            shown.extend(record.pts)
            last_duration = record.last_duration
            if record.pts:
                heads.add(record.extradata)
    if len(heads) > 1:
        raise BadInputError(
            f"the segments of this job come from different builds of {settings.codec}; run it anew, on one machine"
        )
    return shown, last_duration


def _video_packets(parts: list[Part], times: Timing, shift: int, time_base: Fraction) -> Iterator[av.Packet]:
    number = 0
    for part in parts:
        for record in part.records():
            with part.packets_path(record.number).open("rb") as file:
                for size, key in zip(record.sizes, record.keys, strict=True):
                    packet = av.Packet(file.read(size))
                    packet.time_base = time_base
                    packet.pts, packet.dts = int(times.pts[number]) - shift, int(times.dts[number]) - shift
                    packet.duration = int(times.durations[number])
                    packet.is_keyframe = bool(key)
                    yield packet
                    number += 1


def join_frames(facts: MediaFacts, parts: list[Part], folder: Path, *, cut_start: bool) -> int:
    """Gather the PNG frames of all parts in a new folder; returns their number. cut_start: see `JoinJob`.

    Images keep the names of the folder that they come from; frames of a video are numbered from 0, and `timestamps.txt`
    (version 2, milliseconds, as mkvmerge reads it) says when each is shown.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    stems = [] if facts.is_video else [path.stem for path in list_images(facts.path)]
    if len(set(stems)) < len(stems):
        stems = []
    number, start = 0, None
    lines = ["# timestamp format v2"]
    for part in parts:
        for record in part.records():
            paths = sorted(part.frames_path(record.number).iterdir())
            for path, pts in zip(paths, record.pts, strict=True):
                name = stems[pts] if stems else f"{number:08d}"
                _place(path, folder / f"{name}.png")
                start = pts if start is None and cut_start else start
                lines.append(f"{float((pts - (start or 0)) * facts.time_base * 1000):.3f}")
                number += 1
    if facts.is_video:
        (folder / "timestamps.txt").write_text("\n".join(lines) + "\n")
    return number


def _place(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)
