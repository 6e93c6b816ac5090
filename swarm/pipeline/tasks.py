"""What a node computes, one task after another, the most urgent first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transport.machine import Effect

Done = Callable[[Any, float], Sequence[Effect]]
COMMIT = 0
"""Priority of what a slot's end needs; microbatch work follows in `work.PRIORITY`."""


@dataclass(frozen=True, slots=True)
class Task:
    """`run` computes (torch), `done(result, now)` decides what follows.

    flops: what it costs, for the simulated world's clock. microbatch: dropped when a slot closes.
    """

    priority: int
    run: Callable[[], Any]
    done: Done
    flops: float = 0.0
    microbatch: bool = False


class TaskQueue:
    """First in, first out within a priority."""

    def __init__(self, priorities: int) -> None:
        self._queues: tuple[deque[Task], ...] = tuple(deque() for _ in range(priorities))

    def put(self, task: Task) -> None:
        """Add a task. In-flight limits upstream bound how many there can be."""
        self._queues[task.priority].append(task)

    def get(self) -> Task | None:
        """The most urgent task, or None."""
        for queue in self._queues:
            if queue:
                return queue.popleft()
        return None

    def drop_microbatches(self) -> None:
        """The slot is closed: its microbatch work is void."""
        for index, queue in enumerate(self._queues):
            kept = [task for task in queue if not task.microbatch]
            self._queues[index].clear()
            self._queues[index].extend(kept)
