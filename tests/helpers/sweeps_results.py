"""A study with constructed trials in a real database and real run directories: no driver, no training."""

from __future__ import annotations

import datetime
import json
import math
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from sweeps_stub import make_study

from sweeps.config import StudyConfig
from sweeps.objective import constraint_values, objective_value
from sweeps.storage import open_storage
from vsr_dist.config import dump_config, load_config

BEGIN = datetime.datetime(2026, 1, 2, 3, 4, 5)
SPACE = {
    "adversarial.weight": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
    "discriminator.filters": {"type": "categorical", "choices": [16, 24, 32, 48]},
    "discriminator.dropout": {"type": "float", "low": 0.0, "high": 0.3},
    "adversarial.loss": {"type": "categorical", "choices": ["rpgan", "bce", "hinge", "paper"]},
    "adversarial.gamma_control.target": {"type": "float", "low": 0.5, "high": 0.9},
}
CONSTRAINTS = [
    {"name": "not weak", "metric": "drift/normalized_loss", "reduce": "tail_median", "at_most": 0.75},
    {"name": "not too strong", "metric": "drift/normalized_loss", "reduce": "tail_median", "at_least": 0.35},
    {"name": "steady", "metric": "drift/normalized_loss", "reduce": "tail_slope_high", "at_most": 0.5},
    {"name": "keeps fidelity", "metric": "val/psnr_y", "relative_to": "val_bicubic/psnr_y", "at_least": -0.1},
]
OBJECTIVE = {
    "name": "quality",
    "direction": "minimize",
    "terms": [
        {"metric": "val/tof", "relative_to": "val_bicubic/tof"},
        {"metric": "val/tdiff", "relative_to": "val_bicubic/tdiff", "weight": 0.5, "above": 1.0},
    ],
}


class Results:
    """Adds trials one by one, with the curves that training would have left."""

    def __init__(self, folder: Path, **changes: object) -> None:
        tree = {"space": SPACE, "constraints": CONSTRAINTS, "objective": OBJECTIVE, **changes}
        if "objectives" in changes:
            del tree["objective"]
        self.config: StudyConfig = make_study(folder, **tree)
        self.config.directory.mkdir(parents=True, exist_ok=True)
        storage = open_storage(self.config)
        directions = [objective.direction for objective in self.config.objectives]
        self.study = optuna.create_study(storage=storage, study_name=self.config.name, directions=directions)

    def add(
        self,
        levels: list[float],
        *,
        psnr: float = 29.0,
        tof: float = 0.8,
        state: TrialState = TrialState.COMPLETE,
        params: dict[str, Any] | None = None,
        **attributes: Any,
    ) -> FrozenTrial:
        """A trial whose discriminator stood at each of `levels`; one run directory per seed in `seeds`."""
        number = len(self.study.trials)
        chosen = {**dict.fromkeys(self.config.space), **(params or parameters(number))}
        chosen = {path: value for path, value in chosen.items() if path in self.config.space and value is not None}
        seeds = attributes.get("seeds", [0])
        folders = self.config.run_dirs(number, len(seeds))
        for place, folder in enumerate(folders):
            self._write_run(folder, levels, psnr + 0.1 * place, tof, chosen, number)
        rows = [read(folder) for folder in folders]
        has_result = state == TrialState.COMPLETE
        values = [sum(objective_value(o, r) for r in rows) / len(rows) for o in self.config.objectives]
        each = [constraint_values(self.config.constraints, r) for r in rows] if has_result else []
        worst = {name: max(one[name] for one in each) for name in each[0]} if each else None
        noted = {"run_dirs": [str(folder) for folder in folders], "seconds": 40.0 + number, **attributes}
        trial = optuna.trial.create_trial(
            state=state,
            values=values if has_result else None,
            params=chosen,
            distributions={path: self.config.space[path].distribution() for path in chosen},
            user_attrs=noted,
            constraints=worst,
        )
        trial.datetime_start = BEGIN + datetime.timedelta(seconds=60 * number)
        if state.is_finished():
            trial.datetime_complete = trial.datetime_start + datetime.timedelta(seconds=40 + number)
        self.study.add_trial(trial)
        return self.study.trials[number]

    def _write_run(
        self, folder: Path, levels: list[float], psnr: float, tof: float, chosen: dict[str, Any], number: int
    ) -> None:
        folder.mkdir(parents=True)
        lines = [{"step": 0, "time_s": 1.0, "val/psnr_y": 27.0, "val_bicubic/psnr_y": 28.5}]
        for place, level in enumerate(levels):
            quality = {"val/psnr_y": psnr - 0.3 / (place + 1), "val/tof": tof, "val/tdiff": 1.05}
            bicubic = {"val_bicubic/psnr_y": 28.5, "val_bicubic/tof": 1.0, "val_bicubic/tdiff": 1.0}
            drift = {"drift/normalized_loss": level, "drift/dead_fraction": 0.01}
            lines.append({"step": 100 * (place + 1), "time_s": 2.0, **quality, **bicubic, **drift})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        known = {path: value for path, value in chosen.items() if path != "adversarial.gamma_control.target"}
        overrides = [f"{path}={value!r}" for path, value in known.items()]
        tags = {"study": self.config.name, "trial": str(number), "kind": "trial", "team": "pixels"}
        extra = {"log10.adversarial.weight": "-3.0"}
        overrides += [f"tracking.tags={json.dumps(tags)}", f"tracking.extra_params={json.dumps(extra)}", "name=t"]
        resolved = dump_config(load_config(Path(self.config.base), overrides))
        (folder / "config.yaml").write_text(resolved)


