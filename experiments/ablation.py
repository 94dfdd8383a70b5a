"""Gain of each technique: rows that differ in one setting, at equal CPU time, measured on unseen video.

    python experiments/ablation.py                  run what is missing; may be stopped and repeated at any time
    python experiments/ablation.py --report         write docs/ablation.md from the finished runs

Every row is experiments/configs/ablation.yaml with a few changed settings, trained with three seeds on the training
part of the demo (bikes and bigbuckbunny without their last fifth). A row is compared with its base row, from which it
differs in one setting. The first call measures the CPU time of a step of each row, in short runs next to runs of the
reference row, and stores the resulting numbers of steps in `plan.json` with the results; later calls use them. A row
that is added later is measured in the same way.

14 sequences of 5 videos are held out; no run trains on three of these videos. Two of them are from Debian's package
opencv-doc (apt-get install opencv-doc). No setting of any row was chosen by looking at them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablation_report import METRIC_NAMES, write_report
from clips import Part, pack_parts
from runner import ROOT, Experiment, Run, Runner, describe_machine, main

from sharding.plan import PackOptions
from vsr_dist.core.errors import BadConfigError

CONFIG = "experiments/configs/ablation.yaml"
SEEDS = (0, 1, 2)
CPU_S_PER_RUN = 150.0
# Of the CPU time of a row with an adversary, this part has the discriminator; the rest is its warm-up.
ADVERSARIAL_TIME_SHARE = 0.5
CALIBRATION_ROUNDS, CALIBRATION_S = 3, 4.0
NEVER = 10**6


@dataclass(frozen=True)
class Row:
    """One line of the table: settings on top of the configuration, and the row that it is compared with."""

    name: str
    title: str
    base: str | None
    settings: tuple[str, ...] = ()
    has_adversary: bool = False


PACKED = ("generator.alignment=packed",)
RLSP = ("generator.recurrence=rlsp", "generator.lookahead_frames=1")
REFERENCE = "convgru"
# The weights of the temporal losses give each a gradient of about 0.3 of the image term's at the generator's output.
# Measured on training clips, after 300 steps of the reference row: at weight 1 it is 0.063 (difference), 1.49 (warped)
# and 1.64 (ping-pong), medians of 20 batches. The adversary is that of configs/recurrent.yaml.
ADVERSARY = (
    "adversarial.weight=0.001",
    "adversarial.loss=rpgan",
    "adversarial.r1_gamma=0.03",
    "adversarial.r2_gamma=0.03",
    "adversarial.weight_control.ratio=0.1",
)
ROWS = (
    Row("single_frame", "single frames", None, ("generator.recurrence=none",)),
    Row("convgru", "ConvGRU", "single_frame"),
    Row("convlstm", "ConvLSTM", "single_frame", ("generator.recurrence=convlstm",)),
    Row("rrn", "RRN: blocks inside the loop", "single_frame", ("generator.recurrence=rrn",)),
    Row("rlsp", "RLSP without look-ahead: blocks inside the loop", "single_frame", ("generator.recurrence=rlsp",)),
    Row("rlsp_next", "RLSP: the next frame seen too", "rlsp", RLSP),
    Row("aligned", "ConvGRU, aligned by Farneback flow", "convgru", PACKED),
    Row("aligned_ema", "ConvGRU, aligned, flow smoothed by EMA", "aligned", (*PACKED, "generator.smoothing=ema")),
    Row(
        "aligned_gaussian",
        "ConvGRU, aligned, flow smoothed by a Gaussian",
        "aligned",
        (*PACKED, "generator.smoothing=gaussian"),
    ),
    Row("aligned_learned", "ConvGRU, aligned by a learned flow", "convgru", ("generator.alignment=learned",)),
    Row("difference", "ConvGRU, temporal loss: difference", "convgru", ("loss.temporal=5",)),
    Row("warped", "ConvGRU, temporal loss: warped", "convgru", ("loss.temporal_kind=warped", "loss.temporal=0.2")),
    Row(
        "ping_pong",
        "ConvGRU, temporal loss: ping-pong",
        "convgru",
        ("loss.temporal_kind=ping_pong", "loss.temporal=0.2"),
    ),
    Row("adversary", "ConvGRU, adversary", "convgru", ADVERSARY, has_adversary=True),
    Row("ordered", "ConvGRU, windows in order", "convgru", ("data.order=ordered",)),
    Row("carried", "ConvGRU, in order, state carried", "ordered", ("data.order=ordered", "train.carry_state=true")),
    Row("bidirectional", "ConvGRU, bidirectional", "convgru", ("generator.bidirectional=true",)),
)

TRAIN = (Part("bikes_train", "bikes", 0, 199), Part("bunny_train", "bigbuckbunny", 0, 105))
# ST-LPIPS costs half a CPU-second per full frame: ten frames and a square of each sequence keep an evaluation near a
# minute.
NUM_FRAMES, SQUARE_PX = 10, 256


def held_out(name: str, video: str, first: int, halve: bool = False, num_frames: int = NUM_FRAMES) -> Part:
    return Part(name, video, first, first + num_frames - 1, halve, SQUARE_PX)


HELD_OUT = (
    held_out("bikes_a", "bikes", 210),
    held_out("bikes_b", "bikes", 228),
    held_out("bikes_c", "bikes", 242, num_frames=8),
    held_out("bunny_a", "bigbuckbunny", 115, halve=True),
    held_out("carphone_a", "carphone_pristine", 0),
    held_out("carphone_b", "carphone_pristine", 50),
    held_out("carphone_c", "carphone_pristine", 100),
    held_out("street_a", "vtest", 100, halve=True),
    held_out("street_b", "vtest", 400, halve=True),
    held_out("street_c", "vtest", 700, halve=True),
    held_out("megamind_a", "Megamind", 30, halve=True),
    held_out("megamind_b", "Megamind", 110, halve=True),
    held_out("megamind_c", "Megamind", 165, halve=True),
    held_out("megamind_d", "Megamind", 220, halve=True),
)


@dataclass(frozen=True)
class Steps:
    """How long a row trains: `total` steps, the first `warmup` of them without the adversary."""

    total: int
    warmup: int = 0


def prepare(here: Experiment, runner: Runner) -> None:
    """The shard set, and a plan that has every row, saved row by row; quick when both are there."""
    pack_parts(TRAIN, HELD_OUT, here.work / "frames", data_of(here), PackOptions(flow="farneback"))
    here.results.mkdir(parents=True, exist_ok=True)
    # The reference row first: its time per step is the unit of the plan.
    for row in sorted(ROWS, key=lambda row: row.name != REFERENCE):
        plan = load_plan(here)
        if row.name not in plan["cost_ratio"]:
            runner.publish(plan_path(here), calibrate(row, plan, here, runner))


def data_of(here: Experiment) -> Path:
    return here.work / "data"


def plan_path(here: Experiment) -> Path:
    return here.results / "plan.json"


def load_plan(here: Experiment) -> dict[str, Any]:
    if plan_path(here).exists():
        return json.loads(plan_path(here).read_text())
    return {"cpu_s_per_run": CPU_S_PER_RUN, "reference_step_s": None, "cost_ratio": {}, "rounds": {}}


def calibrate(row: Row, plan: dict[str, Any], here: Experiment, runner: Runner) -> dict[str, Any]:
    """The plan with `row` added: the median over some rounds of a step's CPU time over that of the reference row.

    Each measurement has one of the reference row just before it, so that the load of the machine cancels. Of a row
    with an adversary the step with the discriminator is measured: its warm-up is the reference row's step.
    """

    def step_s(measured: Row) -> float:
        lengths = ("train.steps", "train.validate_every", "train.checkpoint_every")
        settings = [f"data.root={data_of(here)}", *measured.settings, *(f"{name}={NEVER}" for name in lengths)]
        run_dir = here.work / "calibration" / measured.name
        settings += ["train.log_every=1", "train.warmup_steps=0", f"run_dir={run_dir}"]
        return runner.cpu_per_step(CONFIG, settings, run_dir, CALIBRATION_S)

    reference = next(one for one in ROWS if one.name == REFERENCE)
    rounds = []
    for turn in range(CALIBRATION_ROUNDS):
        reference_s = step_s(reference)
        row_s = reference_s if row.name == REFERENCE else step_s(row)
        rounds.append([row_s, reference_s])
        runner.say(f"{row.name}, round {turn}: {1000 * row_s:.0f} ms a step, {REFERENCE} {1000 * reference_s:.0f} ms")
    reference_step_s = plan["reference_step_s"] or statistics.median(pair[1] for pair in rounds)
    return {
        "cpu_s_per_run": plan["cpu_s_per_run"],
        "reference_step_s": reference_step_s,
        "cost_ratio": {**plan["cost_ratio"], row.name: statistics.median(a / b for a, b in rounds)},
        "rounds": {**plan["rounds"], row.name: rounds},
        "machine": describe_machine(),
    }


def steps_of(row: Row, plan: Mapping[str, Any]) -> Steps:
    """The steps that fill `cpu_s_per_run`."""
    budget_s, reference_s = plan["cpu_s_per_run"], plan["reference_step_s"]
    step_s = reference_s * plan["cost_ratio"][row.name]
    if not row.has_adversary:
        return Steps(max(1, round(budget_s / step_s)))
    warmup = max(1, round((1 - ADVERSARIAL_TIME_SHARE) * budget_s / reference_s))
    return Steps(warmup + max(1, round(ADVERSARIAL_TIME_SHARE * budget_s / step_s)), warmup)


def runs_of(here: Experiment) -> list[Run]:
    """Every row and seed, seeds outermost; without a plan, as before the first call, with no steps set."""
    plan = load_plan(here)
    return [run_of(row, seed, plan, here) for seed in SEEDS for row in ROWS]


def run_of(row: Row, seed: int, plan: Mapping[str, Any], here: Experiment) -> Run:
    data = data_of(here)
    data_root = str(data.relative_to(ROOT)) if data.is_relative_to(ROOT) else str(data)
    settings = [f"data.root={data_root}", *row.settings]
    if row.name in plan["cost_ratio"]:
        steps = steps_of(row, plan)
        settings += [f"train.steps={steps.total}", f"train.warmup_steps={steps.warmup}"]
        settings += [f"train.validate_every={steps.total}", f"train.checkpoint_every={max(1, steps.total // 4)}"]
        settings += [f"train.ramp_steps={min(20, steps.total - steps.warmup)}"]
    measured = ("--data", data_root, "--metrics", ",".join(METRIC_NAMES), "--no-pictures")
    name = run_name(row.name, seed)
    return Run(name, CONFIG, tuple(settings), seed, evaluations={"held_out": measured})


def run_name(row: str, seed: int) -> str:
    return f"{row}-seed{seed}"


def report(here: Experiment, arguments: argparse.Namespace) -> None:
    """The page and its picture, from the runs that are finished."""
    if not plan_path(here).exists():
        raise BadConfigError(f"{plan_path(here)} is missing: no run was started yet; start them without --report")
    results = {
        row.name: {
            seed: json.loads(path.read_text()) for seed in SEEDS if (path := result_path(row, seed, here)).exists()
        }
        for row in ROWS
    }
    write_report(ROWS, SEEDS, results, load_plan(here), arguments.page, arguments.picture)


def result_path(row: Row, seed: int, here: Experiment) -> Path:
    return here.result_path(run_name(row.name, seed))


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--page", type=Path, default=ROOT / "docs/ablation.md", help="default: docs/ablation.md")
    picture = "docs/images/ablation.png"
    parser.add_argument("--picture", type=Path, default=ROOT / picture, help=f"default: {picture}")


if __name__ == "__main__":
    sys.exit(main("ablation", __doc__, runs_of, prepare=prepare, report=report, extra_options=add_options))
