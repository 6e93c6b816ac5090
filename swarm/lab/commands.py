"""The commands that play with whole swarms: demo, simulate, chaos and the benchmarks."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from swarm.daemon.options import UserError

Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]


def print_json(value: Any) -> None:
    """One line, for a program."""
    print(json.dumps(value))


def refuse(asked: dict[str, Any], why: str) -> None:
    """What was asked for and means nothing here is a mistake, not to be passed over. Raises UserError."""
    named = [name for name, value in asked.items() if value]
    if named:
        raise UserError(f"{why} {', '.join(named)}")


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
    job: Annotated[Path | None, typer.Argument(help="A job.toml; none: the demo model.")] = None,
    model: Annotated[
        Literal["demo", "125m", "1b", "7b"] | None, typer.Option(help="Trained if no job is named.")
    ] = None,
    tensors: Annotated[
        Literal["real", "none"],
        typer.Option(help="none: all bytes and times, no numbers: for models of any size."),
    ] = "real",
    flops_per_s: Annotated[float, typer.Option(min=1e6, help="Of a node of middling speed.")] = 2e10,
    faults: Annotated[Path | None, typer.Option(help="A fault script: who is hit, how and when.")] = None,
    regions: Annotated[str, typer.Option(help="geo-distributed, 5-clusters or single-cluster.")] = "",
    uplink: Annotated[
        float, typer.Option(min=0, help="Mbit/s that a node sends at most; 4 times as much it receives.")
    ] = 0,
    jitter: Annotated[
        Literal["uniform", "log-normal"],
        typer.Option(help="On top of a path's latency: at most a tenth of it, or that in the median."),
    ] = "uniform",
    churn: Annotated[str, typer.Option(help="Percent of the nodes an hour, a preset, checkfree:P.")] = "",
    trace: Annotated[Path | None, typer.Option(help="A recorded day of nodes that came and went.")] = None,
    speed_up: Annotated[float, typer.Option(min=1e-3, help="Churn or trace go so many times as fast.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of keys, links and chance: same seed, same run.")] = 0,
    nodes: Annotated[int, typer.Option(min=0, help="Nodes; 0: as many as the job waits for.")] = 0,
    until: Annotated[
        float | None, typer.Option(min=1, help="Virtual seconds after which to stop; default 3600.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Directory for run.jsonl.")] = Path("simulated"),
    plot: Annotated[Path | None, typer.Option(help="Draw loss, live nodes and throughput.")] = None,
    only: Annotated[
        Literal["", "membership"], typer.Option(help="membership: who is here, without training.")
    ] = "",
    hours: Annotated[float, typer.Option(help="Virtual hours of --only membership.")] = 1,
    loss: Annotated[float, typer.Option(help="Of messages (--only membership): sent again, late.")] = 0,
    loss_drops: Annotated[bool, typer.Option("--loss-drops", help="They are gone, as datagrams.")] = False,
    profile_stalls: Annotated[int, typer.Option(help="Nodes that stand still 2-8 s in every 30 s.")] = 0,
    no_lifeguard: Annotated[bool, typer.Option("--no-lifeguard", help="Plain SWIM, to compare.")] = False,
    evidence: Annotated[
        Literal["silence", "closed"], typer.Option(help="What a crash of --only membership shows.")
    ] = "silence",
    as_json: Json = False,
) -> None:
    """The same nodes in one process, on a simulated network, in virtual time. 1 if a promise broke, or
    if the job is not finished though nobody said --until.

    Example: farflung simulate --regions geo-distributed --nodes 20 --plot run.png

    Example: farflung simulate --nodes 100 --model 1b --tensors none --flops-per-s 1e13
    """
    if only == "membership":
        of_training = {
            "JOB": job,
            "--model": model,
            "--faults": faults,
            "--regions": regions,
            "--uplink": uplink,
            "--jitter": jitter != "uniform",
            "--trace": trace,
            "--plot": plot,
            "--until": until,
            "--tensors": tensors == "none",
            "--speed-up": speed_up != 1,
        }
        refuse(of_training, "with --only membership nobody trains, so leave out")
        from swarm.lab.crowd_run import crowd_options, render_crowd, run_crowd

        crowd = crowd_options(
            churn,
            nodes=nodes or 1000,
            hours=hours,
            seed=seed,
            stalls=profile_stalls,
            loss=loss,
            drops=loss_drops,
            lifeguard=not no_lifeguard,
            evidence=evidence,
        )
        figures = run_crowd(crowd)
        return print_json(figures) if as_json else print(render_crowd(figures))
    of_membership = {
        "--hours": hours != 1,
        "--loss": loss,
        "--loss-drops": loss_drops,
        "--profile-stalls": profile_stalls,
        "--no-lifeguard": no_lifeguard,
        "--evidence": evidence != "silence",
    }
    refuse(of_membership, "only --only membership knows")
    from swarm.lab.simulate import UNTIL_S, SimulateOptions, render, run_simulate

    asked = SimulateOptions(
        job=job,
        model=model,
        tensors=tensors,
        flops_per_s=flops_per_s,
        faults=faults,
        regions=regions,
        uplink_mbit_per_s=uplink,
        jitter=jitter,
        churn=churn,
        trace=trace,
        speed_up=speed_up,
        seed=seed,
        nodes=nodes,
        until_s=until or UNTIL_S,
        out=out,
        plot=plot,
    )
    found = run_simulate(asked)
    if found["broken"]:
        found["again"] = shlex.join(["farflung", *sys.argv[1:], "--until", f"{found['whole_until_s']:g}"])
    print_json(found) if as_json else print(render(found))
    unfinished = not found["finished"] and until is None
    raise typer.Exit(1 if found["broken"] or unfinished else 0)


def chaos(
    job: Annotated[Path | None, typer.Argument(help="A job.toml; default: the demo's job, endless.")] = None,
    faults: Annotated[Path | None, typer.Option(help="A fault script: who is hit, how and when.")] = None,
    nodes: Annotated[int, typer.Option(min=0, max=64, help="Node processes; 0: as the job says, or 8.")] = 0,
    minutes: Annotated[float, typer.Option(min=0.1, help="How long faults are played.")] = 10,
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
