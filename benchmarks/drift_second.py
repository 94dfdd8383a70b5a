"""What docs/drift.md says of the second round: the pilots, their choice, and its repeat.

The prose is drift_pilots.txt and drift_second.txt. The section lies between two marks in the page, so that it can be
written where the first round's runs are not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import matplotlib
import numpy as np
import yaml
from drift_arms import CHOSEN, PILOT_ARMS, SECOND_ARMS, titles_of
from drift_measures import (
    GAMMA,
    LOSS,
    WITHOUT_PERCEPTUAL,
    acceptance,
    autocorrelation,
    column,
    gamma_range,
    later_half,
    spread,
    swing,
)
from drift_page import Runs, acceptance_table, arm_table, cost_table, draw_curves, load_phase, markdown, save, sentences
from machine import describe_machine

from sweeps.curves import Row, curve
from vsr_dist.core.errors import BadInputError

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PILOTS_TEMPLATE, SECOND_TEMPLATE = (Path(__file__).with_name(f"drift_{name}.txt") for name in ("pilots", "second"))
NOT_RUN = "The repeat on the unseen clips (`--phases second`) has not been run."
BEGIN, END = "<!-- second round: written by drift_proof.py -->", "<!-- end of the second round -->"
FIRST_WINNER = "winner"
DRAWN = (FIRST_WINNER, "prop010", CHOSEN)
# At this distance the held-out loss follows gamma, which the pilots log every 4 steps.
LAG_STEPS = 8


def with_swings(runs: Mapping[str, Runs], rows: Mapping[str, Mapping[int, Sequence[Row]]]) -> dict[str, Runs]:
    """The measures of each run and, beside them, how much its loss and its gamma swing."""
    beside = {"swing": swing, "gamma_range": gamma_range, "autocorrelation": autocorrelation}
    return {
        name: {
            seed: {**values, **{key: measure(rows[name][seed]) for key, measure in beside.items()}}
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
    shown = {"rise": "rise", "rise_high": "upper end", "swing": "swing", "autocorrelation": "autocorrelation"}
    body = [[titles[name], *(spread(column(found, key)).text(3) for key in shown)] for name, found in runs.items()]
    return markdown(["", *shown.values()], body)


def gammas_of(run_dir: Path, rows: Sequence[Row]) -> list[tuple[int, float]]:
    """(Step, gamma of R1) as logged, or as configured where it is not steered."""
    if any(GAMMA in row for _, row in rows):
        return curve(rows, GAMMA)
    fixed = yaml.safe_load((run_dir / "config.yaml").read_text())["adversary"]["r1_gamma"]
    return [(rows[place][0], fixed) for place in (0, -1)]


def draw_swings(
    work: Path, rows: Mapping[str, Mapping[int, Sequence[Row]]], titles: Mapping[str, str], path: Path
) -> None:
    """Gamma and the held-out loss of seed 0 of three arms, one beside the other."""
    figure, axes = plt.subplots(2, len(DRAWN), figsize=(12.0, 4.6), sharex=True, sharey="row")
    for place, name in enumerate(DRAWN):
        upper, lower = axes[0][place], axes[1][place]
        run = rows[name][0]
        gammas = gammas_of(work / "pilots" / f"{name}-seed0", run)
        upper.plot(*zip(*gammas, strict=True), color="#4363d8", linewidth=1.2)
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


def explained_by_gamma(rows: Sequence[Row]) -> float:
    """Share of the variance of the held-out loss in the later half that log gamma explains, LAG_STEPS steps before."""
    steps, losses = zip(*later_half(rows, LOSS), strict=True)
    known, gammas = zip(*curve(rows, GAMMA), strict=True)
    before = np.interp(np.array(steps) - LAG_STEPS, known, np.log(gammas))
    return float(np.corrcoef(before, losses)[0, 1] ** 2)


def pilots_part(work: Path, pictures: Path) -> tuple[str, dict[str, Any]]:
    """The text of the pilots and their numbers; BadInputError if one has not been run."""
    titles = titles_of(PILOT_ARMS)
    found, rows = load_phase(work, "pilots", titles, WITHOUT_PERCEPTUAL)
    pilots = with_swings(found, rows)
    draw_swings(work, rows, titles, pictures / "drift_swings.png")
    text = {
        "pilot_table": pilot_table(pilots, titles),
        "num_pilots": str(sum(len(runs) for runs in pilots.values())),
        "explained": f"{100 * explained_by_gamma(rows[FIRST_WINNER][0]):.0f}",
        "chosen": titles[CHOSEN],
    }
    return Template(PILOTS_TEMPLATE.read_text()).substitute(text), pilots


def second_part(work: Path, pictures: Path) -> tuple[str, dict[str, Any]]:
    """The text of the repeat and its numbers; BadInputError if an arm of it has not been run."""
    titles = titles_of(SECOND_ARMS)
    found, rows = load_phase(work, "second", titles, WITHOUT_PERCEPTUAL)
    second = with_swings(found, rows)
    draw_curves(rows, titles, pictures / "drift_second.png")
    seed = min(second[CHOSEN])
    config = yaml.safe_load((work / "second" / f"{CHOSEN}-seed{seed}" / "config.yaml").read_text())
    text = {
        "windows": str(config["data"]["val_clips"]),
        "evaluations": str(config["train"]["steps"] // config["train"]["validate_every"]),
        "first_seed": str(seed),
        "second_table": arm_table(second, titles),
        "second_sentences": sentences(second, titles),
        "swing_table": swing_table(second, titles),
        "acceptance_chosen": acceptance_table(second[CHOSEN], titles[CHOSEN]),
        "held": held_sentence(second[CHOSEN], titles[CHOSEN]),
        "cost_table": cost_table(work, second, titles, "second"),
    }
    return Template(SECOND_TEMPLATE.read_text()).substitute(text), second


def write_section(work: Path, page: Path, pictures: Path, result: Path) -> None:
    """Put the section between the marks of the page and the numbers beside those of the first round."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise BadInputError(f"{page} has no place for the second round; expected the lines {BEGIN!r} and {END!r}")
    pictures.mkdir(parents=True, exist_ok=True)
    text, pilots = pilots_part(work, pictures)
    repeat, second = second_part(work, pictures) if (work / "second").exists() else (NOT_RUN, {})
    text = f"{text.strip()}\n\n{repeat}"
    page.write_text(f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}")
    data = json.loads(result.read_text()) if result.exists() else {}
    data["second_round"] = {"pilots": pilots, "runs": second, "machine": describe_machine()}
    result.write_text(json.dumps(data, indent=1) + "\n")
