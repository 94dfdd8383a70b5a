"""What paper_table.py measured, as docs/paper_table.md and its picture. Every number and verdict comes from results."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from vsr_dist.metrics.registry import METRICS

SHOWN = ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb", "tof")
# What the paper reports for its three rows, PSNR in dB.
PAPERS_PSNR_DB = {"base": 16.32, "lstm": 22.89, "improved": 25.63}

Scores = Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """A row of the table. scores: one entry per seed; a control has a single one. cpu_s, steps: per seed as well."""

    key: str
    title: str
    scores: tuple[Scores, ...]
    parameters: int | None = None
    steps: tuple[int, ...] = ()
    cpu_s: tuple[float, ...] = ()
    stopped_gaining: tuple[bool, ...] = ()

    def values(self, metric: str) -> list[float]:
        """The metric of each seed."""
        return [scores[metric] for scores in self.scores]

    def mean(self, metric: str) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values(metric))


def table(rows: Sequence[Row]) -> str:
    """Markdown; mean over the seeds, in brackets least to greatest."""
    headings = ["row", "parameters", "seeds", "steps", "CPU-minutes", *(METRICS[name].heading for name in SHOWN)]
    lines = [headings]
    for row in rows:
        trained = bool(row.steps)
        line = [row.title, f"{row.parameters:,}" if row.parameters else "-", str(len(row.scores)) if trained else "-"]
        line += [_range(row.steps, "{:,.0f}") if trained else "-"]
        line += [_range([seconds / 60 for seconds in row.cpu_s], "{:.1f}") if trained else "-"]
        line += [_mean_and_range(row.values(name), METRICS[name].decimals) for name in SHOWN]
        lines.append(line)
    text = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([text[0], "|" + "---|" * len(headings), *text[1:]])


def _range(values: Sequence[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def _mean_and_range(values: Sequence[float], decimals: int) -> str:
    mean = f"{statistics.fmean(values):.{decimals}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{decimals}f} to {max(values):.{decimals}f})"


def comparison(row: Row, other: Row, metric: str = "psnr_y") -> str:
    """One sentence; a direction is named only if every seed of one is on the same side of every seed of the other."""
    kind = METRICS[metric]
    heading, decimals, sign = kind.heading, kind.decimals, kind.direction
    difference = row.mean(metric) - other.mean(metric)
    mine, others = ([sign * value for value in one.values(metric)] for one in (row, other))
    if min(mine) > max(others):
        verdict = "better in every seed" if len(mine) > 1 else "better"
    elif max(mine) < min(others):
        verdict = "worse in every seed" if len(mine) > 1 else "worse"
    else:
        verdict = "no clear difference: the seeds overlap"
    return f"**{row.title}** against {other.title}: {heading} {difference:+.{decimals}f} ({verdict})."


def comparisons(rows: Mapping[str, Row]) -> list[str]:
    """What the page says about each of the paper's steps, as far as its rows are measured."""
    pairs = [
        ("base", "mean-colour"),
        ("base", "bicubic"),
        ("lstm", "base"),
        ("lstm", "mean-colour"),
        ("improved-printed", "lstm"),
        ("improved-corrected", "lstm"),
        ("improved-corrected", "improved-printed"),
        ("lstm", "code-best"),
        ("srresnet", "base"),
        ("srresnet", "bicubic"),
    ]
    return [f"- {comparison(rows[one], rows[other])}" for one, other in pairs if one in rows and other in rows]


def papers_claim(rows: Mapping[str, Row]) -> str:
    """The paper's step from base to LSTM beside ours."""
    if "base" not in rows or "lstm" not in rows:
        return ""
    papers = PAPERS_PSNR_DB["lstm"] - PAPERS_PSNR_DB["base"]
    ours = rows["lstm"].mean("psnr_rgb") - rows["base"].mean("psnr_rgb")
    same = "the same direction" if ours > 0 else "the opposite direction"
    return (
        f"The paper reports {papers:+.2f} dB for the LSTM; here it is {ours:+.2f} dB in RGB, {same}. Its base has "
        f"{PAPERS_PSNR_DB['base']:.2f} dB; ours has {rows['base'].mean('psnr_rgb'):.2f} dB in RGB with the calibrated "
        f"perceptual term, and a picture of one colour has "
        f"{rows['mean-colour'].mean('psnr_rgb'):.2f} dB."
        if "mean-colour" in rows
        else ""
    )


