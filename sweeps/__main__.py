"""`python -m sweeps run | report | promote`."""

from __future__ import annotations

import sys

from sweeps.cli import main
from vsr_dist.core.errors import run_cli

if __name__ == "__main__":
    sys.exit(run_cli(main))
