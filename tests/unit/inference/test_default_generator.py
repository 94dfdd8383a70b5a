"""The generator that ships: small, of the committed configuration, and better than bicubic on a clip it never saw."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import torch

from sharding.degrade import bicubic_downscale
from sharding.video import iter_frames
from vsr_dist import Upscaler
from vsr_dist.config import load_config
from vsr_dist.evaluation.subjects import NamedMethod
from vsr_dist.metrics.fidelity import frame_fidelity
from vsr_dist.upscaler import DEFAULT_FOLDER

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "configs" / "default_generator.yaml"


def test_it_is_small_and_of_its_configuration():
    assert sum(path.stat().st_size for path in DEFAULT_FOLDER.iterdir()) < 2_000_000
    description = json.loads((DEFAULT_FOLDER / "generator.json").read_text())
    config = load_config(CONFIG)
    assert type(config.generator)(**description["generator"]) == config.generator
    assert description["scale"] == config.scale
    assert description["provenance"]["steps"] == config.train.steps
    assert description["provenance"]["license"] == "Apache-2.0"


def test_it_beats_bicubic_on_a_clip_that_it_never_saw(sample_clips):
    """A few frames of carphone, which is held out; docs/default_generator.md has the whole table."""
    real = list(islice(iter_frames(sample_clips["carphone_pristine"]), 6))
    low = [bicubic_downscale(frame, 4) for frame in real]
    ours = list(Upscaler.from_checkpoint(device="cpu").upscale(low))
    bicubic = [image for frame in low for image in NamedMethod("bicubic", 4, torch.device("cpu")).push(frame)]
    inside = (slice(4, -4), slice(4, -4))
    gains = [
        frame_fidelity(mine[inside], truth[inside])["psnr_y"] - frame_fidelity(theirs[inside], truth[inside])["psnr_y"]
        for mine, theirs, truth in zip(ours, bicubic, real, strict=True)
    ]
    assert min(gains) > 1.5
    # No colour shift: the means of each channel stay within a level of bicubic's.
    for mine, theirs in zip(ours, bicubic, strict=True):
        assert abs(mine.mean((0, 1)) - theirs.mean((0, 1))).max() < 1.0
