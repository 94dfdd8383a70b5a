"""The paper's models, trained until they stop improving, compared with controls on held-out video.

    make experiment NAME=paper_table                 in the background; repeat to resume
    python experiments/paper_table.py --jobs 2       the same in the foreground
    python experiments/paper_table.py --report       write docs/paper_table.md from the finished runs

Data: the demo's shards, the last fifth of bikes and bigbuckbunny and all of carphone held out. Each of the paper's four
rows has three seeds. A run ends when the held-out PSNR of its validations gained less than 0.1 dB in the last fifth of
its steps, or after 20 CPU-minutes. The learning rate is constant, as in the paper, so a run that ends early is the run
that was configured for that many steps. Held-out clips decide when a run ends, and nothing else.

Controls: the mean colour of the training set, bicubic, and SRResNet (one seed, the same rule). Linear code: LR crops of
the size that the LSTM sees, projected on as many principal components of training crops as the LSTM has hidden units,
and enlarged by bicubic and by every network without LSTM. It shows how much of an image a linear code of the LSTM's
size keeps. It is not a strict bound: the paper's encoder is not linear, and its decoder is linear in features, not in
pixels.

Reduced to fit 4 CPU-hours on one slow core: 16 channels, 64 hidden units and 24 x 24 crops where the paper has 64, 256
and 64 x 64 (configs/paper/full has these); VGG gets 1 of 5 frames; 20 CPU-minutes per seed, not 30; one seed of
SRResNet. At most 4.4 CPU-hours of training, and 0.4 for the evaluations.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from paper_table_report import Row, document, draw, read_controls
from runner import ROOT, Experiment, Run, Runner, main, python, rounded
from runner import Row as Validation

from sharding.schema import parse_sequence
from vsr_dist.config import load_config
from vsr_dist.core.errors import BadConfigError
from vsr_dist.data.stream import SplitStream
from vsr_dist.models import build_generator

NAME = "paper_table"
WORK = f"runs/{NAME}"
DATA, HELD_OUT = f"{WORK}/data", f"{WORK}/held_out"
CLIPS = ("bikes", "bigbuckbunny", "carphone_pristine")
SEEDS = (0, 1, 2)
CPU_MINUTES = 20.0
GAIN_DB, MIN_STEPS = 0.1, 500
SETTINGS = (
    f"data.root={DATA}",
    # Far more than the budget: the rule below ends the run.
    "train.steps=100000",
    "train.validate_every=25",
    "train.checkpoint_every=100",
    "train.pictures=0",
    "train.best_metric=null",
)
COLUMNS = ("val/psnr_y", "val/ssim_y", "val_bicubic/psnr_y")
NO_PICTURES = "--no-pictures"
ON_SHARDS = ("--data", DATA, NO_PICTURES)
# The linear codes: name -> (side of the LR crop, components). The second is that of the paper's own sizes.
CODES = {"code-24px-64": (24, 64), "code-64px-256": (64, 256)}
REDUCED_CODE = "code-24px-64"
NUM_CODED_CROPS = 6000


@dataclass(frozen=True)
class Model:
    """A trained row. has_lstm: its features pass the LSTM, so that a coded input says nothing new."""

    key: str
    title: str
    config: str
    settings: tuple[str, ...] = ()
    seeds: tuple[int, ...] = SEEDS
    has_lstm: bool = False


MODELS = (
    Model("base", "paper: base", "configs/paper/base.yaml"),
    Model("lstm", "paper: base + LSTM", "configs/paper/lstm.yaml", has_lstm=True),
    Model(
        "improved-printed",
        "paper: improved, as printed",
        "configs/paper/improved.yaml",
        ("generator.alignment=as_printed",),
        has_lstm=True,
    ),
    Model(
        "improved-corrected",
        "paper: improved, corrected",
        "configs/paper/improved.yaml",
        ("generator.alignment=corrected",),
        has_lstm=True,
    ),
    Model("srresnet", "SRResNet", "configs/baselines/srresnet.yaml", seeds=(0,)),
)


def recent_gain_db(rows: Sequence[Validation]) -> float:
    """Mean held-out PSNR-Y of the validations in the last fifth of the steps minus that in the fifth before.

    Means, because single validations of a GAN differ by more than the threshold. NaN if either fifth has none.
    """
    last = rows[-1]["step"] if rows else 0
    fifths: list[list[float]] = [[], []]
    for row in rows:
        if row["step"] > 0.6 * last:
            fifths[row["step"] > 0.8 * last].append(row["val/psnr_y"])
    before, after = (sum(values) / len(values) if values else math.nan for values in fifths)
    return after - before


def is_trained(rows: Sequence[Validation], cpu_s: float) -> bool:
    """True when the budget is used up, or when a run of some length has stopped gaining."""
    if cpu_s >= 60.0 * CPU_MINUTES:
        return True
    return bool(rows) and rows[-1]["step"] >= MIN_STEPS and recent_gain_db(rows) < GAIN_DB


def make_runs(models: Sequence[Model] = MODELS) -> list[Run]:
    """All trainings, seeds outermost, so that an early look has every model."""
    runs = []
    for seed in SEEDS:
        for model in models:
            if seed not in model.seeds:
                continue
            evaluations = {"held_out": ON_SHARDS}
            if not model.has_lstm:
                evaluations |= {REDUCED_CODE: on_code(REDUCED_CODE)}
            settings = (*SETTINGS, *model.settings)
            name = f"{model.key}-seed{seed}"
            runs.append(Run(name, model.config, settings, seed, COLUMNS, evaluations, is_trained))
    return runs


def on_code(code: str) -> tuple[str, ...]:
    """Options of `vsr-dist evaluate` that give a network the coded LR frames of the held-out videos."""
    return ("--low", f"{HELD_OUT}/{code}", "--real", f"{HELD_OUT}/real", NO_PICTURES)


def prepare(experiment: Experiment, runner: Runner) -> None:
    """Pack the data, write the held-out frames coded and uncoded, and measure what needs no training."""
    pack_demo(WORK, runner)
    controls = {"mean-colour", "bicubic", *CODES}
    if all(experiment.result_path(name).exists() for name in controls) and (ROOT / HELD_OUT / "done").exists():
        return
    torch.set_num_threads(1)
    facts = write_held_out(ROOT / DATA, ROOT / HELD_OUT)
    real = ("--real", f"{HELD_OUT}/real", NO_PICTURES)
    measure_control(experiment, runner, "mean-colour", ("--fake", f"{HELD_OUT}/mean-colour", "--scale", "4", *real), {})
    measure_control(experiment, runner, "bicubic", ("--method", "bicubic", *ON_SHARDS), {})
    for code in CODES:
        measure_control(experiment, runner, code, ("--method", "bicubic", *on_code(code)), facts[code])
    (ROOT / HELD_OUT / "done").touch()


def pack_demo(work: str, runner: Runner) -> None:
    """The demo's shards in `work`/data; a finished set is found finished by the packer."""
    clips, log = f"{work}/clips", ROOT / work / "pack.log"
    runner.run(python("samples", clips), log)
    sources = [f"{clips}/{name}.mp4" for name in CLIPS]
    held_out = ["--holdout-tail", "0.2", "--holdout", "carphone_pristine"]
    runner.run(python("pack", *sources, "--out", f"{work}/data", *held_out), log)


