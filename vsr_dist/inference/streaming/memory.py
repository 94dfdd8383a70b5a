"""How much memory a network needs and how much there is."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Share of what is free now that is planned with: the rest is for decoding, encoding and the allocator's gaps.
_CUDA_SHARE, _CPU_SHARE = 0.8, 0.5
# oneDNN's own buffers (reordered inputs, weights, scratch) are not PyTorch's and so not counted.
_CPU_FACTOR, _CUDA_FACTOR = 1.5, 1.1
# Beyond this nothing is gained, and a shared machine is not ours alone.
_CPU_CAP_BYTES = 4 * 2**30
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "could not create a memory object")


@dataclass(frozen=True)
class Need:
    """Bytes per pixel of the input: at the worst moment, and of the results that stay."""

    peak: float
    results: float


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the tensors that exist at the same time, from the operators that make them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(  # PyTorch calls it with whatever an operator takes
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        # A view has its base's storage, and Python one object for it as long as it lives.
        key = id(storage)
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._known.pop(key)


def peak_bytes_per_px(call: Callable[[], Sequence[Tensor]], num_px: int, device: torch.device) -> Need:
    """What one call takes for each of the `num_px` pixels of its input.

    On CUDA by the allocator's own peak, workspaces of convolutions included; elsewhere by adding up the tensors that
    live at the same time, and a margin for what the libraries hold.
    """
    if device.type == "cuda":
        call()  # the first call also loads kernels
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        results = call()
        peak = (torch.cuda.max_memory_allocated(device) - before) * _CUDA_FACTOR
    else:
        with _LiveBytes() as live:
            results = call()
        peak = live.peak * _CPU_FACTOR
    kept = sum(tensor.numel() * tensor.element_size() for tensor in results)
    return Need(peak / num_px, kept / num_px)


def free_bytes(device: torch.device) -> float:
    """Memory to plan with, on the device, for one of this machine's processes."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What PyTorch has from the driver and does not use can be used, too.
        return _CUDA_SHARE * (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    available = min(psutil.virtual_memory().available, _room_of_the_container())
    room: float = min(_CPU_SHARE * available / int(os.environ.get("LOCAL_WORLD_SIZE", "1")), _CPU_CAP_BYTES)
    return room


def _room_of_the_container() -> float:
    """What the control group (version 2) of a container leaves; infinite without a limit."""
    folder = Path("/sys/fs/cgroup")
    try:
        used = float((folder / "memory.current").read_text())
        parts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        # Files kept in memory are given up when somebody needs it.
        return float((folder / "memory.max").read_text()) - used + float(parts.get("file", 0))
    except (OSError, ValueError):
        # No such files, or the word "max".
        return float("inf")


def is_out_of_memory(error: BaseException) -> bool:
    """True for what PyTorch raises when a device or the machine has no memory left."""
    # On a CPU it is a plain RuntimeError, known by its words only.
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)
