"""Every metric of `evaluate` compared with its reference on real frames; the table of docs/evaluation.md.

    python benchmarks/metric_parity.py

The references are other packages, or the formula written out in tests/metric_references.py. Frames: 6 each of carphone
(the distorted video against the pristine one) and of bikes reduced to a quarter and enlarged by bicubic. AlexNet and
VGG16 get random weights, the same on both sides: the trained ones are not available everywhere, and the arithmetic is
the same. Needs the extras perceptual and metrics. Writes benchmarks/results/metric_parity.json and the table between
the marks of docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import sys
import tempfile
import types
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from machine import describe_machine
from scipy.stats import permutation_test

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/helpers"))
from metric_references import (  # noqa: E402
    blind_warping_error,
    dists_by_hand,
    lpips_by_hand,
    scikit_fidelity,
    sign_flip_p,
    tdiff_in_float,
    tecogan_tof,
)

from sharding.sources import find_samples  # noqa: E402
from sharding.video import iter_frames  # noqa: E402
from vsr_dist.metrics.fidelity import FIDELITY, batch_fidelity, frame_fidelity  # noqa: E402
from vsr_dist.metrics.perceptual import Dists, Lpips, ShiftTolerantLpips, VmafStream, load_vmaf  # noqa: E402
from vsr_dist.metrics.registry import METRICS, PROTOCOLS, measure_clip  # noqa: E402
from vsr_dist.metrics.uncertainty import compare  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "metric_parity.json"
PAGE = ROOT / "docs" / "evaluation.md"
BEGIN, END = "<!-- parity:begin -->", "<!-- parity:end -->"
NUM_FRAMES = 6
Clip = np.ndarray
Row = tuple[str, str, float, float, float]


def clips() -> list[tuple[Clip, Clip]]:
    """(result, truth), uint8 RGB."""
    films = {path.stem: path for path in find_samples()}
    read = {name: np.stack(list(islice(iter_frames(path), NUM_FRAMES))) for name, path in films.items()}
    truth = read["bikes"]
    height, width = truth.shape[1:3]
    reduced = [cv2.resize(frame, (width // 4, height // 4), interpolation=cv2.INTER_AREA) for frame in truth]
    bicubic = np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC) for frame in reduced])
    return [(read["carphone_distorted"], read["carphone_pristine"]), (bicubic, truth)]


def row(name: str, reference: str, pairs: list[tuple[float, float]]) -> Row:
    """(metric, reference, an example of ours and theirs, largest difference)."""
    ours, theirs = pairs[-1]
    return (name, reference, float(ours), float(theirs), float(max(abs(a - b) for a, b in pairs)))


def fidelity_rows(data: list[tuple[Clip, Clip]]) -> list[Row]:
    rows = []
    for rounded in (False, True):
        pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for fakes, reals in data:
            for fake, real in zip(fakes, reals, strict=True):
                expected = scikit_fidelity(fake, real, rounded)
                batch = (torch.from_numpy(frame)[None] for frame in (fake, real))
                sides = {
                    "CPU": frame_fidelity(fake, real, FIDELITY, rounded),
                    "tensor": batch_fidelity(*batch, FIDELITY, rounded)[0],
                }
                for side, scores in sides.items():
                    for name, value in scores.items():
                        pairs.setdefault((name, side), []).append((value, float(expected[name])))
        note = ", luma rounded" if rounded else ""
        rows += [
            row(f"{name} ({side}{note})", "scikit-image", found)
            for (name, side), found in pairs.items()
            if not rounded or name.endswith("_y")
        ]
    return rows


def temporal_rows(data: list[tuple[Clip, Clip]]) -> list[Row]:
    named: dict[str, tuple[Callable[..., float], str]] = {
        "tof": (lambda f, r: tecogan_tof(f, r, 0), "TecoGAN's metrics.py"),
        "tdiff": (tdiff_in_float, "listing 3 in float64"),
        "warp": (blind_warping_error, "fast_blind_video_consistency in float64"),
    }

    def ours(name: str, clip: tuple[Clip, Clip]) -> float:
        return measure_clip([METRICS[name]], PROTOCOLS["default"], 1, *clip)[name]

    return [
        row(name, reference, [(ours(name, clip), float(theirs(*clip))) for clip in data])
        for name, (theirs, reference) in named.items()
    ]


def images(data: list[tuple[Clip, Clip]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    pairs = [(fake[0][:272, :320], real[0][:272, :320]) for fake, real in data]
    return [tuple(torch.from_numpy(i).permute(2, 0, 1)[None] / 255 for i in pair) for pair in pairs]  # type: ignore[misc]


def st_lpips_row(data: list[tuple[Clip, Clip]]) -> Row:
    # The package imports two modules that it does not use.
    sys.modules.setdefault("IPython", types.SimpleNamespace(embed=None))  # type: ignore[arg-type]
    sys.modules.setdefault("torchsummary", types.SimpleNamespace(summary=None))  # type: ignore[arg-type]
    theirs = importlib.import_module("stlpips_pytorch.stlpips").LPIPS(
        net="alex", variant="shift_tolerant", verbose=False
    )
    ours = ShiftTolerantLpips()
    pairs = [(float(ours(*pair)), float(theirs(*pair, normalize=True))) for pair in images(data)]
    return row("stlpips", "stlpips-pytorch 0.0.2", pairs)


def deep_rows(data: list[tuple[Clip, Clip]], folder: Path) -> list[Row]:
    """LPIPS and DISTS of torchmetrics with random trunks, against the formulas written out."""
    models = importlib.import_module("torchvision.models")
    torch.manual_seed(0)
    (folder / "checkpoints").mkdir()
    alexnet, vgg16 = models.alexnet(weights=None).eval(), models.vgg16(weights=None).eval()
    torch.save(alexnet.state_dict(), folder / "checkpoints" / "alexnet-owt-7be5be79.pth")
    torch.save(vgg16.state_dict(), folder / "checkpoints" / "vgg16-397923af.pth")
    torch.hub.set_dir(str(folder))
    lpips, dists = Lpips(), Dists()
    heads = [getattr(lpips.network, f"lin{number}").model[-1].weight for number in range(5)]
    weights = {"alpha": dists.network.alpha, "beta": dists.network.beta}
    rows = []
    for name, ours, by_hand in (
        ("lpips", lpips, lambda *pair: lpips_by_hand(alexnet, heads, *pair)),
        ("dists", dists, lambda *pair: dists_by_hand(vgg16, weights, *pair)),
    ):
        pairs = [(float(ours.distance(*map(ours.features, pair))), float(by_hand(*pair))) for pair in images(data)]
        rows.append(row(f"{name} (random trunk)", "the formula on torchvision's network", pairs))
    return rows


def vmaf_row() -> Row:
    """Frame by frame against the whole film at once."""
    films = {path.stem: path for path in find_samples()}
    fake, real = (
        torch.from_numpy(np.stack(list(islice(iter_frames(films[f"carphone_{name}"]), 15))))
        for name in ("distorted", "pristine")
    )
    stream = VmafStream()
    ours = [value for pair in zip(fake, real, strict=True) for value in stream.push(*pair)] + stream.end()
    whole = (clip.permute(3, 0, 1, 2)[None] / 255 for clip in (fake, real))
    theirs = load_vmaf()(*whole)[0].tolist()
    return row("vmaf (in pieces)", "torchmetrics, whole film", list(zip(ours, theirs, strict=True)))


def statistics_row() -> Row:
    rng = np.random.default_rng(0)
    pairs = []
    for shift in (0.0, 0.3, 0.6):
        other = rng.normal(30, 3, 10)
        this = other + rng.normal(shift, 1, 10)
        pairs.append((compare(this, other, [1.0] * 10, +1).p or 0.0, float(sign_flip_p(this - other, [1.0] * 10))))
        scipys = permutation_test(
            (this - other,), np.mean, permutation_type="samples", n_resamples=np.inf, rng=np.random.default_rng(0)
        )
        pairs.append((pairs[-1][0], float(scipys.pvalue)))
    return row("p of a comparison", "all sign flips; scipy", pairs)


def table(rows: list[Row]) -> str:
    lines = ["| metric | reference | ours | reference's | largest difference |", "|---|---|---|---|---|"]
    lines += [f"| {n} | {ref} | {ours:.6g} | {theirs:.6g} | {d:.1e} |" for n, ref, ours, theirs, d in rows]
    return "\n".join(lines)


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    data = clips()
    rows = [*fidelity_rows(data), *temporal_rows(data)]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        rows += [st_lpips_row(data), *deep_rows(data, Path(folder)), vmaf_row()]
    rows.append(statistics_row())
    names = ("metric", "reference", "ours", "theirs", "largest_difference")
    content = {"command": shlex.join(["python", *sys.argv]), **describe_machine()}
    content["rows"] = [dict(zip(names, found, strict=True)) for found in rows]
    RESULT.write_text(json.dumps(content, indent=1) + os.linesep)
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{rest.split(END)[1]}")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
