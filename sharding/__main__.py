"""`python -m sharding pack | verify | inspect | samples`."""

from __future__ import annotations

import sys

from sharding.cli import main
from sharding.errors import run_cli

if __name__ == "__main__":
    sys.exit(run_cli(main))
