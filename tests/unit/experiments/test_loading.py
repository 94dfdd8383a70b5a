"""benchmarks/loading.py: ratios and tables from made-up rounds."""

from __future__ import annotations

import numpy as np
from benchmark_modules import import_benchmark

loading = import_benchmark("loading")


def rounds_of(**values):
    return {name: [{"cpu": value, "wall": value} for value in found] for name, found in values.items()}


def test_a_ratio_is_the_median_over_rounds_against_the_strongest_control_of_each():
    rounds = {
        **rounds_of(png=(120.0, 60.0, 90.0)),
        "loose png, 0 workers": [{"cpu": value, "wall": 1.0} for value in (100.0, 40.0, 60.0)],
        "loose png, 2 workers": [{"cpu": value, "wall": 1.0} for value in (80.0, 50.0, 100.0)],
    }
    # 120 / 100, 60 / 50, 90 / 100.
    found = loading.ratios(rounds)["png"]
    assert found == {"DataLoader over loose PNG files": {"median": 1.2, "least": 0.9, "greatest": 1.2}}


def test_the_tables_name_what_was_measured():
    result = {
        "rounds": 3,
        "ratios": {"png": {"DataLoader over loose PNG files": {"median": 1.2, "least": 0.9, "greatest": 1.3}}},
        "hr_frames_per_cpu_s": {"npy": 12345.6, "memmap, 2 workers": 700.0, "copy by hand": 20000.0},
        "cold_bytes_per_window": {"npy": 4_900_000, "memmap": 20_000_000, "memmap, MADV_RANDOM": 5_100_000},
        "hash_all_clips_once": {"gigabytes": 0.5, "cpu_s": 0.12},
        "load_average": [1.5, 2.0],
        "machine": {"cores": 2},
    }
    text = loading.markdown(result)
    assert "| `png` | DataLoader over loose PNG files | 1.2 (0.9 to 1.3) |" in text
    assert "| ours, `npy` | 12,346 | 4.9 |" in text and "| copy by hand | 20,000 | - |" in text
    assert "| memmap, 2 workers | 700 | 20.0 |" in text
    assert "0.50 GB" in text and "reads 5.1 MB per window" in text and "on 2 cores" in text


def test_crops_of_a_window_over_two_clips_come_in_order():
    clips = {
        key: (np.full((5, 70, 70, 3), first, np.uint8), np.full((5, 280, 280, 3), first, np.uint8))
        for key, first in (("a", 1), ("b", 2))
    }
    window = loading.Window((("a", 2, 5), ("b", 0, 4)), 3, 4)
    low, real = loading.MappedCrops(loading.views_of([window], clips))[0]
    assert low.shape == (7, 64, 64, 3) and real.shape == (7, 256, 256, 3)
    assert low[:, 0, 0, 0].tolist() == real[:, 0, 0, 0].tolist() == [1, 1, 1, 2, 2, 2, 2]
