"""`farflung simulate`: a job and a fault script, run in the simulated world and summed up."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from pydantic import ValidationError

from swarm.daemon.options import UserError
from swarm.events import Event
from swarm.job import Job, load_job
from swarm.lab.churn import AT_ITERATIONS, HOUR_S, churn, sped_up
from swarm.lab.faults import Fault, load_faults, selectors_of
from swarm.lab.playing import run_world
from swarm.lab.plot import check_plot, plot_run
from swarm.lab.recipes import ModelName, large_job, simulated_job
from swarm.lab.regions import load_regions
from swarm.lab.selectors import hits_nobody
from swarm.lab.tally import longest_gap_s
from swarm.lab.trace import Replay, in_company, load_trace, replay
from swarm.lab.world import CHECK_S, END_S, Outcome, WorldOptions
from swarm.messages import origin_of
from swarm.pipeline.data import BYTE_VOCAB
from swarm.pipeline.model import preset
from swarm.pipeline.room import FLOAT_BYTES, STATE_FLATS

UNTIL_S = 3600.0
"""Virtual seconds after which a run ends, if nobody says when."""
NODES = 20
"""Of the demo recipe, if nobody says how many."""

LAST_EVENTS = 12
"""Shown of a run that broke something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateOptions:
    """What a person asked for. See `farflung simulate --help`.

    job: None trains `model`, by the recipe for `nodes` nodes.
    tensors: "none" leaves them out: see `lab/hollow.py`. flops_per_s: see `WorldOptions`.
    regions: the setting of `regions.toml` that says where nodes stand; "" draws paths from the seed.
    churn: see `churn.churn`; "" is none. trace: a recorded day of additions and removals.
    speed_up: churn and trace go so many times as fast as they say.
    uplink_mbit_per_s: see `WorldOptions.uplink_bytes_per_s`; 0 is None. jitter: see there.
    plot: a picture of the run; None draws none.
    """

    job: Path | None = None
    model: ModelName | None = None
    tensors: Literal["real", "none"] = "real"
    flops_per_s: float = 2e10
    faults: Path | None = None
    regions: str = ""
    churn: str = ""
    trace: Path | None = None
    speed_up: float = 1.0
    uplink_mbit_per_s: float = 0.0
    jitter: Literal["uniform", "log-normal"] = "uniform"
    seed: int = 0
    nodes: int = 0
    until_s: float = UNTIL_S
    out: Path = Path("simulated")
    plot: Path | None = None


def run_simulate(options: SimulateOptions) -> dict[str, Any]:
    """Run a world, write `run.jsonl` and sum it up. Raises an error of one sentence."""
    world, recorded = _world(options)
    if options.plot is not None:
        check_plot(options.plot)
    began, computed = time.monotonic(), time.process_time()
    outcome = run_world(world)
    real_s, cpu_s = time.monotonic() - began, time.process_time() - computed
    found = summary(outcome, real_s) | {"cpu_s": round(cpu_s, 3)} | _replay(options, outcome)
    if options.churn or options.trace is not None:
        found |= _drawn(options, world, recorded, outcome)
    if options.trace is not None:
        found["trace_left_out"] = recorded.left_out
    found["events"] = str(write_run(outcome.events, options.out))
    if options.plot is not None:
        plot_run(outcome.events, outcome.seconds, options.plot)
        found["plot"] = str(options.plot)
    return found


def _replay(options: SimulateOptions, outcome: Outcome) -> dict[str, Any]:
    """What plays this run again; if something broke, what came last, and when to stop before it."""
    found: dict[str, Any] = {"seed": options.seed, "tensors": options.tensors}
    if outcome.broken:
        found["whole_until_s"] = whole_until_s(outcome.seconds)
        found["last"] = [e.line() for e in outcome.events if e.kind != "progress"][-LAST_EVENTS:]
    return found


def _drawn(
    options: SimulateOptions, world: WorldOptions, recorded: Replay, outcome: Outcome
) -> dict[str, Any]:
    """What churn or a trace came to. in_company: share of its losses with another in the same minute, at the
    speed of what was drawn or recorded; None if there are none, or if they come at iterations."""
    began, drawn = outcome.drawn
    churned = world.drawn[: len(world.drawn) - len(recorded.faults)]
    lost = [(loss.at_s, selectors_of(loss)[0]) for loss in (*churned, *recorded.losses)]
    at_times = [(at_s * options.speed_up, who) for at_s, who in lost if at_s is not None]
    known = at_times and len(at_times) == len(lost)
    return {
        "speed_up": options.speed_up,
        "drawn": {
            "began": began,
            "drawn": drawn,
            "in_company": round(in_company(at_times), 3) if known else None,
        },
    }


