"""Small jobs for real processes, and what is asked of their events and status again and again."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from typing import Any

from swarm.daemon.look import fetch_status
from swarm.job import Job
from swarm.lab.processes import RealSwarm
from swarm.lab.tail import EventMap

TEXT = argparse.__file__
"""Enough real text for a small job, and the same for every process here."""

START_S = 60.0
"""Until a swarm is at its first commit: processes, torch threads and sockets on a busy machine."""


def small_job(*, nodes: int = 1, iterations: int = 1000, **sections: dict[str, Any]) -> Job:
    """The demo model on short windows: iterations take a fraction of a second."""
    defaults: dict[str, dict[str, Any]] = {
        "data": {"path": TEXT, "sequence": 32},
        "pipeline": {"nodes": nodes, "stages": 4, "microbatch": 2, "microbatches": 2},
        "inner": {"iterations": iterations, "warmup": 2},
        "outer": {"method": "none"},
    }
    merged = {name: defaults.get(name, {}) | sections.get(name, {}) for name in {*defaults, *sections}}
    return Job.model_validate(merged)


async def start(swarm: RealSwarm, nodes: int) -> list[str]:
    """The coordinator and node-1, node-2, ...; the nodes' names."""
    await swarm.start_coordinator()
    names = [f"node-{number}" for number in range(1, nodes + 1)]
    for name in names:
        await swarm.start_node(name)
    return names


def is_commit(event: EventMap, *, at_least: int = 1) -> bool:
    """Whether a leader committed this iteration or a later one."""
    return event["event"] == "committed" and event["iteration"] >= at_least


def commits(events: list[EventMap]) -> list[EventMap]:
    """What was committed, by time; what a new leader tells again counts once."""
    found: dict[tuple[str, int], EventMap] = {}
    for event in events:
        if is_commit(event):
            found.setdefault((event["cell"], event["iteration"]), event)
    return list(found.values())


async def reach(swarm: RealSwarm, iteration: int, *, timeout_s: float = START_S) -> EventMap:
    """Wait until some cell has committed an iteration; the commit."""
    for event in swarm.story:
        if is_commit(event, at_least=iteration):
            return event
    return await swarm.until(lambda event: is_commit(event, at_least=iteration), timeout_s=timeout_s)


async def status_of(swarm: RealSwarm, name: str) -> dict[str, Any]:
    """GET /status of a process."""
    return await asyncio.to_thread(fetch_status, swarm.children[name].directory)


def statuses(swarm: RealSwarm, about: str, status: str) -> dict[str, float]:
    """Who wrote down that a member has this status: node -> first time. `about` is a name."""
    node, found = swarm.children[about].node, dict[str, float]()
    for event in swarm.story:
        if event["event"] == "member" and event["member"] == node and event["status"] == status:
            found.setdefault(event["node"], event["time"])
    return found


def of_kind(kind: str, **fields: object) -> Callable[[EventMap], bool]:
    """Whether an event is of this kind and has these fields."""
    return lambda event: event["event"] == kind and all(event.get(k) == v for k, v in fields.items())
