"""The commands that play with whole swarms: demo, simulate, chaos and the benchmarks."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from swarm.daemon.options import UserError

if TYPE_CHECKING:
    from swarm.lab.crowd_run import CrowdOptions
    from swarm.lab.simulate import SimulateOptions

Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]
CROWD = 1000
"""Nodes of --only membership, if nobody says how many."""


def print_json(value: Any) -> None:
    """One line, for a program."""
    print(json.dumps(value))


def finite(value: float | None) -> float | None:
    """Refuse what is no number and what never ends, which bounds let pass. Raises BadParameter."""
    if value is not None and not isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def number(*names: str, **how: Any) -> Any:
    """An option that takes a number with a point: all of them are made here, so all are finite."""
    return typer.Option(*names, callback=finite, **how)


def refuse_others(context: typer.Context, options: type[Any], why: str) -> None:
    """What was said and is no field of `options` means nothing: a mistake, not to be passed over.

    A parameter is named as the field that it fills; one that fills none is always refused. Raises UserError.
    """
    known = {"only", "as_json", *(field.name for field in fields(options))}
    said = [
        "/".join([*parameter.opts, *parameter.secondary_opts])
        if parameter.opts[0].startswith("-")
        else str(parameter.name).upper()
        for parameter in context.command.params
        if parameter.name not in known and _was_said(context, str(parameter.name))
    ]
    if said:
        raise UserError(f"{why} {', '.join(said)}")


def _was_said(context: typer.Context, name: str) -> bool:
    """Whether it was on the command line. The source is known by its name: its class is typer's own or
    click's, by version."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def demo(
    nodes: Annotated[int, typer.Option(min=1, max=64, help="Node processes.")] = 8,
    iterations: Annotated[int, typer.Option(min=1, help="Optimizer steps of every cell.")] = 60,
    kill: Annotated[
        Literal["node", "coordinator", "both", "none"], typer.Option(help="Whom to SIGKILL on the way.")
    ] = "both",
    out: Annotated[Path | None, typer.Option(help="A new directory; default: the next demo-out/N.")] = None,
    as_json: Json = False,
) -> None:
    """A whole swarm on this machine: a coordinator, 8 nodes, a live table, a kill or two.

    Example: farflung demo --kill node
    """
    from swarm.lab.demo import DemoOptions, run_demo

    summary = run_demo(DemoOptions(nodes=nodes, iterations=iterations, kill=kill, out=out, quiet=as_json))
    if as_json:
        print_json(summary)


def simulate(
    context: typer.Context,
    job: Annotated[Path | None, typer.Argument(help="A job.toml; none: the demo model.")] = None,
    model: Annotated[
        Literal["demo", "125m", "1b", "7b"] | None, typer.Option(help="Trained if no job is named.")
    ] = None,
    tensors: Annotated[
        Literal["real", "none"],
        typer.Option(help="none: all bytes and times, no numbers: for models of any size."),
    ] = "real",
    flops_per_s: Annotated[float, number(min=1e6, help="Of a node of middling speed.")] = 2e10,
    faults: Annotated[Path | None, typer.Option(help="A fault script: who is hit, how and when.")] = None,
    regions: Annotated[str, typer.Option(help="geo-distributed, 5-clusters or single-cluster.")] = "",
    uplink_mbit_per_s: Annotated[
        float,
        number("--uplink", min=0, help="Mbit/s that a node sends at most; 4 times as much it receives."),
    ] = 0,
    jitter: Annotated[
        Literal["uniform", "log-normal"],
        typer.Option(help="On top of a path's latency: at most a tenth of it, or that in the median."),
    ] = "uniform",
    churn: Annotated[str, typer.Option(help="Percent of the nodes an hour, a preset, checkfree:P.")] = "",
    trace: Annotated[Path | None, typer.Option(help="A recorded day of nodes that came and went.")] = None,
    speed_up: Annotated[
        float, number(min=1e-3, max=1e4, help="Churn or trace go so many times as fast.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of keys, links and chance: same seed, same run.")] = 0,
    nodes: Annotated[int, typer.Option(min=0, help="Nodes; 0: as many as the job waits for.")] = 0,
    until_s: Annotated[
        float | None, number("--until", min=1, help="Virtual seconds after which to stop; default 3600.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Directory for run.jsonl.")] = Path("simulated"),
    plot: Annotated[Path | None, typer.Option(help="Draw loss, live nodes and throughput.")] = None,
    only: Annotated[
        Literal["", "membership"], typer.Option(help="membership: who is here, without training.")
    ] = "",
    hours: Annotated[float, number(help="Virtual hours of --only membership.")] = 1,
    loss: Annotated[float, number(help="Of messages (--only membership): sent again, late.")] = 0,
    drops: Annotated[bool, typer.Option("--loss-drops", help="They are gone, as datagrams.")] = False,
    stalls: Annotated[
        int, typer.Option("--profile-stalls", help="Nodes that stand still 2-8 s in every 30 s.")
    ] = 0,
    lifeguard: Annotated[
        bool, typer.Option("--lifeguard/--no-lifeguard", help="Without: plain SWIM, to compare.")
    ] = True,
    evidence: Annotated[
        Literal["silence", "closed"], typer.Option(help="What a crash of --only membership shows.")
    ] = "silence",
    as_json: Json = False,
) -> None:
    """The same nodes in one process, on a simulated network, in virtual time. 1 if a promise broke, or
    if the job is not finished though nobody said --until. With --only membership 1 if a view that was wrong
    about who lives when the last two minutes began, without churn, is so at the end.

    Example: farflung simulate --regions geo-distributed --nodes 20 --plot run.png

    Example: farflung simulate --nodes 100 --model 1b --tensors none --flops-per-s 1e13
    """
    if only == "membership":
        from swarm.lab.crowd_run import CrowdOptions, crowd_options

        refuse_others(context, CrowdOptions, "with --only membership nobody trains, so leave out")
        crowd = crowd_options(
            churn,
            nodes=nodes or CROWD,
            hours=hours,
            seed=seed,
            stalls=stalls,
            loss=loss,
            drops=drops,
            lifeguard=lifeguard,
            evidence=evidence,
        )
        raise typer.Exit(let_live(crowd, as_json=as_json))
    from swarm.lab.simulate import UNTIL_S, SimulateOptions, render, run_simulate

    refuse_others(context, SimulateOptions, "only --only membership knows")

    asked = SimulateOptions(
        job=job,
        model=model,
        tensors=tensors,
        flops_per_s=flops_per_s,
        faults=faults,
        regions=regions,
        uplink_mbit_per_s=uplink_mbit_per_s,
        jitter=jitter,
        churn=churn,
        trace=trace,
        speed_up=speed_up,
        seed=seed,
        nodes=nodes,
        until_s=until_s or UNTIL_S,
        out=out,
        plot=plot,
    )
    found = run_simulate(asked)
    if found["broken"]:
        found["again"] = again(sys.argv[1:], asked, found["whole_until_s"])
    print_json(found) if as_json else print(render(found))
    unfinished = not found["finished"] and until_s is None
    raise typer.Exit(1 if found["broken"] or unfinished else 0)