def code_text(rows: Mapping[str, Row], codes: Mapping[str, Mapping[str, Any]], best_title: str | None) -> str:
    """What a linear code of the LSTM's size keeps."""
    parts = []
    for name, facts in codes.items():
        parts.append(
            f"{facts['components']} components of {facts['crop_px']} x {facts['crop_px']} crops keep "
            f"{100 * facts['explained_variance']:.1f} % of the variance of the training crops; the held-out LR frames "
            f"come back at {facts['low_psnr_rgb']:.1f} dB and, enlarged by bicubic, at "
            f"{rows[name].mean('psnr_y'):.2f} dB PSNR-Y"
        )
    text = "**What a linear code of the LSTM's size can carry.** " + "; ".join(parts) + "."
    if "code-best" in rows and best_title is not None:
        text += (
            f" The best network of the table ({best_title}) enlarges the code of the reduced size to "
            f"{rows['code-best'].mean('psnr_y'):.2f} dB."
        )
    if "code-best" in rows and "bicubic" in rows:
        lost = rows["bicubic"].mean("psnr_y") - rows["code-best"].mean("psnr_y")
        text += (
            f" That is {lost:.2f} dB below bicubic of the uncoded frames: a generator whose features must pass such a "
            "code cannot be expected to reach bicubic, however long it trains. The paper's encoder is not linear, so "
            "this is a guide and no strict bound."
            if lost > 0
            else f" That is {-lost:.2f} dB above bicubic of the uncoded frames: the code's size is no obstacle."
        )
    return text


def ending_text(rows: Sequence[Row], cpu_minutes: float) -> str:
    """How many runs ended by the rule, and how many by the budget."""
    ended = [stopped for row in rows for stopped in row.stopped_gaining]
    if not ended:
        return ""
    by_gain = sum(ended)
    return (
        f"{by_gain} of {len(ended)} finished runs ended because they had stopped gaining, {len(ended) - by_gain} with "
        f"the budget of {cpu_minutes:g} CPU-minutes while they still gained."
    )


def document(
    rows: Sequence[Row],
    results: Mapping[str, Mapping[str, Any]],
    codes: Mapping[str, Mapping[str, Any]],
    *,
    num_runs: int,
    cpu_minutes: float,
    best_title: str | None,
) -> str:
    """The whole page."""
    by_key = {row.key: row for row in rows}
    so_far = "" if len(results) == num_runs else f" **So far {len(results)} of {num_runs} runs are finished.**"
    protocol = next((found["evaluations"]["held_out"]["protocol"] for found in results.values()), "")
    parts = [
        "# The paper's table, again",
        "Written by `python experiments/paper_table.py --report`; do not edit. The paper's models at a quarter of "
        "its width, with the perceptual term calibrated ([paper.md](paper.md)), on the demo's clips: the last fifth of "
        "bikes and bigbuckbunny and all of carphone are held out. A run ends when its held-out PSNR-Y gained less than "
        f"0.1 dB in the last fifth of its steps, or after {cpu_minutes:g} CPU-minutes. The learning rate is constant, "
        f"1e-4. Mean over the seeds, in brackets least to greatest.{so_far}",
        table(rows),
        ending_text(rows, cpu_minutes),
        "![held-out PSNR over the steps, and every seed's result](images/paper_table.png)",
        "\n".join(comparisons(by_key)),
        papers_claim(by_key),
        code_text(by_key, codes, best_title),
        f"**Protocol.** {protocol}" if protocol else "",
        "**Cut to fit the machine.** 16 channels, 64 hidden units, 24 x 24 crops (64, 256 and 64 x 64 in the paper: "
        "`configs/paper/full`); VGG looks at 1 of 5 frames; one seed of SRResNet. Fixed-size networks run on "
        "tiles of 24 px, whose seams are in the numbers. Each result file in `experiments/results/paper_table` has the "
        "command, versions, commit and curve of its run.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def draw(rows: Sequence[Row], results: Mapping[str, Mapping[str, Any]], key_of: Mapping[str, str], path: Path) -> None:
    """Left: PSNR-Y of the validation windows over the steps, a line per run. Right: every seed's result."""
    figure, (curves, dots) = plt.subplots(1, 2, figsize=(13, 4.8), width_ratios=[3, 2])
    trained = [row for row in rows if row.steps]
    colours = {row.key: f"C{number}" for number, row in enumerate(trained)}
    titled = set()
    bicubic = math.nan
    for name, result in results.items():
        columns, key = result["curve"]["columns"], key_of[name]
        found = [dict(zip(columns, values, strict=True)) for values in result["curve"]["rows"]]
        label = next(row.title for row in trained if row.key == key) if key not in titled else None
        titled.add(key)
        psnr = [row["val/psnr_y"] for row in found]
        curves.plot([row["step"] for row in found], psnr, color=colours[key], linewidth=1.2, label=label)
        bicubic = found[0].get("val_bicubic/psnr_y", bicubic)
    if not math.isnan(bicubic):
        curves.axhline(bicubic, color="black", linestyle="--", linewidth=1, label="bicubic")
    curves.set(xlabel="steps", ylabel="PSNR-Y of the validation windows, dB")
    if results:
        curves.legend(fontsize=8)
    else:
        curves.text(0.5, 0.5, "no run is finished yet", ha="center", transform=curves.transAxes)
    curves.grid(alpha=0.3)
    for place, row in enumerate(rows):
        values = row.values("psnr_y")
        dots.plot(values, [place] * len(values), "o", color=colours.get(row.key, "black"), markersize=5, alpha=0.8)
    dots.set_yticks(range(len(rows)), [row.title for row in rows], fontsize=8)
    dots.invert_yaxis()
    dots.set_xlabel("PSNR-Y of the held-out frames, dB")
    dots.grid(alpha=0.3)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def read_controls(paths: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Name -> result of the controls that are measured."""
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
