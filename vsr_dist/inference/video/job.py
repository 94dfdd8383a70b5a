"""One upscaling job, on one process or several, from its options to the finished output; it resumes after any end.

`prepare` (every process) finds what cannot work before work begins, `begin` (rank 0) makes or checks the work folder,
`run_part` (every process) upscales its range of frames, `finish` (rank 0) joins the output. Until then all is in the
work folder: `job.json` says what shapes the result, `lock` is held by rank 0, and each process has a `part`.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import torch
import xxhash

from sharding.video import open_video
from vsr_dist.core.collectives import World
from vsr_dist.core.console import Progress, say
from vsr_dist.core.errors import BadConfigError, BadInputError
from vsr_dist.core.files import write_json
from vsr_dist.inference.engine import Precision, StreamOptions, VideoStream
from vsr_dist.inference.frames import Frame, fingerprint
from vsr_dist.inference.video.join import JoinJob, check_output, join, plan_tracks
from vsr_dist.inference.video.part import Part, PartRun, PartState, Range
from vsr_dist.inference.video.video_in import (
    MediaFacts,
    MediaFrame,
    MediaReader,
    Place,
    layout_of,
    packet_times,
    read_facts,
)
from vsr_dist.inference.video.video_out import (
    FromRgb,
    PacketWriter,
    PngWriter,
    choose_encoder,
    container_of,
    new_encoder,
    set_up,
)
from vsr_dist.models.base import Generator
from vsr_dist.ops.color import from_uint8, to_uint8
from vsr_dist.ops.picture import Picture, side_by_side, with_titles
from vsr_dist.ops.resample import bicubic_upsample

_FORMAT_VERSION = 2


@dataclass(frozen=True)
class UpscaleOptions:
    """What the command line says; see `vsr-dist upscale --help`. checkpoint: the generator's name, for people."""

    source: Path
    output: Path
    device: torch.device
    checkpoint: str
    overwrite: bool = False
    codec: str | None = None
    quality: int | None = None
    preset: str | None = None
    pixel_format: str | None = None
    compare: Path | None = None
    audio: bool = True
    encode_audio: bool = False
    subtitles: bool = True
    start_s: float | None = None
    num_frames: int | None = None
    deinterlace: bool = False
    image_rate: Fraction = Fraction(25)
    tile_px: int | None = None
    overlap_px: int | None = None
    precision: Precision = "fp32"
    compile: bool = False
    cuts: bool = True
    segment_frames: int = 250
    work_dir: Path | None = None


# Those that shape the segments. How the other tracks are treated may change until the join.
_SHAPING = (
    "start_s", "num_frames", "deinterlace", "image_rate", "tile_px", "overlap_px", "precision", "compile", "cuts",
    "segment_frames",
)  # fmt: skip


@dataclass(frozen=True)
class UpscaleJob:
    """A job that can begin. join: what its segments become; notes: what the user should know of that."""

    options: UpscaleOptions
    generator: Generator
    join: JoinJob
    notes: list[str]
    work: Path

    @property
    def facts(self) -> MediaFacts:
        """Of the input."""
        return self.join.facts

    def part(self, rank: int) -> Part:
        """The share of a process."""
        return Part(self.work / f"part_{rank:03d}")

    def open_stream(self) -> VideoStream:
        """The network."""
        return VideoStream(self.generator, StreamOptions.of(self.options), self.options.device)

    def open_segment(self, path: Path, first_frame: int) -> PacketWriter | PngWriter:
        """The writer of a segment."""
        settings = self.join.settings
        return PngWriter(path, first_frame) if settings is None else PacketWriter(path, settings)


def prepare(options: UpscaleOptions, generator: Generator) -> UpscaleJob:
    """Read what the input says and choose the output's form. Raises UserError for what cannot work."""
    target = _check_paths(options)
    facts = read_facts(options.source, options.image_rate)
    if facts.interlaced and not options.deinterlace:
        raise BadInputError(
            f"{options.source} is interlaced: its odd and even rows were recorded at different times; expected a "
            "progressive video: add --deinterlace"
        )
    notes = [f"the input {text}" for text in facts.notes]
    if target is None and facts.sample_aspect != 1:
        notes.append(f"images have square pixels, those of the input are {facts.sample_aspect} times as wide as high")
    settings = None
    if target is not None:
        choice = (options.codec, options.quality, options.preset, options.pixel_format)
        settings, more = choose_encoder(facts, generator.scale, target, *choice)
        notes += more
        new_encoder(settings)
    tracks = []
    if facts.is_video:
        with open_video(options.source) as source:
            if target is not None:
                tracks = plan_tracks(
                    source,
                    target,
                    audio=options.audio,
                    encode_audio=options.encode_audio,
                    subtitles=options.subtitles,
                )
            elif source.streams.audio or source.streams.subtitles:
                notes.append("a folder of frames has no audio and subtitles: dropped")
    notes += [track.note for track in tracks if track.note]
    is_cut = (options.start_s is not None, options.num_frames is not None)
    joined = JoinJob(facts, target, settings, tracks, *is_cut)
    check_output(joined)
    work = options.work_dir or options.output.parent / f".{options.output.name}.work"
    return UpscaleJob(options, generator, joined, notes, work)


