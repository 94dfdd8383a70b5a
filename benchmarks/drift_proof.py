"""The proof of docs/drift.md: reproduce the paper's drift, search for a cure, repeat it on clips that nobody has seen.

    make drift-proof                                        in the background; run again to go on
    .venv/bin/python benchmarks/drift_proof.py --jobs 2     the same in the foreground

Phases, in this order unless --phases names some of them:

    pretrain  pack the sample clips, train the generator from which every run starts
    paper     the paper's adversary and its two proposed cures alone, each with --seeds seeds
    study     configs/studies/drift.yaml, and `vsr-dist study promote` of its best trial to WORK/winner.yaml
    repeat    winner, paper and the base of the study, each with --seeds fresh seeds, on the unseen clips
    pilots    what the swings of the winner come from and what damps them, on the study's windows
    second    what the pilots chose, beside the first round's arms, with fresh seeds again, on the unseen clips
    report    docs/drift.md, its pictures, benchmarks/results/drift_proof.json

`--phases section` writes what the page says of the second round (pilots, second) and leaves the rest of it alone.

Everything is resumed: a finished run is not repeated, an interrupted one goes on from its checkpoint, the study goes
on as studies do. A run is one process with one thread. Run from the repository: the study's file names its folders.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from drift_arms import PAPER_ARMS, PILOT_ARMS, ROOT, SECOND_ARMS, Arm, repeat_arms, titles_of
from drift_data import HELD_OUT, extract, pack
from drift_page import write_page
from drift_second import write_section
from paper_runs import Runner, python, run_alone

from sweeps.study_config import load_study
from vsr_dist.core.errors import run_cli

WORK = Path("runs/drift-proof")
STUDY = ROOT / "configs/studies/drift.yaml"
PHASES = ("pretrain", "paper", "study", "repeat", "pilots", "second", "report")
SECTION = "section"
# The study's trials have seed 0, its repeats the ones behind; these are far from both.
FIRST_FRESH_SEED = 100
SECOND_FRESH_SEED = 200
STEP_LIMIT_S = 8.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--phases", nargs="+", choices=(*PHASES, SECTION), default=list(PHASES), metavar="PHASE")
    parser.add_argument("--seeds", type=int, default=5, help="of each arm of paper and repeat")
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side, one core each")
    parser.add_argument("--winner", type=int, metavar="TRIAL", help="trial to repeat in place of the best feasible one")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="PATH=VALUE", help="every run")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/drift.md")
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs/images")
    parser.add_argument("--result", type=Path, default=ROOT / "benchmarks/results/drift_proof.json")


def pretrain(arguments: argparse.Namespace, runner: Runner) -> None:
    log = WORK / "pack.log"
    clips, frames = WORK / "clips", WORK / "frames"
    runner.run(python("samples", str(clips)), log)
    extract(clips, frames)
    for role in HELD_OUT:
        pack(role, frames, WORK / f"data-{role}", lambda options: runner.run(python(*options), log))
    folder = WORK / "pretrain"
    config = ROOT / "configs/drift/pretrain.yaml"
    runner.train(config, [f"run_dir={folder}", f"data.root={WORK / 'data-study'}", *arguments.overrides], folder)


def run_arms(
    phase: str, role: str, arms: dict[str, Arm], first_seed: int, arguments: argparse.Namespace, runner: Runner
) -> None:
    """Seed by seed, so that an early look has every arm. One run that fails stops the phase, after the others."""

    def train(name: str, seed: int) -> None:
        arm, folder = arms[name], WORK / phase / f"{name}-seed{seed}"
        settings = [*arm.settings, f"data.root={WORK / f'data-{role}'}", f"train.init_generator={WORK / 'pretrain'}"]
        settings += [f"run_dir={folder}", f"name={phase}-{name}-seed{seed}", f"seed={seed}", "tracking.mlflow=false"]
        runner.train(arm.config, [*settings, *arguments.overrides], folder)

    numbers = {name: arm.num_seeds or arguments.seeds for name, arm in arms.items()}
    seeds = range(first_seed, first_seed + max(numbers.values()))
    with ThreadPoolExecutor(arguments.jobs) as pool:
        done = {
            (name, seed): pool.submit(train, name, seed)
            for seed in seeds
            for name, number in numbers.items()
            if seed < first_seed + number
        }
        for (name, seed), future in done.items():
            future.result()
            runner.say(f"{phase}: {name}, seed {seed}: done")


def study(arguments: argparse.Namespace, runner: Runner) -> None:
    config = ["--config", str(STUDY)]
    overrides = [f"set=[{','.join([*load_study(STUDY).set, *arguments.overrides])}]"] if arguments.overrides else []
    options = [part for override in overrides for part in ("--set", override)]
    log = WORK / "study.log"
    spent = runner.run(python("study", "run", *config, "--workers", str(arguments.jobs), *options), log)
    runner.say(f"study: driver and trials took {spent / 60:.1f} CPU-minutes in this call; see {log}")
    runner.run(python("study", "report", *config, *options), log)
    promote(arguments, runner)


def promote(arguments: argparse.Namespace, runner: Runner) -> None:
    """The best feasible trial to WORK/winner.yaml; if there is none, the command says so and --winner picks one."""
    number = [] if arguments.winner is None else ["--number", str(arguments.winner)]
    command = python("study", "promote", "--config", str(STUDY), "--out", str(WORK / "winner.yaml"), *number)
    runner.run(command, WORK / "study.log")


def step_costs(arguments: argparse.Namespace, runner: Runner, arms: dict[str, Arm]) -> None:
    """CPU seconds per step of each arm, one at a time, without validation; measured once."""
    for name, arm in arms.items():
        noted = WORK / "step_cost" / f"{name}.json"
        if noted.exists():
            continue
        noted.parent.mkdir(exist_ok=True)
        folder = noted.with_suffix("")
        settings = [*arm.settings, *arguments.overrides, f"data.root={WORK / 'data-study'}", f"run_dir={folder}"]
        settings += [
            f"train.init_generator={WORK / 'pretrain'}",
            "train.steps=100000",
            "train.log_every=1",
            "train.validate_every=100000",
        ]
        settings += ["train.checkpoint_every=100000", "data.val_clips=1", "tracking.mlflow=false"]
        settings += ["train.perceptual_metric=none"]
        step_s = runner.cpu_per_step(arm.config, settings, folder, STEP_LIMIT_S)
        runner.publish(noted, {"cpu_s_per_step": step_s})


def run_phases(arguments: argparse.Namespace, runner: Runner) -> None:
    phases = arguments.phases
    if "pretrain" in phases:
        pretrain(arguments, runner)
    if "paper" in phases:
        run_arms("paper", "study", PAPER_ARMS, 0, arguments, runner)
    if "study" in phases:
        study(arguments, runner)
    arms = repeat_arms(WORK / "winner.yaml")
    if "repeat" in phases:
        if not (WORK / "winner.yaml").exists():
            promote(arguments, runner)
        run_arms("repeat", "unseen", arms, FIRST_FRESH_SEED, arguments, runner)
        step_costs(arguments, runner, arms)
    if "pilots" in phases:
        run_arms("pilots", "study", PILOT_ARMS, 0, arguments, runner)
    if "second" in phases:
        run_arms("second", "unseen", SECOND_ARMS, SECOND_FRESH_SEED, arguments, runner)
        step_costs(arguments, runner, SECOND_ARMS)
    if "report" in phases:
        titles = {"paper": titles_of(PAPER_ARMS), "repeat": titles_of(arms)}
        command = shlex.join(["python", *sys.argv])
        write_page(WORK, titles, load_study(STUDY), command, arguments.page, arguments.pictures, arguments.result)
        runner.say(f"written: {arguments.page}, {arguments.pictures}, {arguments.result}")
    if SECTION in phases or "report" in phases:
        write_section(WORK, arguments.page, arguments.pictures, arguments.result)
        runner.say(f"written: the second round in {arguments.page}, {arguments.pictures}, {arguments.result}")


def run(arguments: argparse.Namespace) -> int:
    return run_alone(WORK, "drift_proof.py", lambda runner: run_phases(arguments, runner))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    return run_cli(lambda argv: run(parser.parse_args(argv)), None)


if __name__ == "__main__":
    sys.exit(main())
