"""`farflung bench failover`: what a crash costs, measured from the events of real processes.

A node that holds a body stage dies, later the coordinator. For each: how long until the last
of the others wrote down that it is dead, and what happened to the iterations of the cells.
"""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from swarm.daemon.options import UserError
from swarm.job import Job
from swarm.lab.demo import choose_victim, next_directory, start_all
from swarm.lab.processes import RealSwarm
from swarm.lab.recipes import demo_job
from swarm.lab.tail import EventMap
from swarm.lab.tally import Tally

PATIENCE_S = 120.0
ENDLESS = 100_000
STEADY = 4
"""Iterations that every cell commits before each kill, and after it."""


def measure_failover(*, nodes: int, out: Path | None) -> dict[str, Any]:
    """Start a swarm, kill a node, then the coordinator. Raises UserError if it does not go on."""
    try:
        return asyncio.run(_measure(RealSwarm(out or next_directory(), failover_job(nodes)), nodes))
    except TimeoutError:
        raise UserError(f"nothing was committed for {PATIENCE_S:.0f} s: see the logs of the run") from None


def failover_job(nodes: int) -> Job:
    """The demo's job without end, rounds and checkpoints: those too lengthen an interval."""
    job = demo_job(nodes=nodes, iterations=ENDLESS, name="failover")
    never = {
        "outer": job.outer.model_copy(update={"every": ENDLESS}),
        "recovery": job.recovery.model_copy(update={"checkpoint_every": ENDLESS}),
    }
    return job.model_copy(update=never)


async def _measure(swarm: RealSwarm, nodes: int) -> dict[str, Any]:
    async with swarm:
        await start_all(swarm, nodes)
        return {"nodes": nodes} | {
            kind: await _kill_one(swarm, kind, others=nodes if kind == "node" else nodes - 1)
            for kind in ("node", "coordinator")
        }


async def _kill_one(swarm: RealSwarm, kind: str, *, others: int) -> dict[str, Any]:
    """Let all cells run steadily, kill, and wait for `others` to know and all cells to go on."""
    await _let_run(swarm)
    tally = tally_of(swarm.story)
    name = choose_victim(swarm, tally, kind)
    node = swarm.children[name].node
    swarm.kill(name)
    await swarm.until(lambda event: event["event"] == "fault", timeout_s=PATIENCE_S)
    killed = next(event["time"] for event in reversed(swarm.story) if event["event"] == "fault")
    await swarm.until_true(lambda: len(buried(swarm.story, node)) >= others, timeout_s=PATIENCE_S)
    await _let_run(swarm)
    row = tally.nodes.get(node)
    return told(swarm.story, node, killed, row.cell if row else "")


async def _let_run(swarm: RealSwarm) -> None:
    """Until every cell has committed `STEADY` more iterations."""
    swarm.events()
    goal = tally_of(swarm.story).iteration + STEADY
    await swarm.until_true(lambda: tally_of(swarm.story).iteration >= goal, timeout_s=PATIENCE_S)


def tally_of(story: list[EventMap]) -> Tally:
    """All events so far, added up."""
    tally = Tally()
    tally.add(story)
    return tally


def buried(story: list[EventMap], node: str) -> dict[str, float]:
    """Who wrote down that a node is dead -> when, the first time."""
    found: dict[str, float] = {}
    for event in story:
        if event["event"] == "member" and event["member"] == node and event["status"] == "dead":
            found.setdefault(event["node"], event["time"])
    return found


def told(story: list[EventMap], node: str, killed: float, cell: str) -> dict[str, Any]:
    """What a death cost. cell: the dead node's; empty: every cell is looked at.

    known_s: until the first, and the last, of the others had it down as dead.
    next_commit_s: until the next committed iteration (of a cell that waited longest).
    interval_before_s: median between commits of a cell before. interval_around_s: the longest
    that the death lies in: next to the median it shows the gap, if there is one.
    """
    cells = [cell] if cell else sorted({name for name, _ in tally_of(story).commits})
    times = [_commit_times(story, name) for name in cells]
    known = [time - killed for time in buried(story, node).values()]
    before = [b - a for each in times for a, b in pairwise(t for t in each if t < killed)]
    around = [b - a for each in times for a, b in pairwise(each) if a < killed <= b]
    return {
        "first_known_s": round(min(known), 3),
        "known_to_all_s": round(max(known), 3),
        "known_to": len(known),
        "next_commit_s": round(max(min(t for t in each if t >= killed) - killed for each in times), 3),
        "interval_before_s": round(median(before), 3),
        "interval_around_s": round(max(around), 3),
    }


def _commit_times(story: list[EventMap], cell: str) -> list[float]:
    commits = tally_of(story).commits.values()
    return sorted(commit.time for commit in commits if commit.cell == cell)


def render_failover(found: dict[str, Any]) -> None:
    """The two deaths side by side."""
    table = Table(f"of {found['nodes']} nodes and a coordinator", "a node", "the coordinator")
    for key, value in found["node"].items():
        table.add_row(key.replace("_", " "), str(value), str(found["coordinator"][key]))
    Console().print(table)