def again(words: Sequence[str], asked: SimulateOptions, until_s: float) -> str:
    """The command that plays a run again and spares what it wrote: of options said twice the last holds."""
    spared = ["--out", str(asked.out / "again")]
    if asked.plot is not None:
        spared += ["--plot", str(asked.plot.with_stem(f"{asked.plot.stem}-again"))]
    return shlex.join(["farflung", *words, "--until", f"{until_s:g}", *spared])


def let_live(crowd: CrowdOptions, *, as_json: bool) -> int:
    """Membership alone: print its figures. 1 if views did not come to agree."""
    from swarm.lab.crowd_run import render_crowd, run_crowd

    figures = run_crowd(crowd)
    print_json(figures) if as_json else print(render_crowd(figures))
    return 1 if figures["views_wrong_for_long"] else 0


def chaos(
    job: Annotated[Path | None, typer.Argument(help="A job.toml; default: the demo's job, endless.")] = None,
    faults: Annotated[Path | None, typer.Option(help="A fault script: who is hit, how and when.")] = None,
    nodes: Annotated[int, typer.Option(min=0, max=64, help="Node processes; 0: as the job says, or 8.")] = 0,
    minutes: Annotated[float, number(min=0.1, help="How long faults are played.")] = 10,
    wan: Annotated[
        bool | None, typer.Option("--wan/--no-wan", help="Emulated network; default: where possible.")
    ] = None,
    regions: Annotated[str, typer.Option(help="geo-distributed, 5-clusters or single-cluster.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Of chance in the script and in the network.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A new directory; default: the next chaos-out/N.")] = None,
    as_json: Json = False,
) -> None:
    """A fault script on real processes of this machine. 1 if a promise broke.

    Over an emulated wide-area network where there is root, iproute2 and /dev/net/tun.

    Example: farflung chaos --faults docs/examples/twenty_kills.toml
    """
    from swarm.lab.chaos import ChaosOptions, run_chaos
    from swarm.lab.chaos_summary import render

    asked = ChaosOptions(
        job=job,
        faults=faults,
        nodes=nodes,
        minutes=minutes,
        wan=wan,
        regions=regions,
        seed=seed,
        out=out,
    )
    found = run_chaos(asked, lambda line: print(line, file=sys.stderr if as_json else None, flush=True))
    print_json(found) if as_json else print(render(found))
    raise typer.Exit(1 if found["broken"] else 0)


def throughput(
    nodes: Annotated[int, typer.Option(min=1, max=64, help="Node processes.")] = 8,
    iterations: Annotated[int, typer.Option(min=4, help="Optimizer steps of every cell.")] = 30,
    out: Annotated[Path | None, typer.Option(help="A new directory; default: the next demo-out/N.")] = None,
    as_json: Json = False,
) -> None:
    """Tokens per second of a local swarm against a plain one-thread loop on the same model.

    Example: farflung bench throughput --json
    """
    from swarm.lab.bench import measure_throughput, render_throughput

    found = measure_throughput(nodes=nodes, iterations=iterations, out=out)
    print_json(found) if as_json else render_throughput(found)


def failover(
    nodes: Annotated[int, typer.Option(min=3, max=64, help="Node processes.")] = 8,
    out: Annotated[Path | None, typer.Option(help="A new directory; default: the next demo-out/N.")] = None,
    as_json: Json = False,
) -> None:
    """Seconds until all know of a SIGKILL, and until the next iteration: of a node, of the coordinator.

    Example: farflung bench failover --json
    """
    from swarm.lab.failover import measure_failover, render_failover

    found = measure_failover(nodes=nodes, out=out)
    print_json(found) if as_json else render_failover(found)
