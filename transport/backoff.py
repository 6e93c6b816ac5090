"""How long to wait before trying again: ever longer, up to a limit, and never all at the same moment."""

from __future__ import annotations

import random
from dataclasses import dataclass

DOUBLINGS_MAX = 32
"""After so many the limit is reached, whatever it is; a power without end would overflow."""


@dataclass(slots=True)
class Backoff:
    """The pauses between tries to reach one peer: half random, doubling from `first_s` to `most_s`.

    Whoever lost the same peer at the same moment comes back at another, and each with its own
    `rng`. tries: since it answered last.
    """

    first_s: float
    most_s: float
    rng: random.Random
    tries: int = 0

    def pause_s(self) -> float:
        """How long to wait now, after one more try in vain."""
        longest_s = min(self.most_s, self.first_s * 2.0 ** min(self.tries, DOUBLINGS_MAX))
        self.tries += 1
        return longest_s * self.rng.uniform(0.5, 1.0)

    def reset(self) -> None:
        """It answered: the next pause is a short one."""
        self.tries = 0
