"""The arms of drift_proof.py: what is run with several seeds."""

from __future__ import annotations

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
NEAR = ("adversary.r1_gamma=0.05", "adversary.r2_gamma=0.05")
PROPORTIONAL = ("control.gamma.rule=proportional", "control.gamma.rate=0.005")
CHOSEN = "steady"


def pilot(title: str, *settings: str, num_seeds: int = 1) -> Arm:
    """The first round's winner with something changed; no perceptual metric, which no choice reads."""
    return Arm(title, BASE, (*FIRST_WINNER, *MEASURED, "train.perceptual_metric=none", *settings), num_seeds)


PILOT_ARMS = {
    "winner": pilot("the first round's winner", num_seeds=3),
    "fixed": pilot(
        "gamma fixed at 0.025", "control.gamma.target=0", "adversary.r1_gamma=0.025", "adversary.r2_gamma=0.025"
    ),
    CHOSEN: pilot("proportional, from 0.05", *PROPORTIONAL, *NEAR, num_seeds=3),
}
SECOND_ARMS = {
    CHOSEN: Arm("the second round's choice", ROOT / "configs/drift/steady.yaml", MEASURED),
    "winner": Arm("the first round's winner", BASE, (*FIRST_WINNER, *MEASURED)),
    "paper": Arm("paper", PAPER, MEASURED),
    "default": Arm("the study's base", BASE, MEASURED),
}
