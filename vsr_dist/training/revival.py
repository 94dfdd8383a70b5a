"""Starting a dead discriminator anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from vsr_dist.core.collectives import broadcast_buffers, current_world
from vsr_dist.core.console import say
from vsr_dist.training.checkpoint import Restorable
from vsr_dist.training.controllers import Controllers
from vsr_dist.training.monitor import DriftMonitor


@dataclass(frozen=True)
class Revival:
    """Looks at the discriminator at `control.revival.every_steps` and replaces it when the controller says so.

    fresh_discriminator: a network with fresh weights that depend on its argument, how often this was done, and the
    seed only.
    """

    controllers: Controllers
    monitor: DriftMonitor
    live: Restorable
    fresh_discriminator: Callable[[int], nn.Module]

    def after_step(self, done: int, warmup_steps: int) -> bool:
        """True if the discriminator was replaced after `done` steps, on every rank; a collective call when it looks."""
        controllers = self.controllers
        if not controllers.must_check(done, warmup_steps):
            return False
        generator, discriminator = self.live.modules["generator"], self.live.modules["discriminator"]
        broadcast_buffers(discriminator)
        if not controllers.check(done, self.monitor.dead_fraction(generator, discriminator)):
            return False
        count = controllers.state.revivals
        discriminator.load_state_dict(self.fresh_discriminator(count).state_dict())
        self.live.optimizers["discriminator"].state.clear()
        if current_world().is_main:
            most = controllers.config.revival.at_most
            say(f"step {done}: the discriminator is dead and starts anew ({count} of {most} times)")
        return True
