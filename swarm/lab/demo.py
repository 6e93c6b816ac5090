"""`farflung demo`: a whole swarm on this machine, a kill or two, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.live import Live

from swarm.daemon.options import UserError
from swarm.lab.headlines import Headlines
from swarm.lab.processes import LOOK_S, RealSwarm
from swarm.lab.recipes import demo_job
from swarm.lab.screen import Screen
from swarm.lab.tally import Tally

Kill = Literal["node", "coordinator", "both", "none"]
PATIENCE_S = 120.0
"""Without any committed iteration for so long, a demo on one machine is broken, not slow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What a person asks of the demo.

    nodes, iterations: size of the swarm, length of the job.
    kill: whom to SIGKILL: a node at a third of the iterations, the coordinator at half.
    out: a new directory for everything; None takes the next free demo-out/N.
    quiet: no live table.
    """

    nodes: int = 8
    iterations: int = 60
    kill: Kill = "both"
    out: Path | None = None
    quiet: bool = False


@dataclass(slots=True)
class Watch:
    """What the demo knows while it waits: totals, headlines, kills that are due, when it last moved."""

    tally: Tally = field(default_factory=Tally)
    headlines: Headlines = field(default_factory=Headlines)
    due: list[tuple[int, str]] = field(default_factory=list)
    moved: float = field(default_factory=time.monotonic)

    def take(self, swarm: RealSwarm) -> None:
        """Read new events; remember when something was committed."""
        before, events = len(self.tally.commits), swarm.events()
        self.tally.add(events)
        self.headlines.add(events, {child.node: child.name for child in swarm.children.values()})
        if len(self.tally.commits) > before:
            self.moved = time.monotonic()

    def check_moving(self, out: Path) -> None:
        """Raise UserError if nothing was committed for too long."""
        if time.monotonic() - self.moved > PATIENCE_S:
            raise UserError(f"nothing was committed for {PATIENCE_S:.0f} s: see the logs below {out}")

    def next_kill(self) -> str | None:
        """Whom to kill now ("node" or "coordinator"), if anybody is due."""
        if self.due and self.tally.iteration >= self.due[0][0]:
            return self.due.pop(0)[1]
        return None


def plan_kills(kill: Kill, iterations: int) -> list[tuple[int, str]]:
    """When to kill whom, as (after this iteration, kind), in order."""
    plan = [(max(1, iterations // 3), "node"), (max(1, iterations // 2), "coordinator")]
    return [(at, kind) for at, kind in plan if kill in (kind, "both")]


def run_demo(options: DemoOptions) -> dict[str, Any]:
    """Run the demo and return its summary, the fields of `farflung demo --json`.

    Raises UserError if the only node would be killed: nobody were left who knows the model.
    """
    if options.nodes == 1 and options.kill in ("node", "both"):
        raise UserError("the only node is not killed: give --kill none or coordinator, or more --nodes")
    out = options.out or next_directory()
    screen = Screen(options.iterations)
    started = time.monotonic()
    with screen_on(screen, quiet=options.quiet) as live:
        swarm, watch = asyncio.run(_train(options, out, screen, live))
    summary = _summarize(swarm, watch.tally)
    if not options.quiet:
        screen.print_summary(summary, time.monotonic() - started)
    return summary


def next_directory(parent: Path = Path("demo-out")) -> Path:
    """The first of parent/1, parent/2, ... that does not exist."""
    number = 1
    while (parent / str(number)).exists():
        number += 1
    return parent / str(number)


@contextlib.contextmanager
def screen_on(screen: Screen, *, quiet: bool) -> Iterator[Live | None]:
    """The live table on a terminal; None where nobody looks."""
    if quiet:
        yield None
        return
    with Live(console=screen.console, auto_refresh=False) as live:
        yield live
    if not screen.console.is_terminal:
        screen.console.line()  # the table's last line has no end in a file


async def _train(
    options: DemoOptions, out: Path, screen: Screen, live: Live | None
) -> tuple[RealSwarm, Watch]:
    job = demo_job(nodes=options.nodes, iterations=options.iterations)
    watch = Watch(due=plan_kills(options.kill, options.iterations))
    async with RealSwarm(out, job) as swarm:
        await start_all(swarm, options.nodes)
        while not is_over(swarm, watch.tally):
            watch.take(swarm)
            kind = watch.next_kill()
            if kind is not None:
                swarm.kill(choose_victim(swarm, watch.tally, kind))
            watch.check_moving(out)
            if live is not None:
                live.update(screen.table(swarm, watch.tally, watch.headlines.lines), refresh=True)
            await asyncio.sleep(LOOK_S)
        await swarm.stop()
        watch.take(swarm)
    return swarm, watch


async def start_all(swarm: RealSwarm, nodes: int) -> None:
    """The coordinator, then node-1, node-2, ..."""
    await swarm.start_coordinator()
    for number in range(1, nodes + 1):
        await swarm.start_node(f"node-{number}")


def is_over(swarm: RealSwarm, tally: Tally) -> bool:
    """Every node that runs and holds a stage has finished the job.

    Raises UserError if no node is left before any has.
    """
    running = [swarm.children[name].node for name in swarm.alive if name != "coordinator"]
    if not running and not tally.finished:
        raise UserError(f"every node ended before the job was finished: {last_words(swarm)}")
    holders = {node for node in running if node in tally.nodes and tally.nodes[node].stages}
    return bool(tally.finished) and holders <= tally.finished


def last_words(swarm: RealSwarm) -> str:
    """Of every process that is gone: that it was killed, or the error that it ended with."""
    words = []
    for name in swarm.children:
        lines = swarm.log(name).strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")] or lines[-1:]
        if name in swarm.killed:
            words.append(f"{name} was killed")
        elif name not in swarm.alive:
            words.append(f"{name} said {errors[-1] if errors else 'nothing'}")
    return "; ".join(words)


def choose_victim(swarm: RealSwarm, tally: Tally, kind: str) -> str:
    """A running process of this kind; of the nodes rather one that holds a body stage."""
    if kind == "coordinator":
        return kind
    nodes = [name for name in swarm.alive if name != "coordinator"]
    stages = {name: row.stages for name in nodes if (row := tally.nodes.get(swarm.children[name].node))}
    body = [name for name, held in stages.items() if held and 0 not in held]
    return (body or nodes)[0]


def _summarize(swarm: RealSwarm, tally: Tally) -> dict[str, Any]:
    """Export the final model, measure it and the initial one, and put the numbers together."""
    from swarm.daemon.harvest import export_run, validation_losses

    checkpoint = swarm.directory / "model"
    model = export_run(swarm.directory, checkpoint)
    first, last = validation_losses(swarm.directory)
    return {
        "iterations": model.iteration,
        "loss_first": first,
        "loss_last": last,
        "tokens_per_s": round(tally.tokens_per_s(), 1),
        "killed": swarm.killed,
        "recoveries": tally.recoveries,
        "checkpoint": str(checkpoint),
        "bytes_sent": tally.bytes_sent,
    }