def _require(is_true: bool, message: str) -> None:
    if not is_true:
        raise BadConfigError(message)


def _check_paths(options: UpscaleOptions) -> str | None:
    """The output's container, after a check of all places that are written to. Raises BadConfigError."""
    source, output, compare, work = options.source, options.output, options.compare, options.work_dir
    target = container_of(output)
    is_regular = source.is_file() or source.is_dir() or not source.exists()
    _require(is_regular, f"INPUT {source} is a pipe or a device; expected a file or a folder, which are read twice")
    _require(output.name not in ("", ".."), f"OUTPUT {output} has no file name; give a new folder or a file")
    # A folder of frames gets its name by a rename, which would replace the link or fail.
    is_link = target is None and output.is_symlink()
    _require(not is_link, f"OUTPUT {output} is a link; use its target {output.resolve()}")
    if output.exists():
        is_input = source.exists() and os.path.samefile(source, output)
        _require(not is_input, f"OUTPUT {output} is the input; choose another name")
        is_kind = target is not None or output.is_dir()
        _require(is_kind, f"OUTPUT {output} is a file, and frames need a folder; choose another name, or .mp4")
        inside = list(output.iterdir()) if output.is_dir() else None
        is_free = options.overwrite or inside == []
        _require(is_free, f"OUTPUT {output} exists; choose another name, or give --overwrite to replace it")
        # A folder is replaced as a whole, and nothing but frames may go with it.
        for path in inside or ():
            is_frame = path.is_file() and (path.suffix == ".png" or path.name == "timestamps.txt")
            _require(is_frame, f"OUTPUT {output} contains {path.name}, which is not a frame; give a new folder")
    if compare is not None:
        name = f"--compare {compare}"
        _require(container_of(compare) is not None, f"{name}: expected a video file, such as comparison.mp4")
        is_other = compare.resolve() not in (output.resolve(), source.resolve())
        _require(is_other, f"{name} is INPUT or OUTPUT; choose another name")
        is_free = options.overwrite or not compare.exists()
        _require(is_free, f"{name} exists; choose another name, or give --overwrite")
    if work is not None:
        within = [path for path in (output, compare, source) if path and path.resolve().is_relative_to(work.resolve())]
        is_apart = not within and not work.resolve().is_relative_to(output.resolve())
        _require(is_apart, f"--work-dir {work} and {[*within, output][0]} are inside each other, and the work "
            "folder is removed at the end; give a separate new folder")  # fmt: skip
    for path in filter(None, (output, compare)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadConfigError(
                f"{path.parent} cannot be created ({error.strerror}); choose another folder for {path.name}"
            ) from error
        is_writable = os.access(path.parent, os.W_OK | os.X_OK)
        _require(is_writable, f"{path.parent} is not writable; choose another folder for {path.name}")
    return target


def begin(job: UpscaleJob, num_processes: int, stack: ExitStack) -> list[Range]:
    """Make the work folder, or check it to resume in it: the parts of the job, in order, one for each process or fewer.

    The folder stays locked as long as `stack` is open.
    """
    work = job.work
    try:
        work.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in work.iterdir()}
        is_own = "job.json" in names or names <= {"lock", "job.json.tmp"}
        _require(is_own, f"the work folder {work} contains {min(names, default='')}, which does not belong to a job "
            "and would be removed; give a new folder with --work-dir")  # fmt: skip
        _lock(work, stack)
    except OSError as error:
        raise BadConfigError(
            f"the work folder {work} cannot be created ({error.strerror}); choose another folder for the output, or "
            "give a writable one with --work-dir"
        ) from error
    content = {"format_version": _FORMAT_VERSION, **_identity(job, num_processes)}
    if "job.json" in names:
        _check_same(work, content)
        return _plan_parts(job, num_processes)
    try:
        parts = _plan_parts(job, num_processes)
    except (BadConfigError, BadInputError):
        shutil.rmtree(work)
        raise
    write_json(work / "job.json", content)
    return parts


