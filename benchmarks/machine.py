"""What a result file says about where it was measured."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import version

PACKAGES = ("torch", "numpy", "opencv-python-headless", "webdataset", "accelerate", "av", "scikit-image")


def describe_machine() -> dict[str, object]:
    """Processor, cores, Python and package versions, and the day. No host name, no path."""
    model = "unknown"
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "date": datetime.date.today().isoformat(),
        "note": "shared machine; compare ratios within one file only",
    }
