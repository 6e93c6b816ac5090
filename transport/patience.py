"""How long to wait, from measured times, so that nobody tunes a timeout."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median

MEASURED_MIN, MEASURED_MAX = 3, 32
SPREAD, MEDIANS = 8.0, 3.0


@dataclass(slots=True)
class Patience:
    """The last durations of one kind of work, or gaps between answers, and the deadline they give.

    initial_s: the deadline before enough was measured; generous, for it also covers warm-up.
    floor_s: never less, however steady the measurements: scheduling noise is not a fault.
    """

    initial_s: float
    floor_s: float
    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=MEASURED_MAX))

    def add(self, seconds: float) -> None:
        """Count one finished piece of work, or one gap that ended with an answer."""
        self._seconds.append(seconds)

    @property
    def measured(self) -> bool:
        """Whether the deadline comes from measurements."""
        return len(self._seconds) >= MEASURED_MIN

    def limit_s(self) -> float:
        """median + 8 x MAD, at least three medians and the floor.

        Perfectly even times have no MAD; the medians keep a hair's delay from being a fault.
        """
        if not self.measured:
            return self.initial_s
        middle = median(self._seconds)
        spread = median(abs(value - middle) for value in self._seconds)
        return max(self.floor_s, MEDIANS * middle, middle + SPREAD * spread)

    def typical_s(self) -> float:
        """The median, or 0 before anything was measured."""
        return median(self._seconds) if self._seconds else 0.0
