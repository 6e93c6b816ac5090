"""When the faults of a script begin and end: what a world has to do next."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, log
from random import Random

from swarm.lab.faults import Fault

AGAIN_S = 1.0
"""How soon a fault that has hit nobody is tried again."""


def timed(faults: Sequence[Fault], *, nodes: int, until_s: float, rng: Random) -> tuple[Fault, ...]:
    """The script with every fault by rate replaced by the hits that chance draws for it.

    nodes: of the world. A longer `until_s` adds later hits and changes no earlier one.
    """
    found: list[Fault] = []
    for fault in faults:
        if fault.per_hour is None:
            found.append(fault)
            continue
        each = getattr(fault, "node", None) == "random"
        for node in range(nodes) if each else (None,):
            whom = {} if node is None else {"node": f"node:{node}"}
            found += [_at(fault, at_s, whom) for at_s in _hits(fault, until_s, Random(rng.getrandbits(64)))]
    return tuple(found)


def _at(fault: Fault, at_s: float, whom: dict[str, str]) -> Fault:
    moment = {"at_s": at_s, "per_hour": None, "from_s": None, "until_s": None}
    return fault.model_copy(update=moment | whom)


def _hits(fault: Fault, until_s: float, rng: Random) -> list[float]:
    """When a fault by rate hits one victim: a Poisson process."""
    assert fault.per_hour is not None
    per_s = -log(1 - fault.per_hour) / 3600
    end_s = min(until_s, inf if fault.until_s is None else fault.until_s)
    hits, at_s = [], (fault.from_s or 0.0) + rng.expovariate(per_s)
    while at_s < end_s:
        hits.append(at_s)
        at_s += rng.expovariate(per_s)
    return hits


@dataclass(frozen=True, slots=True)
class Firing:
    """Something to do now: begin a fault, or undo it for whom it was begun.

    index: of the fault in its script; a fault is begun once and undone at most once.
    """

    index: int
    fault: Fault
    undo: bool = False


@dataclass(slots=True)
class FaultSchedule:
    """Which faults are due. `faults` are begun in order of time, then of the script.

    put_off: those that were due and hit nobody: they are due again every `AGAIN_S`.
    """

    faults: Sequence[Fault]
    _waiting: list[int] = field(init=False)
    _undo: list[tuple[float, int]] = field(init=False, default_factory=list)
    put_off: dict[int, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._waiting = sorted(range(len(self.faults)), key=lambda index: self.faults[index].at_s or 0.0)

    def due(self, now_s: float, iteration: int) -> tuple[Firing, ...]:
        """What to do at `now_s` since the start, with `iteration` committed. Undoing comes first.

        A fault lasts from the call that began it, so it is never undone in the same call.
        """
        undone = []
        while self._undo and self._undo[0][0] <= now_s:
            index = heapq.heappop(self._undo)[1]
            undone.append(Firing(index, self.faults[index], undo=True))
        again = sorted(index for index, at_s in self.put_off.items() if at_s <= now_s)
        begun = [index for index in self._waiting if _begins(self.faults[index], now_s, iteration)]
        self.put_off = {index: at_s for index, at_s in self.put_off.items() if index not in again}
        self._waiting = [index for index in self._waiting if index not in begun]
        begun = [*again, *begun]
        for index in begun:
            lasts_s = self.faults[index].lasts_s
            if lasts_s is not None:
                heapq.heappush(self._undo, (now_s + lasts_s, index))
        return (*undone, *(Firing(index, self.faults[index]) for index in begun))

    def put_off_again(self, firing: Firing, now_s: float) -> None:
        """A fault that was just to begin has nobody to hit yet."""
        self._undo = [(at_s, index) for at_s, index in self._undo if index != firing.index]
        heapq.heapify(self._undo)
        self.put_off[firing.index] = now_s + AGAIN_S

    @property
    def waiting(self) -> tuple[int, ...]:
        """Faults whose moment has not come, in the order of the script."""
        return tuple(sorted(self._waiting))

    def next_s(self) -> float | None:
        """When `due` next has something to do, as far as time alone decides."""
        times = [at_s for index in self._waiting if (at_s := self.faults[index].at_s) is not None]
        return min([*times, *self.put_off.values(), *(when for when, _ in self._undo)], default=None)


def _begins(fault: Fault, now_s: float, iteration: int) -> bool:
    if fault.at_s is not None:
        return fault.at_s <= now_s
    return fault.at_iteration is not None and fault.at_iteration <= iteration
