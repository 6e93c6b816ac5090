"""One delegate's round of one stage: whom it awaits, and for how long.

Two cells that are apart by half of what lies between their rounds would give each other up in
turn for ever, if each waited for less. So a cell that is seen to come is waited for until it
must be here; one that stands still costs the others half a round and no more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from transport.machine import NodeId

WAIT_MIN_S = 10.0
"""However short the iterations are, other cells may be late by so much."""
COMING = 3.5
"""Times the wait for any cell: for one that comes. It is met from wherever it was, if it needs for a
round what ours does, and half as long again."""
MEMBER = 1.5
"""Times the wait of the owner: other delegates wait for its word, which comes when that is over."""
LEADER_GRACE_S = 120.0
"""What a round may take besides waiting: outer gradients and anchors on thin links, the mean, the hash."""


def owner_wait_s(every: int, step_s: float) -> float:
    """How long the owner of a round waits for any cell: half of what lies between two rounds."""
    return max(WAIT_MIN_S, 0.5 * every * step_s)


def member_wait_s(every: int, step_s: float) -> float:
    """How long other delegates wait for the owner's word."""
    return MEMBER * owner_wait_s(every, step_s)


def leader_wait_s(every: int, step_s: float) -> float:
    """How long a leader waits for its delegates: longer than they do, by clocks that are not its own."""
    return 2.0 * COMING * owner_wait_s(every, step_s) + LEADER_GRACE_S


def comes_in_s(every: int, before: int, now_at: int, waited_s: float) -> float | None:
    """When a cell gets to its round at the pace it had while it was waited for; None if it does not.

    before, now_at: its iteration when that began, and now. At the end of `every` it is there.
    """
    made, left = now_at - before, -now_at % every
    return left * waited_s / made if made > 0 and left else None


@dataclass(frozen=True, slots=True)
class Begun:
    """The first start of the round of an iteration of a cell, and where the other cells were then."""

    cell: str
    iteration: int
    since: float
    others: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Came:
    """A cell's outer gradient, and at which of its iterations it was sent."""

    peer: NodeId
    iteration: int
    payload: Any


@dataclass(slots=True)
class Meeting:
    """This delegate's round of one stage.

    parts: what came for this anchor, by cell; an owner averages it. behind: who came with another, or
    too late, and waits at this iteration for the one that this delegate will have. told: who has this
    cell's outer gradient, and may answer it with an anchor. wait_s: for any cell, from when it began.
    until: when it stops waiting; latest: for cells that come.
    """

    begun: Begun
    every: int
    anchor: int
    digest: str
    delta: Any
    wait_s: float
    owner: NodeId
    owner_cell: str
    expected: frozenset[str]
    until: float = 0.0
    latest: float = 0.0
    predecessors: set[NodeId] = field(default_factory=set)
    parts: dict[str, Came] = field(default_factory=dict)
    behind: dict[NodeId, int] = field(default_factory=dict)
    told: set[NodeId] = field(default_factory=set)
    averaging: bool = False

    def __post_init__(self) -> None:
        self.wait()

    def wait(self) -> None:
        """Wait as long as such a round may take, counted from when it began."""
        self.until = self.begun.since + self.wait_s
        self.latest = self.begun.since + COMING * self.wait_s

    @property
    def which(self) -> tuple[str, int, NodeId]:
        """Cell, iteration and owner: a round that is closed once more goes on if none has changed."""
        return self.begun.cell, self.begun.iteration, self.owner

    @property
    def iteration(self) -> int:
        """Of this delegate's cell."""
        return self.begun.iteration

    def awaited(self, me: NodeId) -> Collection[str]:
        """Cells without which it does not end: the missing ones, or for a member the owner's."""
        return self.expected - self.parts.keys() if self.owner == me else (self.owner_cell,)

    def goes_on(self, missing: Mapping[str, int], now: float, *, owns: bool) -> bool:
        """Whether to wait longer, for the missing cells, at these iterations, that come in time.

        With more than two cells, an owner that is in its round may do the same.
        """
        at, waited_s = missing.get(self.owner_cell, 0), now - self.begun.since
        if not owns and len(self.expected) > 2 and at and at % self.every == 0:
            self.until = self.latest
            return now < self.until
        came = self.begun.others
        waits = [comes_in_s(self.every, came.get(cell, at), at, waited_s) for cell, at in missing.items()]
        due = [now + wait_s for wait_s in waits if wait_s is not None and now + wait_s < self.latest]
        if due:
            self.until = min(self.latest, max(due) + WAIT_MIN_S)
        return bool(due)

    def is_averaging(self, cell: str, iteration: int) -> bool:
        """Whether the round of this iteration is past waiting, and its mean on the way."""
        return self.averaging and (self.begun.cell, self.begun.iteration) == (cell, iteration)

    def all_behind(self) -> None:
        """Who came is not averaged after all."""
        self.behind |= {part.peer: part.iteration for part in self.parts.values()}
        self.parts.clear()

    def take_over(self, old: Meeting) -> None:
        """Who came to a meeting that is begun anew comes to this one, with its part if that is for it."""
        if (old.begun, old.anchor, old.digest) != (self.begun, self.anchor, self.digest):
            old.all_behind()
        self.behind = old.behind
        self.parts = {cell: part for cell, part in old.parts.items() if cell != self.begun.cell}

    def succeed(self, owner: NodeId) -> None:
        """Another delegate of its cell owns the round; the word of the one before still counts."""
        self.predecessors.add(self.owner)
        self.owner = owner
        self.wait()

    def stop_by(self, until: float) -> None:
        """Wait no longer than this for anybody."""
        self.until = self.latest = min(self.until, until)
