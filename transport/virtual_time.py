"""An event loop whose clock jumps: hours of waiting run in milliseconds, always the same way.

When nothing is ready, time moves to the next timer; nothing ever waits for real. Callbacks
run in the order they were scheduled, timers by (time, order of scheduling), so a run is a
function of its inputs alone. asyncio keeps tasks and futures in sets (`TaskGroup`, `wait`,
`all_tasks`), whose order would follow memory addresses; here tasks and futures hash by the
order of their creation instead. What stays the caller's duty: no iteration over sets of
strings (their order follows PYTHONHASHSEED), no threads, no global randomness or wall clock.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextvars import Context, ContextVar
from itertools import count
from math import inf
from typing import Any, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

OWNER: ContextVar[str] = ContextVar("OWNER", default="")
"""Whose code runs: set in the context that a node's tasks start in, inherited by all they start."""
STEPS_PER_INSTANT_MAX = 1_000_000
"""Callbacks run without the clock moving before the loop calls it a livelock."""
_SWEEP_MIN = 1024
"""Cancelled timers kept at least; `asyncio.timeout` leaves one behind each time."""


class VirtualTimeError(RuntimeError):
    """The simulated program cannot go on: a deadlock, a livelock, or a way out of the loop."""


class _Future(asyncio.Future[Any]):
    def __init__(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        self.number = number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.number


class _Task(asyncio.Task[T]):
    def __init__(self, number: int, coro: Coroutine[Any, Any, T], **options: Any) -> None:
        # Before the base class, which puts the task into the set of all tasks.
        self.number = number
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self.number


class VirtualTimeLoop(asyncio.BaseEventLoop):
    """An asyncio event loop in virtual time, without sockets, threads or signals.

    An exception that would otherwise only be logged (a failing callback, a failed task that
    nobody awaited) ends the run, because a simulation that limps on proves nothing.
    """

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self._now = start
        self._soon: deque[tuple[asyncio.Handle, str]] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle, str]] = []
        self._frozen: dict[str, list[asyncio.Handle]] = {}
        self._order = count()
        self._numbers = count()
        self._cancelled_timers = 0
        self._steps_this_instant = 0

    def time(self) -> float:
        """Virtual seconds. Starts at `start` and moves only when nothing is ready."""
        return self._now

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Run `callback` after everything that is ready already."""
        handle = asyncio.Handle(callback, args, self, context)
        self._soon.append((handle, _owner(context)))
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run `callback` in `delay` virtual seconds."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run `callback` at `when`; among equal times, first scheduled runs first."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._order), handle, _owner(context)))
        return handle

    def freeze(self, owner: str) -> None:
        """Stop everything `owner` runs, as SIGSTOP does. Its timers still pass meanwhile."""
        self._frozen.setdefault(owner, [])

    def thaw(self, owner: str) -> None:
        """Let `owner` go on; what became ready meanwhile runs now. Cancel its tasks only after."""
        self._soon.extend((handle, owner) for handle in self._frozen.pop(owner, ()))

    def thaw_all(self) -> None:
        """Let everybody go on."""
        for owner in list(self._frozen):
            self.thaw(owner)

    def create_future(self) -> asyncio.Future[Any]:
        """A future that hashes by its number."""
        return _Future(next(self._numbers), self)

    def create_task(self, coro: Any, *, name: object = None, **options: Any) -> asyncio.Task[Any]:
        """A task that hashes by its number, and is named by it unless `name` is given."""
        number = next(self._numbers)
        return _Task(number, coro, loop=self, name=f"task-{number}" if name is None else str(name), **options)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Raise what a real loop would log."""
        error = context.get("exception")
        raise error if isinstance(error, BaseException) else VirtualTimeError(str(context.get("message")))

    def run_in_executor(
        self,
        executor: Executor | None,  # noqa: ARG002
        func: Callable[[Unpack[Ts]], T],
        *args: *Ts,  # noqa: ARG002
    ) -> asyncio.Future[T]:
        """Refused: a thread runs in real time."""
        raise VirtualTimeError(f"{func!r} would run in a thread, which has no virtual time")

    def call_soon_threadsafe(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,  # noqa: ARG002
        context: Context | None = None,  # noqa: ARG002
    ) -> asyncio.Handle:
        """Refused: a callback from another thread would arrive at a time of its own."""
        raise VirtualTimeError(f"{callback!r} was called in from a thread, which has no virtual time")

    def close(self) -> None:
        """Forget everything scheduled."""
        self._soon.clear()
        self._timers.clear()
        self._frozen.clear()
        super().close()

    def _run_once(self) -> None:
        # The step that `run_forever` repeats; a turn is what was ready when it began.
        if not self._soon:
            self._jump()
        self._steps_this_instant += len(self._soon)
        if self._steps_this_instant > STEPS_PER_INSTANT_MAX:
            self._steps_this_instant = 0  # cancelling what is left takes steps, too
            raise VirtualTimeError(f"livelock at {self._now} s: {self._pending()}")
        for _ in range(len(self._soon)):
            handle, owner = self._soon.popleft()
            if owner in self._frozen:
                self._frozen[owner].append(handle)
            elif not handle.cancelled():
                handle._run()

    def _jump(self) -> None:
        """Move the clock to the next timer, and make all timers of that instant ready."""
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        if not self._timers or self._timers[0][0] == inf:
            raise VirtualTimeError(f"deadlock at {self._now} s, nothing will ever wake: {self._pending()}")
        if self._timers[0][0] > self._now:
            self._now = self._timers[0][0]
            self._steps_this_instant = 0
        while self._timers and self._timers[0][0] <= self._now:
            _, _, handle, owner = heapq.heappop(self._timers)
            self._soon.append((handle, owner))

    def _timer_handle_cancelled(self, _handle: asyncio.TimerHandle) -> None:
        # An upper bound, because a timer may be cancelled after it has run.
        self._cancelled_timers += 1
        if self._cancelled_timers > max(_SWEEP_MIN, len(self._timers) // 2):
            self._timers = [entry for entry in self._timers if not entry[2].cancelled()]
            heapq.heapify(self._timers)
            self._cancelled_timers = 0

    def _pending(self) -> str:
        return ", ".join(task.get_name() for task in _unfinished(self)) or "no task"


def _owner(context: Context | None) -> str:
    return OWNER.get() if context is None else context.get(OWNER, "")


def run_virtual(main: Coroutine[Any, Any, T], *, start: float = 0.0) -> T:
    """Run `main` to its end in a new virtual-time loop and return its result.

    What `asyncio.run` is for real time: tasks left over are cancelled, oldest first. Raises
    VirtualTimeError, naming the pending tasks, if `main` can never finish.
    """
    loop = VirtualTimeLoop(start)
    try:
        return loop.run_until_complete(main)
    finally:
        try:
            _cancel_rest(loop)
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()


def _cancel_rest(loop: VirtualTimeLoop) -> None:
    rest = _unfinished(loop)
    if not rest:
        return
    loop.thaw_all()
    for task in rest:
        task.cancel()
    loop.run_until_complete(asyncio.wait(rest))
    for task in rest:
        if not task.cancelled():
            task.result()


def _unfinished(loop: VirtualTimeLoop) -> list[_Task[Any]]:
    tasks = [task for task in asyncio.all_tasks(loop) if isinstance(task, _Task)]
    return sorted(tasks, key=lambda task: task.number)
