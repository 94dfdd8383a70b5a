"""docs/drift.md and its pictures, out of the results of experiments/drift.py, however many there are.

The prose is drift_template.md; everything in it that depends on a number is computed here.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import matplotlib
from runner import ROOT, Experiment, Run
from scipy.stats import t as student
from scipy.stats import theilslopes

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PAGE, PICTURES = ROOT / "docs/drift.md", ROOT / "docs/images"
TEMPLATE = Path(__file__).with_name("drift_template.md")
CURVES_NAME, TRADE_OFF_NAME = "drift_curves.png", "drift_tradeoff.png"
STUDY_NAME = "study.csv"
ABOUT_THE_MACHINE = ("lease", "run_dirs", "slot", "mlflow_run_ids")

LOSS = "drift/paper_loss"
# Targets: level of the tail, upper end of the trend, dead logits; and what the cure must gain in pictures.
LEVEL, TREND_BELOW, DEAD_BELOW = (0.35, 0.75), 0.10, 0.05
PERCEPTION_GAIN, FIDELITY_LOSS_DB = 0.10, 0.5
TAIL_SHARE = 0.25
COLORS = ("#555555", "#16a085", "#c0392b", "#e67e22", "#8e44ad", "#b7950b", "#1f77b4", "#2ca02c", "#17becf", "#e377c2")
NOT_MEASURED = "-"


@dataclass(frozen=True)
class Arm:
    """What is run with several seeds: a configuration and what is changed in it."""

    name: str
    title: str
    config: str
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spread:
    """Mean over seeds, and the ends of its 95 % interval by Student's t; none of those (NaN) for a single one."""

    mean: float
    low: float
    high: float

    def text(self, decimals: int) -> str:
        if math.isnan(self.low):
            return f"{self.mean:.{decimals}f}"
        return f"{self.mean:.{decimals}f} ({self.low:.{decimals}f} to {self.high:.{decimals}f})"


def spread(values: Sequence[float]) -> Spread:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Spread(mean, math.nan, math.nan)
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Spread(mean, mean - half, mean + half)


# Numbers of one run, from its result file.


