"""Machine: notices that the training half of a node hangs, so that the node says so itself.

Membership answers for a node whose training half is stopped, or waits for a device or a disk for
ever, and its cell would wait as long: alive for gossip, silent at work. Only its own gossip half can tell.
"""

from __future__ import annotations

SILENCE_MIN_S = 60.0
"""One piece of torch work, or one checkpoint on a slow disk, keeps a training half silent for seconds."""
SILENCE_MAX_S = 600.0
"""However slow a device is: after that long its stages are given to others."""
LOOK_GAP_MAX_S = 5.0
"""Between two looks no more than this counts: if they lie further apart, this half was stopped itself."""


class Watchdog:
    """How long the training half has been silent, and whether that is too long.

    A silence that ended by itself was no hang: from then on twice as much is borne, up to a limit.
    """

    def __init__(self) -> None:
        self.hangs = False
        self._begun = False
        self._silent_s, self._looked_at = 0.0, 0.0
        self._limit_s = SILENCE_MIN_S

    def heard(self) -> bool:
        """The training half said something. Whether it was thought to hang."""
        self._begun = True
        self._limit_s = min(SILENCE_MAX_S, max(self._limit_s, 2.0 * self._silent_s))
        hung, self.hangs, self._silent_s = self.hangs, False, 0.0
        return hung

    def look(self, now: float) -> bool:
        """Called about once a second. Whether the half counts as hanging from now on.

        Before it has said anything it may be reading the job's text for as long as that takes.
        """
        since, self._looked_at = now - self._looked_at, now
        if not self._begun or self.hangs:
            return False
        self._silent_s += min(LOOK_GAP_MAX_S, since)
        self.hangs = self._silent_s >= self._limit_s
        return self.hangs

    @property
    def why(self) -> str:
        """One sentence for the events."""
        return f"the training half has said nothing for {self._silent_s:.0f} s: its stages are for others"
