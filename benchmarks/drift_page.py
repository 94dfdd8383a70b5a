"""docs/drift.md, its pictures and its JSON, from what drift_proof.py has run; the prose is drift_page.txt."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import matplotlib
import yaml
from drift_data import HELD_OUT, PARTS, TRAIN
from drift_measures import LOSS, MEASURES, acceptance, column, finished_rows, measures, spread
from machine import describe_machine
from paper_runs import Runner

from sweeps.curves import Row, curve
from sweeps.findings import Findings
from sweeps.space import describe
from sweeps.storage import load_trials
from sweeps.study_config import StudyConfig
from vsr_dist.core.errors import BadInputError

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TEMPLATE = Path(__file__).with_name("drift_page.txt")
COLUMNS = {
    "loss": ("normalised loss", 2),
    "rise": ("rise per run", 2),
    "dead": ("dead logits", 3),
    "paired": ("paired accuracy", 2),
    "probe_auc": ("probe AUC", 3),
    "psnr_gain": ("PSNR-Y over bicubic, dB", 2),
    "tof": ("tOF, px", 3),
    "tdiff_ratio": ("tdiff / bicubic", 2),
    "stlpips": ("ST-LPIPS", 3),
}
SHOWN_TRIALS = 6

Runs = dict[int, dict[str, float]]
Curves = Mapping[str, Mapping[int, Sequence[Row]]]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def load_phase(
    work: Path, phase: str, titles: Mapping[str, str], names: Collection[str] = MEASURES
) -> tuple[dict[str, Runs], dict[str, dict[int, Any]]]:
    """(Arm -> seed -> measures, arm -> seed -> rows); BadInputError for an arm without a finished run."""
    rows = {name: finished_rows(work / phase, name) for name in titles}
    if missing := [name for name, found in rows.items() if not found]:
        raise BadInputError(f"{work / phase} has no finished run of {', '.join(missing)}; run --phases {phase} first")
    return {name: {seed: measures(run, names) for seed, run in found.items()} for name, found in rows.items()}, rows


def arm_table(runs: Mapping[str, Runs], titles: Mapping[str, str]) -> str:
    """One line per arm; a column that the runs did not measure is left out."""
    measured = set.intersection(*(set(values) for found in runs.values() for values in found.values()))
    shown = {key: heading for key, heading in COLUMNS.items() if key in measured}
    header = ["", "runs", *(heading for heading, _ in shown.values())]
    body = [
        [
            titles[name],
            str(len(found)),
            *(spread(column(found, key)).text(digits) for key, (_, digits) in shown.items()),
        ]
        for name, found in runs.items()
    ]
    return markdown(header, body)


def sentences(runs: Mapping[str, Runs], titles: Mapping[str, str]) -> str:
    """What can be said of each arm by counting its runs."""
    lines = []
    for name, found in runs.items():
        levels = column(found, "loss")
        num = len(levels)
        chance = sum(level > 0.9 for level in levels)
        band = sum(0.35 <= level <= 0.75 for level in levels)
        dead = sum(value > 0.5 for value in column(found, "dead"))
        lines.append(
            f"- **{titles[name]}**: normalised loss above 0.9 in {chance} of {num} runs, between 0.35 and 0.75 in "
            f"{band}; more than half of the logits dead in {dead}; lowest {min(levels):.2f}, highest {max(levels):.2f}."
        )
    return "\n".join(lines)


def acceptance_table(runs: Runs, title: str = "winner") -> str:
    checks = {seed: acceptance(values) for seed, values in runs.items()}
    names = list(next(iter(checks.values())))
    body = [
        [
            str(seed),
            *("yes" if held[name] else "**no**" for name in names),
            f"{runs[seed]['loss']:.3f}",
            f"{runs[seed]['rise_high']:.3f}",
        ]
        for seed, held in checks.items()
    ]
    totals = [f"{sum(held[name] for held in checks.values())} of {len(checks)}" for name in names]
    both = sum(all(held.values()) for held in checks.values())
    return markdown(
        [f"{title}, seed", *names, "normalised loss", "upper end"], [*body, ["all", *totals, f"all held: {both}", ""]]
    )


def cost_table(work: Path, runs: Mapping[str, Runs], titles: Mapping[str, str], phase: str = "repeat") -> str:
    body = []
    for name, found in runs.items():
        noted = work / "step_cost" / f"{name}.json"
        step = f"{json.loads(noted.read_text())['cpu_s_per_step']:.3f}" if noted.exists() else "not measured"
        spent = [Runner.cpu_s(work / phase / f"{name}-seed{seed}") for seed in found]
        known = [seconds / 60.0 for seconds in spent if seconds is not None]
        change = spread(
            [value - sum(column(runs["paper"], "psnr_y")) / len(runs["paper"]) for value in column(found, "psnr_y")]
        )
        body.append([titles[name], f"{change.mean:+.2f}", step, spread(known).text(2) if known else "not noted"])
    return markdown(["", "PSNR-Y against the paper's arm, dB", "CPU s per step", "CPU min per run"], body)


def study_parts(findings: Findings) -> dict[str, str]:
    ranked, trials = findings.ranked, findings.trials
    shown = [*ranked[:SHOWN_TRIALS], *(trial for trial in findings.starts if trial not in ranked[:SHOWN_TRIALS])]
    body = [
        [
            str(trial.number),
            f"{trial.values[0]:.4f}" if trial.values else trial.state.name.lower(),
            "yes" if findings.is_feasible(trial) else "no",
            ", ".join(name for name, excess in findings.excess(trial).items() if excess > 0) or "none",
            describe(trial.params),
        ]
        for trial in shown
    ]
    states = {state: sum(trial.state.name == state for trial in trials) for state in ("COMPLETE", "PRUNED", "FAIL")}
    repeats = sum(findings.role(trial) == "repeat" for trial in trials)
    summary = (
        f"{len(trials)} trials, {repeats} of them repeats: {states['COMPLETE']} complete, "
        f"{states['PRUNED']} ended early, {states['FAIL']} failed; "
        f"{len(findings.feasible)} settings keep every constraint."
    )
    return {
        "objective": findings.config.objective.describe(),
        "constraints": "\n".join(f"- `{item.name}`: {item.describe()}" for item in findings.config.constraints),
        "study_summary": summary,
        "study_table": markdown(["trial", "J", "feasible", "constraints missed", "setting"], body),
    }


def draw_curves(curves: Curves, titles: Mapping[str, str], path: Path) -> None:
    """One panel per arm, one line per run."""
    figure, axes = plt.subplots(1, len(curves), figsize=(4.2 * len(curves), 3.2), sharey=True, squeeze=False)
    for axis, (name, runs) in zip(axes[0], curves.items(), strict=True):
        axis.axhspan(0.35, 0.75, color="#d7ecd9", label="0.35 to 0.75")
        axis.axhline(1.0, color="#888888", linestyle="--", linewidth=1, label="chance")
        for seed, rows in runs.items():
            axis.plot(*zip(*curve(rows, LOSS), strict=True), linewidth=1.2, label=f"seed {seed}")
        axis.set(title=titles[name], xlabel="adversarial step", ylim=(0.0, 1.4))
    axes[0][0].set_ylabel("D loss / chance, held out")
    axes[0][-1].legend(fontsize=7, loc="lower left")
    save(figure, path)


def draw_tradeoff(findings: Findings, path: Path) -> None:
    """PSNR gain against ST-LPIPS of every finished trial; the circled ones keep all constraints."""
    figure, axis = plt.subplots(figsize=(5.6, 4.0))
    for trial in findings.searched:
        found = measures(findings.rows(trial)[0])
        feasible = findings.is_feasible(trial)
        axis.scatter(found["psnr_gain"], found["stlpips"], color="#2a7" if feasible else "#c66", s=28)
        axis.annotate(
            str(trial.number),
            (found["psnr_gain"], found["stlpips"]),
            fontsize=7,
            xytext=(3, 3),
            textcoords="offset points",
        )
    axis.set(
        xlabel="PSNR-Y over bicubic, dB", ylabel="ST-LPIPS (lower is better)", title="green: keeps every constraint"
    )
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parts_table() -> str:
    roles = {TRAIN: "training, in every run"}
    roles |= {
        name: f"held out: {'study and section 1' if role == 'study' else 'repeat only'}"
        for role, names in HELD_OUT.items()
        for name in names
    }
    return "\n".join(
        f"| `{part.clip}`, {part.first} to {part.last} (`{name}`) | {roles[name]} |" for name, part in PARTS.items()
    )


def write_page(
    work: Path,
    titles: Mapping[str, Mapping[str, str]],
    study: StudyConfig,
    command: str,
    page: Path,
    pictures: Path,
    result: Path,
) -> None:
    """Write the page, its pictures and the JSON; BadInputError names the phase that is missing."""
    paper, paper_rows = load_phase(work, "paper", titles["paper"])
    repeat, repeat_rows = load_phase(work, "repeat", titles["repeat"])
    findings = Findings(study, load_trials(study))
    for folder in (page.parent, pictures, result.parent):
        folder.mkdir(parents=True, exist_ok=True)
    draw_curves(paper_rows, titles["paper"], pictures / "drift_paper.png")
    draw_curves(repeat_rows, titles["repeat"], pictures / "drift_repeat.png")
    draw_tradeoff(findings, pictures / "drift_tradeoff.png")
    pretrain, trained = (
        yaml.safe_load((work / name / "config.yaml").read_text())["train"] for name in ("pretrain", "paper/paper-seed0")
    )
    text = {
        "pretrain_steps": str(pretrain["steps"]),
        "steps": str(trained["steps"]),
        "evaluations": str(trained["steps"] // trained["validate_every"]),
        "parts": parts_table(),
        "paper_seeds": str(len(paper["paper"])),
        "paper_table": arm_table(paper, titles["paper"]),
        "paper_sentences": sentences(paper, titles["paper"]),
        "repeat_table": arm_table(repeat, titles["repeat"]),
        "repeat_sentences": sentences(repeat, titles["repeat"]),
        "acceptance_table": acceptance_table(repeat["winner"]),
        "cost_table": cost_table(work, repeat, titles["repeat"]),
        "least_probe": f"{min(min(column(runs, 'probe_auc')) for runs in [*paper.values(), *repeat.values()]):.3f}",
        **study_parts(findings),
    }
    page.write_text(Template(TEMPLATE.read_text()).substitute(text))
    data = {
        "command": command,
        "steps": trained["steps"],
        "paper": paper,
        "repeat": repeat,
        "machine": describe_machine(),
    }
    result.write_text(json.dumps(data, indent=1) + "\n")
