"""What ablation.py measured: paired differences, as a page and a picture. Every number and verdict comes from results.

The unit of a comparison is the held-out sequence: its value is the mean over the seeds, and a row and its base are
paired by sequence. The interval is a BCa bootstrap over sequences; p is Wilcoxon's signed-rank test, two-sided, and
is corrected by Holm's method over all comparisons of one metric. `better` and `worse` need a corrected p below 0.05
and the same sign in every seed, so that neither a lucky seed nor many comparisons make a verdict.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import matplotlib
import numpy as np
from scipy.stats import wilcoxon

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from vsr_dist.metrics.registry import METRICS
from vsr_dist.metrics.uncertainty import LEAST_FOR_VERDICT, LEVEL, Verdict, interval_over_sequences

METRIC_NAMES = ("psnr_y", "ssim_y", "tof", "stlpips", "flicker")
COLOURS = {"better": "#1a7f37", "worse": "#c4432b", "within noise": "#888888", "too few sequences": "#bbbbbb"}

# Sequence -> metric -> value, of one method.
Scores = Mapping[str, Mapping[str, float]]
# Row -> seed -> the result file of runner.py.
Results = Mapping[str, Mapping[int, Mapping[str, Any]]]


class Row(Protocol):
    """What the report reads of a row of ablation.py."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def base(self) -> str | None: ...


@dataclass(frozen=True)
class Effect:
    """A row minus its base in one metric; `p` is corrected. `seed_differences`: over all sequences, per common seed."""

    row: str
    base: str
    metric: str
    difference: float
    low: float
    high: float
    p: float | None
    seed_differences: tuple[float, ...]
    num_sequences: int
    verdict: Verdict


def scores_of(result: Mapping[str, Any], method: Literal["ours", "bicubic"] = "ours") -> Scores:
    """Each held-out part is a source of its own in the evaluation, so a scope of its table is a sequence."""
    table = result["evaluations"]["held_out"]["table"]
    return {scope: by_method[method] for scope, by_method in table.items() if scope != "overall"}


def mean_over_sequences(scores: Scores, metric: str) -> float | None:
    values = [by_metric[metric] for by_metric in scores.values() if metric in by_metric]
    return statistics.fmean(values) if values else None


def effects_of(rows: Sequence[Row], results: Results) -> list[Effect]:
    """Every comparison with at least one seed that both rows have finished, corrected within each metric."""
    found = []
    for metric in METRIC_NAMES:
        compared = [
            effect_of(row.name, row.base, metric, results)
            for row in rows
            if row.base is not None and results[row.name].keys() & results[row.base].keys()
        ]
        found += with_verdicts([one for one in compared if one is not None])
    return found


def effect_of(row: str, base: str, metric: str, results: Results) -> Effect | None:
    """Without correction and verdict; None where fewer than three sequences have the metric."""
    seeds = sorted(results[row].keys() & results[base].keys())
    differences_SN = []
    for seed in seeds:
        this, other = scores_of(results[row][seed]), scores_of(results[base][seed])
        names = [name for name in this if metric in this[name] and metric in other.get(name, {})]
        differences_SN.append([this[name][metric] - other[name][metric] for name in names])
    differences_N = np.mean(differences_SN, axis=0)
    interval = interval_over_sequences(list(differences_N), [1.0] * len(differences_N))
    if interval is None:
        return None
    p = None
    if len(differences_N) >= LEAST_FOR_VERDICT:
        p = float(wilcoxon(differences_N).pvalue) if np.any(differences_N) else 1.0
    by_seed = tuple(float(np.mean(values)) for values in differences_SN)
    mean = float(differences_N.mean())
    return Effect(
        row, base, metric, mean, interval.low, interval.high, p, by_seed, len(differences_N), "too few sequences"
    )


