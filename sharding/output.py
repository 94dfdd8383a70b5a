"""The output folder of a pack: whether it may be used, what a killed run left in it, and the index at the end.

`.pack/plan.json` says what is packed into a folder, and `.pack/<shard>.json` describes each finished shard; both
are of the same bytes for any number of workers, parts and interruptions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sharding.errors import BadConfigError, BadShardError
from sharding.index import TEMPORARY_MARK, write_index, write_json
from sharding.plan import Plan, ShardPlan, dataset_record
from sharding.scan import SCANS_DIR
from sharding.schema import INDEX_NAME, Clip, Index, Shard, parse_shard
from sharding.write import JOURNAL_DIR, read_record

PLAN_NAME = "plan.json"


def prepare(out: Path, plan: Plan, overwrite: bool) -> None:
    """Make the output folder ready for this plan. Raises BadConfigError or BadShardError if it is something else."""
    if out.exists() and not out.is_dir():
        raise BadConfigError(f"--out {out} is a file; expected a folder, or a name that is free")
    plan_path = out / JOURNAL_DIR / PLAN_NAME
    existing = _existing(out)
    same = plan_path.is_file() and _digest_of(plan_path) == plan.digest
    if existing and not same and not overwrite:
        raise BadShardError(
            f"{out} holds a pack of other sources or options ({_difference(plan_path, plan)}); expected "
            "an empty folder or the same pack: choose another --out, or give --overwrite to replace it"
        )
    if overwrite:
        for path in existing:
            path.unlink()
    plan_path.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        plan_path,
        {"digest": plan.digest, "dataset": plan.dataset(), "shards": [shard.name for shard in plan.shards]},
    )


def clean(out: Path, shards: Sequence[ShardPlan] | None = None) -> None:
    """Remove the temporary files that killed runs left; with `shards`, only those of these shards.

    Those of other shards may be in the hands of another part.
    """
    starts = ("",) if shards is None else tuple(f"{shard.name}." for shard in shards)
    for folder in (out, out / JOURNAL_DIR, out / SCANS_DIR):
        for path in list(folder.glob(f"*{TEMPORARY_MARK}*")):
            if path.name.startswith(starts):
                path.unlink(missing_ok=True)


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
    clean(out)
    index = build_index(record["dataset"], [shard for shard in found.values() if shard is not None])
    write_index(out, index)
    return index


def build_index(dataset: dict[str, Any], shards: Sequence[tuple[Shard, tuple[Clip, ...]]]) -> Index:
    """The index of a data set of these shards, in this order."""
    clips = tuple(clip for _, clips in shards for clip in clips)
    return Index(**dataset, shards=tuple(shard for shard, _ in shards), clips=clips)


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