def _lock(folder: Path, stack: ExitStack) -> None:
    """Hold the lock of a folder as long as `stack` is open. Raises BadConfigError if another process has it."""
    file = stack.enter_context((folder / "lock").open("a"))
    try:
        # The system releases the lock of a process that dies.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BadConfigError(f"another process uses {folder}; wait for it, or stop it") from error


def _identity(job: UpscaleJob, num_processes: int) -> dict[str, Any]:
    """What makes a job the same: input, generator, software, and every option that shapes the segments."""
    generator, settings = job.generator, job.join.settings
    digest = xxhash.xxh3_128(f"{type(generator).__name__} x{generator.scale}".encode())
    for name, tensor in sorted(generator.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    options = {name: getattr(job.options, name) for name in _SHAPING}
    video = {} if settings is None else {"codec": settings.codec, "format": settings.pixel_format, **settings.options}
    return {
        "input": fingerprint(job.options.source),
        "generator": {"scale": generator.scale, "digest": digest.hexdigest()},
        "options": options | {"image_rate": str(job.options.image_rate), "processes": num_processes},
        "video": video,
        # Another encoder writes other packets, which cannot be joined with these.
        "software": {"av": av.__version__, "ffmpeg": ".".join(map(str, av.library_versions["libavcodec"]))},
    }


def _check_same(work: Path, content: dict[str, Any]) -> None:
    """Raise BadConfigError that names every difference between the job that was begun and this one."""
    path = work / "job.json"
    try:
        before, now = _flat(json.loads(path.read_text())), _flat(content)
    except ValueError as error:
        raise BadInputError(f"{path} is damaged ({error}); remove {work} to start again") from error
    differences = [
        f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if differences:
        raise BadConfigError(
            f"{work} contains an unfinished job with other settings: {'; '.join(differences)}. Run the command as "
            "before to finish that job, or remove the folder to start again"
        )


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _plan_parts(job: UpscaleJob, num_parts: int) -> list[Range]:
    """With several parts, or a beginning in the middle, the times of all frames are read first, without decoding."""
    facts, start_s, num_wanted = job.facts, job.options.start_s, job.options.num_frames
    if num_parts == 1 and start_s is None:
        num_frames = facts.num_frames or len(packet_times(facts))
        return [Range(min(num_frames, num_wanted or num_frames), num_frames=num_wanted)]
    found = set(packet_times(facts))
    if None in found:
        raise BadInputError(
            f"{facts.path} has frames without timestamps, which --start and several processes need; remove --start "
            "and use one process, or convert the video to .mkv or .mp4 first"
        )
    times = sorted(cast(set[int], found))
    start = times[0] + (start_s or 0) / facts.time_base if times else 0
    first = next((number for number, pts in enumerate(times) if pts >= start), len(times))
    end = min(len(times), first + (num_wanted or len(times)))
    last_s = float((times[-1] - times[0]) * facts.time_base) if times else 0.0
    _require(end > first, f"--start {start_s}: {facts.path} has no frame there; the last one is at {last_s:.2f} s")
    # The beginning of a selection is the beginning of a video; only what lies inside has a past.
    warm_up_frames = job.open_stream().warm_up_frames if num_parts > 1 else 0
    bounds = [first + (end - first) * part // num_parts for part in range(num_parts + 1)]
    parts = []
    for one, following in pairwise(bounds):
        if following > one:
            entered = max(first, one - warm_up_frames)
            place = Place(entered, times[entered - 1] if entered else None)
            end_pts = times[following] if following < len(times) else None
            parts.append(Range(following - one, times[one], end_pts, start=place))
    return parts


def run_part(job: UpscaleJob, parts: list[Range], world: World, stack: ExitStack) -> float:
    """This process's frames, as far as they are not done: the seconds inside the network."""
    if world.rank >= len(parts):
        return 0.0
    part = job.part(world.rank)
    part.folder.mkdir(exist_ok=True)
    _lock(part.folder, stack)
    options, frames, num_done = job.options, parts[world.rank], num_finished(job, parts)
    if num_done and world.is_main:
        say(f"resuming: {num_done} of {sum(one.num_expected for one in parts)} frames are done")
    done = part.state()
    if done.is_done:
        return 0.0
    verb = "upscaled" if world.size == 1 else f"process 0 of {world.size} upscaled"
    start, enabled = done.num_frames, world.is_main
    with Progress(frames.num_expected, "frame", verb=verb, start=start, enabled=enabled) as progress:
        run = PartRun(
            part,
            frames,
            job.open_stream(),
            job.open_segment,
            segment_frames=options.segment_frames,
            advance=progress.advance,
        )
        run.run(MediaReader(job.facts, deinterlace=options.deinterlace))
    return run.network_s


def num_finished(job: UpscaleJob, parts: list[Range]) -> int:
    """Frames in the finished segments of all processes."""
    return sum(job.part(rank).state().num_frames for rank in range(len(parts)))


def finish(job: UpscaleJob, parts: list[Range]) -> PartState:
    """Join the output and publish it, then the comparison, and remove the work folder: the sum of all parts' states."""
    options, output = job.options, job.options.output
    states = [job.part(rank).state() for rank in range(len(parts))]
    segments = [job.part(rank).segment(n) for rank, state in enumerate(states) for n in range(state.num_segments)]
    last_duration = next((state.last_duration for state in reversed(states) if state.num_frames), 1)
    temporary = output.with_name(f".{output.stem}.part{output.suffix}")
    try:
        num_frames, shift = join(job.join, segments, last_duration, temporary)
        if options.compare is not None:
            reader = MediaReader(replace(job.facts, deep=False), deinterlace=options.deinterlace)
            with Progress(num_frames, "frame", verb="compared") as progress:
                low = reader.frames(parts[0].start)
                write_comparison(
                    options.compare, job.facts, low, temporary, job.generator.scale, shift, progress.advance
                )
        if output.is_dir():
            shutil.rmtree(output)
        os.replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if temporary.is_file():
            temporary.unlink()
    shutil.rmtree(job.work)
    return PartState(
        num_frames=num_frames,
        num_cuts=sum(state.num_cuts for state in states),
        damage=sum((state.damage for state in states), Counter()),
        facts=states[0].facts,
    )


def write_comparison(
    path: Path,
    facts: MediaFacts,
    low: Iterator[MediaFrame],
    result: Path,
    scale: int,
    shift: int,
    advance: Callable[[], None],
) -> None:
    """Write a video of 8 bits, without sound, with the times of the result; it appears under its name when complete.

    low: uint8 frames of the input from the first of the result on; facts: of the input; result: the finished video or
    folder of frames, whose times are `shift` ticks earlier; advance: is called for each frame.
    """
    found = read_facts(result, facts.rate)
    fake = MediaReader(replace(found, deep=False)).frames(Place())
    height, width = _panels(np.zeros((facts.height, facts.width, 3), np.uint8), None, scale).shape[:2]
    shape = replace(
        facts, deep=False, layout=layout_of("yuv420p"), sample_aspect=Fraction(1), width=width, height=height
    )
    target = container_of(path) or "mp4"
    settings, _ = choose_encoder(shape, 1, target, pixel_format="yuv420p")
    to_yuv = FromRgb(settings.pixel_format, settings.tags)
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        with av.open(str(temporary.absolute()), "w", format=target, options={"fflags": "+bitexact"}) as output:
            video = output.add_stream(settings.codec, rate=settings.rate)
            set_up(video.codec_context, settings)
            for one, other in zip(low, fake, strict=False):
                frame = to_yuv(_panels(one.rgb, other.rgb, scale))
                frame.pts, frame.time_base = one.pts - shift, facts.time_base
                output.mux(video.encode(frame))
                advance()
            output.mux(video.encode(None))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _panels(low_HWC: Frame, fake_YXC: Frame | None, scale: int) -> Picture:
    """Both with their titles; without a result the bicubic one stands in."""
    low_BCHW = from_uint8(torch.from_numpy(np.ascontiguousarray(low_HWC))).permute(2, 0, 1)[None]
    bicubic_YXC = to_uint8(bicubic_upsample(low_BCHW, scale))[0].permute(1, 2, 0).numpy()
    height, width = bicubic_YXC.shape[:2]
    fake = bicubic_YXC if fake_YXC is None else fake_YXC[:height, :width]
    if fake.dtype != np.uint8:
        fake = ((fake.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return with_titles(side_by_side([bicubic_YXC, np.asarray(fake, np.uint8)], height), ["bicubic", "network"])
