"""`pack`: scan the sources, plan, write the missing shards, and write the index last.

In the output folder, `.pack/plan.json` describes what is packed and `.pack/<shard>.json` each finished shard. Their
bytes, and those of the shards, are the same for any number of workers, parts and interruptions.
"""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from sharding.console import Progress, say
from sharding.errors import BadConfigError, BadShardError, UserError
from sharding.index import TEMPORARY_INFIX, write_index, write_json
from sharding.layouts import find_pairs, find_realvsr
from sharding.parallel import Workers
from sharding.plan import PackOptions, Plan, ShardPlan, check_options, dataset_record, make_plan
from sharding.scan import SCANS_DIR, ScanStore, scan_sources
from sharding.schema import INDEX_NAME, JOURNAL_DIR, Index, parse_shard
from sharding.sources import ScannedSource, Source, find_sources
from sharding.video import note_lines
from sharding.write import read_record, write_shard

PLAN_NAME = "plan.json"


@dataclass(frozen=True)
class PackJob:
    """What to pack, and how.

    Exactly one of `sources`, `paired` (LR root, HR root) and `realvsr` (a folder with GT and LQ; `drop_overlap`
    removes the sequences of its test set from the training set). `part` (I, N): write only the shards whose number in
    the plan is I modulo N, and no index.
    """

    out: Path
    sources: tuple[Path, ...] = ()
    paired: tuple[Path, Path] | None = None
    realvsr: Path | None = None
    drop_overlap: bool = False
    options: PackOptions = field(default_factory=PackOptions)
    num_workers: int = 1
    part: tuple[int, int] | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class PackResult:
    """The result of a pack; `index` is None for a part."""

    plan: Plan
    index: Index | None
    num_written: int
    num_skipped: int
    wall_s: float


def pack(job: PackJob) -> PackResult:
    """Write the data set of `job`, or the missing shards of an interrupted one.

    Raises BadInputError for bad sources, BadConfigError for bad options, BadShardError for an output folder with
    another data set, UserError if the disk is full.
    """
    start_s = time.monotonic()
    store = ScanStore(job.out / SCANS_DIR, eager=job.part is not None)
    with Workers(job.num_workers) as workers, _disk_full_error(job.out):
        plan, scans = _make_plan(job, workers, store)
        first, step = job.part or (0, 1)
        shards = plan.shards[first::step]
        _prepare_output(job.out, plan, job.overwrite)
        store.sync(scans)
        missing = [shard for shard in shards if read_record(job.out, shard.name, plan.digest) is None]
        num_finished = len(shards) - len(missing)
        _delete_temporary_files(job.out, None if job.part is None else shards)
        if num_finished:
            say(f"skipped {num_finished} finished shards")
        if missing:
            (job.out / INDEX_NAME).unlink(missing_ok=True)
            progress = Progress(sum(shard.num_frames for shard in missing), "frame", verb="packed")
            # Large shards first, so that the workers finish at about the same time.
            largest_first = sorted(missing, key=lambda shard: -shard.num_frames)
            workers.run(partial(write_shard, job.out, replace(plan, shards=())), largest_first, progress)
        index = merge(job.out) if job.part is None else None
    return PackResult(plan, index, len(missing), num_finished, time.monotonic() - start_s)


