"""The commands `pack`, `verify`, `inspect` and `samples` of `vsr-dist` and of `python -m sharding`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sharding.codec import CODECS
from sharding.console import say
from sharding.degrade import DEFAULT_CRF, RECIPES, SCALES
from sharding.errors import BadShardError, OneLineParser, UserError, number_type
from sharding.index import load_index, read_index, rebuild_index, write_index
from sharding.inspect import summarise, write_sheet
from sharding.pack import PackJob, merge, pack
from sharding.plan import PackOptions
from sharding.schema import FLOW_NAMES, INDEX_NAME, Index
from sharding.sources import copy_samples
from sharding.verify import verify

Subparsers = Any  # argparse has no public name for this type


def register(subparsers: Subparsers) -> None:
    """Add the four commands; each sets `handler`, which takes the parsed arguments and returns the exit status."""
    _add_pack(subparsers)
    verb = _add(subparsers, "verify", "read a whole data set and list every fault", "verify data/demo")
    verb.add_argument("root", metavar="DIR", type=Path, help="data set written by pack")
    verb.add_argument("--rebuild-index", action="store_true", help="first rebuild index.json from the shards")
    verb.set_defaults(handler=run_verify)
    verb = _add(subparsers, "inspect", "show the contents of a data set", "inspect data/demo --sheet sheet.png")
    verb.add_argument("root", metavar="DIR", type=Path, help="data set written by pack")
    verb.add_argument("--sheet", metavar="OUT.png", type=Path, help="also write a contact sheet to this file")
    verb.set_defaults(handler=run_inspect)
    verb = _add(subparsers, "samples", "copy four sample clips to a folder", "samples data/clips")
    verb.add_argument("out", metavar="OUT_DIR", type=Path, help="destination folder; created if needed")
    verb.set_defaults(handler=run_samples)


def main(argv: Sequence[str]) -> int:
    """`python -m sharding ARGV`; returns the exit status. The caller handles UserError."""
    parser = OneLineParser(prog="python -m sharding", description="Turn videos into ordered shards.")
    register(parser.add_subparsers(dest="verb", required=True, metavar="VERB"))
    args = parser.parse_args(argv)
    status: int = args.handler(args)
    return status


def run_pack(args: argparse.Namespace) -> int:
    """Pack, or merge the parts with `--merge`, and print a summary."""
    if args.merge:
        with _file_errors():
            index = merge(args.out)
        say(f"merged {len(index.shards)} shards in {args.out}")
        say(summarise(args.out, index))
        return 0
    job = PackJob(
        out=args.out,
        sources=tuple(args.sources),
        paired=args.paired,
        realvsr=args.realvsr,
        drop_overlap=args.drop_overlap,
        options=PackOptions(
            scale=args.scale,
            codec=args.codec,
            degradation=args.degradation,
            crf=args.crf,
            flow=args.flow,
            clip_frames=args.clip_frames,
            shard_bytes=int(args.shard_mb * 1e6),
            holdout_tail=args.holdout_tail,
            holdout=tuple(args.holdout),
            min_frames=args.min_frames,
        ),
        num_workers=args.workers,
        part=args.part,
        overwrite=args.overwrite,
    )
    with _file_errors():
        result = pack(job)
    plan = result.plan
    if plan.num_dropped_sequences:
        say(
            f"dropped {plan.num_dropped_sequences} sequences with {plan.num_dropped_frames} frames: shorter than "
            f"--min-frames {args.min_frames}"
        )
    say(f"wrote {result.num_written} shards, kept {result.num_skipped}, in {result.wall_s:.1f} s")
    if result.index is None:
        say(f"finished part {args.part[0]}/{args.part[1]}; after all parts, run pack --out {args.out} --merge")
    else:
        say(summarise(args.out, result.index))
    return 0


@contextmanager
def _file_errors() -> Iterator[None]:
    """Turn errors of the operating system (disk full, no permission) into a UserError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"{error}; expected readable and writable files: fix this and run the command again") from error


def run_verify(args: argparse.Namespace) -> int:
    """Print all faults to stdout; if there are any, raise BadShardError."""
    if args.rebuild_index:
        write_index(args.root, rebuild_index(args.root))
        say(f"wrote {args.root / INDEX_NAME} from the shards")
    load_index(args.root)
    faults = verify(args.root)
    for fault in faults:
        say(fault)
    if faults:
        raise BadShardError(
            f"{args.root} has {len(faults)} faults, listed on stdout; delete the named shards and rerun pack with the "
            "same sources and options"
        )
    index = read_index(args.root)
    say(f"{args.root}: {len(index.shards)} shards and {len(index.clips)} clips match the index")
    return 0