def whole_until_s(ended_s: float) -> float:
    """Until when to play a world that was found broken, so that it ends at the last look that found nothing.

    It was looked at every second; it lived on for a second after it broke, as it does after any end.
    """
    return max(1.0, round(ended_s - 2 * CHECK_S - END_S - CHECK_S / 2, 3))


def _world(options: SimulateOptions) -> tuple[WorldOptions, Replay]:
    """The world that was asked for, if it can be; what a trace comes to in it."""
    job = _job(options)
    nodes = options.nodes or job.pipeline.nodes
    if nodes < job.pipeline.nodes:
        raise UserError(f"the job waits for {job.pipeline.nodes} nodes: --nodes {nodes} would never begin")
    if options.tensors == "real":
        _check_memory(job)
    faults = load_faults(options.faults) if options.faults else ()
    regions = load_regions().setting(options.regions) if options.regions else ()
    _check_faults(faults, job, nodes, regions)
    recorded = replay(load_trace(options.trace), nodes, options.speed_up) if options.trace else Replay()
    uplink = options.uplink_mbit_per_s * 1e6 / 8
    world = WorldOptions(
        job=job,
        faults=faults,
        drawn=(*_churn(options, job, nodes), *recorded.faults),
        seed=options.seed,
        nodes=nodes,
        until_s=options.until_s,
        flops_per_s=options.flops_per_s,
        uplink_bytes_per_s=(uplink, uplink) if uplink else None,
        regions=regions,
        jitter=options.jitter,
        tensors=options.tensors,
        examine=True,
    )
    return world, recorded


def _job(options: SimulateOptions) -> Job:
    """The job that was named, or the recipe for so many nodes."""
    if options.job is not None:
        if options.model is not None:
            raise UserError(f"{options.job} says which model it trains: leave --model out")
        return load_job(options.job)
    if not (options.nodes or options.regions):
        raise UserError("name a job.toml, or give --nodes or --regions to train the demo model")
    nodes = options.nodes or NODES
    try:
        return large_job(options.model, nodes=nodes) if options.model else simulated_job(nodes=nodes)
    except ValidationError as error:
        why = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"there can be no job for {nodes} nodes: {why}") from None


def _check_memory(job: Job) -> None:
    """All nodes of a world share the memory of one machine: say so now, not when it is full."""
    parameters = preset(job.model.preset, BYTE_VOCAB).parameters * min(job.pipeline.cells, job.pipeline.nodes)
    needed = parameters * STATE_FLATS * FLOAT_BYTES
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > here:
        raise UserError(
            f"{job.pipeline.cells} cells of a {job.model.preset} model hold {needed / 1e9:.0f} GB of states, "
            f"this machine has {here / 1e9:.0f}: --tensors none leaves them out"
        )


def _churn(options: SimulateOptions, job: Job, nodes: int) -> Sequence[Fault]:
    """Who leaves and comes back, drawn from the seed, and so many times as fast as it was asked for."""
    if options.speed_up != 1 and not options.churn and options.trace is None:
        raise UserError("--speed-up is of --churn or --trace, and neither is given")
    if not options.churn:
        return ()
    if options.churn.startswith(AT_ITERATIONS) and options.speed_up != 1:
        raise UserError(
            f"--churn {options.churn} fails stages at iterations: leave --speed-up out, or --churn"
        )
    faults = churn(
        options.churn,
        nodes=nodes,
        stages=job.pipeline.stages,
        iterations=job.inner.iterations,
        hours=options.until_s * options.speed_up / HOUR_S,
        rng=Random(options.seed),
    )
    return sped_up(faults, options.speed_up)


def _check_faults(faults: Sequence[Fault], job: Job, nodes: int, regions: Sequence[str]) -> None:
    """A script that names who cannot exist is a mistake, not a quiet run. regions: dealt to nodes in turn."""
    stood_in = set(regions[:nodes])
    for fault in faults:
        for selector in selectors_of(fault):
            why = hits_nobody(selector, nodes=nodes, stages=job.pipeline.stages, regions=stood_in)
            if why:
                raise UserError(why)


