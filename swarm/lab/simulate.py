"""`farflung simulate`: a job and a fault script, run in the simulated world and summed up."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swarm.daemon.options import UserError
from swarm.events import Event
from swarm.job import Job, load_job
from swarm.lab.faults import Fault, load_faults
from swarm.lab.world import Outcome, WorldOptions, run_world


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateOptions:
    """What a person asked for. See `farflung simulate --help`."""

    job: Path
    faults: Path | None = None
    seed: int = 0
    nodes: int = 0
    until_s: float = 3600.0
    out: Path = Path("simulated")


def run_simulate(options: SimulateOptions) -> dict[str, Any]:
    """Run a world, write `run.jsonl` and sum it up. Raises an error of one sentence."""
    job = load_job(options.job)
    faults = load_faults(options.faults) if options.faults else ()
    nodes = options.nodes or job.pipeline.nodes
    if nodes < job.pipeline.nodes:
        raise UserError(f"the job waits for {job.pipeline.nodes} nodes: --nodes {nodes} would never begin")
    _check_faults(faults, job, nodes)
    began = time.monotonic()
    world = WorldOptions(job=job, faults=faults, seed=options.seed, nodes=nodes, until_s=options.until_s)
    outcome = run_world(world)
    path = write_run(outcome.events, options.out)
    return summary(outcome, time.monotonic() - began) | {"events": str(path)}


def _check_faults(faults: Sequence[Fault], job: Job, nodes: int) -> None:
    """A script that names who cannot exist is a mistake, not a quiet run."""
    for fault in faults:
        for which, number in re.findall(r"'(node|holders?):(\d+)'", str(fault.model_dump())):
            most = nodes if which == "node" else job.pipeline.stages
            if int(number) >= most:
                raise UserError(f"a {fault.kind} names {which}:{number}, but the last one is {most - 1}")


def write_run(events: Sequence[Event], out: Path) -> Path:
    """Write the events of a run, one line each, into `out`/run.jsonl."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "run.jsonl"
    path.write_text("".join(f"{event.line()}\n" for event in events), encoding="utf-8")
    return path


def summary(outcome: Outcome, real_s: float) -> dict[str, Any]:
    """The numbers a person looks at first.

    iterations: of the cell that came furthest. losses: mean training loss of its first and last.
    """
    commits = [event for event in outcome.events if event.kind == "committed"]
    furthest = max(commits, key=lambda event: event.fields["iteration"], default=None)
    cell = furthest.fields["cell"] if furthest else ""
    losses = [event.fields["loss"] for event in commits if event.fields["cell"] == cell]
    recovered = [e.fields for e in outcome.events if e.kind == "recovered" and e.fields["how"] != "failed"]
    killed = ("crash", "restart")
    return {
        "finished": outcome.finished,
        "iterations": furthest.fields["iteration"] if furthest else 0,
        "loss_first": losses[0] if losses else None,
        "loss_last": losses[-1] if losses else None,
        "virtual_s": round(outcome.seconds, 3),
        "real_s": round(real_s, 3),
        "killed": [e.node[:12] for e in outcome.events if e.kind == "fault" and e.fields["what"] in killed],
        "recoveries": [{key: found.get(key) for key in ("stage", "how", "seconds")} for found in recovered],
        "broken": list(outcome.broken),
    }


def render(found: dict[str, Any]) -> str:
    """The summary for a person."""
    recoveries = ", ".join(f"stage {r['stage']} by {r['how']}" for r in found["recoveries"]) or "none"
    lines = [
        f"{found['iterations']} iterations{'' if found['finished'] else ', not finished'}"
        f" in {found['virtual_s']:.1f} virtual seconds ({found['real_s']:.1f} real)",
        f"loss {found['loss_first']} -> {found['loss_last']}",
        f"killed: {', '.join(found['killed']) or 'nobody'}; recoveries: {recoveries}",
        f"events: {found['events']}",
        *(f"BROKEN: {sentence}" for sentence in found["broken"]),
    ]
    return "\n".join(lines)
