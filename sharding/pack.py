"""The whole of `pack`: scan, plan, write what is missing, and publish the index last."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from sharding.errors import BadConfigError, UserError
from sharding.output import clean, merge, prepare
from sharding.pairs import find_pairs, find_realvsr
from sharding.parallel import Workers
from sharding.plan import PackOptions, Plan, ShardPlan, check_options, make_plan
from sharding.progress import Progress, say
from sharding.scan import SCANS_DIR, ScanStore, scan_sources
from sharding.schema import INDEX_NAME, Index
from sharding.sources import ScannedSource, Source, find_sources
from sharding.write import read_record, write_shard


@dataclass(frozen=True)
class PackJob:
    """What to pack and how to go about it.

    One of `sources`, `paired` (LR root, HR root) and `realvsr` (a folder with GT and LQ; `drop_overlap` leaves out
    of training what is in its test set). `part` (I, N): only shards whose number in the plan, from 0, leaves rest I
    divided by N, and no index.
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
    """What a pack did; `index` is None for one part of several."""

    plan: Plan
    index: Index | None
    num_written: int
    num_skipped: int
    wall_s: float


def pack(job: PackJob) -> PackResult:
    """Pack `job`; the folder then holds the same bytes for any number of workers, parts and interruptions.

    Raises BadInputError for sources, BadConfigError for options, BadShardError for an output folder that
    holds something else, UserError where the disk is full.
    """
    start_s = time.monotonic()
    store = ScanStore(job.out / SCANS_DIR, eager=job.part is not None)
    with Workers(job.num_workers) as workers, _disk_full(job.out):
        plan, scans = _make_plan(job, workers, store)
        mine = [shard for number, shard in enumerate(plan.shards) if _is_mine(number, job.part)]
        prepare(job.out, plan, job.overwrite)
        store.keep(scans)
        missing = [shard for shard in mine if read_record(job.out, shard.name, plan.digest) is None]
        clean(job.out, None if job.part is None else mine)
        if missing:
            (job.out / INDEX_NAME).unlink(missing_ok=True)
        if len(missing) < len(mine):
            say(f"skipped {len(mine) - len(missing)} finished shards")
        _write(job.out, plan, missing, workers)
        index = merge(job.out) if job.part is None else None
    return PackResult(plan, index, len(missing), len(mine) - len(missing), time.monotonic() - start_s)


def _write(out: Path, plan: Plan, missing: Sequence[ShardPlan], workers: Workers) -> None:
    """Write the shards, large ones first, so that no worker is left alone with a large one at the end."""
    if missing:
        largest_first = sorted(missing, key=lambda shard: -shard.num_frames)
        progress = Progress("packed", sum(shard.num_frames for shard in missing))
        workers.run(partial(write_shard, out, replace(plan, shards=())), largest_first, progress)


@contextmanager
def _disk_full(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        num_done = len(list(out.glob("*.tar"))) if out.is_dir() else 0
        raise UserError(
            f"no space is left for {out} ({error.strerror}); {num_done} finished shards are kept: make room and run "
            "the same command again, it goes on with what is missing"
        ) from error


def _is_mine(number: int, part: tuple[int, int] | None) -> bool:
    return part is None or number % part[1] == part[0]


def _make_plan(job: PackJob, workers: Workers, store: ScanStore) -> tuple[Plan, list[ScannedSource]]:
    if job.paired is not None or job.realvsr is not None:
        # The recipe is checked below, where it is known whether one is at work.
        check_options(replace(job.options, degradation="paired", crf=None))
    else:
        check_options(job.options)
    if job.overwrite and job.part is not None:
        raise BadConfigError("--overwrite would delete what other parts wrote; delete the folder once, then run them")
    sources = _find(job)
    options = _pair_options(job.options, sources)
    check_options(options)
    scans = scan_sources(sources, workers, store, job.part)
    return make_plan(scans, options), scans


def _find(job: PackJob) -> list[Source]:
    given = [
        name for name, value in (("SOURCE", job.sources), ("--paired", job.paired), ("--realvsr", job.realvsr)) if value
    ]
    if len(given) > 1:
        raise BadConfigError(f"expected either SOURCE arguments or --paired or --realvsr, got {' and '.join(given)}")
    if job.drop_overlap and job.realvsr is None:
        raise BadConfigError("--drop-overlap is for --realvsr; leave it out")
    if job.paired is not None:
        return find_pairs(*job.paired, job.options.scale)
    if job.realvsr is not None:
        return find_realvsr(job.realvsr, job.options.scale, job.drop_overlap)
    if not job.sources:
        raise BadConfigError("expected at least one SOURCE, a video file or a folder of images, or --paired")
    return find_sources(job.sources)


def _pair_options(options: PackOptions, sources: Sequence[Source]) -> PackOptions:
    """The options for these sources: pairs are kept as they are, or LQ of the size of GT is shrunk."""
    if sources[0].kind != "paired":
        return options
    if sources[0].low_scale == options.scale:
        return replace(options, degradation="paired")
    say(
        f"LQ is as large as GT: LR is LQ made {options.scale} times smaller by {options.degradation}; --scale 1 keeps "
        "the pairs as they are"
    )
    return replace(options, shrink_pairs=True)
