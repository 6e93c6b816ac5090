"""Which updates ride on the next message: fewest-sent first, each a limited number of times."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

from swarm.gossip.compact import RENEWAL_BYTES, Renewal
from swarm.gossip.messages import UPDATES_MAX, Notice
from transport.wire import Signed

Sort = Literal["records", "renewals", "claims", "notices"]
Update = Signed | Renewal | Notice
OVERHEAD_BYTES = 256
"""Of an update, beyond its payload: signature, signer, field names."""
HEARD = 2
"""Copies that need not be sent for each one that somebody else sent us."""


@dataclass(slots=True)
class Batch:
    """Updates for one message."""

    room: int
    records: list[Signed] = field(default_factory=list)
    renewals: list[Renewal] = field(default_factory=list)
    claims: list[Signed] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)

    def add(self, value: Update, sort: Sort) -> bool:
        """Add an update if there is room for it; an empty batch has room for any."""
        nbytes = size_of(value)
        chosen: list[Any] = getattr(self, "renewals" if isinstance(value, Renewal) else sort)
        if (nbytes > self.room and self) or len(chosen) == UPDATES_MAX:
            return False
        self.room -= nbytes
        chosen.append(value)
        return True

    def __bool__(self) -> bool:
        return bool(self.records or self.renewals or self.claims or self.notices)

    def fields(self) -> dict[str, tuple[Update, ...]]:
        """As fields of an `Updates` body."""
        return {
            "records": tuple(self.records),
            "renewals": tuple(self.renewals),
            "claims": tuple(self.claims),
            "notices": tuple(self.notices),
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
    rides: bool
    sent: int = 0


_least_sent = attrgetter("sent")


class Dissemination:
    """The queue of updates; a newer update under the same key replaces the older.

    is_idle: whether nothing waits but what may ride on messages that go out anyway.
    """

    def __init__(self, retransmit_mult: int, batch_bytes: int) -> None:
        self._mult, self._batch_bytes = retransmit_mult, batch_bytes
        self._queue: dict[Hashable, _Queued] = {}
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
        self._queue[key] = _Queued(value, sort, rides, spent)
        self.is_idle = self.is_idle and rides

    def heard(self, key: Hashable) -> None:
        """Somebody told us what we are spreading: so much less is left to be told.

        Most copies of an update reach who has it already. Counted as `HEARD` sent ones they cut
        the cost to a third, and leave one view in 200 to later accusers and comparisons.
        """
        update = self._queue.get(key)
        if update is not None:
            update.sent += HEARD

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
        if not self._queue:
            return batch
        limit = self.limit(members)
        for update in sorted(self._queue.values(), key=_least_sent):
            if update.sent < limit and batch.add(update.value, update.sort):
                update.sent += 1
        self._queue = {key: update for key, update in self._queue.items() if update.sent < limit}
        self.is_idle = all(update.rides for update in self._queue.values())
        return batch
