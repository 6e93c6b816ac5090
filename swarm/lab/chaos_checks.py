"""What must hold in every run of real processes, whatever was done to it: asked of its events afterwards

A check is a pure function of the evidence of a run. It says what is broken, in sentences, and
how much it looked at: a check that looked at nothing has not been passed. A check of a promise that
the simulated world is held to, too, has the same name there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import inf

from swarm.lab.chaos_evidence import Check, Evidence, Verdict
from swarm.lab.chaos_history import (
    every_microbatch_is_accounted_for,
    nothing_committed_is_undone,
    one_record_per_slot,
    tokens_are_counted_once,
    training_went_on,
)
from swarm.lab.chaos_timeline import ends_a_life
from swarm.lab.checkers import SETTLE_S
from swarm.lab.evidence import MISSED, RESYNC_S
from swarm.lab.tail import EventMap

KNOWN_S = 20.0
"""Whoever was heard for so long cannot be taken for dead because of what happened before."""


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


NOT_JUDGED: Mapping[str, str] = {
    "stages_come_back_from_the_best_source": "no log holds who could have given a stage all the time",
    "a_job_at_work_is_not_begun_again": "no log holds what a coordinator saw of the cells at that moment",
    "every_report_is_counted": "no log holds when a report was sent, and when it was heard",
    "only_the_admitted_are_seen": "logs tell whom a node saw, and not with which certificate",
    "queues_are_bounded": "no log holds what waits on a link",
    "views_show_what_was_signed": "no log holds the records that a node shows",
    "news_is_never_forgotten": "no log holds the versions of the records that a node shows",
    "what_was_said_is_so": "no log holds what was said between two processes, of rounds or of microbatches",
    "memory_is_bounded": "no log holds which tensors a node keeps",
    "no_byte_is_lost_unseen": "no log holds what the links of both ends have counted",
}
"""Promises that the simulated world is held to, by the name of their checker, and why no log tells."""
CHECKS: tuple[Check, ...] = (
    one_record_per_slot,
    nothing_committed_is_undone,
    tokens_are_counted_once,
    every_microbatch_is_accounted_for,
    holders_are_identical,
    nobody_dies_of_an_error,
    views_tell_the_truth,
    nobody_stays_buried,
    training_went_on,
)


def judge(run: Evidence) -> dict[str, Verdict]:
    """Every check's verdict, by name."""
    return {check.__name__: check(run) for check in CHECKS}
