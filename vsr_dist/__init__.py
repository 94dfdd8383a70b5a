"""Train, compare and tune video super-resolution GANs on many GPUs, and enlarge videos with what was trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vsr_dist.upscaler import Upscaler

__version__ = "0.1.0"
__all__ = ["Upscaler", "__version__"]


def __getattr__(name: str) -> object:
    """`vsr_dist.Upscaler`, imported at its first use: torch takes seconds to load, and most verbs do without."""
    if name != "Upscaler":
        raise AttributeError(f"module 'vsr_dist' has no attribute {name!r}")
    from vsr_dist.upscaler import Upscaler  # noqa: PLC0415

    return Upscaler