def with_verdicts(effects: Sequence[Effect]) -> list[Effect]:
    """The effects of one metric with Holm's p and their verdicts."""
    corrected = holm([effect.p for effect in effects])
    found = []
    for effect, p in zip(effects, corrected, strict=True):
        verdict: Verdict = "too few sequences"
        if p is not None:
            agree = len({np.sign(value) for value in effect.seed_differences}) == 1
            good = effect.difference * METRICS[effect.metric].direction > 0
            verdict = ("better" if good else "worse") if p < 1 - LEVEL and agree else "within noise"
        found.append(replace(effect, p=p, verdict=verdict))
    return found


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction (1979); None stays None and does not count."""
    known = sorted((p, place) for place, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[place] = largest
    return corrected


def write_report(
    rows: Sequence[Row],
    seeds: Sequence[int],
    results: Results,
    plan: Mapping[str, Any],
    page: Path,
    picture: Path,
) -> None:
    """The page and its picture."""
    effects = effects_of(rows, results)
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw(rows, effects, picture)
    page.write_text(document(rows, seeds, results, plan, effects, picture.name))


def document(
    rows: Sequence[Row],
    seeds: Sequence[int],
    results: Results,
    plan: Mapping[str, Any],
    effects: Sequence[Effect],
    picture: str,
) -> str:
    finished = sum(len(found) for found in results.values())
    planned = len(rows) * len(seeds)
    state = "" if finished == planned else f"\n**So far {finished} of {planned} runs are finished.**\n"
    minutes = plan["cpu_s_per_run"] / 60
    return f"""# What is each technique worth?

<!-- Written by `python experiments/ablation.py --report` from experiments/results/ablation/; do not edit. -->

Every row has the same CPU time for training, {minutes:.3g} CPU-minutes on one thread, and {len(seeds)} seeds; a
cheaper row takes more steps. A row differs from its base row in one thing (`experiments/configs/ablation.yaml` and
the settings in `experiments/ablation.py`). Training video: bikes and bigbuckbunny without their last fifth. No
setting of any row was chosen by looking at the held-out sequences.
{state}
{scores_table(rows, results)}

Means over seeds and {_num_sequences(results)} held-out sequences, each sequence counting the same. The unit of a
metric is in [evaluation](evaluation.md). `flicker` has no value where a sequence has no static pixels. Blur lowers
`flicker` and `tOF` may be low for a blurred image too: read both beside PSNR and ST-LPIPS.

## In short

{in_short(rows, results, effects)}

## Differences

Row minus its base, paired by sequence after averaging the seeds: mean, 95 % interval over sequences (BCa bootstrap),
p of Wilcoxon's signed-rank test with Holm's correction over the comparisons of a metric. A verdict needs p below 0.05
and the same sign in every seed.

{effects_table(rows, effects)}

![Differences with their intervals](images/{picture})

## What this can and cannot say

- The sequences are parts of five videos. They stand for these videos; parts of one video are alike, so the intervals
  are too narrow for video in general. Two of the videos are also trained on, in other frames.
- The networks are small (32 channels, 5 blocks) and train for minutes. A technique that pays late, as recurrence may,
  is judged too early here.
- Equal CPU time means equal cost of training on a CPU. The cost of a frame at inference differs: a bidirectional
  network needs the whole clip, alignment by Farneback flow estimates the flow.
- PSNR and SSIM cannot show what an adversary is for; ST-LPIPS is the column for it.

