"""The whole of `pack`: scan, plan, write what is missing, and publish the index last."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from sharding.errors import BadConfigError, BadShardError
from sharding.index import write_index, write_json
from sharding.parallel import run_tasks, say
from sharding.plan import PackOptions, Plan, check_options, dataset_record, make_plan
from sharding.schema import INDEX_NAME, Clip, Index, Shard, parse_shard
from sharding.sources import Source, find_pairs, find_sources, scan_source
from sharding.write import JOURNAL_DIR, read_record, write_shard

PLAN_NAME = "plan.json"


@dataclass(frozen=True)
class PackJob:
    """What to pack and how to go about it.

    Either `sources` or `paired` (LR root, HR root). `part` (I, N): only shards whose number in the plan,
    from 0, leaves rest I divided by N, and no index.
    """

    out: Path
    sources: tuple[Path, ...] = ()
    paired: tuple[Path, Path] | None = None
    options: PackOptions = field(default_factory=PackOptions)
    num_workers: int = 1
    part: tuple[int, int] | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class PackResult:
    """What a pack did; `index` is None for one part of several."""

    plan: Plan
    index: Index | None
    num_written: int
    num_skipped: int
    wall_s: float


def pack(job: PackJob) -> PackResult:
    """Pack `job`; the folder then holds the same bytes for any number of workers, parts and interruptions.

    Raises BadInputError for sources, BadConfigError for options, BadShardError for an output folder that
    holds something else.
    """
    start_s = time.monotonic()
    plan = _make_plan(job)
    _prepare(job, plan)
    mine = [shard for number, shard in enumerate(plan.shards) if _is_mine(number, job.part)]
    missing = [shard for shard in mine if read_record(job.out, shard.name, plan.digest) is None]
    if len(missing) < len(mine):
        say(f"skipped {len(mine) - len(missing)} finished shards")
    if missing:
        (job.out / INDEX_NAME).unlink(missing_ok=True)
    for shard in mine:
        for leftover in job.out.glob(f"{shard.name}.tmp.*"):
            leftover.unlink(missing_ok=True)
    run_tasks(partial(write_shard, job.out, replace(plan, shards=())), missing, job.num_workers, "packed", "shard")
    index = merge(job.out) if job.part is None else None
    return PackResult(plan, index, len(missing), len(mine) - len(missing), time.monotonic() - start_s)


def merge(out: Path) -> Index:
    """Join the shards that all parts wrote: check that none is missing and write the index.

    Raises BadShardError that names the missing ones.
    """
    path = out / JOURNAL_DIR / PLAN_NAME
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadShardError(f"{out} holds no {JOURNAL_DIR}/{PLAN_NAME}; expected the output of pack --part") from error
    except ValueError as error:
        raise BadShardError(f"{path} is not JSON ({error}); pack again with --overwrite") from error
    found = {name: read_record(out, name, record["digest"]) for name in record["shards"]}
    missing = [name for name, shard in found.items() if shard is None]
    if missing:
        raise BadShardError(
            f"{out}: {len(missing)} of {len(found)} shards are missing or unfinished: {', '.join(missing)}; "
            "run the parts that make them, with the same sources and options"
        )
    index = build_index(record["dataset"], [shard for shard in found.values() if shard is not None])
    write_index(out, index)
    return index


def build_index(dataset: dict[str, Any], shards: Sequence[tuple[Shard, tuple[Clip, ...]]]) -> Index:
    """The index of a data set of these shards, in this order."""
    clips = tuple(clip for _, clips in shards for clip in clips)
    return Index(**dataset, shards=tuple(shard for shard, _ in shards), clips=clips)


def _is_mine(number: int, part: tuple[int, int] | None) -> bool:
    return part is None or number % part[1] == part[0]


def _make_plan(job: PackJob) -> Plan:
    options = job.options
    if job.paired is not None:
        if job.sources:
            raise BadConfigError("expected either SOURCE arguments or --paired, got both; leave one out")
        options = replace(options, degradation="paired")
    check_options(options)
    if job.overwrite and job.part is not None:
        raise BadConfigError("--overwrite would delete what other parts wrote; delete the folder once, then run them")
    sources = _find(job)
    scanned = run_tasks(scan_source, sources, job.num_workers, "scanned", "source")
    return make_plan(scanned, options)


def _find(job: PackJob) -> list[Source]:
    if job.paired is not None:
        return find_pairs(*job.paired, job.options.scale)
    if not job.sources:
        raise BadConfigError("expected at least one SOURCE, a video file or a folder of images, or --paired")
    return find_sources(job.sources)


def _prepare(job: PackJob, plan: Plan) -> None:
    """Make the output folder ready for this plan, or refuse it."""
    if job.out.exists() and not job.out.is_dir():
        raise BadConfigError(f"--out {job.out} is a file; expected a folder, or a name that is free")
    plan_path = job.out / JOURNAL_DIR / PLAN_NAME
    existing = _existing(job.out)
    same = plan_path.is_file() and _digest_of(plan_path) == plan.digest
    if existing and not same and not job.overwrite:
        raise BadShardError(
            f"{job.out} holds a pack of other sources or options ({_difference(plan_path, plan)}); expected "
            "an empty folder or the same pack: choose another --out, or give --overwrite to replace it"
        )
    if job.overwrite:
        for path in existing:
            path.unlink()
    plan_path.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        plan_path,
        {"digest": plan.digest, "dataset": plan.dataset(), "shards": [shard.name for shard in plan.shards]},
    )


def _existing(out: Path) -> list[Path]:
    """Files of a pack in `out`, the index first: without it what is left does not look whole."""
    if not out.is_dir():
        return []
    index = [path for path in [out / INDEX_NAME] if path.exists()]
    shards = sorted(path for path in out.iterdir() if parse_shard(path.name) is not None)
    return index + shards + sorted((out / JOURNAL_DIR).glob("*.json"))


def _digest_of(plan_path: Path) -> str | None:
    try:
        digest = json.loads(plan_path.read_bytes()).get("digest")
    except (ValueError, AttributeError):
        return None
    return str(digest)


def _difference(plan_path: Path, plan: Plan) -> str:
    """What differs, in a few words, such as `scale 4, now 2`."""
    try:
        old = json.loads(plan_path.read_bytes())["dataset"]
    except (OSError, ValueError, KeyError, TypeError):
        return "it has no journal of how it was made"
    new = dataset_record(plan.options, plan.sources)
    plain = ("scale", "codec", "clip_frames", "flow")
    words = [f"{name} {old[name]}, now {new[name]}" for name in plain if old[name] != new[name]]
    if old["degradation"] != new["degradation"]:
        words.append(f"degradation {old['degradation']['name']}, now {new['degradation']['name']}")
    if old["source_hash"] != new["source_hash"]:
        words.append("other sources")
    return "; ".join(words) or "other splits, shard size or minimum of frames"
