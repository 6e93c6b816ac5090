"""How transfers that run at the same time share the capacity between nodes: max-min fairly.

Every transfer is limited by its path, by its sender's uplink and by its receiver's downlink. No
transfer could be faster without another that is no faster becoming slower: what long TCP
connections come to, on average. A machine without a clock: transfers start and stop at a `now`, rates follow,
and `next_s` says when the first of them will have ended.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf
from typing import Generic, TypeVar

Flow = TypeVar("Flow", bound=Hashable)


def max_min(limits: Sequence[float], uses: Sequence[Sequence[int]], capacity: Sequence[float]) -> list[float]:
    """Rates of transfers with these limits, each using resources of these capacities, by filling them up.

    All rates rise together; a transfer stops rising at its own limit, or once a resource that it
    uses is full (Bertsekas and Gallager, Data Networks, section 6.5.2).
    """
    rates = list(limits)
    left, users = list(capacity), [0] * len(capacity)
    for used in uses:
        for resource in used:
            users[resource] += 1
    rising = [index for index, used in enumerate(uses) if used]
    while rising:
        share, full = min((left[r] / n, r) for r, n in enumerate(users) if n)
        done = [index for index in rising if limits[index] <= share]
        if not done:
            done = [index for index in rising if full in uses[index]]
            for index in done:
                rates[index] = share
        for index in done:
            for resource in uses[index]:
                left[resource] = max(0.0, left[resource] - rates[index])
                users[resource] -= 1
        gone = set(done)
        rising = [index for index in rising if index not in gone]
    return rates


@dataclass(slots=True, eq=False)
class _Resource(Generic[Flow]):
    """One direction of a node's access, and who uses it. tight: it limited somebody when last looked at."""

    capacity: float
    transfers: dict[_Transfer[Flow], None] = field(default_factory=dict)
    tight: bool = False

    def overbooked(self) -> bool:
        """Whether its transfers could together use more than there is."""
        return sum(transfer.limit for transfer in self.transfers) > self.capacity


@dataclass(slots=True, eq=False)
class _Transfer(Generic[Flow]):
    """What is left of a transfer at `since`, and how fast it goes from there."""

    flow: Flow
    up: _Resource[Flow]
    down: _Resource[Flow]
    path: float
    left: float
    since: float
    rate: float = 0.0
    ends: float = inf

    @property
    def limit(self) -> float:
        """How fast it could go alone."""
        return min(self.path, self.up.capacity, self.down.capacity)


