"""Which updates ride on the next message: fewest-sent first, each a limited number of times.

In a large swarm an update that somebody else told us is told on by its mark alone: most have it by
then, and who has not asks for it. So it can be told to everybody many times, and costs little more
than the few times that it is sent whole.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

from swarm.gossip.compact import RENEWAL_BYTES, Renewal
from swarm.gossip.comparing import Mark, mark_of_update, pack_marks
from swarm.gossip.messages import MARK_BYTES, TOLD_MAX, UPDATES_MAX, Notice
from transport.wire import Signed

Sort = Literal["records", "renewals", "claims", "notices"]
Update = Signed | Renewal | Notice
OVERHEAD_BYTES = 256
"""Of an update, beyond its payload: signature, signer, field names."""
REMEMBERED_BATCHES = 128
"""For so many messages an update is remembered by its mark: longer than a swarm talks of it."""
REMEMBERED_MAX = 4096
"""Updates that are remembered, at most."""
ASK_AGAIN_BATCHES = 4
"""After so many messages an update that was asked for, and did not come, is asked for again."""


@dataclass(slots=True)
class Batch:
    """Updates for one message."""

    room: int
    records: list[Signed] = field(default_factory=list)
    renewals: list[Renewal] = field(default_factory=list)
    claims: list[Signed] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)

    def add(self, value: Update, sort: Sort) -> bool:
        """Add an update if there is room for it; an empty batch has room for any."""
        nbytes = size_of(value)
        chosen: list[Any] = getattr(self, "renewals" if isinstance(value, Renewal) else sort)
        if (nbytes > self.room and self) or len(chosen) == UPDATES_MAX:
            return False
        self.room -= nbytes
        chosen.append(value)
        return True

    def add_mark(self, mark: Mark) -> bool:
        """Add what stands for an update, if there is room."""
        if self.room < MARK_BYTES or len(self.marks) == TOLD_MAX:
            return False
        self.room -= MARK_BYTES
        self.marks.append(mark)
        return True

    def __bool__(self) -> bool:
        return bool(self.records or self.renewals or self.claims or self.notices or self.marks)

    def fields(self) -> dict[str, tuple[Update, ...] | bytes]:
        """As fields of an `Updates` body."""
        return {
            "records": tuple(self.records),
            "renewals": tuple(self.renewals),
            "claims": tuple(self.claims),
            "notices": tuple(self.notices),
            "told": pack_marks(self.marks),
        }


def size_of(value: Update) -> int:
    """Bytes of an update on the wire, about."""
    if isinstance(value, Renewal):
        return RENEWAL_BYTES + len(value.tail)
    signed = value.notice if isinstance(value, Notice) else value
    return len(signed.payload) + OVERHEAD_BYTES


def paged(updates: Iterable[tuple[Update, Sort]], page_bytes: int) -> Iterator[Batch]:
    """All updates, in order, in as many batches as it takes; at least one."""
    page = Batch(page_bytes)
    for value, sort in updates:
        if not page.add(value, sort):
            yield page
            page = Batch(page_bytes)
            page.add(value, sort)
    yield page


@dataclass(slots=True)
class _Queued:
    value: Update
    sort: Sort
    mark: Mark
    rides: bool
    sent: int = 0
    heard: bool = False


@dataclass(slots=True)
class _Remembered:
    """at: number of the batch then. value: None of what was asked for, or was told and is no news."""

    at: int
    key: Hashable = None
    value: Update | None = None
    sort: Sort = "claims"
    asked: bool = False


_least_sent = attrgetter("sent")


class Dissemination:
    """The queue of updates; a newer update under the same key replaces the older.

    is_idle: whether nothing waits but what may ride on messages that go out anyway.
    """

    def __init__(self, retransmit_mult: int, batch_bytes: int) -> None:
        self._mult, self._batch_bytes = retransmit_mult, batch_bytes
        self._queue: dict[Hashable, _Queued] = {}
        self._remembered: dict[Mark, _Remembered] = {}
        self._batches = 0
        self.is_idle = True

    def __len__(self) -> int:
        return len(self._queue)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._queue

    def put(self, key: Hashable, value: Update, sort: Sort, *, rides: bool = False, spent: int = 0) -> None:
        """Spread this from now on, as if it had been sent `spent` times.

        rides: only on messages that go out anyway.
        """
        self._queue.pop(key, None)
        mark = mark_of_update(value, sort)
        self._queue[key] = _Queued(value, sort, mark, rides, spent)
        self._remember(mark, _Remembered(self._batches, key, value, sort))
        self.is_idle = self.is_idle and rides

    def drop(self, key: Hashable) -> None:
        """Spread this no more."""
        self._queue.pop(key, None)

    def drop_claims(self, node: str) -> None:
        """What was claimed of a node is obsolete. Claims have keys ("claim", node, accuser)."""
        for key in [key for key in self._queue if isinstance(key, tuple) and key[:2] == ("claim", node)]:
            del self._queue[key]

    def limit(self, members: int) -> int:
        """How often each update is sent among so many members."""
        return self._mult * math.ceil(math.log10(members + 1))

    def take(self, members: int) -> Batch:
        """The next batch, counted as sent once more."""
        batch = Batch(self._batch_bytes)
        self._batches += 1
        if not self._queue:
            return batch
        limit = self.limit(members)
        for update in sorted(self._queue.values(), key=_least_sent):
            if update.sent < limit and self._add(batch, update):
                update.sent += 1
        self._queue = {key: update for key, update in self._queue.items() if update.sent < limit}
        self.is_idle = all(update.rides for update in self._queue.values())
        return batch

    # -- marks ------------------------------------------------------------------------------

    def hear(self, value: Update, sort: Sort) -> None:
        """Somebody told us this: from now on its mark is enough, if we are spreading it."""
        mark = mark_of_update(value, sort)
        known = self._remembered.get(mark)
        if known is None or known.asked:
            self._remember(mark, _Remembered(self._batches))
        else:
            self._hear(mark)

    def unhear(self, value: Update, sort: Sort) -> None:
        """It is not believed, and shall not stand for what it looks like: that is still to be asked for."""
        known = self._remembered.get(mark_of_update(value, sort))
        if known is not None and known.value is None:
            del self._remembered[mark_of_update(value, sort)]

    def lacking(self, marks: Iterable[Mark]) -> list[Mark]:
        """Of what somebody told us by marks, that which we have not; the rest was heard."""
        return [mark for mark in marks if not self._hear(mark)]

    def asked(self, marks: Iterable[Mark]) -> None:
        """These are asked for: they will come, or are asked for again a few messages later."""
        for mark in marks:
            self._remember(mark, _Remembered(self._batches, asked=True))

    def remembers(self, mark: Mark) -> bool:
        """Whether it has been told, or was asked for, lately."""
        return mark in self._remembered

    def find(self, marks: Iterable[Mark]) -> Iterator[tuple[Update, Sort]]:
        """Of what somebody asks for, that which this node has told lately."""
        for mark in marks:
            known = self._remembered.get(mark)
            if known is not None and known.value is not None:
                yield known.value, known.sort

    @staticmethod
    def _add(batch: Batch, update: _Queued) -> bool:
        return batch.add_mark(update.mark) if update.heard else batch.add(update.value, update.sort)

    def _hear(self, mark: Mark) -> bool:
        """Whether it is known, or is on its way."""
        known = self._remembered.get(mark)
        if known is None:
            return False
        update = self._queue.get(known.key)
        if update is not None and update.mark == mark:
            update.heard = True
        return not known.asked or self._batches < known.at + ASK_AGAIN_BATCHES

    def _remember(self, mark: Mark, known: _Remembered) -> None:
        remembered = self._remembered
        remembered.pop(mark, None)
        remembered[mark] = known
        while (oldest := next(iter(remembered))) != mark and (
            len(remembered) > REMEMBERED_MAX or remembered[oldest].at < self._batches - REMEMBERED_BATCHES
        ):
            del remembered[oldest]
