"""The command line: parse, call, print. What a command does lives elsewhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

app = typer.Typer(
    name="farflung",
    help="Train one language model on many machines that come and go.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
coordinator = typer.Typer(no_args_is_help=True, help="Create a job, hand it out, watch it.")
bench = typer.Typer(no_args_is_help=True, help="The benchmarks, as ratios side by side.")
app.add_typer(coordinator, name="coordinator")
app.add_typer(bench, name="bench")

Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]
JobDirectory = Annotated[Path, typer.Argument(help="Directory of the job.")]
Host = Annotated[str, typer.Option(help="Address to listen on and to tell others.")]
StatusPort = Annotated[int, typer.Option(help="Port of /status and /metrics on loopback; 0: any free one.")]


def print_json(value: Any) -> None:
    """One line, for a program."""
    print(json.dumps(value))


@coordinator.command("init")
def coordinator_init(
    directory: JobDirectory,
    job: Annotated[Path | None, typer.Option(help="A job.toml; the options below then do not apply.")] = None,
    name: Annotated[str, typer.Option(help="Name of the job.")] = "demo",
    preset: Annotated[str, typer.Option(help="Model: demo, 125m, 1b or 7b.")] = "demo",
    data: Annotated[str, typer.Option(help="Text: stdlib, a file, a glob or a directory.")] = "stdlib",
    nodes: Annotated[int, typer.Option(help="Nodes to wait for before the first iteration.")] = 1,
    cells: Annotated[int, typer.Option(help="Groups of nodes that each hold the whole model.")] = 1,
    stages: Annotated[int, typer.Option(help="Parts the model is cut into.")] = 4,
    iterations: Annotated[int, typer.Option(help="When to stop.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of weights and data order.")] = 0,
    host: Host = "127.0.0.1",
    lobby_port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Where invitations are spent; 0: a free one.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Create a job: keys, job.toml and a first invitation.

    Example: farflung coordinator init run1 --nodes 8 --cells 2
    """
    from swarm.daemon.jobdir import init_job, make_invitation
    from swarm.lab.recipes import job_from_options
    from swarm.pipeline.data import find_texts

    recipe = job_from_options(
        job,
        {
            "name": name,
            "seed": seed,
            "model": {"preset": preset},
            "data": {"path": data},
            "pipeline": {"nodes": nodes, "cells": cells, "stages": stages},
            "inner": {"iterations": iterations},
        },
    )
    find_texts(recipe.data)
    init_job(directory, job=recipe, host=host, lobby_port=lobby_port)
    invitation = make_invitation(
        directory, role="worker", days=7, uses=max(8, 2 * recipe.pipeline.nodes)
    ).text
    if as_json:
        return print_json({"directory": str(directory), "job": recipe.digest, "invitation": invitation})
    print(f"Job {recipe.name} is in {directory}. Next, here:\n\n  farflung coordinator run {directory}\n")
    print(f"and on every machine that takes part:\n\n  farflung node --join {invitation}")


@coordinator.command("run")
def coordinator_run(
    directory: JobDirectory,
    host: Host = "127.0.0.1",
    status_port: StatusPort = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Start from the newest valid checkpoint.")] = False,
) -> None:
    """Admit nodes, serve the job and its status, until interrupted. Training does not need it.

    Example: farflung coordinator run run1
    """
    from swarm.daemon.coordinator import run_coordinator
    from swarm.daemon.options import CoordinatorOptions

    options = CoordinatorOptions(directory=directory, host=host, status_port=status_port, resume=resume)
    raise typer.Exit(run_coordinator(options))


@app.command()
def invite(
    directory: JobDirectory,
    role: Annotated[
        Literal["worker", "coordinator"], typer.Option(help="What the invited may be.")
    ] = "worker",
    days: Annotated[float, typer.Option(help="Until it expires.")] = 7,
    uses: Annotated[int, typer.Option(help="How many nodes may join with it.")] = 8,
    as_json: Json = False,
) -> None:
    """Print another invitation to a job.

    Example: farflung invite run1 --uses 1 --days 1
    """
    from swarm.daemon.jobdir import make_invitation

    text = make_invitation(directory, role=role, days=days, uses=uses).text
    print_json({"invitation": text}) if as_json else print(text)


@app.command("revoke")
def revoke_member(
    directory: JobDirectory,
    name: Annotated[str, typer.Argument(help="Id of a node, or how it begins; or a whole invitation.")],
    as_json: Json = False,
) -> None:
    """End a node's membership, or an invitation, for good; a running coordinator tells everybody.

    Example: farflung revoke run1 3fa2c417
    """
    from swarm.daemon.jobdir import revoke

    revoked = revoke(directory, name)
    if as_json:
        return print_json({"revoked": revoked})
    print(f"{revoked} is revoked; the coordinator tells the members as soon as it runs")