def measure_control(
    experiment: Experiment, runner: Runner, name: str, options: Sequence[str], facts: Mapping[str, Any]
) -> None:
    """A row without training, written as a result of its own."""
    path = experiment.result_path(name)
    if path.exists():
        return
    out = experiment.work / "evaluations" / name
    runner.evaluate_with(options, out)
    found = json.loads((out / "metrics.json").read_text())
    frames: dict[str, int] = {}
    for clip in SplitStream(ROOT / DATA, "val").clips:
        frames[clip.sequence] = frames.get(clip.sequence, 0) + clip.num_frames
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {scope: next(iter(methods.values())) for scope, methods in found["table"].items()}
    result = {"name": name, "command": shlex.join(["vsr-dist", "evaluate", *options]), **rounded(facts)}
    result |= {"frames": frames, "protocol": found["protocol"], "table": rounded(table)}
    runner.publish(path, result)
    runner.say(f"{name}: measured")


def write_held_out(data: Path, out: Path) -> dict[str, dict[str, Any]]:
    """PNG folders per held-out sequence: `real`, `mean-colour`, and the LR frames under each code.

    Returns what was measured of each code: components, crops, and the PSNR of the coded LR frames themselves.
    """
    low_train, colour_sum, num_pixels = [], np.zeros(3), 0
    for clip in SplitStream(data, "train"):
        low_train.append(clip.low_THWC)
        colour_sum += clip.real_TYXC.sum((0, 1, 2), dtype=np.float64)
        num_pixels += clip.real_TYXC[..., 0].size
    colour = np.rint(colour_sum / num_pixels).astype(np.uint8)
    codes = {
        name: LinearCode.fitted(training_crops(low_train, crop_px, NUM_CODED_CROPS), components)
        for name, (crop_px, components) in CODES.items()
    }
    errors: dict[str, list[float]] = {name: [] for name in CODES}
    for clip in SplitStream(data, "val"):
        write_frames(out / "real" / clip.sequence, clip.first_frame, clip.real_TYXC)
        flat = np.broadcast_to(colour, clip.real_TYXC.shape)
        write_frames(out / "mean-colour" / clip.sequence, clip.first_frame, flat)
        for name, code in codes.items():
            coded = code.coded(clip.low_THWC)
            write_frames(out / name / clip.sequence, clip.first_frame, coded)
            difference = coded.astype(np.float32) - clip.low_THWC
            errors[name] += np.mean(difference**2, axis=(1, 2, 3)).tolist()
    return {
        name: {
            "crop_px": code.crop_px,
            "components": code.basis_DK.shape[1],
            "training_crops": NUM_CODED_CROPS,
            "explained_variance": code.explained,
            "low_psnr_rgb": float(np.mean([10 * math.log10(255.0**2 / max(error, 1e-9)) for error in errors[name]])),
        }
        for name, code in codes.items()
    }


