"""The verbs `pack`, `verify`, `inspect` and `samples`, for `python -m sharding` and for `vsr-dist`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sharding.codec import CODECS
from sharding.compress import DEFAULT_CRF
from sharding.degrade import RECIPES, SCALES
from sharding.errors import BadShardError, OneLineParser, UserError
from sharding.index import load_index, read_index, rebuild_index, write_index
from sharding.inspect import summarise, write_sheet
from sharding.output import merge
from sharding.pack import PackJob, pack
from sharding.plan import PackOptions
from sharding.progress import say
from sharding.samples import copy_samples
from sharding.schema import FLOW_NAMES, INDEX_NAME, Index
from sharding.verify import verify

Subparsers = Any  # argparse gives its sub-parser action no public name


def register(subparsers: Subparsers) -> None:
    """Add the four verbs; each parser sets `handler`, which takes the parsed arguments and returns the status."""
    _add_pack(subparsers)
    verb = _add(subparsers, "verify", "re-read a data set and list every fault", "verify data/demo")
    verb.add_argument("root", metavar="DIR", type=Path, help="a folder that pack wrote")
    verb.add_argument("--rebuild-index", action="store_true", help="first write a lost index.json anew")
    verb.set_defaults(handler=run_verify)
    verb = _add(subparsers, "inspect", "say what a data set holds", "inspect data/demo --sheet data/demo-sheet.png")
    verb.add_argument("root", metavar="DIR", type=Path, help="a folder that pack wrote")
    verb.add_argument("--sheet", metavar="OUT.png", type=Path, help="also write a contact sheet")
    verb.set_defaults(handler=run_inspect)
    verb = _add(subparsers, "samples", "copy four real sample clips to a folder", "samples data/clips")
    verb.add_argument("out", metavar="OUT_DIR", type=Path, help="where to; made if it is missing")
    verb.set_defaults(handler=run_samples)


def main(argv: Sequence[str]) -> int:
    """`python -m sharding ARGV`; returns the exit status. UserError is left to the caller."""
    parser = OneLineParser(prog="python -m sharding", description="Turn videos into ordered shards.")
    register(parser.add_subparsers(dest="verb", required=True, metavar="VERB"))
    args = parser.parse_args(argv)
    status: int = args.handler(args)
    return status


def run_pack(args: argparse.Namespace) -> int:
    """Pack, or with `--merge` join parts, and say what came out."""
    if args.merge:
        with _file_errors():
            index = merge(args.out)
        say(f"merged {len(index.shards)} shards into {args.out}")
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
        say(f"this was part {args.part[0]}/{args.part[1]}; when all are done, run pack --out {args.out} --merge")
    else:
        say(summarise(args.out, result.index))
    return 0


@contextmanager
def _file_errors() -> Iterator[None]:
    """What the operating system refuses (no space, no right) is said in one line."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"{error}; expected files that can be read and written: mend this and rerun") from error


def run_verify(args: argparse.Namespace) -> int:
    """List all faults on stdout; with any, end with one line on stderr and status 2."""
    if args.rebuild_index:
        write_index(args.root, rebuild_index(args.root))
        say(f"wrote {args.root / INDEX_NAME} from the shards")
    load_index(args.root)
    faults = verify(args.root)
    for fault in faults:
        say(fault)
    if faults:
        raise BadShardError(
            f"{args.root} has {len(faults)} faults, listed on stdout; delete the shards that are named and rerun "
            "pack with the same sources and options"
        )
    index = read_index(args.root)
    say(f"{args.root}: {len(index.shards)} shards and {len(index.clips)} clips are as the index says")
    return 0


def run_inspect(args: argparse.Namespace) -> int:
    """Print the summary and, if asked for, write the contact sheet."""
    index: Index = read_index(args.root)
    say(summarise(args.root, index))
    if args.sheet is not None:
        with _file_errors():
            num_rows = write_sheet(args.root, index, args.sheet)
        say(f"wrote {args.sheet} with {num_rows} sequences")
    return 0


def run_samples(args: argparse.Namespace) -> int:
    """Copy the sample clips and name each one."""
    with _file_errors():
        copies = copy_samples(args.out)
    for path, copied in copies:
        say(f"{'copied' if copied else 'already there:'} {path}")
    return 0


def _add_pack(subparsers: Subparsers) -> None:
    verb = _add(
        subparsers,
        "pack",
        "turn videos or frame folders into shards",
        "pack data/clips/bikes.mp4 data/clips/bigbuckbunny.mp4 --out data/demo --holdout-tail 0.2 --workers 2",
    )
    verb.add_argument("sources", metavar="SOURCE", type=Path, nargs="*", help="a video or a folder of images")
    verb.add_argument("--out", metavar="DIR", type=Path, required=True, help="the data set's folder")
    add = verb.add_argument_group("what is packed").add_argument
    add("--scale", type=int, choices=SCALES, default=4, help="HR size over LR size (default %(default)s)")
    add("--codec", choices=list(CODECS), default="npy", help=_codec_help())
    add("--degradation", choices=list(RECIPES), default="bicubic", help="how LR is made (default %(default)s)")
    add("--crf", metavar="N", type=int, help=f"rate factor of video_compression, 0 to 51 (default {DEFAULT_CRF})")
    add("--flow", choices=FLOW_NAMES, default="none", help="also store LR optical flow (default %(default)s)")
    add("--clip-frames", metavar="T", type=int, default=16, help="most frames in a clip (default %(default)s)")
    add("--min-frames", metavar="N", type=int, default=2, help="drop shorter shots (default %(default)s)")
    add("--holdout-tail", metavar="FRACTION", type=float, default=0.0, help="end of every source that is 'val'")
    add("--holdout", metavar="NAME", action="append", default=[], help="a source that is 'val'; repeatable")
    add("--paired", metavar="lq=DIR,gt=DIR", type=_pair, help="LR and HR folders or zip files in place of SOURCE")
    add("--realvsr", metavar="ROOT", type=Path, help="GT, LQ, GT_test and LQ_test, folders or zip files, of ROOT")
    add("--drop-overlap", action="store_true", help="leave out of training what is in the test set of --realvsr")
    add("--shard-mb", metavar="MB", type=float, default=256.0, help="size to aim at (default %(default)g)")
    add = verb.add_argument_group("how it is done; the bytes stay the same").add_argument
    add("--workers", metavar="N", type=_positive, default=1, help="processes (default %(default)s)")
    add("--part", metavar="I/N", type=_part, help="only every N-th shard, from I = 0; then --merge")
    add("--merge", action="store_true", help="write the index over the shards of all parts")
    add("--overwrite", action="store_true", help="replace another pack in DIR")
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
    return "; ".join(f"{name}: {codec.note}" for name, codec in CODECS.items())


def _pair(text: str) -> tuple[Path, Path]:
    parts = dict(part.partition("=")[::2] for part in text.split(","))
    if set(parts) != {"lq", "gt"} or not all(parts.values()):
        raise argparse.ArgumentTypeError(f"expected lq=DIR,gt=DIR, got '{text}'")
    return Path(parts["lq"]), Path(parts["gt"])


def _part(text: str) -> tuple[int, int]:
    part, _, total = text.partition("/")
    if not part.isdecimal() or not total.isdecimal() or int(part) >= int(total):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 0 to N-1, such as 0/4, got '{text}'")
    return int(part), int(total)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got '{text}'")
    return int(text)
