"""The loop that runs one machine over one link. It only waits; what to do is the machine's.

The clock is the event loop's, so the same driver runs in real and in virtual time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from transport.link import Closed, Link, LinkClosed, LinkEvent, Received
from transport.machine import Effect, Machine, NodeId, Send

BURST_MAX = 64
"""Events handled before deadlines are looked at and other tasks get a turn."""


class Driver:
    """One machine on one link.

    perform: does every effect that is not a `Send`; it must not wait.
    closed, malformed: what to do about a lost connection (peer, now) and a dropped message
        (peer, reason, now); without them these events change nothing.
    """

    def __init__(
        self,
        machine: Machine,
        link: Link,
        perform: Callable[[Effect], None],
        *,
        closed: Callable[[NodeId, float], Sequence[Effect]] | None = None,
        malformed: Callable[[NodeId, str, float], Sequence[Effect]] | None = None,
    ) -> None:
        self._machine = machine
        self._link = link
        self._perform = perform
        self._closed = closed
        self._malformed = malformed
        self._alarm: asyncio.Timeout | None = None

    async def run(self) -> None:
        """Run until the link is closed. What the machine or `perform` raises ends it, too."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._do(self._machine.tick(loop.time()))
                event = await self._next()
                if event is not None:
                    await self._burst(event)
        except LinkClosed:
            return

    def act(self, effects: Iterable[Effect]) -> None:
        """Do effects that the machine returned to someone else, and look at its deadline again."""
        self._do(effects)
        self.wake()

    def wake(self) -> None:
        """Tick now: the machine was changed from outside, or its deadline was."""
        if self._alarm is not None and not self._alarm.expired():
            self._alarm.reschedule(asyncio.get_running_loop().time())

    async def _next(self) -> LinkEvent | None:
        """The next event, or None when the machine's deadline has come or `wake` was called."""
        try:
            async with asyncio.timeout_at(self._machine.deadline()) as self._alarm:
                return await self._link.recv()
        except TimeoutError:
            return None
        finally:
            self._alarm = None

    async def _burst(self, event: LinkEvent) -> None:
        self._do(self._handle(event))
        for _ in range(BURST_MAX):
            following = self._link.poll()
            if following is None:
                return
            self._do(self._handle(following))
        # A flooded link never makes us wait, and would starve every other task.
        await asyncio.sleep(0)

    def _handle(self, event: LinkEvent) -> Sequence[Effect]:
        now = asyncio.get_running_loop().time()
        if isinstance(event, Received):
            return self._machine.handle(event.peer, event.message, now)
        if isinstance(event, Closed):
            return self._closed(event.peer, now) if self._closed else ()
        return self._malformed(event.peer, event.reason, now) if self._malformed else ()

    def _do(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._link.send(effect.peer, effect.message)
            else:
                self._perform(effect)
