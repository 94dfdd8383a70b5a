"""What is kept of a step whose loss or gradient was not finite: enough to look at it, and to compute it again."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vsr_dist.core.rng import step_seed
from vsr_dist.data.loader import TrainLoader

_KEPT = 5


def bundle_path(run_dir: Path, step: int) -> Path:
    """Where the bundle of the step lies that would have been done after `step` others."""
    return run_dir / "debug" / f"step_{step:08d}"


def write_bundle(run_dir: Path, loader: TrainLoader, step: int, num_batches: int, report: Mapping[str, Any]) -> Path:
    """Write `rank_N.safetensors` and `rank_N.json`; returns their folder. Every rank writes its own.

    The tensors are the micro-batches of the step, read again, as uint8: `low_M`, `real_M` and, if the data has it,
    `flow_M`. The JSON is the report with the names of their windows. The newest bundles are kept, five of them.
    """
    tensors: dict[str, torch.Tensor] = {}
    windows = []
    with closing(loader.batches(step)) as batches:
        for number in range(num_batches):
            batch = next(batches)
            windows.append(batch.names)
            fields = {"low": batch.low_BTCHW, "real": batch.real_BTCYX, "flow": batch.flow_BTKCHW}
            # Copies: the loader fills a batch's memory again.
            tensors |= {f"{name}_{number}": t.contiguous().clone() for name, t in fields.items() if t is not None}
    folder, rank = bundle_path(run_dir, step), loader.world.rank
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / f"rank_{rank}.safetensors")
    facts = {"step": step, "rank": rank, "windows": windows, **report}
    (folder / f"rank_{rank}.json").write_text(json.dumps(_plain(facts), indent=1, allow_nan=False) + "\n")
    if rank == 0:
        for old in sorted(folder.parent.glob("step_*"))[:-_KEPT]:
            shutil.rmtree(old)
    return folder


def seeds(seed: int, rank: int, step: int) -> dict[str, int]:
    """The run's seed, and the one that torch's generator had at the beginning of the step."""
    return {"seed": seed, "step_seed": step_seed(seed, rank, step)}


def _plain(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """The value with numbers that JSON does not know (NaN, infinities) as texts."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