def run_inspect(args: argparse.Namespace) -> int:
    """Print the summary and, with `--sheet`, write the contact sheet."""
    index: Index = read_index(args.root)
    say(summarise(args.root, index))
    if args.sheet is not None:
        with _file_errors():
            num_rows = write_sheet(args.root, index, args.sheet)
        say(f"wrote {args.sheet} with {num_rows} sequences")
    return 0


def run_samples(args: argparse.Namespace) -> int:
    """Copy the sample clips and print the path of each one."""
    with _file_errors():
        copies = copy_samples(args.out)
    for path, copied in copies:
        say(f"{'copied' if copied else 'already exists:'} {path}")
    return 0


def _add_pack(subparsers: Subparsers) -> None:
    verb = _add(
        subparsers,
        "pack",
        "turn videos or folders of images into shards",
        "pack data/clips/bikes.mp4 data/clips/bigbuckbunny.mp4 --out data/demo --holdout-tail 0.2 --workers 2",
    )
    verb.add_argument("sources", metavar="SOURCE", type=Path, nargs="*", help="video, or folder or zip file of images")
    verb.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder of the data set")
    add = verb.add_argument_group("content").add_argument
    add("--scale", type=int, choices=SCALES, default=4, help="HR size / LR size (default %(default)s)")
    add("--codec", choices=list(CODECS), default="npy", help=_codec_help())
    add("--degradation", choices=list(RECIPES), default="bicubic", help="how LR is made from HR (default %(default)s)")
    add(
        "--crf",
        metavar="N",
        type=int,
        help=f"rate factor of video_compression, 0 to 51 (default {DEFAULT_CRF})",
    )
    add("--flow", choices=FLOW_NAMES, default="none", help="also store LR optical flow (default %(default)s)")
    add("--clip-frames", metavar="T", type=int, default=16, help="frames per clip, at most (default %(default)s)")
    add("--min-frames", metavar="N", type=int, default=2, help="drop shots with fewer frames (default %(default)s)")
    add(
        "--holdout-tail",
        metavar="FRACTION",
        type=float,
        default=0.0,
        help="fraction of the frames of each source, at its end, for split val (default %(default)g)",
    )
    add("--holdout", metavar="NAME", action="append", default=[], help="source for split val; may be repeated")
    add("--paired", metavar="lq=DIR,gt=DIR", type=_pair, help="LR and HR folders or zip files, instead of SOURCE")
    add(
        "--realvsr",
        metavar="ROOT",
        type=Path,
        help="RealVSR, instead of SOURCE: GT, LQ, GT_test and LQ_test (folders or .zip) in ROOT",
    )
    add("--drop-overlap", action="store_true", help="remove the sequences of RealVSR's test set from its training set")
    add(
        "--shard-mb",
        metavar="MB",
        type=float,
        default=256.0,
        help="target size of a shard (default %(default)g)",
    )
    add = verb.add_argument_group("execution (does not change the bytes)").add_argument
    add("--workers", metavar="N", type=number_type(int, 1), default=1, help="worker processes (default %(default)s)")
    add("--part", metavar="I/N", type=_part, help="write every N-th shard from number I on (0 to N-1); then --merge")
    add("--merge", action="store_true", help="check that all parts are finished, and write the index")
    add("--overwrite", action="store_true", help="replace another data set in DIR")
    verb.set_defaults(handler=run_pack)


def _add(subparsers: Subparsers, name: str, text: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    program = parser.prog.removesuffix(f" {name}")
    parser.epilog = f"example:\n  {program} {example}"
    return parser


def _codec_help() -> str:
    return "; ".join(f"{name}: {codec.note}" for name, codec in CODECS.items()) + " (default %(default)s)"


def _pair(text: str) -> tuple[Path, Path]:
    parts = dict(part.partition("=")[::2] for part in text.split(","))
    if set(parts) != {"lq", "gt"} or not all(parts.values()):
        raise argparse.ArgumentTypeError(f"expected lq=DIR,gt=DIR, got '{text}'")
    return Path(parts["lq"]), Path(parts["gt"])


def _part(text: str) -> tuple[int, int]:
    part, _, total = text.partition("/")
    if not part.isdecimal() or not total.isdecimal() or int(part) >= int(total):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 0 to N-1, for example 0/4, got '{text}'")
    return int(part), int(total)
