"""What a run of real processes left behind, and what a check of it says"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from swarm.job import Job
from swarm.lab.chaos_timeline import Timeline, timeline_of
from swarm.lab.tail import EventMap

_REFOUNDED = re.compile(r"to enter cell c\d+")


@dataclass(frozen=True, slots=True)
class Sighting:
    """At a time a node was seen to say that its weights of a stage have this hash."""

    time: float
    node: str
    platform: str
    cell: str
    iteration: int
    round: int
    stage: int
    digest: str


@dataclass(frozen=True, slots=True)
class End:
    """A process ended. `wanted`: it was told to, or the job was finished."""

    name: str
    code: int
    wanted: bool


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a run left behind.

    story: events of all processes and of the lab, by time, up to `judged_at`: before the swarm
    was stopped. logs: what each process wrote to its standard error.
    """

    job: Job
    story: Sequence[EventMap]
    judged_at: float
    sightings: Sequence[Sighting] = ()
    ends: Sequence[End] = ()
    logs: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def timeline(self) -> Timeline:
        """Who could hear whom."""
        return timeline_of(self.story)

    @cached_property
    def refoundings(self) -> tuple[float, ...]:
        """When the job was founded again from a checkpoint: names of cells begin anew with that."""
        found: list[float] = []
        resumed = False
        for event in self.story:
            if event["event"] == "fault" and event.get("what") == "resuming":
                resumed = True
            elif resumed and event["event"] == "placed" and _REFOUNDED.match(str(event.get("reason"))):
                resumed = False
                found.append(float(event["time"]))
        return tuple(found)

    def life(self, time: float) -> int:
        """How often the job had been founded again by then."""
        return sum(refounded <= time for refounded in self.refoundings)

    def decided(self) -> dict[tuple[int, str, int], list[EventMap]]:
        """(life, cell, slot) -> every event that tells of that slot's record, by slot."""
        found: dict[tuple[int, str, int], list[EventMap]] = defaultdict(list)
        for event in self.story:
            if event["event"] in ("committed", "round", "placed") and "slot" in event:
                found[self.life(event["time"]), event["cell"], event["slot"]].append(event)
        return dict(sorted(found.items()))


@dataclass(frozen=True, slots=True)
class Verdict:
    """broken: sentences. looked_at: how many things were checked. of_what: their name."""

    broken: tuple[str, ...]
    looked_at: int
    of_what: str
    why_not: str = ""

    def as_map(self) -> dict[str, Any]:
        """For a line of JSON."""
        why = self.why_not or ("" if self.looked_at else "there was nothing to look at")
        held = {"not_checked": why} if why and not self.broken else {"held": not self.broken}
        return held | {"looked_at": f"{self.looked_at} {self.of_what}", "broken": list(self.broken)}


Check = Callable[[Evidence], Verdict]
