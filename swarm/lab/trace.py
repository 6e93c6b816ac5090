"""A recorded day of machines that came and went, as faults: `--trace FILE`.

A line is `milliseconds,add|remove|no-op,node`. The recorded nodes are seated on the nodes of the
world: who is added takes the lowest free seat, who is removed frees it. A recorded node for whom
no seat is free is left out, and a seat that nobody takes is empty: its node is away.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from pathlib import Path

from swarm.lab.faults import Crash, Fault, FaultError, Restart

MILLISECONDS = re.compile("[0-9]{1,15}")
STARTED_S = 0.5
"""By then every node of a world has started: a seat that is empty at first is vacated then."""


@dataclass(frozen=True, slots=True)
class Trace:
    """What was recorded: (seconds, whether it came, name), in order."""

    changes: tuple[tuple[float, bool, str], ...]


@dataclass(frozen=True, slots=True)
class Replay:
    """A trace on the nodes of a world.

    losses: those of `faults` that take away somebody who was there; the others only empty seats that nobody
    has taken yet. left_out: how many recorded nodes found no seat.
    """

    faults: tuple[Fault, ...] = ()
    losses: tuple[Fault, ...] = ()
    left_out: int = 0


def load_trace(path: Path) -> Trace:
    """Read a trace. Raises FaultError with one sentence."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise FaultError(f"cannot read {path}: {reason}") from None
    return parse_trace(text, str(path))


def parse_trace(text: str, where: str = "the trace") -> Trace:
    """Parse the lines of a trace. Raises FaultError with one sentence."""
    changes: list[tuple[float, bool, str]] = []
    try:
        rows = list(csv.reader(text.splitlines()))
    except csv.Error as error:
        raise FaultError(f"{where} is not a trace: {error}") from None
    for number, row in enumerate(rows, start=1):
        if not row:
            continue
        if len(row) < 2 or row[1] not in ("add", "remove", "no-op") or not MILLISECONDS.fullmatch(row[0]):
            raise FaultError(f"{where}: line {number} is not milliseconds,add|remove|no-op,node")
        at_s = int(row[0]) / 1000
        if changes and at_s < changes[-1][0]:
            raise FaultError(f"{where}: line {number} is earlier than the one before it")
        if row[1] != "no-op":
            if len(row) != 3 or not row[2]:
                raise FaultError(f"{where}: line {number} names no node")
            changes.append((at_s, row[1] == "add", row[2]))
    if not changes:
        raise FaultError(f"{where} records nobody who came or went")
    return Trace(tuple(changes))


def replay(trace: Trace, nodes: int, speed_up: float = 1.0) -> Replay:
    """The faults that make a world's nodes come and go as recorded, `speed_up` times as fast."""
    seats: dict[str, int] = {}
    free = list(range(nodes))
    heapify(free)
    away: dict[int, float] = dict.fromkeys(free, 0.0)
    vacant = set(free)
    faults: list[Fault] = []
    losses: list[Fault] = []
    left_out = 0
    for recorded_s, came, name in trace.changes:
        at_s = recorded_s / speed_up
        if came and name not in seats and free:
            seat = seats[name] = heappop(free)
            absence = _absence(seat, away.pop(seat), at_s)
            faults += absence
            losses += () if seat in vacant else absence
            vacant.discard(seat)
        elif came and name not in seats:
            left_out += 1
        elif not came and name in seats:
            seat = seats.pop(name)
            heappush(free, seat)
            away[seat] = at_s
    for seat, at_s in away.items():
        gone = Crash(kind="crash", node=f"node:{seat}", at_s=max(at_s, STARTED_S))
        faults.append(gone)
        losses += () if seat in vacant else (gone,)
    return Replay(_in_order(faults), _in_order(losses), left_out)


def _absence(seat: int, gone_s: float, back_s: float) -> list[Fault]:
    gone_s = max(gone_s, STARTED_S)
    if back_s <= gone_s:
        return []  # there from the beginning, or replaced at the same moment
    return [Restart(kind="restart", node=f"node:{seat}", at_s=gone_s, after_s=back_s - gone_s)]


def _in_order(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    return tuple(sorted(faults, key=lambda fault: fault.at_s or 0.0))


def in_company(losses: Iterable[tuple[float, str]], within_s: float = 60.0) -> float:
    """The share of losses, each a moment and whose it is, with somebody else's so long before or after it."""
    found = sorted(losses)
    company: set[int] = set()
    for index, (at_s, who) in enumerate(found):
        for later in range(index + 1, len(found)):
            if found[later][0] - at_s > within_s:
                break
            if found[later][1] != who:
                company |= {index, later}
    return len(company) / len(found) if found else 0.0
