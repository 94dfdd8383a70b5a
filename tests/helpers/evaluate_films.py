"""Small films, written as folders of frames, and `vsr-dist evaluate` on them."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from vsr_dist.cli import main

SIZE, NUM_FRAMES = 64, 6


def truth(seed, num_frames=NUM_FRAMES):
    noise = np.random.default_rng(seed).normal(size=(SIZE + 20, SIZE + 20, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    texture = np.interp(smooth, (smooth.min(), smooth.max()), (20, 235)).round().astype(np.uint8)
    return np.stack([texture[t : t + SIZE, t : t + SIZE] for t in range(num_frames)])


def write_frames(folder, frames, name="{:05d}.png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        cv2.imwrite(str(folder / name.format(number)), frame[..., ::-1])
    return folder


def spoilt(frames, sigma, seed=9):
    noise = np.random.default_rng(seed).normal(0, sigma, frames.shape)
    return np.clip(frames + noise, 0, 255).round().astype(np.uint8)


def small(frames):
    return np.stack([cv2.resize(frame, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA) for frame in frames])


def evaluate(out, *options):
    assert main(["evaluate", "--out", str(out), "--device", "cpu", *map(str, options)]) == 0
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture
def evaluation_fails(capsys):
    def run(*options):
        assert main(["evaluate", *map(str, options)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


@pytest.fixture
def film_pair(tmp_path):
    """(result, truth), one folder of frames each."""
    real = truth(0)
    return write_frames(tmp_path / "fake", spoilt(real, 6)), write_frames(tmp_path / "real", real)