def write_run(events: Sequence[Event], out: Path) -> Path:
    """Write the events of a run, one line each, into `out`/run.jsonl."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "run.jsonl"
    path.write_text("".join(f"{event.line()}\n" for event in events), encoding="utf-8")
    return path


def summary(outcome: Outcome, real_s: float) -> dict[str, Any]:
    """The numbers a person looks at first. What is not known, for want of tensors, is None.

    iterations: of the cell that came furthest. losses: mean training loss of its last, and of the first of
        the cell that it comes from, by whatever names.
    tokens_per_s: committed by all cells in a virtual second. longest_gap_s: between two commits of
        whichever cells. bytes_sent: on all links.
    loss_validation: of its model at the end, on held-out text. failures: processes that a fault hit.
    """
    commits = [event for event in outcome.events if event.kind == "committed"]
    furthest = max(commits, key=lambda event: event.fields["iteration"], default=None)
    cell = furthest.fields["cell"] if furthest else ""
    tokens = sum(event.fields.get("tokens", 0) for event in commits)
    learned = [event.fields for event in commits if event.fields.get("tokens")]
    losses = [told["loss"] for told in learned if origin_of(told["cell"]) == origin_of(cell)][:1]
    losses += [told["loss"] for told in learned if told["cell"] == cell][-1:]
    recovered = [e.fields for e in outcome.events if e.kind == "recovered"]
    killed = ("crash", "restart")
    return {
        "finished": outcome.finished,
        "iterations": furthest.fields["iteration"] if furthest else 0,
        "loss_first": losses[0] if losses else None,
        "loss_last": losses[-1] if losses else None,
        "loss_validation": None if outcome.validation is None else round(outcome.validation, 5),
        "tokens": tokens,
        "tokens_per_s": round(tokens / outcome.seconds, 1) if outcome.seconds else 0.0,
        "bytes_sent": outcome.bytes_sent,
        "virtual_s": round(outcome.seconds, 3),
        "longest_gap_s": round(longest_gap_s(event.time for event in commits), 1),
        "real_s": round(real_s, 3),
        "failures": sum(
            e.kind == "fault" and not e.fields["what"].endswith(" ended") for e in outcome.events
        ),
        "killed": [e.node[:12] for e in outcome.events if e.kind == "fault" and e.fields["what"] in killed],
        "recoveries": [{key: found.get(key) for key in ("stage", "how", "seconds")} for found in recovered],
        "missed": list(outcome.missed),
        "broken": list(outcome.broken),
    }


def _losses(found: dict[str, Any]) -> str:
    if found["tensors"] == "none":
        return "no losses: the tensors were left out"
    return f"loss {found['loss_first']} -> {found['loss_last']}, on held-out text {found['loss_validation']}"


def _churned(found: dict[str, Any]) -> list[str]:
    """What became of churn or a trace, if there was any."""
    if "drawn" not in found:
        return []
    began, drawn = found["drawn"]["began"], found["drawn"]["drawn"]
    share = found["drawn"]["in_company"]
    company = "" if share is None else f", {100 * share:.0f} % of the losses with another in the same minute"
    lines = [f"churn {found['speed_up']:g} times as fast: {began} of {drawn} faults before the end{company}"]
    if "trace_left_out" in found:
        lines.append(f"left out of the trace, for want of nodes: {found['trace_left_out']} arrivals")
    if drawn and not began:
        lines.append("DID NOT HAPPEN: all that was drawn came after the end; --speed-up brings it nearer")
    return lines


def render(found: dict[str, Any]) -> str:
    """The summary for a person."""
    recoveries = ", ".join(f"stage {r['stage']} by {r['how']}" for r in found["recoveries"]) or "none"
    lines = [
        f"{found['iterations']} iterations{'' if found['finished'] else ', not finished'}"
        f" in {found['virtual_s']:.1f} virtual seconds ({found['real_s']:.1f} real)",
        f"{found['tokens_per_s']:,.0f} tokens a second, {found['bytes_sent'] / 1e9:.3f} GB sent;"
        f" longest gap without a commit {found['longest_gap_s']:.1f} s",
        _losses(found),
        f"killed: {', '.join(found['killed']) or 'nobody'}; recoveries: {recoveries}",
        f"events: {found['events']}",
        *_churned(found),
        *(f"DID NOT HAPPEN: {sentence}" for sentence in found["missed"]),
        *(f"BROKEN: {sentence}" for sentence in found["broken"]),
        *(f"    {line[:200]}" for line in found.get("last", ())),
    ]
    if found["broken"]:
        lines.append(f"again, up to just before: {found['again']}")
    return "\n".join(lines)
