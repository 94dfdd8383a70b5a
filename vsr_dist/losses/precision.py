"""Losses are computed in full precision, whatever autocast made of the networks' outputs."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(values: Tensor) -> Tensor:
    """Half precision (bfloat16 or float16) as float32; any other tensor as it is."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