@contextmanager
def _disk_full_error(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        num_done = len(list(out.glob("*.tar"))) if out.is_dir() else 0
        raise UserError(
            f"the disk of {out} is full ({error.strerror}); {num_done} finished shards are kept: free some space and "
            "run the same command again to write the missing ones"
        ) from error


def _make_plan(job: PackJob, workers: Workers, store: ScanStore) -> tuple[Plan, list[ScannedSource]]:
    if job.paired is not None or job.realvsr is not None:
        # The recipe is checked below, when it is known whether it is used.
        check_options(replace(job.options, degradation="paired", crf=None))
    else:
        check_options(job.options)
    if job.overwrite and job.part is not None:
        raise BadConfigError(
            "--overwrite together with --part would delete the shards of other parts; delete the folder first, then "
            "run the parts without --overwrite"
        )
    sources = _find_sources(job)
    for line in note_lines({source.path.name: source.info.notes for source in sources}):
        say(line)
    options = _pair_options(job.options, sources)
    check_options(options)
    scans = scan_sources(sources, workers, store, job.part)
    return make_plan(scans, options), scans


def _find_sources(job: PackJob) -> list[Source]:
    given = [
        name for name, value in (("SOURCE", job.sources), ("--paired", job.paired), ("--realvsr", job.realvsr)) if value
    ]
    if len(given) > 1:
        raise BadConfigError(f"expected only one of SOURCE, --paired and --realvsr, got {' and '.join(given)}")
    if job.drop_overlap and job.realvsr is None:
        raise BadConfigError("--drop-overlap can only be used with --realvsr; remove it")
    if job.paired is not None:
        return find_pairs(*job.paired, job.options.scale)
    if job.realvsr is not None:
        return find_realvsr(job.realvsr, job.options.scale, job.drop_overlap)
    if not job.sources:
        raise BadConfigError(
            "expected at least one SOURCE (a video file or a folder of images), --paired or --realvsr; see pack --help"
        )
    return find_sources(job.sources)


def _pair_options(options: PackOptions, sources: Sequence[Source]) -> PackOptions:
    """The options for these sources: pairs are stored unchanged, but LQ of the size of GT is downscaled."""
    if sources[0].kind != "paired":
        return options
    if sources[0].low_scale == options.scale:
        return replace(options, degradation="paired")
    say(
        f"LQ has the size of GT: LR is LQ downscaled by {options.scale} with {options.degradation}; use --scale 1 to "
        "store the pairs unchanged"
    )
    return replace(options, shrink_pairs=True)


def _prepare_output(out: Path, plan: Plan, overwrite: bool) -> None:
    """Create the output folder and write the plan to it.

    Raises BadConfigError if `out` is a file, BadShardError if it has a data set of another plan.
    """
    if out.exists() and not out.is_dir():
        raise BadConfigError(f"--out {out} is a file; expected a folder or a new name")
    plan_path = out / JOURNAL_DIR / PLAN_NAME
    existing = _existing(out)
    same = plan_path.is_file() and _digest_of(plan_path) == plan.digest
    if existing and not same and not overwrite:
        raise BadShardError(
            f"{out} has a data set with other sources or options ({_difference(plan_path, plan)}); expected an "
            "empty folder or the same data set: choose another --out, or replace it with --overwrite"
        )
    if overwrite:
        for path in existing:
            path.unlink()
    plan_path.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        plan_path,
        {"digest": plan.digest, "dataset": plan.dataset(), "shards": [shard.name for shard in plan.shards]},
    )


def _delete_temporary_files(out: Path, shards: Sequence[ShardPlan] | None = None) -> None:
    """Delete the temporary files that killed runs left behind; with `shards`, only those of these shards.

    Another part may be writing those of the other shards.
    """
    prefixes = ("",) if shards is None else tuple(f"{shard.name}." for shard in shards)
    for folder in (out, out / JOURNAL_DIR, out / SCANS_DIR):
        for path in list(folder.glob(f"*{TEMPORARY_INFIX}*")):
            if path.name.startswith(prefixes):
                path.unlink(missing_ok=True)


def merge(out: Path) -> Index:
    """Check that all shards of all parts are finished, and write the index.

    Raises BadShardError that names the missing shards.
    """
    path = out / JOURNAL_DIR / PLAN_NAME
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadShardError(f"{out} has no {JOURNAL_DIR}/{PLAN_NAME}; expected the output of pack --part") from error
    except ValueError as error:
        raise BadShardError(f"{path} is not valid JSON ({error}); pack again with --overwrite") from error
    found = {name: read_record(out, name, record["digest"]) for name in record["shards"]}
    missing = [name for name, shard in found.items() if shard is None]
    if missing:
        raise BadShardError(
            f"{out}: {len(missing)} of {len(found)} shards are missing or unfinished: {', '.join(missing)}; "
            "run the parts that write them, with the same sources and options"
        )
    _delete_temporary_files(out)
    entries = [entry for entry in found.values() if entry is not None]
    clips = tuple(clip for _, clips in entries for clip in clips)
    index = Index(**record["dataset"], shards=tuple(shard for shard, _ in entries), clips=clips)
    write_index(out, index)
    return index


def _existing(out: Path) -> list[Path]:
    """The files of a data set in `out`, the index first: when it is deleted, the rest is not a data set any more."""
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
    """The differences in a few words, such as `scale 4, now 2`."""
    try:
        old = json.loads(plan_path.read_bytes())["dataset"]
    except (OSError, ValueError, KeyError, TypeError):
        return "it has no record of its sources and options"
    new = dataset_record(plan.options, plan.sources)
    names = ("scale", "codec", "clip_frames", "flow")
    words = [f"{name} {old[name]}, now {new[name]}" for name in names if old[name] != new[name]]
    if old["degradation"] != new["degradation"]:
        words.append(f"degradation {old['degradation']['name']}, now {new['degradation']['name']}")
    if old["source_hash"] != new["source_hash"]:
        words.append("other sources")
    return "; ".join(words) or "other splits, shard size or --min-frames"
