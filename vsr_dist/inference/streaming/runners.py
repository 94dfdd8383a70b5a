"""Moved to `vsr_dist.inference.engine`."""

from vsr_dist.inference.engine import Precision

__all__ = ["Precision"]
