"""The only module that calls torch.distributed. Without a process group each call is the one-rank answer."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn

from vsr_dist.core.errors import UserError

Item = TypeVar("Item")

# What gloo says, as a plain RuntimeError, when the process at the other end of a connection has died.
_LOST_RANK = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")

# Ranks whose shares differ by hours meet at the end only, and torch waits 30 minutes unless told otherwise. One that
# died is noticed at once: its connection closes.
_PATIENCE = timedelta(days=30)


def is_active() -> bool:
    """True if a process group exists, that is, if there may be other ranks."""
    return dist.is_available() and dist.is_initialized()


def current_world() -> World:
    """This process's rank and the number of ranks."""
    return World(dist.get_rank(), dist.get_world_size()) if is_active() else World()


def join_ranks() -> World:
    """Meet the other processes that a launcher started, for messages between hosts (gloo); alone, do nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        reinit_process_group("gloo", _PATIENCE)
        if not is_active():
            dist.init_process_group("gloo", timeout=_PATIENCE)
    return current_world()


def reinit_process_group(backend: str, timeout: timedelta | None = None) -> None:
    """Make the process group after torchrun restarted the processes of one machine; else leave it to whoever does.

    torchrun keeps one store over its restarts, and torch 2.14 finds the addresses of the dead in it and waits for them.
    A prefix per start hides them. On several machines the numbers of starts differ: there
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the launcher's environment makes a new store for each.
    """
    start = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("GROUP_WORLD_SIZE") == "1"
    if start == 0 or not shared:
        return
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, size, is_master=False)  # type: ignore[attr-defined]
    fresh = dist.PrefixStore(f"start_{start}", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, timeout=timeout, store=fresh, rank=rank, world_size=size)


def mean_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Elementwise mean of a detached tensor (any shape, float) over all ranks, the same on every rank."""
    if not is_active():
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


class _MeanOverRanks(torch.autograd.Function):
    """The derivative of a mean is a mean: each rank's gradient takes in what the mean does to every rank's loss."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, values: torch.Tensor) -> torch.Tensor:
        del ctx
        return mean_over_ranks(values)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: torch.Tensor) -> torch.Tensor:
        del ctx
        return mean_over_ranks(gradients[0])


def differentiable_mean_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Elementwise mean of a tensor (any shape, float) over all ranks, with its gradient.

    Each rank's gradient is `1 / N` times the sum over the ranks' losses. That is the scale that fits DDP, which
    averages the ranks' parameter gradients: the result is the gradient of the mean of the N losses, as one process
    has it on the whole batch. Every rank must call it at the same point and run its backward pass.
    """
    if not is_active():
        return values
    mean: torch.Tensor = _MeanOverRanks.apply(values)
    return mean


def gather_lists(items: list[Item]) -> list[Item]:
    """All ranks' lists, one behind the other in rank order, on every rank. Items must be picklable."""
    if not is_active():
        return list(items)
    gathered: list[list[Item]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, items)
    return [item for part in gathered for item in part]


def from_main(item: Item) -> Item:
    """Rank 0's item on every rank. The item must be picklable."""
    if not is_active():
        return item
    box = [item]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def raise_on_all_ranks(action: Callable[[], Item]) -> Item:
    """Run `action` on every rank; if it is a `UserError` on any, all ranks end, and one of them says it.

    The message comes from the lowest rank that met it and is raised on rank 0; the others exit with status 2 and
    without a word. `action` must hold no collective call, or a rank that fails would leave the others waiting.
    """
    result: Item | None = None
    message: str | None = None
    try:
        result = action()
    except UserError as error:
        message = str(error)
    messages = [text for text in gather_lists([message]) if text is not None]
    if not messages:
        return cast(Item, result)
    if current_world().is_main:
        raise UserError(messages[0])
    sys.exit(2)


def broadcast_buffers(module: nn.Module) -> None:
    """Give every rank the buffers (such as batch-norm statistics) that rank 0 holds, in place."""
    if is_active():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


class Vote:
    """Asks every rank the same question after every step; a yes of one rank is the answer of all.

    Nobody waits: with several ranks each call starts an exchange and returns the answer of the call before, which has
    arrived long since. It travels over a gloo group of its own, between hosts, so that neither a GPU nor the order of
    the gradients' exchange is touched. Alone, a call returns its own answer. All ranks must make the same calls.
    """

    def __init__(self) -> None:
        several = is_active() and dist.get_world_size() > 1
        self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo")) if several else None
        self._flag = torch.zeros((), dtype=torch.int32)
        self._pending: dist.Work | None = None

    def __call__(self, yes: bool) -> bool:
        """True on every rank if one said yes in the call before (alone: in this call)."""
        if self._group is None:
            return yes
        if self.close():
            return True
        self._flag.fill_(int(yes))
        self._pending = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return False

    def close(self) -> bool:
        """Wait for the exchange that is under way, if one is; returns its answer."""
        if self._pending is None:
            return False
        self._pending.wait()
        self._pending = None
        return bool(self._flag.item())


def is_lost_rank(error: RuntimeError) -> bool:
    """True if a collective call failed because another rank is gone or does not answer."""
    return isinstance(error, dist.DistError) or any(text in str(error) for text in _LOST_RANK)


def barrier() -> None:
    """Wait until every rank is here."""
    if is_active():
        dist.barrier()


def shutdown() -> None:
    """Leave the process group, if there is one; without it torch warns of leaked resources at exit."""
    if is_active():
        dist.destroy_process_group()


@dataclass(frozen=True)
class World:
    """Where this process stands: `rank` counts from 0 to `size` - 1 over all machines."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files and talks to the tracking server."""
        return self.rank == 0