class Sharing(Generic[Flow]):
    """Transfers under way, by whoever they belong to (`Flow`), and the rates they have.

    access_bytes_per_s: of the uplink and of the downlink of a node that `set_access` was not called for.

    Changes take effect when `settle` is called, at the same `now`: several make one computation.
    """

    def __init__(self, access_bytes_per_s: float) -> None:
        self._access = access_bytes_per_s
        self._ups: dict[Hashable, _Resource[Flow]] = {}
        self._downs: dict[Hashable, _Resource[Flow]] = {}
        self._transfers: dict[Flow, _Transfer[Flow]] = {}
        self._changed: dict[_Resource[Flow], None] = {}
        self._fresh: dict[_Transfer[Flow], None] = {}
        self._ends: list[tuple[float, int, _Transfer[Flow]]] = []
        self._order = count()

    def set_access(self, node: Hashable, up_bytes_per_s: float, down_bytes_per_s: float) -> None:
        """What a node can send and receive in all, from now on."""
        for resource, capacity in ((self._up(node), up_bytes_per_s), (self._down(node), down_bytes_per_s)):
            resource.capacity = capacity
            for transfer in resource.transfers:
                self._touch(transfer)

    def start(
        self, flow: Flow, ends: tuple[Hashable, Hashable], nbytes: int, path: float, now: float
    ) -> None:
        """A transfer of bytes from one node to another begins, on a path of so many bytes per second.

        A path of 0 is cut: the transfer waits, and uses nothing.
        """
        assert flow not in self._transfers, f"{flow!r} is sending already"
        transfer = _Transfer(flow, self._up(ends[0]), self._down(ends[1]), path, nbytes, now)
        transfer.up.transfers[transfer] = transfer.down.transfers[transfer] = None
        self._transfers[flow] = transfer
        self._touch(transfer)

    def stop(self, flow: Flow) -> None:
        """End a transfer before its time; unknown ones are fine."""
        transfer = self._transfers.pop(flow, None)
        if transfer is not None:
            self._remove(transfer)

    def set_path(self, flow: Flow, path: float) -> None:
        """The path of a transfer now carries so many bytes per second; 0: it is cut."""
        transfer = self._transfers[flow]
        if transfer.path != path:
            transfer.path = path
            self._touch(transfer)

    def flows(self) -> list[Flow]:
        """Whose transfers are under way, in the order in which they began."""
        return list(self._transfers)

    def rate(self, flow: Flow) -> float:
        """Bytes per second of a transfer since the last `settle`."""
        return self._transfers[flow].rate

    def left(self, flow: Flow, now: float) -> float:
        """Bytes of a transfer that have not left its sender."""
        transfer = self._transfers[flow]
        return max(0.0, transfer.left - transfer.rate * (now - transfer.since))

    def ended(self, now: float) -> list[Flow]:
        """Whose transfers have ended by now, first ended first; they are no longer under way."""
        flows = []
        while self._ends and self._ends[0][0] <= now:
            ends, _, transfer = heapq.heappop(self._ends)
            if ends == transfer.ends and self._transfers.get(transfer.flow) is transfer:
                del self._transfers[transfer.flow]
                self._remove(transfer)
                flows.append(transfer.flow)
        return flows

    def next_s(self) -> float | None:
        """When the next transfer ends, as things stand after `settle`; None if none will."""
        while self._ends:
            ends, _, transfer = self._ends[0]
            if ends == transfer.ends and self._transfers.get(transfer.flow) is transfer:
                return ends
            heapq.heappop(self._ends)
        return None

    def settle(self, now: float) -> None:
        """Give every transfer that a change may touch its new rate."""
        if not self._changed:
            return
        touched, tight = self._reach()
        index = {resource: number for number, resource in enumerate(tight)}
        uses = [[index[r] for r in (t.up, t.down) if r in index] for t in touched]
        rates = max_min([t.limit for t in touched], uses, [resource.capacity for resource in tight])
        for transfer, rate in zip(touched, rates, strict=True):
            if rate == transfer.rate and transfer not in self._fresh:
                continue
            transfer.left = max(0.0, transfer.left - transfer.rate * (now - transfer.since))
            transfer.since, transfer.rate = now, rate
            transfer.ends = now + transfer.left / rate if rate else inf
            if rate:
                heapq.heappush(self._ends, (transfer.ends, next(self._order), transfer))
        self._changed.clear()
        self._fresh.clear()

    def _reach(self) -> tuple[list[_Transfer[Flow]], list[_Resource[Flow]]]:
        """Transfers whose rate may change, and the resources that limit some of them.

        What is not overbooked limits nobody, so a change does not spread through it.
        """
        touched = dict(self._fresh)
        seen: dict[_Resource[Flow], bool] = {}
        waiting = list(self._changed)
        while waiting:
            resource = waiting.pop()
            if resource in seen:
                continue
            was_tight, resource.tight = resource.tight, resource.overbooked()
            seen[resource] = resource.tight
            if was_tight or resource.tight:
                touched |= resource.transfers
                waiting += self._neighbours(resource.transfers, seen)
        return list(touched), [resource for resource, tight in seen.items() if tight]

    @staticmethod
    def _neighbours(
        transfers: Iterable[_Transfer[Flow]], seen: dict[_Resource[Flow], bool]
    ) -> Iterable[_Resource[Flow]]:
        return [r for transfer in transfers for r in (transfer.up, transfer.down) if r not in seen]

    def _touch(self, transfer: _Transfer[Flow]) -> None:
        self._fresh[transfer] = None
        self._changed[transfer.up] = self._changed[transfer.down] = None

    def _remove(self, transfer: _Transfer[Flow]) -> None:
        del transfer.up.transfers[transfer], transfer.down.transfers[transfer]
        self._fresh.pop(transfer, None)
        self._changed[transfer.up] = self._changed[transfer.down] = None

    def _up(self, node: Hashable) -> _Resource[Flow]:
        found = self._ups.get(node)
        return found or self._ups.setdefault(node, _Resource(self._access))

    def _down(self, node: Hashable) -> _Resource[Flow]:
        found = self._downs.get(node)
        return found or self._downs.setdefault(node, _Resource(self._access))