def write_frames(folder: Path, first_frame: int, frames_TYXC: np.ndarray) -> None:
    """uint8 RGB frames as PNG files numbered from `first_frame`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame_YXC in enumerate(frames_TYXC, first_frame):
        cv2.imwrite(str(folder / f"{number:06d}.png"), cv2.cvtColor(frame_YXC, cv2.COLOR_RGB2BGR))


def training_crops(frames: Sequence[np.ndarray], crop_px: int, num_crops: int) -> torch.Tensor:
    """Crops at random places of random frames, as float rows (crops, crop_px * crop_px * 3); the same in each call."""
    random = np.random.default_rng(0)
    usable = [clip for clip in frames if min(clip.shape[1:3]) >= crop_px]
    lengths = np.array([len(clip) for clip in usable])
    rows = torch.empty(num_crops, crop_px * crop_px * 3)
    for row in rows:
        clip = usable[random.choice(len(usable), p=lengths / lengths.sum())]
        time, top, left = (int(random.integers(n)) for n in (len(clip), *(np.array(clip.shape[1:3]) - crop_px + 1)))
        crop = clip[time, top : top + crop_px, left : left + crop_px]
        row.copy_(torch.from_numpy(crop.reshape(-1).astype(np.float32)))
    return rows


@dataclass(frozen=True)
class LinearCode:
    """Principal components of square crops. D values of a crop, K components; explained: share of the variance."""

    crop_px: int
    mean_D: torch.Tensor
    basis_DK: torch.Tensor
    explained: float

    @classmethod
    def fitted(cls, crops_ND: torch.Tensor, components: int) -> LinearCode:
        """The first `components` principal components, by randomised SVD (Halko et al. 2011) from a fixed seed."""
        torch.manual_seed(0)
        mean_D = crops_ND.mean(0)
        _, values_K, basis_DK = torch.pca_lowrank(crops_ND, q=components + 32, niter=6)
        total = (crops_ND - mean_D).square().sum()
        explained = float(values_K[:components].square().sum() / total)
        return cls(math.isqrt(crops_ND.shape[1] // 3), mean_D, basis_DK[:, :components].clone(), explained)

    def coded(self, frames_THWC: np.ndarray) -> np.ndarray:
        """uint8 frames cut into tiles, each replaced by its projection; tiles as `upscale_in_tiles` cuts them."""
        side = self.crop_px
        num_frames, height, width, _ = frames_THWC.shape
        rows, columns = -(-height // side), -(-width // side)
        padding = ((0, 0), (0, rows * side - height), (0, columns * side - width), (0, 0))
        padded = np.pad(frames_THWC, padding, mode="edge").astype(np.float32)
        tiles = padded.reshape(num_frames, rows, side, columns, side, 3).transpose(0, 1, 3, 2, 4, 5)
        flat_ND = torch.from_numpy(tiles.reshape(-1, side * side * 3)) - self.mean_D
        coded_ND = (flat_ND @ self.basis_DK) @ self.basis_DK.T + self.mean_D
        coded = coded_ND.numpy().reshape(num_frames, rows, columns, side, side, 3).transpose(0, 1, 3, 2, 4, 5)
        whole = coded.reshape(num_frames, rows * side, columns * side, 3)[:, :height, :width]
        return np.rint(whole).clip(0, 255).astype(np.uint8)


def overall_of_sequences(table: Mapping[str, Mapping[str, float]], frames: Mapping[str, int]) -> dict[str, float]:
    """`overall` as a shard set's evaluation has it, from scores per sequence: the mean of the videos' means.

    An evaluation of folders takes every sequence for a video of its own.
    """
    videos: dict[str, dict[str, int]] = {}
    for sequence, num_frames in frames.items():
        videos.setdefault(parse_sequence(sequence)[0], {})[sequence] = num_frames
    metrics = next(iter(table.values()))
    means = [
        {
            name: sum(table[sequence][name] * count for sequence, count in parts.items()) / sum(parts.values())
            for name in metrics
        }
        for parts in videos.values()
    ]
    return {name: sum(mean[name] for mean in means) / len(means) for name in metrics}


def trained_rows(results: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """A row per model that has a finished run."""
    rows = []
    for model in MODELS:
        found = [results[name] for seed in model.seeds if (name := f"{model.key}-seed{seed}") in results]
        if not found:
            continue
        config = load_config(ROOT / model.config)
        with torch.device("meta"):
            generator = build_generator(config.generator, config.scale)
        rows.append(
            Row(
                model.key,
                model.title,
                tuple(one["evaluations"]["held_out"]["table"]["overall"]["ours"] for one in found),
                sum(parameter.numel() for parameter in generator.parameters()),
                tuple(one["steps"] for one in found),
                tuple(one["cpu_s"] for one in found),
                tuple(one["cpu_s"] < 60.0 * CPU_MINUTES for one in found),
            )
        )
    return rows


def all_rows(
    results: Mapping[str, Mapping[str, Any]], controls: Mapping[str, Mapping[str, Any]]
) -> tuple[list[Row], str | None]:
    """(Rows in the page's order, the title of the network that enlarges the code best)."""
    trained = trained_rows(results)
    rows = [Row("mean-colour", "mean colour of the training set", (_overall(controls["mean-colour"]),))]
    rows += trained
    rows.append(Row("bicubic", "bicubic", (controls["bicubic"]["table"]["overall"],)))
    for code, (crop_px, components) in CODES.items():
        if code in controls:
            title = f"linear code, {components} of {crop_px} x {crop_px} px, bicubic"
            rows.append(Row(code, title, (_overall(controls[code]),)))
    networks = [row for row in trained if not next(model for model in MODELS if model.key == row.key).has_lstm]
    if not networks:
        return rows, None
    best = max(networks, key=lambda row: row.mean("psnr_y"))
    frames = controls[REDUCED_CODE]["frames"]
    scores = []
    for name, result in results.items():
        if name.rsplit("-seed", 1)[0] == best.key:
            scopes = result["evaluations"][REDUCED_CODE]["table"]
            scores.append(overall_of_sequences({scope: scopes[scope]["ours"] for scope in frames}, frames))
    crop_px, components = CODES[REDUCED_CODE]
    title = f"linear code, {components} of {crop_px} x {crop_px} px, {best.title}"
    return [*rows, Row("code-best", title, tuple(scores))], best.title


def _overall(control: Mapping[str, Any]) -> dict[str, float]:
    return overall_of_sequences({name: control["table"][name] for name in control["frames"]}, control["frames"])


def write_page(experiment: Experiment, arguments: argparse.Namespace) -> None:
    """docs/paper_table.md and its picture, from what is finished; nothing before the controls are measured."""
    runs = make_runs()
    results = experiment.load(runs)
    names = ("mean-colour", "bicubic", *CODES)
    controls = read_controls({name: experiment.result_path(name) for name in names})
    if missing := [name for name in names if name not in controls]:
        raise BadConfigError(
            f"not measured yet: {', '.join(missing)}; run experiments/{NAME}.py without --report first"
        )
    rows, best_title = all_rows(results, controls)
    key_of = {name: name.rsplit("-seed", 1)[0] for name in results}
    codes = {name: controls[name] for name in CODES}
    options = {"num_runs": len(runs), "cpu_minutes": CPU_MINUTES, "best_title": best_title}
    arguments.page.write_text(document(rows, results, codes, **options))
    draw(rows, results, key_of, arguments.picture)
    print(f"written: {arguments.page}, {arguments.picture} ({len(results)} of {len(runs)} runs)")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--page", type=Path, default=ROOT / "docs/paper_table.md", help="default: docs/paper_table.md")
    picture = "docs/images/paper_table.png"
    parser.add_argument("--picture", type=Path, default=ROOT / picture, help=f"default: {picture}")


if __name__ == "__main__":
    sys.exit(main(NAME, __doc__, make_runs(), prepare=prepare, report=write_page, extra_options=add_options))
