"""What must hold in every run of real processes, whatever was done to it: asked of its events afterwards

A check is a pure function of the evidence of a run. It says what is broken, in sentences, and
how much it looked at: a check that looked at nothing has not been passed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import Any

from swarm.job import Job
from swarm.lab.chaos_timeline import Timeline, ends_a_life, timeline_of
from swarm.lab.checkers import SETTLE_S
from swarm.lab.evidence import MISSED, RESYNC_S
from swarm.lab.tail import EventMap

KNOWN_S = 20.0
"""Whoever was heard for so long cannot be taken for dead because of what happened before."""
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


def one_record_per_slot(run: Evidence) -> Verdict:
    """No slot of a cell has two different records, and no iteration two slots."""
    broken, slots = [], defaultdict[tuple[int, str, int], set[int]](set)
    decided = run.decided()
    for (life, cell, slot), events in decided.items():
        if len({_content(event) for event in events}) > 1:
            broken.append(f"slot {slot} of cell {cell} has {len(events)} events that differ")
        for event in events:
            if event["event"] == "committed":
                slots[life, cell, event["iteration"]].add(slot)
    for (_, cell, iteration), found in slots.items():
        if len(found) > 1:
            broken.append(f"iteration {iteration} of cell {cell} was committed in slots {sorted(found)}")
    return Verdict(tuple(broken), len(decided), "slots")


def _content(event: EventMap) -> str:
    """What every teller of one record must say alike: all but when, by whom, and how long it took."""
    own = ("time", "node", "seconds", "reasons", "reason")
    return repr(sorted((key, value) for key, value in event.items() if key not in own))


def nothing_committed_is_undone(run: Evidence) -> Verdict:
    """A later slot of a cell never has an earlier iteration."""
    broken, newest = [], dict[tuple[int, str], int]()
    decided = run.decided()
    for (life, cell, slot), events in decided.items():
        iteration = int(events[0]["iteration"])
        before = newest.get((life, cell), 0)
        if iteration < before:
            broken.append(f"cell {cell} went back from iteration {before} to {iteration} in slot {slot}")
        newest[life, cell] = max(before, iteration)
    return Verdict(tuple(broken), len(decided), "slots")


def tokens_are_counted_once(run: Evidence) -> Verdict:
    """No commit counts more tokens than its plan had, nor a part of a microbatch."""
    job = run.job
    batch = job.pipeline.microbatch * job.data.sequence
    feeding: dict[tuple[int, str], list[frozenset[str]]] = defaultdict(list)
    broken, commits = [], 0
    for (life, cell, slot), events in run.decided().items():
        family = (life, cell.split("~")[0])
        if "holders" in events[0]:
            feeding[family].append(frozenset(events[0]["holders"]["0"]))
        if events[0]["event"] != "committed":
            continue
        commits += 1
        # Who fed a slot was in the roster before it: the last few records of the cell and its parent.
        feeders = len(frozenset().union(*feeding[family][-3:]))
        planned, tokens = batch * job.pipeline.microbatches * feeders, int(events[0]["tokens"])
        if tokens > planned or tokens % batch:
            broken.append(f"slot {slot} of cell {cell} counts {tokens} tokens of {planned} planned")
    return Verdict(tuple(broken), commits, "commits")


def holders_are_identical(run: Evidence) -> Verdict:
    """Holders of a stage after the same iteration and round have equal weights, bit for bit.

    Whoever has said that it missed a step is excused while it takes the state again.
    """
    excused = _excuses(run.story)
    seen: dict[tuple[object, ...], dict[str, str]] = defaultdict(dict)
    for each in run.sightings:
        if excused.get((each.node, each.stage), -inf) > each.time:
            continue
        state = (run.life(each.time), each.platform, each.cell, each.iteration, each.round, each.stage)
        seen[state][each.node] = each.digest
    compared = {state: found for state, found in seen.items() if len(found) > 1}
    broken = tuple(
        f"holders of stage {state[-1]} of cell {state[2]} differ after iteration {state[3]}: {found}"
        for state, found in compared.items()
        if len(set(found.values())) > 1
    )
    why = "" if compared else "no stage was ever seen with two holders at the same iteration"
    return Verdict(broken, len(compared), "states seen at two holders or more", why)


def _excuses(story: Sequence[EventMap]) -> dict[tuple[str, int], float]:
    """(node, stage) -> until when it may differ."""
    found = {}
    for event in story:
        missed = MISSED.match(str(event.get("what", ""))) if event["event"] == "dropped" else None
        if missed:
            found[event["node"], int(missed[1])] = event["time"] + RESYNC_S
    return found


def nobody_dies_of_an_error(run: Evidence) -> Verdict:
    """No process ends but by a fault, by its own decision or because it was asked to; none complains."""
    broken = [f"{end.name} ended with code {end.code}, unasked" for end in run.ends if not end.wanted]
    broken += [
        f"{end.name} was asked to leave and ended with {end.code}"
        for end in run.ends
        if end.wanted and end.code
    ]
    broken += [f"{e['node']}: {e.get('reason')}" for e in run.story if e["event"] == "error"]
    for name, log in run.logs.items():
        if "Traceback (most recent call last)" in log:
            broken.append(f"{name} left a traceback: {log.strip().splitlines()[-1]}")
    return Verdict(tuple(broken), len(run.ends), "processes that ended")


def views_tell_the_truth(run: Evidence) -> Verdict:
    """Long enough after the last disturbance everybody knows who is there and who is not."""
    up, now = run.timeline.nodes_up(run.judged_at), run.judged_at
    views = _views(run.story)
    broken = []
    for observer in up:
        for subject in run.timeline.known():
            status = views.get(observer, {}).get(subject)
            if subject in up and run.timeline.hearing(observer, subject, (now, inf)) and status != "alive":
                broken.append(f"{observer} sees {subject} as {status}, but it lives")
            if subject not in up and status not in ("dead", "left", None):
                broken.append(f"{observer} sees {subject} as {status}, but it is gone")
    quiet_s = now - run.timeline.last_disturbance
    why = f"the run ended {quiet_s:.0f} s after the last disturbance" if broken and quiet_s < SETTLE_S else ""
    return Verdict(tuple(broken) if not why else (), len(up), "views", why)


def _views(story: Sequence[EventMap]) -> dict[str, dict[str, str]]:
    """observer -> subject -> the last status that it wrote down in its present life."""
    views: dict[str, dict[str, str]] = {}
    for event in story:
        if ends_a_life(event):
            views.pop(event["node"], None)
        elif event["event"] == "member":
            views.setdefault(event["node"], {})[event["member"]] = event["status"]
    return views


def nobody_stays_buried(run: Evidence) -> Verdict:
    """Nobody who can be heard is taken for dead for longer than views need to settle."""
    broken, looked_at = [], 0
    for observer, subject, start, end in _burials(run):
        looked_at += 1
        spans = run.timeline.unhindered(observer, subject, (start, end))
        longest_s = max((until - since for since, until in spans), default=0.0)
        if longest_s > SETTLE_S:
            broken.append(f"{observer} had {subject} buried for {longest_s:.0f} s in which it could be heard")
    return Verdict(tuple(broken), looked_at, "burials")


def _burials(run: Evidence) -> Iterator[tuple[str, str, float, float]]:
    """(observer, subject, from, until): each time that somebody was taken for dead."""
    open_since: dict[tuple[str, str], float] = {}
    for event in run.story:
        observer, time = str(event["node"]), float(event["time"])
        if ends_a_life(event):  # the next process knows nothing of what this one thought
            for key in [key for key in open_since if key[0] == observer]:
                yield (*key, open_since.pop(key), time)
        elif event["event"] == "member":
            key = (observer, str(event["member"]))
            if event["status"] == "dead":
                open_since.setdefault(key, time)
            elif key in open_since:
                yield (*key, open_since.pop(key), time)
    for key, since in open_since.items():
        yield (*key, since, run.judged_at)


def false_deaths(run: Evidence) -> list[str]:
    """Burials of somebody who could be heard, and had been for long enough to be known."""
    heard = run.timeline.heard_for_s
    return [
        f"{observer} buried {subject} at {start:.3f}"
        for observer, subject, start, _ in _burials(run)
        if heard(observer, subject, start) > KNOWN_S
    ]


def training_went_on(run: Evidence) -> Verdict:
    """After the last disturbance something was committed."""
    commits = [event for event in run.story if event["event"] == "committed"]
    after = [event for event in commits if event["time"] > run.timeline.last_disturbance]
    broken = () if after else ("nothing was committed after the last disturbance",)
    return Verdict(broken, len(commits), "commits")


NOT_JUDGED = (
    "who was told of a round and at which iteration: no log holds what was said between two processes",
    "queues and memory, bytes on the links, and who of those in a view was admitted",
)
"""Promises that the simulated world is held to and that event logs say nothing of."""
CHECKS: tuple[Check, ...] = (
    one_record_per_slot,
    nothing_committed_is_undone,
    tokens_are_counted_once,
    holders_are_identical,
    nobody_dies_of_an_error,
    views_tell_the_truth,
    nobody_stays_buried,
    training_went_on,
)


def judge(run: Evidence) -> dict[str, Verdict]:
    """Every check's verdict, by name."""
    return {check.__name__: check(run) for check in CHECKS}
