"""Functions that torch.compile leaves alone."""

from __future__ import annotations

from torch._compile import _disable_dynamo

# `torch.compiler.disable` imports torch._dynamo at once, three seconds of every start; this waits for the first call.
outside_graphs = _disable_dynamo
