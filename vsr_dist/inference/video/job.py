"""What makes an upscaling job the same job: its input, its generator and every option that shapes the result."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import torch
import xxhash

from sharding.video import film_stream, open_video
from vsr_dist.core.errors import BadConfigError, BadInputError
from vsr_dist.inference.fingerprint import fingerprint
from vsr_dist.inference.video.media_facts import MediaFacts
from vsr_dist.inference.video.media_in import Place
from vsr_dist.inference.video.pipeline import Range
from vsr_dist.models.base import Generator

_FORMAT_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """Contiguous parts of the frames, one for each process, and how many frames there likely are in all."""

    parts: list[Range]
    num_frames: int


@dataclass(frozen=True)
class Selection:
    """The part of the input that is enlarged: from `start_s` on, at most `num_frames` frames. None: all."""

    start_s: float | None = None
    num_frames: int | None = None


def generator_digest(generator: Generator) -> str:
    """A hash of the kind of network and of all its weights."""
    digest = xxhash.xxh3_128(f"{type(generator).__name__} x{generator.scale}".encode())
    for name, tensor in sorted(generator.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def identity(source: Path, generator: Generator, options: dict[str, Any]) -> dict[str, Any]:
    """All of it, ready for JSON."""
    return {
        "input": fingerprint(source),
        "generator": {"scale": generator.scale, "digest": generator_digest(generator)},
        "options": options,
        # Another encoder writes other packets, which cannot stand in one film.
        "software": {"av": av.__version__, "ffmpeg": ".".join(str(n) for n in av.library_versions["libavcodec"])},
    }


def new_job(own: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """What `job.json` holds."""
    content = {"format_version": _FORMAT_VERSION, "identity": own, "plan": asdict(plan)}
    # As it will be read: tuples are lists, numbers are plain.
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain


def plan_of(job: dict[str, Any]) -> Plan:
    """The plan that `job.json` says."""
    parts = [Range(**{**part, "start": Place(**part["start"])}) for part in job["plan"]["parts"]]
    return Plan(parts, job["plan"]["num_frames"])


def check_same(found: dict[str, Any], own: dict[str, Any], folder: Path) -> None:
    """Raise BadConfigError that names every difference between a begun job and this one."""
    if found.get("format_version") != _FORMAT_VERSION:
        raise BadConfigError(f"{folder} is of another release of this program; remove it to begin anew")
    before, now = _flat(found["identity"]), _flat(json.loads(json.dumps(own)))
    differences = [
        f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if differences:
        raise BadConfigError(
            f"{folder} holds a job that was begun with something else: {'; '.join(differences)}. Run the command as it "
            "was to finish that job, or remove the folder to begin anew"
        )


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def make_plan(facts: MediaFacts, chosen: Selection, num_parts: int, warm_up_frames: int) -> Plan:
    """The plan for `num_parts` processes.

    With several, or a beginning in the middle, the times of all frames are read first, without decoding.
    """
    if num_parts == 1 and chosen.start_s is None:
        num_frames = count_frames(facts)
        wanted = num_frames if chosen.num_frames is None else min(num_frames, chosen.num_frames)
        return Plan([Range(num_frames=chosen.num_frames)], wanted)
    times = frame_times(facts)
    first = 0
    if chosen.start_s is not None:
        start = times[0] + chosen.start_s / facts.time_base if times else 0
        first = next((number for number, pts in enumerate(times) if pts >= start), len(times))
    end = len(times) if chosen.num_frames is None else min(len(times), first + chosen.num_frames)
    if end <= first:
        last_s = float((times[-1] - times[0]) * facts.time_base) if times else 0.0
        raise BadConfigError(
            f"--start {chosen.start_s}: {facts.path} has no frame there, its last is at {last_s:.2f} s"
        )
    return Plan(_split(times, first, end, num_parts, warm_up_frames, seekable=facts.is_video), end - first)


def _split(
    times: Sequence[int], first: int, end: int, num_parts: int, warm_up_frames: int, *, seekable: bool
) -> list[Range]:
    bounds = [first + (end - first) * part // num_parts for part in range(num_parts + 1)]
    parts = []
    for begin, until in pairwise(bounds):
        if until == begin:
            continue
        # The beginning of a selection is the beginning of a film; only what lies inside has a past.
        entered = max(first, begin - warm_up_frames)
        place = Place(entered, times[entered - 1], seekable) if entered else Place()
        parts.append(Range(times[begin], times[until] if until < len(times) else None, None, place))
    return parts


def frame_times(facts: MediaFacts) -> list[int]:
    """The times of all frames, ascending, from the packets. BadInputError if some have none."""
    if not facts.is_video:
        return list(range(facts.num_frames or 0))
    times = set()
    for pts in _packet_times(facts.path):
        if pts is None:
            raise BadInputError(
                f"{facts.path} has frames without times, so no place in it can be named; leave out --start and use one "
                "process, or put it into an .mkv or .mp4 first"
            )
        times.add(pts)
    return sorted(times)


def count_frames(facts: MediaFacts) -> int:
    """How many frames there likely are, by the header or by a look at every packet."""
    return facts.num_frames or sum(1 for _ in _packet_times(facts.path))


def _packet_times(path: Path) -> Iterator[int | None]:
    """The time of each packet of the film that is shown, in the order of the file."""
    with open_video(path) as container:
        packets = container.demux(film_stream(container))
        while True:
            try:
                packet = next(packets)
            except (StopIteration, av.error.FFmpegError):
                # What lies behind an error cannot be read in the work itself either, which says so.
                return
            if packet.size and not packet.is_discard:
                yield packet.pts
