"""What of a training's numbers goes where on the terminal: losses, speed, held-out quality, the discriminator."""

from __future__ import annotations

from collections.abc import Mapping

from vsr_dist.core.console import LiveView
from vsr_dist.training.lines import describe_drift, describe_losses, describe_validation

_PLAYERS = ("loss_g/", "loss_d/")


def show_interval(view: LiveView, done: int, total: int, values: dict[str, float]) -> None:
    """Losses and speed of the last log interval: in the block on a terminal, as a plain line elsewhere."""
    if not view.drawing:
        view.note(f"{describe_losses(done, total, values)} | data wait {values['perf/data_wait_ms']:.1f} ms")
        return
    view.show("losses", loss_line(values))
    view.show("speed", speed_line(values))


def show_validation(view: LiveView, done: int, total: int, metrics: dict[str, float]) -> None:
    """Held-out quality and the verdict on the discriminator: a line that stays, and in the block on a terminal."""
    gain = metrics["val/psnr_y"] - metrics["val_bicubic/psnr_y"]
    view.show("held-out", f"PSNR-Y {metrics['val/psnr_y']:.2f} dB, {gain:+.2f} against bicubic, at step {done}")
    view.show("drift", describe_drift(metrics))
    view.note(describe_validation(done, total, metrics))


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