Run it again: `python experiments/ablation.py --jobs 1` goes on with what is missing. It needs the sample clips
(`pip install "vsr-dist[samples,perceptual]"`) and two films of a Debian package (`apt-get install opencv-doc`).
"""


def _num_sequences(results: Results) -> int:
    return max((len(scores_of(one)) for found in results.values() for one in found.values()), default=0)


def scores_table(rows: Sequence[Row], results: Results) -> str:
    """A line per row: mean over seeds of the mean over sequences; bicubic, which trains nothing, first."""
    headings = [METRICS[name].heading for name in METRIC_NAMES]
    lines = [
        "| row | base | seeds | steps | CPU min | " + " | ".join(headings) + " |",
        "|" + "---|" * (5 + len(headings)),
    ]
    any_result = next((one for found in results.values() for one in found.values()), None)
    if any_result is not None:
        lines.append(_line(["bicubic", "", "", "", ""], [scores_of(any_result, "bicubic")]))
    titles = {row.name: row.title for row in rows}
    for row in rows:
        found = list(results[row.name].values())
        base = "" if row.base is None else titles[row.base]
        cells = [row.title, base, str(len(found)), "-", "-"]
        if found:
            cells[3] = f"{found[0]['steps']:,}"
            cells[4] = f"{statistics.fmean(one['cpu_s'] for one in found) / 60:.1f}"
        lines.append(_line(cells, [scores_of(one) for one in found]))
    return "\n".join(lines)


def _row_mean(results: Iterable[Mapping[str, Any]], metric: str) -> float | None:
    """The mean over seeds; None where there is no seed, or no sequence with the metric."""
    return _mean_of([scores_of(one) for one in results], metric)


def _mean_of(scores: Sequence[Scores], metric: str) -> float | None:
    means = [mean for one in scores if (mean := mean_over_sequences(one, metric)) is not None]
    return statistics.fmean(means) if means else None


def _line(cells: list[str], scores: Sequence[Scores]) -> str:
    for metric in METRIC_NAMES:
        mean = _mean_of(scores, metric)
        cells.append("-" if mean is None else METRICS[metric].show(mean))
    return "| " + " | ".join(cells) + " |"


def in_short(rows: Sequence[Row], results: Results, effects: Sequence[Effect]) -> str:
    """Sentences made of the verdicts: which row is best in which metric, and what each comparison decides."""
    lines = []
    titles = {row.name: row.title for row in rows}
    for metric in METRIC_NAMES:
        means = {row.name: mean for row in rows if (mean := _row_mean(results[row.name].values(), metric)) is not None}
        if means:
            best = max(means, key=lambda name: means[name] * METRICS[metric].direction)
            lines.append(f"- Best {METRICS[metric].heading}: {titles[best]} ({METRICS[metric].show(means[best])}).")
    for row in rows:
        decided = {effect.metric: effect for effect in effects if effect.row == row.name}
        if row.base is None or not decided:
            continue
        parts = []
        for verdict in ("better", "worse", "within noise", "too few sequences"):
            names = [
                METRICS[metric].title
                + (f" ({METRICS[metric].show(effect.difference, '+')})" if verdict in ("better", "worse") else "")
                for metric, effect in decided.items()
                if effect.verdict == verdict
            ]
            parts += [f"{verdict}: {', '.join(names)}"] if names else []
        lines.append(f"- **{row.title}** against {titles[row.base]}: {'; '.join(parts)}.")
    return "\n".join(lines) if lines else "Nothing is finished."


def effects_table(rows: Sequence[Row], effects: Sequence[Effect]) -> str:
    titles = {row.name: row.title for row in rows}
    lines = ["| row minus base | " + " | ".join(METRICS[name].heading for name in METRIC_NAMES) + " |"]
    lines.append("|" + "---|" * (1 + len(METRIC_NAMES)))
    for row in rows:
        if row.base is None:
            continue
        found = {effect.metric: effect for effect in effects if effect.row == row.name}
        cells = [f"{row.title} - {titles[row.base]}"]
        cells += [_effect_cell(found[metric]) if metric in found else "-" for metric in METRIC_NAMES]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _effect_cell(effect: Effect) -> str:
    difference, low, high = (METRICS[effect.metric].show(v, "+") for v in (effect.difference, effect.low, effect.high))
    p = "" if effect.p is None else f", p {effect.p:.2g}"
    verdict = f"**{effect.verdict}**" if effect.verdict in ("better", "worse") else effect.verdict
    return f"{difference} ({low} to {high}){p}, n {effect.num_sequences}: {verdict}"


def draw(rows: Sequence[Row], effects: Sequence[Effect], picture: Path) -> None:
    """One panel per metric, one line per comparison; right of 0 is better in every panel."""
    titles = {row.name: row.title for row in rows}
    names = [row.name for row in rows if row.base is not None]
    labels = [f"{row.title}\n- {titles[row.base]}" for row in rows if row.base is not None]
    figure, axes = plt.subplots(1, len(METRIC_NAMES), sharey=True, figsize=(15, 1.2 + 0.5 * len(names)))
    for axis, metric in zip(axes, METRIC_NAMES, strict=True):
        scale = METRICS[metric].direction * METRICS[metric].factor
        axis.axvline(0, color="black", linewidth=0.8)
        for effect in (one for one in effects if one.metric == metric):
            place = -names.index(effect.row)
            colour = COLOURS[effect.verdict]
            axis.plot([scale * effect.low, scale * effect.high], [place, place], color=colour, linewidth=2)
            axis.plot(scale * effect.difference, place, "o", color=colour)
            axis.plot(
                [scale * value for value in effect.seed_differences],
                [place - 0.25] * len(effect.seed_differences),
                "|",
                color=colour,
                markersize=5,
            )
        better = "higher" if METRICS[metric].direction > 0 else "lower"
        axis.set_title(f"{METRICS[metric].heading}\n({better} is better, shown to the right)", fontsize=9)
        axis.grid(axis="x", alpha=0.3)
        axis.tick_params(labelsize=8)
    axes[0].set_ylim(0.7 - len(names), 0.7)
    axes[0].set_yticks([-place for place in range(len(names))], labels, fontsize=7)
    handles = [plt.Line2D([], [], color=colour, marker="o", label=name) for name, colour in COLOURS.items()]
    handles.append(plt.Line2D([], [], color="black", marker="|", linestyle="", label="one seed"))
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(picture, dpi=90)
    plt.close(figure)
