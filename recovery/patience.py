"""How long a silence is normal, from measured times; nobody tunes a timeout."""

from __future__ import annotations

from collections import deque
from statistics import median


class Patience:
    """Median + spread x MAD of the last gaps between answers, with a floor.

    first_s: patience until a few gaps were measured. spread: how many median absolute
    deviations a gap may lie above the median before it counts as silence.
    """

    def __init__(self, first_s: float, floor_s: float, spread: float) -> None:
        self._first_s, self._floor_s, self._spread = first_s, floor_s, spread
        self._gaps: deque[float] = deque(maxlen=32)

    def note(self, gap_s: float) -> None:
        """A gap that ended with an answer."""
        self._gaps.append(gap_s)

    def allowance_s(self) -> float:
        """The longest silence that is still patience."""
        if len(self._gaps) < 4:
            return self._first_s
        middle = median(self._gaps)
        mad = median(abs(gap - middle) for gap in self._gaps)
        # Perfectly even gaps have no MAD; twice the median keeps a hair's delay from being silence.
        return max(self._floor_s, 2 * middle, middle + self._spread * mad)