@app.command()
def node(
    join: Annotated[str, typer.Option(help="An invitation; a node that joined before needs none.")] = "",
    data: Annotated[Path, typer.Option(help="The node's own directory: identity, checkpoints.")] = Path(
        "farflung-node"
    ),
    host: Host = "127.0.0.1",
    advertise: Annotated[str, typer.Option(help="Address others dial, if it is not --host.")] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Torch threads.")] = 1,
    memory: Annotated[str, typer.Option(help="What it may hold: 8G, 500M; empty: all.")] = "",
    status_port: StatusPort = 0,
) -> None:
    """Take part in a job until it is finished or you interrupt it; then hand over and go.

    Example: farflung node --join INVITATION --data node1
    """
    from swarm.daemon.options import NodeOptions
    from swarm.daemon.process import check_device
    from swarm.lab.recipes import parse_size

    check_device(device)
    options = NodeOptions(
        invitation=join,
        data_dir=data,
        host=host,
        advertise=advertise,
        device=device,
        threads=threads,
        memory_bytes=parse_size(memory),
        status_port=status_port,
    )
    from swarm.daemon.node import run_node

    raise typer.Exit(run_node(options))


@app.command()
def status(
    directory: Annotated[Path, typer.Argument(help="Of a coordinator or a node on this machine.")] = Path(),
    address: Annotated[str, typer.Option(help="host:port of a status server instead.")] = "",
    as_json: Json = False,
) -> None:
    """One look at a running job.

    Example: farflung status run1
    """
    from swarm.lab.look import fetch_status, render_status

    found = fetch_status(directory, address)
    print_json(found) if as_json else render_status(found)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Directory above its nodes' checkpoints.")],
    directory: Annotated[Path, typer.Argument(help="Where to write the Hugging Face model.")],
    as_json: Json = False,
) -> None:
    """Write config.json and safetensors from a run's newest complete checkpoint.

    Example: farflung export run1 model1
    """
    from swarm.daemon.options import UserError
    from swarm.lab.harvest import export_run

    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} exists already: name a new directory for the model")
    iteration = export_run(run, directory)
    if as_json:
        return print_json({"iteration": iteration, "checkpoint": str(directory)})
    print(f"iteration {iteration} is in {directory}")


@app.command()
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


@app.command()
def simulate(
    job: Annotated[Path | None, typer.Argument(help="A job.toml; none: the demo model.")] = None,
    faults: Annotated[Path | None, typer.Option(help="A fault script: who is hit, how and when.")] = None,
    regions: Annotated[str, typer.Option(help="geo-distributed, 5-clusters or single-cluster.")] = "",
    churn: Annotated[str, typer.Option(help="Percent of the nodes an hour, a preset, checkfree:P.")] = "",
    trace: Annotated[Path | None, typer.Option(help="A recorded day of nodes that came and went.")] = None,
    speed_up: Annotated[float, typer.Option(min=1e-3, help="Churn or trace go so many times as fast.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of keys, links and chance: same seed, same run.")] = 0,
    nodes: Annotated[int, typer.Option(min=0, help="Nodes; 0: as many as the job waits for.")] = 0,
    until: Annotated[float, typer.Option(min=1, help="Virtual seconds after which to stop anyway.")] = 3600,
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
    """The same nodes in one process, on a simulated network, in virtual time. 1 if a promise broke.

    Example: farflung simulate --regions geo-distributed --nodes 20 --plot run.png
    """
    if only == "membership":
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
    from swarm.lab.simulate import SimulateOptions, render, run_simulate

    asked = SimulateOptions(
        job=job,
        faults=faults,
        regions=regions,
        churn=churn,
        trace=trace,
        speed_up=speed_up,
        seed=seed,
        nodes=nodes,
        until_s=until,
        out=out,
        plot=plot,
    )
    found = run_simulate(asked)
    print_json(found) if as_json else print(render(found))
    raise typer.Exit(1 if found["broken"] else 0)


@app.command()
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


@bench.command()
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


@bench.command()
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


def main() -> None:
    """Run a command. A person's mistake is one line on stderr and exit code 2."""
    try:
        app()
    except Exception as error:
        from swarm.daemon.options import explain

        sentence = explain(error)
        if sentence is None:
            raise
        fail(sentence)


def fail(sentence: str) -> None:
    """Say what is wrong and end with code 2."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)
