"""The command line: parse, call, print. What a command does lives elsewhere."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from swarm.lab.commands import Json, chaos, demo, failover, number, print_json, simulate, throughput

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
app.command()(demo)
app.command()(simulate)
app.command()(chaos)
bench.command()(throughput)
bench.command()(failover)

JobDirectory = Annotated[Path, typer.Argument(help="Directory of the job.")]
Host = Annotated[str, typer.Option(help="Address to listen on and to tell others.")]
StatusPort = Annotated[int, typer.Option(help="Port of /status and /metrics on loopback; 0: any free one.")]


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
    host: Annotated[str, typer.Option(help="Address of this machine, as nodes dial it.")] = "127.0.0.1",
    lobby_port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Where invitations are spent; 0: a free one.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Create a job: keys, job.toml and a first invitation.

    Example: farflung coordinator init run1 --nodes 8 --cells 2
    """
    from swarm.daemon.jobdir import init_job, make_invitation
    from swarm.daemon.typed import job_from_options
    from swarm.pipeline.data import load_corpus

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
    load_corpus(recipe.data)  # what cannot be trained on is told of now, and makes no job
    init_job(directory, job=recipe, host=host, lobby_port=lobby_port)
    invitation = make_invitation(directory, days=7, uses=max(8, 2 * recipe.pipeline.nodes)).text
    if as_json:
        return print_json({"directory": str(directory), "job": recipe.digest, "invitation": invitation})
    print(f"Job {recipe.name} is in {directory}. Next, here:\n\n  farflung coordinator run {directory}\n")
    print(f"and on every machine that takes part:\n\n  farflung node --join {invitation}")


@coordinator.command("run")
def coordinator_run(
    directory: JobDirectory,
    host: Annotated[
        str, typer.Option(help="Address to listen on; else the one init named, which others dial anyway.")
    ] = "",
    status_port: StatusPort = 0,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on from the newest whole checkpoint, from the seed if none was made."
        ),
    ] = False,
) -> None:
    """Admit nodes, serve the job and its status, until interrupted. Training does not need it.

    Example: farflung coordinator run run1
    """
    from swarm.daemon.coordinator import run_coordinator
    from swarm.daemon.options import CoordinatorOptions

    options = CoordinatorOptions(directory=directory, host=host, status_port=status_port, resume=resume)
    raise typer.Exit(run_coordinator(options))


@coordinator.command("grant")
def coordinator_grant(
    directory: JobDirectory,
    root: Annotated[
        Path | None, typer.Option(help="The file with the root key; else root.json of the directory.")
    ] = None,
    days: Annotated[float, number(help="From now on.")] = 90,
    as_json: Json = False,
) -> None:
    """Let the job's run key admit nodes for longer. Needs the root key; then start the coordinator anew.

    Example: farflung coordinator grant run1 --root /media/safe/root.json
    """
    from swarm.daemon.jobdir import grant_again

    until = grant_again(directory, root or directory / "root.json", days=days)
    day = datetime.fromtimestamp(until, UTC).date().isoformat()
    print_json({"until": day}) if as_json else print(f"The run key admits nodes until {day}.")


@app.command()
def invite(
    directory: JobDirectory,
    days: Annotated[float, number(help="Until it expires.")] = 7,
    uses: Annotated[int, typer.Option(help="How many nodes may join with it.")] = 8,
    as_json: Json = False,
) -> None:
    """Print another invitation to a job.

    Example: farflung invite run1 --uses 1 --days 1
    """
    from swarm.daemon.jobdir import make_invitation

    text = make_invitation(directory, days=days, uses=uses).text
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
    from swarm.daemon.typed import parse_size

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
    from swarm.daemon.look import fetch_status, render_status

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
    from swarm.daemon.harvest import export_run
    from swarm.daemon.options import UserError

    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} exists already: name a new directory for the model")
    found = export_run(run, directory)
    for sentence in found.passed_over:
        print(sentence, file=sys.stderr)
    if as_json:
        told = {"iteration": found.iteration, "checkpoint": str(directory)}
        return print_json({**told, "passed_over": list(found.passed_over)})
    print(f"iteration {found.iteration} is in {directory}")


def main() -> None:
    """Run a command. A person's mistake is one line on stderr and exit code 2."""
    try:
        code = app(prog_name="farflung", standalone_mode=False)
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "format_message"):
            refuse(error)
        from swarm.daemon.options import explain

        sentence = explain(error)
        if sentence is None:
            raise
        fail(sentence)
    sys.exit(code if isinstance(code, int) else 0)


def refuse(error: Any) -> NoReturn:
    """What the parser found, known by what it offers: its classes differ between versions of typer."""
    found = error.format_message()
    if "\n" in found.strip():  # the help, asked for by giving no arguments
        error.show()
        sys.exit(error.exit_code)
    asked = error.ctx.command_path if getattr(error, "ctx", None) else "farflung"
    fail(f"{found.rstrip('.')}; see `{asked} --help`")


def fail(sentence: str) -> NoReturn:
    """Say what is wrong and end with code 2."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)
