"""One upscaling job from its options to the finished output, on one process or several.

`prepare` (every process) finds whatever cannot work before work begins, `begin` (rank 0) makes or checks the work
folder, `run_part` (every process) does its frames, `finish` (rank 0) puts the output together.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharding.video import open_video
from vsr_dist.core.console import say
from vsr_dist.core.errors import BadInputError, LostRankError, UserError
from vsr_dist.core.files import write_json
from vsr_dist.core.world import World
from vsr_dist.inference.streaming.engine import open_stream
from vsr_dist.inference.video.codecs import EncoderSettings, choose_encoder, container_of
from vsr_dist.inference.video.colour import ToRgb
from vsr_dist.inference.video.compare import write_comparison
from vsr_dist.inference.video.frame_progress import FrameProgress
from vsr_dist.inference.video.job import Plan, Selection, check_same, identity, make_plan, new_job, plan_of
from vsr_dist.inference.video.join import JoinJob, check_output, join_frames, join_video
from vsr_dist.inference.video.media_facts import MediaFacts, read_facts
from vsr_dist.inference.video.media_in import Damage, MediaReader
from vsr_dist.inference.video.pipeline import PartReport, PartRun
from vsr_dist.inference.video.segments import PacketSink, PngSink, SegmentSink, new_encoder
from vsr_dist.inference.video.tracks import Track, plan_tracks
from vsr_dist.inference.video.upscale_options import UpscaleOptions, check_paths
from vsr_dist.inference.video.work_folder import Part, WorkFolder, hold, is_held
from vsr_dist.models.base import Generator

_LOOK_EVERY_S = 1.0


@dataclass(frozen=True)
class PreparedJob:
    """A job that can begin. target: FFmpeg's container, None for a folder; settings: None for a folder."""

    options: UpscaleOptions
    facts: MediaFacts
    generator: Generator
    target: str | None
    settings: EncoderSettings | None
    tracks: list[Track]
    notes: list[str]
    work: WorkFolder

    def num_done(self, plan: Plan) -> int:
        """Frames that earlier starts have finished."""
        return sum(self.work.part(rank).look()[0] for rank in range(len(plan.parts)))

    def hold_part(self, rank: int, stack: ExitStack) -> None:
        """Show the others, as long as this process lives, that it works on its part."""
        folder = self.work.part(rank).folder
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(
            hold(folder / "held", f"another process works on {folder} just now; wait for it, or end it")
        )


def prepare(options: UpscaleOptions, generator: Generator) -> PreparedJob:
    """Read what the input says and choose the output's form. Raises UserError for what cannot be."""
    target = check_paths(options)
    facts = read_facts(options.source, options.image_rate)
    if facts.interlaced and not options.deinterlace:
        raise BadInputError(
            f"{options.source} is interlaced: its odd and even rows are of different moments; expected a progressive "
            "video: give --deinterlace"
        )
    notes = ["the input has alpha, which is left out"] if facts.layout.has_alpha else []
    settings, tracks = None, []
    if target is not None:
        settings, more = choose_encoder(
            facts,
            generator.scale,
            target,
            codec=options.codec,
            quality=options.quality,
            preset=options.preset,
            pixel_format=options.pixel_format,
        )
        notes += more
        new_encoder(settings)
    if facts.is_video:
        with open_video(options.source) as source:
            if target is not None:
                tracks = plan_tracks(source, target, audio=options.audio, subtitles=options.subtitles)
            elif source.streams.audio or source.streams.subtitles:
                notes.append("a folder of frames holds no sound and no subtitles: dropped")
    if target is not None and settings is not None:
        check_output(facts, target, settings, tracks)
    folder = options.work_dir or options.output.parent / f".{options.output.name}.work"
    return PreparedJob(options, facts, generator, target, settings, tracks, notes, WorkFolder(folder))


def begin(job: PreparedJob, num_processes: int, stack: ExitStack) -> Plan:
    """Make the work folder, or go on in it: the parts of the job. It stays locked as long as `stack` is open."""
    options = job.options
    job.work.make()
    stack.enter_context(job.work.locked())
    own = identity(options.source, job.generator, _shaping(job, num_processes))
    found = job.work.read_job()
    if found is not None:
        check_same(found, own, job.work.path)
        return plan_of(found)
    # A single process begins at the beginning: nothing to warm up.
    several = num_processes > 1
    warm_up = open_stream(job.generator, options.stream(), options.device).warm_up_frames if several else 0
    try:
        plan = make_plan(job.facts, Selection(options.start_s, options.num_frames), num_processes, warm_up)
    except UserError:
        job.work.remove()
        raise
    write_json(job.work.job_path, new_job(own, plan))
    return plan


def _shaping(job: PreparedJob, num_processes: int) -> dict[str, Any]:
    """Every option that shapes the segments. How the other tracks are treated may change until the join."""
    options, settings = job.options, job.settings
    video = "PNG frames"
    if settings is not None:
        words = [f"{name}={value}" for name, value in sorted(settings.options.items())]
        video = " ".join([settings.codec, settings.pixel_format, *words])
    return {
        "video": video,
        "start": options.start_s,
        "frames": options.num_frames,
        "deinterlace": options.deinterlace,
        "fps": None if job.facts.is_video else str(options.image_rate),
        "tile": options.tile_px,
        "tile_overlap": options.overlap_px,
        "precision": options.precision,
        "compile": options.compile,
        "cuts": options.cuts,
        "segment_frames": options.segment_frames,
        "processes": num_processes,
    }


