"""The arms of drift_proof.py: what is run with several seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAPER = ROOT / "configs/drift/paper.yaml"
BASE = ROOT / "configs/drift/base.yaml"


@dataclass(frozen=True)
class Arm:
    """What is run with several seeds: a configuration and what is changed in it.

    `num_seeds` is for an arm that has its own number of them.
    """

    title: str
    config: Path
    settings: tuple[str, ...] = ()
    num_seeds: int | None = None


def titles_of(arms: Mapping[str, Arm]) -> dict[str, str]:
    return {name: arm.title for name, arm in arms.items()}


PAPER_ARMS = {
    "paper": Arm("paper", PAPER),
    "filters": Arm("paper, twice the filters", PAPER, ("discriminator.filters=32",)),
    "dropout": Arm("paper, dropout 0.3", PAPER, ("discriminator.dropout=0.3",)),
}


def repeat_arms(winner: Path) -> dict[str, Arm]:
    return {
        "winner": Arm("the study's winner", winner),
        "paper": PAPER_ARMS["paper"],
        "default": Arm("the study's base", BASE),
    }


# The second round, in which every arm is measured on 64 held-out windows: with 24, accuracies move in steps of 4 %.
MEASURED = ("data.val_clips=64",)
# Trial 3 of configs/studies/drift.yaml, the first round's winner, spelt out.
FIRST_WINNER = (
    "control.gamma.target=0.92",
    "discriminator_optimizer.learning_rate=2e-4",
    "discriminator_optimizer.final_ratio=0.1",
)
CHOSEN = "fixed030"
FIXED = ("control.gamma.target=0", "adversary.r1_gamma=0.03", "adversary.r2_gamma=0.03")


def proportional(rate: float, *settings: str) -> tuple[str, ...]:
    """Gamma steered by the proportional rule, from near where it settles."""
    start = ("adversary.r1_gamma=0.05", "adversary.r2_gamma=0.05")
    return ("control.gamma.rule=proportional", f"control.gamma.rate={rate}", *start, *settings)


def pilot(title: str, *settings: str, num_seeds: int = 1) -> Arm:
    """The first round's winner with something changed; no perceptual metric, which no choice reads."""
    seen = (*MEASURED, "train.perceptual_metric=none", "train.log_every=4")
    return Arm(title, BASE, (*FIRST_WINNER, *seen, *settings), num_seeds)


PILOT_ARMS = {
    "winner": pilot("the first round's winner"),
    "prop005": pilot("proportional, rate 0.005", *proportional(0.005)),
    "prop010": pilot("proportional, rate 0.01", *proportional(0.01), num_seeds=2),
    "wait200": pilot("proportional, rate 0.01, after 200 steps", *proportional(0.01, "control.gamma.after=200")),
    CHOSEN: pilot("gamma fixed at 0.03", *FIXED, num_seeds=3),
    "rest01": pilot("gamma fixed at 0.03, D's final_ratio 0.01", *FIXED, "discriminator_optimizer.final_ratio=0.01"),
}
# No perceptual metric here either: on 64 windows it takes more time than the training.
REPEATED = (*MEASURED, "train.perceptual_metric=none")
SECOND_ARMS = {
    CHOSEN: Arm("the second round's choice", BASE, (*FIRST_WINNER, *FIXED, *REPEATED)),
    "paper": Arm("paper", PAPER, REPEATED),
}
