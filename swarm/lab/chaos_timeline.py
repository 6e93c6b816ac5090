"""Who could be heard by whom, and when, in a run of real processes: read from its events alone

A node is up from its own event "started" until something was done to it (event "fault"); two
nodes can hear each other while both are up and no cut lies between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf

from swarm.lab.tail import EventMap

DOWN = ("killed", "paused", "ended", "stopped")
"""What a fault event says of a process that does not run from then on."""
HINDERED = {"slow_link": "link_restored", "noise": "noise_over"}
"""What a fault event says of a node that need not be heard from then on, and until it says what."""
Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Severance:
    """Nothing passed between nodes of different sides from `start` to `end`.

    One-way cuts count in both directions: who hears nobody's answers knows nothing either.
    """

    sides: tuple[frozenset[str], ...]
    start: float
    end: float

    def parts(self, one: str, other: str) -> bool:
        """Whether two nodes are on different sides."""
        here = [index for index, side in enumerate(self.sides) for node in (one, other) if node in side]
        return len(set(here)) > 1


@dataclass(slots=True)
class Timeline:
    """spans: node -> when it was up, in order; the last may be open. last_disturbance: a time.

    hindered: node -> when its links were so bad that it need not be heard.
    """

    spans: dict[str, list[Span]] = field(default_factory=dict)
    hindered: dict[str, list[Span]] = field(default_factory=dict)
    severances: list[Severance] = field(default_factory=list)
    last_disturbance: float = 0.0

    def is_up(self, node: str, now: float) -> bool:
        """Whether a node ran at a time."""
        return any(start <= now < end for start, end in self.spans.get(node, ()))

    def nodes_up(self, now: float) -> list[str]:
        """All that ran at a time."""
        return sorted(node for node in self.spans if self.is_up(node, now))

    def known(self) -> list[str]:
        """Every node that ever ran."""
        return sorted(self.spans)

    def hearing(self, one: str, other: str, within: Span) -> list[Span]:
        """The times within a span in which both were up and nothing lay between them."""
        found = _common(_common(self.spans.get(one, ()), self.spans.get(other, ())), [within])
        for severance in self.severances:
            if severance.parts(one, other):
                found = _common(found, [(-inf, severance.start), (severance.end, inf)])
        return [(start, end) for start, end in found if end > start]

    def unhindered(self, one: str, other: str, within: Span) -> list[Span]:
        """Those of the times in which they hear each other that no bad link excuses."""
        found = self.hearing(one, other, within)
        for start, end in (*self.hindered.get(one, ()), *self.hindered.get(other, ())):
            found = _common(found, [(-inf, start), (end, inf)])
        return [(start, end) for start, end in found if end > start]

    def heard_for_s(self, one: str, other: str, now: float) -> float:
        """For how long they must have heard each other without a break, 0 if they need not."""
        spans = self.unhindered(one, other, (-inf, now))
        return next((now - start for start, end in spans if end == now), 0.0)


def ends_a_life(event: EventMap) -> bool:
    """Whether what a node knew is lost with this: the process is gone, not only standing still."""
    return event["event"] == "fault" and event.get("what") in ("killed", "ended")


def timeline_of(story: Iterable[EventMap]) -> Timeline:
    """Read the events of a run, by time."""
    found = Timeline()
    cuts: dict[str, Severance] = {}
    bad: dict[tuple[str, str], float] = {}
    names: dict[str, str] = {}
    for event in story:
        time, what = float(event["time"]), event.get("what")
        node = _node_of(event, names)
        if event["event"] == "started":
            _ups(found, node, time)
        elif event["event"] != "fault":
            continue
        elif what in DOWN:
            _downs(found, node, time)
        elif what == "proceeding":
            _ups(found, node, time)
        elif what == "cut":
            sides = tuple(frozenset(side) for side in event["sides"])
            cuts[event["cut"]] = Severance(sides, time, inf)
        elif what == "healed" and event["cut"] in cuts:
            cut = cuts.pop(event["cut"])
            found.severances.append(Severance(cut.sides, cut.start, time))
        elif what in HINDERED:
            bad.setdefault((node, HINDERED[what]), time)
        elif (node, str(what)) in bad:
            found.hindered.setdefault(node, []).append((bad.pop((node, str(what))), time))
        if what != "stopped" and not (what == "ended" and event.get("code") == 0):
            found.last_disturbance = time  # whoever is asked to go, or has finished, disturbs nobody
    found.severances += cuts.values()
    for (node, _), since in bad.items():
        found.hindered.setdefault(node, []).append((since, inf))
    return found


def _node_of(event: EventMap, names: dict[str, str]) -> str:
    """Whom an event is of. What is done to a process that is down has its name alone."""
    node, name = str(event["node"]), str(event.get("name", ""))
    if event["event"] == "fault" and node:
        names[name] = node
    return node or names.get(name, "")


def _ups(timeline: Timeline, node: str, time: float) -> None:
    spans = timeline.spans.setdefault(node, [])
    if spans and spans[-1][1] == inf:
        spans[-1] = (spans[-1][0], time)  # it ended, and nobody saw it
    spans.append((time, inf))


def _downs(timeline: Timeline, node: str, time: float) -> None:
    spans = timeline.spans.get(node)
    if spans and spans[-1][1] == inf:
        spans[-1] = (spans[-1][0], time)


def _common(one: Sequence[Span], other: Sequence[Span]) -> list[Span]:
    pairs = ((max(a, c), min(b, d)) for a, b in one for c, d in other)
    return sorted((start, end) for start, end in pairs if start <= end)