def run_part(job: PreparedJob, plan: Plan, world: World) -> PartReport:
    """This process's frames, as far as they are not done. Without a part there is nothing to do."""
    if world.rank >= len(plan.parts):
        return PartReport()
    options, part, frames = job.options, job.work.part(world.rank), plan.parts[world.rank]
    done, _ = part.look()
    if done and world.is_main:
        say(f"going on: {done} of {plan.num_frames} frames are done" + (" by this process" if world.size > 1 else ""))
    reader = MediaReader(job.facts, ToRgb(job.facts.tags, deep=job.facts.deep), deinterlace=options.deinterlace)
    stream = open_stream(job.generator, options.stream(), options.device)
    others = [job.work.part(rank) for rank in range(len(plan.parts)) if rank != world.rank]
    with FrameProgress("upscaled", plan.num_frames, done, others, enabled=world.is_main) as progress:
        run = PartRun(
            part,
            reader,
            stream,
            lambda segment, frame: _sink(job, part, segment, frame),
            frames=frames,
            segment_frames=options.segment_frames,
            advance=_watched(progress.advance, _Others(job, plan)) if world.is_main and others else progress.advance,
        )
        return run.run()


def _sink(job: PreparedJob, part: Part, first_segment: int, first_frame: int) -> SegmentSink:
    if job.settings is None:
        return PngSink(part, first_segment, first_frame)
    return PacketSink(part, first_segment, job.settings)


class _Others:
    """The parts of the other processes, as rank 0 sees them."""

    def __init__(self, job: PreparedJob, plan: Plan) -> None:
        self._waiting = {rank: job.work.part(rank) for rank in range(1, len(plan.parts))}

    def are_done(self) -> bool:
        """Look at those that were not done. Raises LostRankError if the process of one has ended without."""
        for rank, part in list(self._waiting.items()):
            # In this order: a part that is finished after the first look is not held at the second.
            held = is_held(part.folder / "held")
            if part.look()[1]:
                del self._waiting[rank]
            elif not held:
                raise LostRankError(
                    f"process {rank} has ended before its frames were done; its own message says why. The same command "
                    "goes on at the last finished segments"
                )
        return not self._waiting


def _watched(advance: Callable[[int], None], others: _Others) -> Callable[[int], None]:
    """`advance`, with a look at the other processes now and then: what they lack cannot be made up for here."""
    looked_s = time.monotonic()

    def watched(count: int) -> None:
        nonlocal looked_s
        advance(count)
        if time.monotonic() - looked_s >= _LOOK_EVERY_S:
            others.are_done()
            looked_s = time.monotonic()

    return watched


def wait_for_others(job: PreparedJob, plan: Plan) -> None:
    """Wait until every part is done. Raises LostRankError as soon as a process has ended without."""
    others = _Others(job, plan)
    while not others.are_done():
        time.sleep(_LOOK_EVERY_S)


@dataclass(frozen=True)
class Result:
    """What was written, from all parts. facts: of the first part's network."""

    num_frames: int
    num_cuts: int
    damage: Damage
    facts: dict[str, Any]


def finish(job: PreparedJob, plan: Plan) -> Result:
    """Put the output together and publish it, then the comparison, and remove the work folder."""
    options, parts = job.options, [job.work.part(rank) for rank in range(len(plan.parts))]
    whole = _place_of_whole(job)
    if job.target is None or job.settings is None:
        num_frames = join_frames(job.facts, parts, whole, cut_start=options.start_s is not None)
    else:
        starts_late, ends_early = options.start_s is not None, options.num_frames is not None
        num_frames = join_video(
            JoinJob(job.facts, parts, job.target, job.settings, job.tracks, whole, starts_late, ends_early)
        )
    if options.compare is not None:
        _compare(job, plan, whole, num_frames)
    result = _gather(parts, num_frames)
    if options.output.is_dir():
        shutil.rmtree(options.output)
    os.replace(whole, options.output)
    job.work.remove()
    return result


def _gather(parts: list[Part], num_frames: int) -> Result:
    num_cuts, damage = 0, Damage()
    facts: dict[str, Any] = {}
    for part in parts:
        *_, last = part.records()
        num_cuts += last.num_cuts
        damage = Damage(**last.damage).after(damage)
        facts = facts or last.facts
    return Result(num_frames, num_cuts, damage, facts)


def _place_of_whole(job: PreparedJob) -> Path:
    """Where the output is written: in the work folder, or beside the output if that is on another file system."""
    output = job.options.output
    if job.work.path.stat().st_dev == output.parent.stat().st_dev:
        return job.work.path / f"whole{output.suffix}"
    return output.with_name(f".{output.stem}.part{output.suffix}")


def _compare(job: PreparedJob, plan: Plan, whole: Path, num_frames: int) -> None:
    options = job.options
    assert options.compare is not None
    target = container_of(options.compare)
    assert target is not None
    with FrameProgress("compared", num_frames, 0, [], enabled=True) as progress:
        write_comparison(
            options.compare,
            target,
            job.facts,
            whole,
            job.generator.scale,
            start=plan.parts[0].start,
            deinterlace=options.deinterlace,
            advance=progress.advance,
        )
