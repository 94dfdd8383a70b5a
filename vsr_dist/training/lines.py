"""What a training says of itself in one log line, and how much memory it takes."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from vsr_dist.metrics.drift import verdict_sentence
from vsr_dist.training.drift import verdict_of

# Every name under `perf/` that a log line may hold, for whoever must know before there is one.
PERFORMANCE = frozenset(f"perf/{name}" for name in ("clips_per_s", "step_ms", "data_wait_ms", "peak_memory_mb"))


def peak_memory_mb(device: torch.device) -> float:
    """Highest memory so far in MB (1e6 bytes): allocated on a CUDA device, resident size of this process else."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource  # noqa: PLC0415 - absent on Windows, where only the CUDA branch runs

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def describe_losses(done: int, total: int, values: dict[str, float]) -> str:
    """One log line: step, the losses, speed."""
    losses = [f"{name} {values[name]:.4g}" for name in ("loss_g/total", "loss_d/total") if name in values]
    return f"step {done}/{total} | {' | '.join(losses)} | {values['perf/clips_per_s']:.1f} clips/s"


def describe_validation(done: int, total: int, metrics: dict[str, float]) -> str:
    """One log line: held-out quality beside bicubic, and the drift measures once there are some."""
    gain = metrics["val/psnr_y"] - metrics["val_bicubic/psnr_y"]
    text = f"step {done}/{total} | held-out PSNR-Y {metrics['val/psnr_y']:.2f} dB ({gain:+.2f} against bicubic)"
    if "drift/normalized_loss" in metrics:
        text += (
            f" | D loss / chance {metrics['drift/normalized_loss']:.2f}"
            f" | D right on {100 * metrics['drift/paired_accuracy']:.0f} % of pairs"
        )
        text += f" | {describe_drift(metrics)}"
    return text


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
