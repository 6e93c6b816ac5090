"""Deadlines from measured times, so that nobody tunes a timeout."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median


@dataclass(slots=True)
class Durations:
    """The last durations of one kind of work and the deadline that follows from them.

    initial_s: the deadline before anything was measured; generous, for it also covers warm-up.
    floor_s: never less, however steady the measurements: scheduling noise is not a fault.
    """

    initial_s: float
    floor_s: float
    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=32))

    def add(self, seconds: float) -> None:
        """Count one finished piece of work."""
        self._seconds.append(seconds)

    def limit_s(self) -> float:
        """median + 8 x MAD, at least three medians and the floor."""
        if len(self._seconds) < 3:
            return self.initial_s
        middle = median(self._seconds)
        spread = median(abs(value - middle) for value in self._seconds)
        return max(self.floor_s, 3.0 * middle, middle + 8.0 * spread)

    def typical_s(self) -> float:
        """The median, or 0 before anything was measured."""
        return median(self._seconds) if self._seconds else 0.0
