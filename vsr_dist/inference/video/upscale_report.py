"""What a user reads at the end of an upscaling job."""

from __future__ import annotations

import resource
import sys
from typing import Any

import torch

from vsr_dist.core.console import format_duration, say
from vsr_dist.inference.video.frame_progress import format_rate
from vsr_dist.inference.video.media_facts import MediaFacts
from vsr_dist.inference.video.media_in import Damage
from vsr_dist.inference.video.pipeline import PartReport
from vsr_dist.inference.video.upscale_job import PreparedJob, Result


def tell(job: PreparedJob, result: Result, own: PartReport, num_new: int, wall_s: float) -> None:
    """Say what was written and what it took, and warn of what was lost.

    own: this process's part; num_new: frames that this start of the job has done, in all processes.
    """
    say("\n".join(summary(job, result, own, num_new, wall_s)))
    for text in [*job.notes, *(track.note for track in job.tracks if track.note)]:
        say(f"note: {text}")
    for text in losses(job.facts, result.damage, result.num_frames):
        sys.stderr.write(f"warning: {text}\n")


def summary(job: PreparedJob, result: Result, own: PartReport, num_new: int, wall_s: float) -> list[str]:
    """The lines of the summary; see `tell`."""
    facts, scale = job.facts, job.generator.scale
    rate = format_rate(num_new / wall_s) if num_new else "nothing was left to do but to join"
    share = f", {own.network_s / wall_s:.0%} of it in the network" if own.num_new else ""
    size = f"{facts.width} x {facts.height} to {facts.width * scale} x {facts.height * scale} px"
    cuts = _counted(result.num_cuts, "scene cut")
    lines = [
        f"{_counted(result.num_frames, 'frame')}, {size}, in {format_duration(wall_s)} ({rate}{share})",
        f"network: {job.options.checkpoint}, x{scale}, {_how(result.facts)}; {cuts}; "
        f"peak memory {_peak_memory(job.options.device)}",
    ]
    if job.settings is not None:
        kept = dict.fromkeys(("audio", "subtitle"), 0)
        for track in job.tracks:
            if track.action != "drop" and track.kind in kept:
                kept[track.kind] += 1
        tracks = ", ".join(_counted(number, f"{kind} track") for kind, number in kept.items())
        lines.append(
            f"video: {job.settings.codec} {job.settings.pixel_format}, {float(facts.rate):.6g} frames/s; kept {tracks}"
        )
    lines.append(f"output: {job.options.output}")
    if job.options.compare is not None:
        lines.append(f"comparison: {job.options.compare}")
    return lines


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


def _how(facts: dict[str, Any]) -> str:
    """How the network ran, from what its stream tells."""
    words = f"{facts.get('precision')} on {facts.get('device')}" + (", compiled" if facts.get("compiled") else "")
    num_tiles = facts.get("num_tiles") or 1
    if num_tiles > 1:
        words += f", {num_tiles} tiles of up to {facts.get('tile_px')} px that share {facts.get('overlap_px')} px"
    else:
        words += ", whole frames"
    retries = facts.get("out_of_memory_retries")
    return words + (f", {retries} smaller after memory ran out" if retries else "")


def _peak_memory(device: torch.device) -> str:
    # Linux counts in KiB.
    main = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6:.0f} MB"
    if device.type != "cuda":
        return main
    return f"{main}, on the GPU {torch.cuda.max_memory_allocated(device) / 1e6:.0f} MB"


def losses(facts: MediaFacts, damage: Damage, num_frames: int) -> list[str]:
    """One line for what the input has lost, one for each other thing that a user should know; mostly none."""
    lost = []
    if damage.broke_off:
        lost.append(f"it breaks off ({damage.broke_off})")
    if damage.undecodable:
        lost.append(f"{damage.undecodable} packets cannot be decoded")
    if damage.patched:
        lost.append(f"{damage.patched} frames are damaged and shown as the decoder patched them")
    if damage.missing_s:
        lost.append(f"its last {damage.missing_s:.2f} s are missing")
    if damage.missing_frames:
        lost.append(f"its header states {damage.missing_frames + num_frames} frames")
    lines = []
    if lost:
        kept_s = float(num_frames / facts.rate)
        stated = f" of {facts.num_frames}" if facts.num_frames else ""
        lines.append(f"{facts.path} is damaged: {'; '.join(lost)}. Kept {num_frames}{stated} frames, {kept_s:.2f} s")
    if damage.interlaced:
        lines.append(f"{damage.interlaced} frames say that they are interlaced; try --deinterlace")
    if damage.moved_times:
        lines.append(f"{damage.moved_times} frames had a time not behind that of the frame before, and got one")
    return lines