def read(folder: Path) -> list[tuple[int, dict[str, float]]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], {k: v for k, v in line.items() if k not in ("step", "time_s")}) for line in lines]


def parameters(number: int) -> dict[str, Any]:
    """Values that spread over the space, the same for the same number."""
    share = (number * 0.618034) % 1.0
    return {
        "adversarial.weight": 10 ** (-4 + 3 * share),
        "discriminator.filters": (16, 24, 32, 48)[number % 4],
        "discriminator.dropout": round(0.3 * ((number * 0.37) % 1.0), 4),
        "adversarial.loss": ("rpgan", "bce", "hinge", "paper")[(number // 2) % 4],
        "adversarial.gamma_control.target": round(0.5 + 0.4 * ((number * 0.73) % 1.0), 4),
    }


def settling(level: float, num: int = 20, wobble: float = 0.03) -> list[float]:
    """A curve that falls from chance to `level`."""
    return [
        level + (1.0 - level) * math.exp(-place / 3) + wobble * math.sin(1.7 * place + 10 * level)
        for place in range(num)
    ]


def climbing(num: int = 20) -> list[float]:
    """The paper's curve: down, and back up to chance."""
    return [1.0 - 0.3 * math.exp(-((place - 4) ** 2) / 12) for place in range(num)]


def full_study(folder: Path, **changes: object) -> Results:
    """Sixteen trials: the paper's setting, feasible ones, weak ones, a pruned, a failed, a running one, repeats."""
    results = Results(folder, **changes)
    paper = {**parameters(0), "adversarial.loss": "paper", "adversarial.weight": 1e-3, "discriminator.filters": 16}
    results.add(climbing(), psnr=28.9, tof=0.95, params=paper, role="start")
    for number in range(1, 12):
        level = (0.5, 0.95, 0.6, 0.2, 0.55, 0.9, 0.68, 0.45, 0.97, 0.62, 0.4)[number - 1]
        results.add(settling(level), psnr=28.8 + 0.05 * (number % 5), tof=0.7 + 0.03 * ((number * 5) % 7))
    reason = "drift/dead_fraction 0.8, above 0.5 at 3 consecutive evaluations, step 700"
    results.add(settling(0.98, 7), state=TrialState.PRUNED, reason=reason)
    results.add(
        settling(0.9, 3), state=TrialState.FAIL, reason="RuntimeError: out of memory on rank 1 (exit status 17)"
    )
    results.add(settling(0.52), psnr=28.9, tof=0.74, params=parameters(3), role="repeat", repeat_of=3, seeds=[7, 8, 9])
    results.add(settling(0.7, 5), state=TrialState.RUNNING)
    return results
