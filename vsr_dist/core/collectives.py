"""The only module that calls torch.distributed. Without a process group each call is the one-rank answer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn

from vsr_dist.core.errors import UserError
from vsr_dist.core.world import World

Item = TypeVar("Item")


def is_active() -> bool:
    """True if a process group exists, that is, if there may be other ranks."""
    return dist.is_available() and dist.is_initialized()


def current_world() -> World:
    """This process's rank and the number of ranks."""
    return World(dist.get_rank(), dist.get_world_size()) if is_active() else World()


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


def together(action: Callable[[], Item]) -> Item:
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


def any_rank(flag: bool) -> bool:
    """True on every rank if `flag` is true on at least one: reduce before a branch that holds a collective."""
    return any(gather_lists([flag]))


def barrier() -> None:
    """Wait until every rank is here."""
    if is_active():
        dist.barrier()


def shutdown() -> None:
    """Leave the process group, if there is one; without it torch warns of leaked resources at exit."""
    if is_active():
        dist.destroy_process_group()
