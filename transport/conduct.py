"""How peers behave on a link: which bad messages to report, when it is too much, and who is cut off.

Both links share it. Peers are judged by their node id, for as long as the link lives: neither
being known again nor another address or key wipes anything out. Sans-I/O: the link says what time
it is and wakes up when a cut-off ends.
"""

from __future__ import annotations

from dataclasses import dataclass

from transport.link import Endpoint, LinkStats
from transport.machine import NodeId
from transport.segments import LinkLimits
from transport.wire import OtherVersion, TooLarge, WireError

CONDUCTS_MAX = 4096
"""Peers whose errors are remembered; beyond it the oldest are forgotten."""
REASON_CHARS_MAX = 200


@dataclass(frozen=True, slots=True)
class Complaint:
    """What to do about a bad message. reason: to be reported, empty if it was before."""

    reason: str = ""
    is_too_much: bool = False


class Conduct:
    """The bad messages of one peer. Old errors are forgotten at a constant rate."""

    def __init__(self, limits: LinkLimits, now: float) -> None:
        self._limits = limits
        self._errors = 0.0
        self._since = now
        self._reasons: set[str] = set()

    def is_new(self, reason: str) -> bool:
        """Whether a reason was not reported before. What is remembered is bounded."""
        if reason in self._reasons or len(self._reasons) >= self._limits.errors_max:
            return False
        self._reasons.add(reason)
        return True

    def is_too_much(self, now: float) -> bool:
        """Count one error; True once the budget is spent."""
        forgiven = (now - self._since) * self._limits.errors_forgiven_per_s
        self._errors = max(0.0, self._errors - forgiven) + 1
        self._since = now
        return self._errors > self._limits.errors_max


class Conducts:
    """The conduct of all peers of a link, and who of them is cut off."""

    def __init__(self, limits: LinkLimits, stats: LinkStats) -> None:
        self._limits = limits
        self._stats = stats
        self._of: dict[NodeId, Conduct] = {}
        self._cut_off: dict[NodeId, Endpoint | None] = {}

    def complain(self, peer: NodeId, error: WireError, now: float) -> Complaint:
        """Count a message that was dropped.

        Another protocol version is told once and never too much: its peer does nothing wrong,
        it runs another release. Nor is it to blame for what is too large to be sent to it.
        """
        if peer not in self._of:
            if len(self._of) >= CONDUCTS_MAX:
                del self._of[next(iter(self._of))]
            self._of[peer] = Conduct(self._limits, now)
        conduct = self._of[peer]
        reason = str(error)[:REASON_CHARS_MAX]
        if isinstance(error, OtherVersion):
            self._stats.dropped_version += 1
            return Complaint(reason if conduct.is_new("version") else "")
        if isinstance(error, TooLarge):
            self._stats.dropped_too_large += 1
            return Complaint(reason if conduct.is_new(reason) else "")
        self._stats.dropped_malformed += 1
        if conduct.is_too_much(now):
            told = f"cut off for {self._limits.cut_off_s:g} s: too many malformed messages, at last {reason}"
            return Complaint(told[:REASON_CHARS_MAX], True)
        return Complaint(reason if conduct.is_new(reason) else "")

    @property
    def all_heard(self) -> bool:
        """Whether nobody is cut off now."""
        return not self._cut_off

    def cut_off(self, peer: NodeId, endpoint: Endpoint) -> None:
        """A peer that the link has just forgotten is not known again before `readmit`."""
        self._cut_off[peer] = endpoint

    def withholds(self, peer: NodeId, endpoint: Endpoint) -> bool:
        """Whether a peer is cut off. If so, this is where it will be known once that is over."""
        if peer not in self._cut_off:
            return False
        self._cut_off[peer] = endpoint
        return True

    def forget(self, peer: NodeId) -> None:
        """The link was told to forget a peer: the end of its cut-off does not bring it back."""
        if peer in self._cut_off:
            self._cut_off[peer] = None

    def readmit(self, peer: NodeId) -> Endpoint | None:
        """The cut-off is over; where the peer is to be known now, if anywhere."""
        self._of.pop(peer, None)
        return self._cut_off.pop(peer, None)
