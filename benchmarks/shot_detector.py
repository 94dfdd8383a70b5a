"""Error rate of the scene cut detector on videos cut together at random from the real clips.

    python benchmarks/shot_detector.py [--films 40] [--seed 0]

A video has 10 to 20 pieces of 12 to 60 frames, each from one known shot of one of the four clips; consecutive pieces
may come from the same clip, or even the same shot. A piece is played at 1, 2 or 3 times its speed, forward or backward,
with its own brightness, contrast and grain, so that steps inside a piece are larger than in the clips.
Counted: cuts found, cuts missed, and cuts where there are none. The detector's constants were chosen on the four
unedited clips: the footage is shared, the edits are not. Writes benchmarks/results/shot_detector.json.
"""

from __future__ import annotations

import argparse
import json
import random
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from footage import CLIPS
from machine import describe_machine

from sharding.shots import StepScorer, find_cuts
from sharding.video import iter_thumbnails

RESULT = Path(__file__).parent / "results" / "shot_detector.json"
KNOWN_CUTS = {"bikes": (30, 76, 137, 187, 242)}  # found by eye; the other clips have none


def read_shots() -> list[tuple[str, list[np.ndarray]]]:
    """(clip and first frame, thumbnails) of every known shot."""
    shots = []
    for name, path in CLIPS.items():
        frames = [thumbnail.rgb for thumbnail in iter_thumbnails(path)]
        bounds = [0, *KNOWN_CUTS.get(name, ()), len(frames)]
        shots += [(f"{name}:{a}", frames[a:b]) for a, b in pairwise(bounds)]
    return shots


def change(frame: np.ndarray, gain: float, offset: float, grain: np.ndarray) -> np.ndarray:
    return np.clip(frame.astype(np.float32) * gain + offset + grain, 0, 255).astype(np.uint8)


def make_film(draw: random.Random, shots: list[tuple[str, list[np.ndarray]]]) -> tuple[list[np.ndarray], list[int]]:
    """(Frames, first frame of each piece but the first)."""
    noise = np.random.default_rng(draw.randrange(2**32))
    film: list[np.ndarray] = []
    cuts = []
    for _ in range(draw.randint(10, 20)):
        _, frames = draw.choice(shots)
        speed = draw.choice((1, 1, 2, 3))
        played = frames[:: speed * draw.choice((1, -1))]
        length = min(len(played), draw.randint(12, 60))
        start = draw.randrange(len(played) - length + 1)
        gain, offset, sigma = draw.uniform(0.7, 1.2), draw.uniform(-20, 20), draw.uniform(0, 4)
        if film:
            cuts.append(len(film))
        for frame in played[start : start + length]:
            film.append(change(frame, gain, offset, noise.normal(0, sigma, frame.shape)))
    return film, cuts


def judge(film: list[np.ndarray], cuts: list[int]) -> tuple[int, int, int, int]:
    """(steps, found, missed, false)."""
    scorer = StepScorer()
    for frame in film:
        scorer.add(frame)
    found = set(find_cuts(scorer.scores))
    return len(scorer.scores), len(found & set(cuts)), len(set(cuts) - found), len(found - set(cuts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=40, help="number of videos (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the edits (default: %(default)s)")
    parser.add_argument(
        "--result", type=Path, default=RESULT, help="output file (default: benchmarks/results/shot_detector.json)"
    )
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    shots, draw = read_shots(), random.Random(arguments.seed)
    totals = np.array([judge(*make_film(draw, shots)) for _ in range(arguments.films)]).sum(axis=0)
    steps, found, missed, false = (int(total) for total in totals)
    originals = {}
    for name, path in CLIPS.items():
        frames = [thumbnail.rgb for thumbnail in iter_thumbnails(path)]
        counts = judge(frames, [*KNOWN_CUTS.get(name, ())])
        originals[name] = dict(zip(("steps", "found", "missed", "false"), counts, strict=True))
    result = {
        "command": f"python benchmarks/shot_detector.py --films {arguments.films} --seed {arguments.seed}",
        "films": arguments.films,
        "steps": steps,
        "cuts": found + missed,
        "found": found,
        "missed": missed,
        "false": false,
        "recall": round(found / (found + missed), 4),
        "precision": round(found / (found + false), 4),
        "the_clips_themselves": originals,
        "machine": describe_machine(),
    }
    arguments.result.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("cuts", "missed", "false", "recall", "precision")}))


if __name__ == "__main__":
    main()