def column(result: Mapping[str, Any], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of a metric at the validations that have it; two empty lists for a metric that is not there."""
    curve = result["curve"]
    if name not in curve["columns"]:
        return [], []
    place = curve["columns"].index(name)
    points = [(row[0], row[place]) for row in curve["rows"] if row[place] is not None]
    return [step for step, _ in points], [value for _, value in points]


def tail_median(values: Sequence[float]) -> float:
    """Median of the last quarter, by number, rounded up."""
    return statistics.median(values[-math.ceil(TAIL_SHARE * len(values)) :])


def trend(steps: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Theil-Sen trend of the later half of the steps, and the upper end of its 95 % interval; change per whole run."""
    middle = (steps[0] + steps[-1]) / 2.0
    late = [(step, value) for step, value in zip(steps, values, strict=True) if step >= middle]
    if len(late) < 3:
        return math.nan, math.nan
    found = theilslopes([value for _, value in late], [step for step, _ in late], alpha=0.95)
    length = steps[-1] - steps[0]
    return float(found.slope) * length, float(found.high_slope) * length


def sequences(result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Sequence -> metrics of the final generator; `overall` is the mean over sequences."""
    table = result["evaluations"]["unseen"]["table"]
    return {scope: rows["ours"] for scope, rows in table.items()}


def measures(result: Mapping[str, Any]) -> dict[str, float]:
    """Every number of one run that the page shows; those of the discriminator only where there was one."""
    found = dict(sequences(result)["overall"])
    found["hf_gap"] = tail_median(column(result, "val/high_frequency_gap")[1])
    found["cpu_s"] = result["cpu_s"]
    # From which of two pretrainings it started, as a number.
    found["start"] = float(int(result["init_generator_sha256"][:12], 16))
    steps, losses = column(result, LOSS)
    if losses:
        found["loss"] = tail_median(losses)
        found["trend"], found["trend_high"] = trend(steps, losses)
        for name, metric in (("dead", "dead_fraction"), ("paired", "paired_accuracy"), ("auc", "auc"), ("ks", "ks")):
            found[name] = tail_median(column(result, f"drift/{metric}")[1])
        found["probe_auc"] = tail_median(column(result, "drift/probe_auc")[1])
    return found


def kept(values: Mapping[str, float]) -> dict[str, bool]:
    """Which targets of the drift a run meets."""
    return {
        "level": LEVEL[0] <= values["loss"] <= LEVEL[1],
        "trend": values["trend_high"] < TREND_BELOW,
        "dead": values["dead"] < DEAD_BELOW,
    }


# Arms: name -> seed -> measures.

Measured = Mapping[str, Mapping[int, Mapping[str, float]]]


def by_arm(arms: Iterable[Arm], results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[int, dict[str, float]]]:
    found: dict[str, dict[int, dict[str, float]]] = {}
    for arm in arms:
        runs = {
            result["seed"]: measures(result)
            for name, result in results.items()
            if name.rpartition("-seed")[0] == arm.name
        }
        if runs:
            found[arm.name] = runs
    return found


def values_of(runs: Mapping[int, Mapping[str, float]], name: str) -> list[float]:
    return [values[name] for values in runs.values() if name in values and not math.isnan(values[name])]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


DRIFT_COLUMNS = (
    ("loss", "paper's loss, tail", 2),
    ("trend", "its trend", 2),
    ("trend_high", "upper end of the trend", 2),
    ("dead", "dead logits", 3),
    ("auc", "AUC", 2),
    ("ks", "KS", 2),
    ("paired", "paired accuracy", 2),
)
PICTURE_COLUMNS = (
    ("psnr_y", "PSNR-Y, dB", 2),
    ("ssim_y", "SSIM-Y", 4),
    ("tof", "tOF, px", 3),
    ("stlpips", "ST-LPIPS", 4),
    ("hf_gap", "high-frequency gap, nats", 2),
    ("cpu_s", "CPU s per run", 0),
)


def arm_table(measured: Measured, titles: Mapping[str, str], columns: Sequence[tuple[str, str, int]]) -> str:
    rows = []
    for name, runs in measured.items():
        cells = [titles[name], str(len(runs))]
        for key, _, decimals in columns:
            values = values_of(runs, key)
            cells.append(spread(values).text(decimals) if values else NOT_MEASURED)
        rows.append(cells)
    return markdown(["arm", "seeds", *(heading for _, heading, _ in columns)], rows)


def sequence_table(
    arms: Sequence[Arm], results: Mapping[str, Mapping[str, Any]], bicubic: Mapping[str, Mapping[str, float]]
) -> str:
    """PSNR-Y and ST-LPIPS on each sequence, means over seeds, bicubic first."""
    names = [name for name in bicubic if name != "overall"]
    shown = (("psnr_y", 2), ("stlpips", 4))
    rows = [
        ["bicubic", *(" / ".join(f"{bicubic[name][key]:.{decimals}f}" for key, decimals in shown) for name in names)]
    ]
    for arm in arms:
        found = [sequences(result) for key, result in results.items() if key.rpartition("-seed")[0] == arm.name]
        if found:
            cells = [
                " / ".join(
                    f"{statistics.fmean(one[name][key] for one in found):.{decimals}f}" for key, decimals in shown
                )
                for name in names
            ]
            rows.append([arm.title, *cells])
    return markdown(["PSNR-Y / ST-LPIPS", *names], rows)


def acceptance_table(measured: Measured, titles: Mapping[str, str]) -> str:
    """How many runs of each arm meet each target of the drift."""
    rows = []
    for name, runs in measured.items():
        checks = [kept(values) for values in runs.values() if "loss" in values]
        if checks:
            counts = [f"{sum(check[key] for check in checks)} of {len(checks)}" for key in ("level", "trend", "dead")]
            rows.append([titles[name], *counts, f"{sum(all(check.values()) for check in checks)} of {len(checks)}"])
    header = [f"tail {LEVEL[0]} to {LEVEL[1]}", f"trend's upper end below {TREND_BELOW:.2f}"]
    return markdown(["runs that keep", *header, f"dead below {DEAD_BELOW}", "all three"], rows)


def drift_sentence(measured: Measured, num_seeds: int, name: str, title: str) -> str:
    """Whether an arm meets the target of the drift, and by which numbers."""
    runs = measured.get(name)
    if not runs:
        return f"{title}: not run yet."
    checks = [kept(values) for values in runs.values()]
    num_met = sum(all(check.values()) for check in checks)
    if len(checks) < num_seeds:
        verdict = "open"
    else:
        verdict = "met" if num_met == len(checks) else "missed"
    losses, highs = values_of(runs, "loss"), values_of(runs, "trend_high")
    text = (
        f"{title}, {num_seeds} of {num_seeds} seeds within all three bounds: **{verdict}**, {num_met} of {len(checks)} "
        f"so; tail {min(losses):.2f} to {max(losses):.2f}"
    )
    if highs:
        text += f", upper end of the trend {min(highs):.4f} to {max(highs):.4f}"
    return f"{text}, dead logits up to {max(values_of(runs, 'dead')):.3f}."


def controls(measured: Measured, name: str, other: str) -> dict[int, Mapping[str, float]]:
    """For each seed of an arm the run of `other`, or of its repetition from the second start, that started alike."""
    return {
        seed: run
        for seed, values in measured.get(name, {}).items()
        for control in (other, f"{other}_b")
        if (run := measured.get(control, {}).get(seed)) is not None and run["start"] == values["start"]
    }


def comparison(measured: Measured, name: str, other: str) -> tuple[Spread, Spread] | None:
    """(Change of ST-LPIPS as a share of the other's mean, of PSNR-Y in dB), seed by seed; None if one is missing."""
    found = controls(measured, name, other)
    if not found:
        return None
    runs, level = measured[name], statistics.fmean(run["stlpips"] for run in found.values())
    changes = [(runs[seed]["stlpips"] - run["stlpips"]) / level for seed, run in found.items()]
    return spread(changes), spread([runs[seed]["psnr_y"] - run["psnr_y"] for seed, run in found.items()])


def comparison_sentences(measured: Measured, name: str, titles: Mapping[str, str], num_seeds: int) -> list[str]:
    """What an arm does for the pictures, against no adversary and against the paper's arm; targets met or missed."""

    def so_far(other: str) -> str:
        num_pairs = len(controls(measured, name, other))
        return f"so far, {num_pairs} pair{'s' * (num_pairs > 1)}, " if num_pairs < num_seeds else ""

    found = comparison(measured, name, "none")
    sentences = []
    if found is None:
        sentences.append(f"{titles[name]} against no adversary: no pair of runs that started alike.")
    else:
        lpips, psnr = found
        is_met = lpips.mean <= -PERCEPTION_GAIN and psnr.mean >= -FIDELITY_LOSS_DB
        verdict = f"{so_far('none')}{'met' if is_met else 'missed'}"
        sentences.append(
            f"{titles[name]} against no adversary, ST-LPIPS at least {100 * PERCEPTION_GAIN:.0f} % lower at no more "
            f"than {FIDELITY_LOSS_DB} dB: **{verdict}**; ST-LPIPS {_percent(lpips)}, "
            f"PSNR-Y {_db(psnr)}."
        )
    found = comparison(measured, name, "paper")
    if found is None:
        sentences.append(f"{titles[name]} against the paper's arm: no pair of runs that started alike.")
    else:
        lpips, psnr = found
        gains = {"ST-LPIPS": Spread(-lpips.mean, -lpips.high, -lpips.low), "PSNR-Y": psnr}
        better = [text for text, gain in gains.items() if gain.mean > 0]
        is_clear = all(gain.low > 0 for gain in gains.values())
        verdict = "missed" if len(better) < 2 else "met" if is_clear else "not clear, an interval holds 0"
        sentences.append(
            f"{titles[name]} better than the paper's arm in both: **{so_far('paper')}{verdict}**; it is better in "
            f"{' and '.join(better) or 'neither'}, ST-LPIPS {_percent(lpips)}, PSNR-Y {_db(psnr)}."
        )
    return sentences


def _percent(change: Spread) -> str:
    scaled = Spread(100 * change.mean, 100 * change.low, 100 * change.high)
    return _signed(scaled, 1, " %")


def _db(change: Spread) -> str:
    return _signed(change, 2, " dB")


def _signed(change: Spread, decimals: int, unit: str) -> str:
    if math.isnan(change.low):
        return f"{change.mean:+.{decimals}f}{unit}"
    return f"{change.mean:+.{decimals}f}{unit} ({change.low:+.{decimals}f} to {change.high:+.{decimals}f})"


def story_sentences(measured: Measured, titles: Mapping[str, str]) -> list[str]:
    """What each arm's discriminator does, in words that follow from the numbers."""
    lines = []
    for name, runs in measured.items():
        losses = values_of(runs, "loss")
        if not losses:
            continue
        states = [discriminator_state(values) for values in runs.values()]
        counts = ", ".join(f"{state} in {states.count(state)}" for state in dict.fromkeys(states))
        lines.append(
            f"- **{titles[name]}** ({len(losses)} {'seed' if len(losses) == 1 else 'seeds'}): {counts}. "
            f"Tail {min(losses):.2f} to {max(losses):.2f}, AUC {spread(values_of(runs, 'auc')).text(2)}, "
            f"while spectra alone separate real from generated with an AUC of at "
            f"least {min(values_of(runs, 'probe_auc')):.2f}."
        )
    return lines


def discriminator_state(values: Mapping[str, float]) -> str:
    """What the tail of a run says about D, in a few words."""
    if values["dead"] > 0.5:
        return "dead"
    if values["loss"] > 0.9:
        return "at chance" if values["auc"] < 0.65 else "near chance in its loss though it separates"
    if values["loss"] < LEVEL[0]:
        return "too strong"
    return "in the band" if values["loss"] <= LEVEL[1] else "weak"


# Pictures.


def draw_curves(arms: Sequence[Arm], results: Mapping[str, Mapping[str, Any]], path: Path) -> bool:
    """The paper's loss and the AUC of each run, an arm per column; False if there is nothing to draw."""
    drawn = [
        (arm, [result for name, result in results.items() if name.rpartition("-seed")[0] == arm.name]) for arm in arms
    ]
    drawn = [(arm, runs) for arm, runs in drawn if any(column(run, LOSS)[1] for run in runs)]
    if not drawn:
        return False
    figure, axes = plt.subplots(
        2, len(drawn), figsize=(2.9 * len(drawn), 4.8), sharex=True, sharey="row", squeeze=False
    )
    for place, (arm, runs) in enumerate(drawn):
        upper, lower = axes[0][place], axes[1][place]
        upper.axhspan(*LEVEL, color="#e8f3e8")
        for number, run in enumerate(runs):
            color = plt.get_cmap("viridis")(0.1 + 0.75 * number / max(len(runs) - 1, 1))
            upper.plot(*column(run, LOSS), color=color, linewidth=1.0)
            lower.plot(*column(run, "drift/auc"), color=color, linewidth=1.0)
        upper.axhline(1.0, color="#999999", linewidth=0.8, linestyle=":")
        lower.axhline(0.5, color="#999999", linewidth=0.8, linestyle=":")
        upper.set(title=arm.title, ylim=(-0.05, 1.4))
        lower.set(xlabel="adversarial step", ylim=(0.0, 1.05))
    axes[0][0].set_ylabel("paper's loss, held out")
    axes[1][0].set_ylabel("AUC of D, held out")
    save(figure, path)
    return True


def draw_trade_off(measured: Measured, arms: Sequence[Arm], path: Path) -> None:
    """PSNR-Y against ST-LPIPS and against the high-frequency gap, of every run; the cure's ratios joined by a line."""
    figure, axes = plt.subplots(1, 2, figsize=(11.5, 4.8))
    titles = {arm.name: arm.title for arm in arms}
    curve = sorted((name for name in measured if name.startswith("cure")), key=lambda name: ratio_of(titles[name]))
    curve = (["none"] if "none" in measured else []) + curve
    for axis, (key, label) in zip(axes, (("stlpips", "ST-LPIPS"), ("hf_gap", "high-frequency gap, nats")), strict=True):
        means = {
            name: (statistics.fmean(values_of(runs, key)), statistics.fmean(values_of(runs, "psnr_y")))
            for name, runs in measured.items()
        }
        axis.plot(*zip(*(means[name] for name in curve), strict=True), color=COLORS[6], linewidth=1.0, zorder=1)
        fixed = [name for name in measured if not name.startswith("cure_")]
        for name, runs in measured.items():
            color = COLORS[6] if name.startswith("cure") else COLORS[fixed.index(name) % len(COLORS)]
            axis.scatter(values_of(runs, key), values_of(runs, "psnr_y"), s=9, color=color, alpha=0.45, zorder=2)
            axis.scatter(*means[name], s=46, color=color, label=titles[name], zorder=3, edgecolors="white")
            if name.startswith("cure"):
                ratio = titles[name].rpartition(" ")[2]
                axis.annotate(ratio, means[name], textcoords="offset points", xytext=(6, 5), fontsize=8)
        axis.set(xlabel=label, ylabel="PSNR-Y, dB")
        axis.grid(alpha=0.25)
    handles, labels = axes[0].get_legend_handles_labels()
    shown = [
        (h, text)
        for h, text in zip(handles, labels, strict=True)
        if not text.startswith("cure, ratio") or "0.1" in text
    ]
    axes[1].legend(
        *zip(*[(h, "cure, by ratio" if text.startswith("cure") else text) for h, text in shown], strict=True),
        fontsize=8,
    )
    save(figure, path)


def ratio_of(title: str) -> float:
    """0.3 of `cure, ratio 0.3`."""
    return float(title.rpartition(" ")[2])


def save(figure: plt.Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


# The study.


def study_section(experiment: Experiment) -> str:
    """What the study's table of trials says; the table is copied beside the results so that it can be committed."""
    fresh, kept_table = experiment.work / "study/report.csv", experiment.results / STUDY_NAME
    if fresh.exists():
        write_trials(read_trials(fresh), kept_table)
    if not kept_table.exists():
        return "The study has not been run yet."
    trials = read_trials(kept_table)
    searched = [trial for trial in trials if trial["role"] != "repeat"]
    finished = [trial for trial in searched if trial["state"] == "COMPLETE"]
    feasible = [trial for trial in finished if trial["feasible"] == "True"]
    text = f"{len(finished)} finished trials of {len(searched)}; {len(feasible)} keep every constraint."
    if not finished:
        return text
    best = sorted(feasible or finished, key=lambda trial: float(trial["J"]))
    if feasible:
        winner = f"trial {best[0]['trial']} with J {float(best[0]['J']):.4f}"
        text += f" By the rule, the lowest J of those, the winner is {winner}."
    constraints = [name for name in trials[0] if name.startswith("constraint ")]
    space = [name for name in trials[0] if "." in name and "/" not in name and not name.startswith("constraint ")]
    rows = [
        [
            trial["trial"],
            f"{float(trial['J']):.4f}",
            *(f"{float(trial[name]):.3f}" if trial[name] else NOT_MEASURED for name in constraints),
            ", ".join(f"{name.rpartition('.')[2]} {_short(trial[name])}" for name in space),
        ]
        for trial in best[:10]
    ]
    heading = "The best of those that keep every constraint" if feasible else "The lowest J, none of which is feasible"
    table = markdown(["trial", "J", *(name.removeprefix("constraint ") for name in constraints), "setting"], rows)
    return f"{text}\n\n{heading}:\n\n{table}"


def read_trials(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_trials(trials: Sequence[Mapping[str, str]], path: Path) -> None:
    """The table without what tells of the machine: its processes and folders."""
    names = [name for name in trials[0] if name not in ABOUT_THE_MACHINE]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(trials)


def _short(text: str) -> str:
    try:
        return f"{float(text):.3g}"
    except ValueError:
        return text


# The page.


def provenance(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Commits, versions and processors of the runs, for a reader who wants to repeat them."""

    def distinct(of: Callable[[Mapping[str, Any]], str]) -> str:
        return ", ".join(dict.fromkeys(of(result) for result in results.values()))

    hours = sum(result["cpu_s"] + result["evaluation_cpu_s"] for result in results.values()) / 3600
    starts = {result.get("init_generator_sha256", "") for result in results.values()}
    same = "All start from the same weights" if len(starts) == 1 else f"They start from {len(starts)} different weights"
    return (
        f"{len(results)} runs, {hours:.1f} CPU-hours, on {distinct(lambda one: one['machine']['processor'])}, torch "
        f"{distinct(lambda one: one['versions']['torch'])}, commit {distinct(lambda one: one['commit'][:10])}. "
        f"{same}."
    )


def write_page(
    experiment: Experiment, arms: Sequence[Arm], judged: Sequence[str], runs: Sequence[Run], page: Path, pictures: Path
) -> None:
    """Write the page and its pictures from the runs that are finished; refuses nothing.

    judged: names of the arms whose targets are stated, where they have run; `cure` in any case.
    """
    results = experiment.load(runs)
    titles = {arm.name: arm.title for arm in arms}
    main = [arm for arm in arms if not arm.name.startswith("cure_") and arm.name != "winner"]
    measured = by_arm(arms, results)
    main_arms = {
        name: found for name, found in measured.items() if name in {arm.name for arm in main} or name == "winner"
    }
    ratios = sorted((name for name in measured if name.startswith("cure")), key=lambda name: ratio_of(titles[name]))
    trade_off = {name: measured[name] for name in ("none", *ratios) if name in measured}
    num_seeds = len({run.seed for run in runs if run.name.startswith("cure-")})
    curves = trade_off_picture = ""
    by_sequence = "No run is finished yet."
    if results:
        if draw_curves([arm for arm in arms if not arm.name.startswith("cure_")], results, pictures / CURVES_NAME):
            curves = f"![the paper's loss and AUC of each run](images/{CURVES_NAME})"
        draw_trade_off(measured, arms, pictures / TRADE_OFF_NAME)
        trade_off_picture = f"![PSNR against ST-LPIPS and against the high-frequency gap](images/{TRADE_OFF_NAME})"
        table = next(iter(results.values()))["evaluations"]["unseen"]["table"]
        by_sequence = sequence_table(main, results, {scope: rows["bicubic"] for scope, rows in table.items()})
    verdicts = []
    for name in ("cure", *(name for name in judged if name in measured)):
        verdicts.append(drift_sentence(measured, num_seeds, name, titles[name]))
        verdicts += comparison_sentences(measured, name, titles, num_seeds)
    if (found := comparison(measured, "paper", "vgg") or comparison(measured, "paper_b", "vgg")) is not None:
        verdicts.append(
            f"Share of the adversary in that: {titles['paper']} against the same losses without an adversary: "
            f"ST-LPIPS {_percent(found[0])}, PSNR-Y {_db(found[1])}."
        )
    passing = [
        f"{titles[name]} (ST-LPIPS {_percent(found[0])}, PSNR-Y {_db(found[1])})"
        for name in trade_off
        if name != "none"
        and (found := comparison(measured, name, "none")) is not None
        and found[0].mean <= -PERCEPTION_GAIN
        and found[1].mean >= -FIDELITY_LOSS_DB
    ]
    missing = len(runs) - len(results)
    text = {
        "so_far": f"So far: {len(results)} of {len(runs)} runs. " if missing else "",
        "verdicts": "\n".join(f"- {sentence}" for sentence in verdicts),
        "drift_table": arm_table(main_arms, titles, DRIFT_COLUMNS),
        "acceptance_table": acceptance_table(main_arms, titles),
        "stories": "\n".join(story_sentences(main_arms, titles)) or "No run is finished yet.",
        "picture_table": arm_table(main_arms, titles, PICTURE_COLUMNS),
        "sequence_table": by_sequence,
        "trade_off_table": arm_table(trade_off, titles, (*PICTURE_COLUMNS[:5], *DRIFT_COLUMNS[:4])),
        "passing": f"That holds for {'; '.join(passing)}." if passing else "That holds for no ratio that was run.",
        "study": study_section(experiment),
        "provenance": provenance(results) if results else "No run is finished yet.",
        "curves": curves,
        "trade_off": trade_off_picture,
    }
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(Template(TEMPLATE.read_text()).substitute(text))
