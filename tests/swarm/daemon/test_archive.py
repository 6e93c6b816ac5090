"""The coordinator's archive writes whole models, and its loop goes on meanwhile."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import torch
from cell_world import small_job

from recovery.checkpoint import stage_directory, write_checkpoint
from recovery.fetch import Fetched
from recovery.snapshot import take_snapshot
from swarm.daemon.archive import ARCHIVE_SCHEMA, ArchiveHalf, InBackground, Resumable, inline, newest_whole
from swarm.daemon.bridges import MemoryBridge
from swarm.events import Event
from swarm.pipeline.stage import state_like
from transport.sim_network import SimNetwork
from transport.sim_paths import LinkShape
from transport.virtual_time import run_virtual

SIZE = 8


def fetched(stage: int, iteration: int, cell: str = "c0") -> Fetched:
    state = {name: torch.zeros(like.shape, dtype=like.dtype) for name, like in state_like(SIZE).items()}
    snapshot = take_snapshot(f"checkpoint:{stage}", iteration, state)
    data, views, start = b"".join(bytes(snapshot.chunk(k)) for k in range(snapshot.chunks)), {}, 0
    for spec in snapshot.holds:
        views[spec.name] = memoryview(bytearray(data[start : start + spec.nbytes]))
        start += spec.nbytes
    return Fetched(
        name=snapshot.name,
        slot=iteration,
        digest=snapshot.digest,
        holds=snapshot.holds,
        tensors=views,
        facts={"cell": cell},
        seconds=0.0,
        donors=(),
    )


def archive_of(
    directory: Path, emit: Callable[[Event], None], in_background: InBackground = inline
) -> ArchiveHalf:
    """The archive of a job of two stages, on a network of its own."""
    network = SimNetwork(random.Random(1), LinkShape(latency_s=0.01, bandwidth_bytes_per_s=1e9))
    _, theirs = MemoryBridge.pair()
    return ArchiveHalf(
        me="5" * 64,
        job=small_job(directory, pipeline={"stages": 2}),
        sizes=(SIZE, SIZE),
        directory=directory / "checkpoints",
        link=network.open("5" * 64, curve_key="", schema=ARCHIVE_SCHEMA),
        bridge=theirs,
        wall=lambda: 0.0,
        emit=emit,
        in_background=in_background,
    )


def test_stages_are_written_one_by_one_in_the_background(tmp_path: Path) -> None:
    events: list[Event] = []
    begun: list[float] = []

    async def slowly(work: Callable[[], object]) -> None:
        begun.append(asyncio.get_running_loop().time())
        await asyncio.sleep(10.0)
        work()

    async def scenario() -> None:
        archive = archive_of(tmp_path, events.append, slowly)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(archive.run())
            archive._goal = ("c0", 4)
            for stage in range(2):
                archive._on_fetched(fetched(stage, 4))
            await asyncio.sleep(15.0)
            assert archive.iteration == 0, "half a model is none"
            await asyncio.sleep(15.0)
            assert archive.iteration == 4
            running.cancel()

    run_virtual(scenario())
    assert begun == [0.0, 10.0]
    assert [event.fields.get("refused") for event in events] == [None]
    assert newest_whole(tmp_path / "checkpoints", 2) == Resumable(4, "c0")


def test_a_checkpoint_of_another_cell_is_not_put_beside_this_ones(tmp_path: Path) -> None:
    """A holder that changed cells has checkpoints of both on its disk."""
    events: list[Event] = []

    async def scenario() -> None:
        archive = archive_of(tmp_path, events.append)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(archive.run())
            archive._goal = ("c0", 4)
            archive._on_fetched(fetched(0, 4))
            archive._on_fetched(fetched(1, 4, "c1"))
            await asyncio.sleep(1.0)
            running.cancel()

    run_virtual(scenario())
    assert [event.fields["refused"] for event in events] == ["checkpoint:1 is of cell c1, not of c0"]
    assert newest_whole(tmp_path / "checkpoints", 2).iteration == 0


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path) -> None:
    for iteration in (2, 4):
        for stage in range(2):
            root = stage_directory(tmp_path, stage)
            write_checkpoint(root, iteration, {"parameters": torch.ones(4)}, {"cell": "c1"})
    newest = tmp_path / "stage-1" / "iter-000004" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"!")
    found = newest_whole(tmp_path, 2)
    assert (found.iteration, found.cell) == (2, "c1")
    assert [reason for reason in found.refused if "does not match its hash" in reason] == [*found.refused]
    assert str(newest) in found.refused[0]
