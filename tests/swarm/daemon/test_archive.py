"""The coordinator's archive writes whole models, and its loop goes on meanwhile."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import torch
from cell_world import small_job

from recovery.fetch import Fetched
from recovery.snapshot import take_snapshot
from swarm.daemon.archive import ARCHIVE_SCHEMA, ArchiveHalf, newest_iteration
from swarm.daemon.bridges import MemoryBridge
from swarm.events import Event
from swarm.pipeline.stage import state_like
from transport.sim_network import SimNetwork
from transport.sim_paths import LinkShape
from transport.virtual_time import run_virtual

SIZE = 8


def fetched(stage: int, iteration: int) -> Fetched:
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
        facts={},
        seconds=0.0,
        donors=(),
    )


def test_stages_are_written_one_by_one_in_the_background(tmp_path: Path) -> None:
    job = small_job(tmp_path, pipeline={"stages": 2})
    events: list[Event] = []
    begun: list[float] = []

    async def slowly(work: Callable[[], object]) -> None:
        begun.append(asyncio.get_running_loop().time())
        await asyncio.sleep(10.0)
        work()

    async def scenario() -> None:
        network = SimNetwork(random.Random(1), LinkShape(latency_s=0.01, bandwidth_bytes_per_s=1e9))
        _, theirs = MemoryBridge.pair()
        archive = ArchiveHalf(
            me="5" * 64,
            job=job,
            sizes=(SIZE, SIZE),
            directory=tmp_path / "checkpoints",
            link=network.open("5" * 64, curve_key="", schema=ARCHIVE_SCHEMA),
            bridge=theirs,
            wall=lambda: 0.0,
            emit=events.append,
            in_background=slowly,
        )
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
    assert newest_iteration(tmp_path / "checkpoints", 2) == 4
