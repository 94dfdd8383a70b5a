"""What docs/drift.md says of the second round: the pilots, their choice, and its repeat; the prose is drift_second.txt.

The section lies between two marks in the page, so that it can be written where the first round's runs are not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import matplotlib
import yaml
from drift_arms import CHOSEN, PILOT_ARMS, SECOND_ARMS
from drift_measures import GAMMA, LOSS, acceptance, column, gamma_range, later_half, spread, swing
from drift_page import Runs, acceptance_table, arm_table, cost_table, draw_curves, load_phase, markdown, save, sentences
from machine import describe_machine

from sweeps.curves import Row, curve
from vsr_dist.core.errors import BadInputError

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TEMPLATE = Path(__file__).with_name("drift_second.txt")
BEGIN, END = "<!-- second round: written by drift_proof.py -->", "<!-- end of the second round -->"
FIRST_WINNER = "winner"


def with_swings(runs: Mapping[str, Runs], rows: Mapping[str, Mapping[int, Sequence[Row]]]) -> dict[str, Runs]:
    """The measures of each run and, beside them, how much its loss and its gamma swing."""
    return {
        name: {
            seed: {**values, "swing": swing(rows[name][seed]), "gamma_range": gamma_range(rows[name][seed])}
            for seed, values in found.items()
        }
        for name, found in runs.items()
    }


def pilot_table(runs: Mapping[str, Runs], titles: Mapping[str, str]) -> str:
    """One line per arm: means over seeds; the upper end of the rise also seed by seed."""
    body = []
    for name, found in runs.items():
        low, high = min(column(found, "gamma_range")), max(column(found, "gamma_range"))
        body.append(
            [
                titles[name],
                ", ".join(str(seed) for seed in found),
                spread(column(found, "loss")).text(2),
                f"{spread(column(found, 'rise')).mean:+.3f}",
                f"{spread(column(found, 'rise_high')).mean:.3f}",
                ", ".join(f"{value:.3f}" for value in column(found, "rise_high")),
                f"{spread(column(found, 'swing')).mean:.3f}",
                f"{low:.1f}" if low == high else f"{low:.1f} to {high:.1f}",
                f"{spread(column(found, 'psnr_gain')).mean:.2f}",
                f"{max(column(found, 'dead')):.3f}",
            ]
        )
    header = ["setting", "seeds", "normalised loss", "rise", "upper end", "of each seed", "swing", "gamma, max / min"]
    return markdown([*header, "PSNR-Y gain, dB", "dead, most"], body)


def swing_table(runs: Mapping[str, Runs], titles: Mapping[str, str]) -> str:
    """What the interval of the rise is made of, on the unseen clips."""
    body = [
        [
            titles[name],
            spread(column(found, "rise")).text(3),
            spread(column(found, "rise_high")).text(3),
            spread(column(found, "swing")).text(3),
        ]
        for name, found in runs.items()
    ]
    return markdown(["", "rise", "upper end", "swing"], body)


def draw_swings(rows: Mapping[str, Mapping[int, Sequence[Row]]], titles: Mapping[str, str], path: Path) -> None:
    """Gamma and the held-out loss of seed 0, the first round's winner and the choice one beside the other."""
    figure, axes = plt.subplots(2, 2, figsize=(9.0, 4.6), sharex=True, sharey="row")
    for place, name in enumerate((FIRST_WINNER, CHOSEN)):
        upper, lower = axes[0][place], axes[1][place]
        run = rows[name][0]
        upper.plot(*zip(*curve(run, GAMMA), strict=True), color="#4363d8", linewidth=1.2)
        upper.set(title=titles[name], yscale="log")
        lower.plot(*zip(*curve(run, LOSS), strict=True), color="#c0392b", linewidth=1.2)
        lower.axvspan(*(later_half(run, LOSS)[end][0] for end in (0, -1)), color="#eeeeee")
        lower.set(xlabel="adversarial step", ylim=(0.0, 1.1))
    axes[0][0].set_ylabel("gamma of R1")
    axes[1][0].set_ylabel("D loss / chance, held out")
    save(figure, path)


def held_sentence(runs: Runs, title: str) -> str:
    checks = [acceptance(values) for values in runs.values()]
    name = "rise's upper end below 0.10"
    ends = column(runs, "rise_high")
    return (
        f"{title}: upper end below 0.10 in {sum(check[name] for check in checks)} of {len(checks)} runs "
        f"({min(ends):.3f} to {max(ends):.3f}); everything held in {sum(all(check.values()) for check in checks)}."
    )


def titles_of(arms: Mapping[str, Any]) -> dict[str, str]:
    return {name: arm.title for name, arm in arms.items()}


def section(work: Path, pictures: Path) -> tuple[str, dict[str, Any]]:
    """The text between the marks, and the numbers for the JSON; BadInputError names the phase that is missing."""
    pilot_titles, titles = titles_of(PILOT_ARMS), titles_of(SECOND_ARMS)
    pilot_runs, pilot_rows = load_phase(work, "pilots", pilot_titles)
    second_runs, second_rows = load_phase(work, "second", titles)
    pilots, second = with_swings(pilot_runs, pilot_rows), with_swings(second_runs, second_rows)
    pictures.mkdir(parents=True, exist_ok=True)
    draw_swings(pilot_rows, pilot_titles, pictures / "drift_swings.png")
    draw_curves(second_rows, titles, pictures / "drift_second.png")
    seed = min(second[CHOSEN])
    config = yaml.safe_load((work / "second" / f"{CHOSEN}-seed{seed}" / "config.yaml").read_text())
    text = {
        "pilot_table": pilot_table(pilots, pilot_titles),
        "num_pilots": str(sum(len(found) for found in pilots.values())),
        "chosen": pilot_titles[CHOSEN],
        "windows": str(config["data"]["val_clips"]),
        "evaluations": str(config["train"]["steps"] // config["train"]["validate_every"]),
        "first_seed": str(seed),
        "second_table": arm_table(second, titles),
        "second_sentences": sentences(second, titles),
        "swing_table": swing_table(second, titles),
        "acceptance_chosen": acceptance_table(second[CHOSEN], titles[CHOSEN]),
        "held": "\n".join(f"- {held_sentence(second[name], titles[name])}" for name in (CHOSEN, FIRST_WINNER)),
        "cost_table": cost_table(work, second, titles, "second"),
    }
    return Template(TEMPLATE.read_text()).substitute(text), {"pilots": pilots, "runs": second}


def write_section(work: Path, page: Path, pictures: Path, result: Path) -> None:
    """Put the section between the marks of the page and the numbers beside those of the first round."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise BadInputError(f"{page} has no place for the second round; expected the lines {BEGIN!r} and {END!r}")
    text, numbers = section(work, pictures)
    page.write_text(f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}")
    data = json.loads(result.read_text()) if result.exists() else {}
    data["second_round"] = {**numbers, "machine": describe_machine()}
    result.write_text(json.dumps(data, indent=1) + "\n")
