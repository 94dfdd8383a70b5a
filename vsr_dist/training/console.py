"""What a training prints: a line per interval and validation, the live block on a terminal, the table at the end."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from vsr_dist.core.console import LiveView
from vsr_dist.metrics.drift import verdict_sentence
from vsr_dist.training.drift import verdict_of

_PLAYERS = ("loss_g/", "loss_d/")
_OURS, _BICUBIC = "val/", "val_bicubic/"


def peak_memory_mb(device: torch.device) -> float:
    """Highest memory so far in MB (1e6 bytes): allocated on a CUDA device, resident size of this process else."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource  # noqa: PLC0415 - absent on Windows, where only the CUDA branch runs

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def describe_drift(metrics: Mapping[str, float]) -> str:
    """What the drift monitor says of the discriminator, in words, with the trend once there is one."""
    found = verdict_of(metrics)
    if found is None:
        return "discriminator not measured"
    text = verdict_sentence(found)
    if "drift/slope" in metrics:
        low, high = metrics["drift/slope_ci_low"], metrics["drift/slope_ci_high"]
        text += f"; its loss / chance moves {metrics['drift/slope']:+.3f} ({low:+.3f} to {high:+.3f}) per 1000 steps"
    return text


def show_interval(view: LiveView, done: int, total: int, values: Mapping[str, float]) -> None:
    """Losses and speed of the last log interval: in the block on a terminal, as a plain line elsewhere."""
    if view.drawing:
        view.show("losses", loss_line(values))
        view.show("speed", speed_line(values))
        return
    losses = [f"{name} {values[name]:.4g}" for name in ("loss_g/total", "loss_d/total") if name in values]
    speed = f"{values['perf/clips_per_s']:.1f} clips/s | data wait {values['perf/data_wait_ms']:.1f} ms"
    view.note(f"step {done}/{total} | {' | '.join(losses)} | {speed}")


def show_validation(view: LiveView, done: int, total: int, metrics: Mapping[str, float]) -> None:
    """Held-out quality beside bicubic, and the verdict on the discriminator: a line that stays, and in the block."""
    psnr_db, gain_db = metrics["val/psnr_y"], metrics["val/psnr_y"] - metrics["val_bicubic/psnr_y"]
    view.show("held-out", f"PSNR-Y {psnr_db:.2f} dB, {gain_db:+.2f} against bicubic, at step {done}")
    view.show("drift", describe_drift(metrics))
    text = f"step {done}/{total} | held-out PSNR-Y {psnr_db:.2f} dB ({gain_db:+.2f} against bicubic)"
    if "drift/normalized_loss" in metrics:
        text += f" | D loss / chance {metrics['drift/normalized_loss']:.2f}"
        text += f" | D paired accuracy {100 * metrics['drift/paired_accuracy']:.0f} % | {describe_drift(metrics)}"
    view.note(text)


def loss_line(values: Mapping[str, float]) -> str:
    """Each loss term: `G total 0.1 image 0.02 | D total 0.7`."""
    parts = []
    for prefix, player in zip(_PLAYERS, ("G", "D"), strict=True):
        terms = [f"{name.removeprefix(prefix)} {v:.4g}" for name, v in values.items() if name.startswith(prefix)]
        if terms:
            parts.append(f"{player} {' '.join(terms)}")
    return " | ".join(parts)


def speed_line(values: Mapping[str, float]) -> str:
    """Speed, time of a step and how much of it was spent waiting for data, memory."""
    share = 100 * values["perf/data_wait_ms"] / values["perf/step_ms"] if values["perf/step_ms"] else 0.0
    return (
        f"{values['perf/clips_per_s']:.1f} clips/s | step {values['perf/step_ms']:.0f} ms | "
        f"data wait {values['perf/data_wait_ms']:.1f} ms ({share:.0f} %) | {values['perf/peak_memory_mb']:,.0f} MB"
    )


def summary_table(metrics: Mapping[str, float]) -> str:
    """One line per held-out metric: this run, bicubic and the difference; then the drift measures, one per line."""
    rows = [("held-out metric", "this run", "bicubic", "difference")]
    for name, ours in metrics.items():
        bicubic = metrics.get(_BICUBIC + name.removeprefix(_OURS))
        if name.startswith(_OURS) and bicubic is not None:
            rows.append((name, f"{ours:.4f}", f"{bicubic:.4f}", f"{ours - bicubic:+.4f}"))
    rows += [(name, f"{value:.4f}", "", "") for name, value in metrics.items() if name.startswith("drift/")]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
