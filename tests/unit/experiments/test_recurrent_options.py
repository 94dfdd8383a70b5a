"""What benchmarks/recurrent_options.py makes of evaluations, and that its arms are trainings that can be."""

from __future__ import annotations

import argparse
import json

import pytest
from benchmark_modules import import_benchmark

from vsr_dist.config import check_config, load_config


@pytest.fixture(scope="module")
def options():
    return import_benchmark("recurrent_options")


@pytest.fixture
def arguments(options, tmp_path):
    """Three seeds of two arms: the second 0.1 to 0.3 dB better, its tOF now better and now worse."""
    found = argparse.Namespace(work=tmp_path, seeds=[0, 1, 2, 3], channels=8, steps=5, frames=2)
    for arm, psnr, tof in (
        (options.PLAIN, (31.0, 31.2, 31.4), (0.20, 0.21, 0.22)),
        ("ConvLSTM", (31.1, 31.4, 31.7), (0.21, 0.21, 0.20)),
    ):
        for seed in range(3):
            row = {"ours": {"psnr_y": psnr[seed], "tof": tof[seed]}, "bicubic": {"psnr_y": 30.0, "tof": 0.3}}
            path = options.evaluation_of(arm, seed, found) / "metrics.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps({"table": {"overall": row}}))
    return found


def test_arms_are_compared_seed_by_seed(options, arguments):
    plain = options.scores_of(options.PLAIN, arguments)
    entry = options.entry_of("ConvLSTM", plain, arguments)
    gain, against = entry["better_than_bicubic_by"], entry["better_than_plain_by"]
    assert gain["psnr_y"] == pytest.approx({"mean": 1.4, "low": 1.1, "high": 1.7})
    assert gain["tof"]["mean"] == pytest.approx(0.3 - 0.62 / 3), "less is better"
    assert [against["psnr_y"][key] for key in ("mean", "low", "high")] == pytest.approx([0.2, 0.1, 0.3])
    assert (against["psnr_y"]["verdict"], against["tof"]["verdict"]) == ("better", "no clear difference")
    assert options.entry_of(options.PLAIN, plain, arguments)["better_than_plain_by"] == {}
    assert list(entry["tables"]) == [0, 1, 2], "the unfinished seed is left out"
    line = options.table({"ConvLSTM": {**entry, "parameters": 1234, "frame_cpu_ms": 5.2}}).splitlines()[2]
    assert line.startswith("| ConvLSTM | 1,234 | 5 | 3 | +1.40 (+1.10 to +1.70) | +0.093 (+0.090 to +0.100) |")


def test_every_arm_is_a_configuration_of_its_own(options, arguments):
    seen = []
    for arm in options.ARMS:
        config = load_config(options.CONFIG, options.settings_of(arm, arguments))
        check_config(config)
        assert config.loss.active_terms() == ("image", "tv", "temporal")
        seen.append(config.generator)
        assert options.folder_of(arm) not in {options.folder_of(other) for other in options.ARMS if other != arm}
    assert len(set(seen)) == len(seen)


def test_a_folder_is_not_gone_on_with_under_other_options(options, arguments):
    runner = options.Runner()
    options.check_options(arguments, runner)
    options.check_options(arguments, runner)
    arguments.steps = 6
    with pytest.raises(options.BadConfigError, match="use --work"):
        options.check_options(arguments, runner)
