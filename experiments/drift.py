"""The discriminator's drift: the paper's adversary, its two proposals, ours, and no adversary, under one protocol.

    make experiment NAME=drift                    in the background; repeat to resume
    python experiments/drift.py --only 'none-*'   only some runs; --list names all, --report writes docs/drift.md

Every run starts from the same generator (`configs/drift/pretrain.yaml`, trained first), trains on the same frames for
1,500 adversarial steps with constant learning rates, and is measured in the same way: the discriminator on 64 held-out
windows every 30 steps, the final generator on whole frames of four sequences.

Order: the seven arms, 5 seeds each; the arm `cure` at other adversarial weights, 3 seeds each, and 5 at the chosen
weight; and, once a study (`configs/studies/drift.yaml`) has been promoted to experiments/results/drift/winner.yaml, 5
seeds of its winner:

    vsr-dist study run --config configs/studies/drift.yaml && vsr-dist study report --config configs/studies/drift.yaml
    vsr-dist study promote --config configs/studies/drift.yaml --out experiments/results/drift/winner.yaml

The study and all exploratory runs used other held-out windows than the arms.

Reduced to fit about 6.5 CPU-hours: a generator of 16 channels and 4 blocks, crops of 48 x 48 high-resolution pixels,
three clips of three frames per step, 16 filters in D (64 in the paper's source), the perceptual term on one frame of
each clip, 8 frames of each sequence in the final measurement, ST-LPIPS only there.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from clips import Part, pack_parts
from drift_report import PAGE, PICTURES, Arm, write_page
from runner import ROOT, Experiment, Run, Runner, main

PAPER, CURE = "configs/drift/paper.yaml", "configs/drift/cure.yaml"
PRETRAIN = "configs/drift/pretrain.yaml"
WINNER = "experiments/results/drift/winner.yaml"

# bikes has cuts at 137 and 187; what is held out lies in other shots than what trains, 10 frames or more away in
# bigbuckbunny, which is one shot. carphone_pristine and vtest are videos that no run trains on.
TRAIN = (Part("bikes_train", "bikes", 0, 136), Part("bunny_train", "bigbuckbunny", 0, 69, halve=True))
STUDY = (Part("bikes_study", "bikes", 150, 179), Part("bunny_study", "bigbuckbunny", 80, 99, halve=True))
UNSEEN = (
    Part("bikes_unseen", "bikes", 190, 219),
    Part("bunny_unseen", "bigbuckbunny", 112, 131, halve=True),
    Part("carphone_unseen", "carphone_pristine", 0, 29),
    Part("vtest_unseen", "vtest", 0, 29, halve=True),
)

NO_ADVERSARY = ("adversarial.weight=0", "adversarial.weight_control.ratio=0")
LR_1E3 = ("generator_optimizer.learning_rate=1e-3", "discriminator_optimizer.learning_rate=1e-3")
ARMS = (
    Arm("none", "no adversary", CURE, NO_ADVERSARY),
    Arm("vgg", "paper's losses, no adversary", PAPER, ("adversarial.weight=0",)),
    Arm("paper", "paper, lr 1e-4", PAPER),
    Arm("paper_1e3", "paper, lr 1e-3", PAPER, LR_1E3),
    Arm("filters", "paper, twice the filters", PAPER, ("discriminator.filters=32",)),
    Arm("dropout", "paper, dropout 0.3", PAPER, ("discriminator.dropout=0.3",)),
    Arm("cure", "cure, ratio 0.1", CURE),
)
# Beside 0.1, which is the arm `cure`.
RATIOS = ("0.03", "0.3", "1.0", "3.0")
TRADE_OFF = tuple(
    Arm(f"cure_{ratio}", f"cure, ratio {ratio}", CURE, (f"adversarial.weight_control.ratio={ratio}",))
    for ratio in RATIOS
)
# The ratio of configs/recurrent.yaml: it has all five seeds.
CHOSEN = "cure_0.3"
WINNER_ARM = Arm("winner", "the study's winner", WINNER, ("train.steps=1500", "train.validate_every=30"))
# Two arms again, from a second pretraining: the first one was lost with its machine, and another processor rounds
# differently. Every later run starts from the second one, which is kept with the results.
SECOND_START = (
    Arm("none_b", "no adversary, second start", CURE, NO_ADVERSARY),
    Arm("paper_b", "paper, lr 1e-4, second start", PAPER),
)
# The study's trainings have seed 0 and, where repeated, those next to it.
SEEDS, TRADE_OFF_SEEDS = range(100, 105), range(100, 103)

COLUMNS = (
    *("val/psnr_y", "val/ssim_y", "val/tof", "val/high_frequency_gap", "val_bicubic/psnr_y"),
    *("val_bicubic/high_frequency_gap", "drift/paper_loss", "drift/normalized_loss", "drift/auc", "drift/ks"),
    *("drift/dead_fraction", "drift/paired_accuracy", "drift/probe_auc", "drift/overfit", "drift/gradient_ratio"),
    *("share_g/perceptual", "share_g/adversarial"),
)
EVALUATION = ("--data", "{work}/data-unseen", "--metrics", "psnr_y,ssim_y,tof,stlpips", "--frames", "8")
COMMON = ("data.root={work}/data-unseen", "train.init_generator={work}/pretrain", "data.val_clips=64")


def run_of(arm: Arm, seed: int) -> Run:
    return Run(
        f"{arm.name}-seed{seed}",
        arm.config,
        (*COMMON, "train.perceptual_metric=none", *arm.settings),
        seed,
        COLUMNS,
        {"unseen": (*EVALUATION, "--no-pictures")},
    )


def all_runs() -> list[Run]:
    """Seeds outermost, so that an early look has every arm."""
    runs = [run_of(arm, seed) for seed in SEEDS for arm in ARMS]
    runs += [run_of(arm, seed) for seed in TRADE_OFF_SEEDS for arm in TRADE_OFF]
    runs += [run_of(arm, seed) for seed in SEEDS[len(TRADE_OFF_SEEDS) :] for arm in TRADE_OFF if arm.name == CHOSEN]
    runs += [run_of(SECOND_START[0], seed) for seed in SEEDS]
    runs += [run_of(SECOND_START[1], seed) for seed in TRADE_OFF_SEEDS]
    if (ROOT / WINNER).exists():
        runs += [run_of(WINNER_ARM, seed) for seed in SEEDS]
    return runs


def prepare(experiment: Experiment, runner: Runner) -> None:
    """Both shard sets and the generator that every run starts from: the one kept with the results, if it is there."""
    work, kept = experiment.work, experiment.results / "pretrain"
    if kept.exists() and not (work / "pretrain").exists():
        shutil.copytree(kept, work / "pretrain")
    for role, held_out in (("study", STUDY), ("unseen", UNSEEN)):
        pack_parts(TRAIN, held_out, work / "frames", work / f"data-{role}")
    settings = [experiment.fill("data.root={work}/data-study"), experiment.fill("run_dir={work}/pretrain")]
    runner.train(PRETRAIN, [*settings, *experiment.overrides], work / "pretrain")


def report(experiment: Experiment, arguments: argparse.Namespace) -> None:
    arms = [*ARMS, *TRADE_OFF, *SECOND_START, WINNER_ARM]
    write_page(experiment, arms, (CHOSEN, WINNER_ARM.name), all_runs(), arguments.page, arguments.pictures)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--page", type=Path, default=PAGE, help="default: docs/drift.md")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="folder of its pictures (default: docs/images)")


if __name__ == "__main__":
    sys.exit(main("drift", __doc__, all_runs(), prepare=prepare, report=report, extra_options=add_options))
