"""The compute seam: in the real world torch takes its time; in the simulated one it costs it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol


class Compute(Protocol):
    """Runs one task of torch work at a time."""

    async def run(self, work: Callable[[], Any], flops: float) -> Any:
        """The result of `work`, which needs about `flops` floating point operations."""
        ...


class InlineCompute:
    """Runs the work on the spot and then lets the loop look at its sockets.

    The training half shares its interpreter with nothing that must answer quickly (gossip has
    its own process), so a thread would only add switches.
    """

    async def run(self, work: Callable[[], Any], flops: float) -> Any:  # noqa: ARG002
        """See `Compute`."""
        result = work()
        await asyncio.sleep(0)
        return result


class CostCompute:
    """Runs the work in no virtual time, then lets as much pass as a node of this speed needs."""

    def __init__(self, flops_per_s: float, overhead_s: float = 1e-4) -> None:
        self.flops_per_s = flops_per_s
        self.slowdown = 1.0
        self._overhead_s = overhead_s

    async def run(self, work: Callable[[], Any], flops: float) -> Any:
        """See `Compute`."""
        result = work()
        await asyncio.sleep(self._overhead_s + self.slowdown * flops / self.flops_per_s)
        return result
