"""The coordinator's archive writes whole models, and its loop goes on meanwhile."""

import asyncio
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cell_world import small_job

from recovery.checkpoint import CheckpointError, newest_common, stage_directory, write_checkpoint
from recovery.fetch import Fetched
from recovery.snapshot import Get, Manifest, NotHere, Want, take_snapshot
from swarm.daemon.archive import (
    ARCHIVE_SCHEMA,
    RETRY_S,
    ArchiveHalf,
    InBackground,
    Resumable,
    inline,
    newest_whole,
)
from swarm.daemon.bridge import MemberChanged
from swarm.daemon.bridges import MemoryBridge
from swarm.events import Event
from swarm.gossip.view import Facts, MemberRecord
from swarm.pipeline.stage import state_like
from transport.identity import Identity, pack_payload
from transport.link import Received
from transport.machine import NodeId
from transport.sim_network import SimNetwork
from transport.sim_paths import LinkShape
from transport.virtual_time import run_virtual
from transport.wire import Message

SIZE = 8


def fetched(stage: int, iteration: int, cell: str = "c0", rounds: int = 1) -> Fetched:
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
        facts={"cell": cell, "round": rounds},
        seconds=0.0,
        donors=(),
    )


def archive_of(
    directory: Path,
    emit: Callable[[Event], None],
    in_background: InBackground = inline,
    network: SimNetwork | None = None,
) -> ArchiveHalf:
    """The archive of a job of two stages, on a network of its own if none is given."""
    network = network or SimNetwork(random.Random(1), LinkShape(latency_s=0.01, bandwidth_bytes_per_s=1e9))
    _, theirs = MemoryBridge.pair()
    return ArchiveHalf(
        me="5" * 64,
        job=small_job(directory, pipeline={"stages": 2}, recovery={"checkpoint_every": 2}),
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

    async def slowly(work: Callable[[], Any]) -> Any:
        if isinstance(work, partial) and work.func in (newest_whole, newest_common):
            return work()
        begun.append(asyncio.get_running_loop().time())
        await asyncio.sleep(10.0)
        return work()

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
    assert newest_whole(tmp_path / "checkpoints", 2) == Resumable(4, "c0", 1)


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


def test_stages_of_two_rounds_are_not_put_together(tmp_path: Path) -> None:
    """A holder that wrote its stage after the round, the others before it, or one that lies."""
    events: list[Event] = []

    async def scenario() -> None:
        archive = archive_of(tmp_path, events.append)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(archive.run())
            archive._goal = ("c0", 4)
            archive._on_fetched(fetched(0, 4))
            archive._on_fetched(fetched(1, 4, rounds=2))
            await asyncio.sleep(1.0)
            running.cancel()

    run_virtual(scenario())
    assert [event.fields["refused"] for event in events] == [
        "the stages of c0 at iteration 4 are not of one round"
    ]
    assert newest_whole(tmp_path / "checkpoints", 2).iteration == 0


def test_after_stages_of_two_rounds_all_are_asked_for_the_earlier(tmp_path: Path) -> None:
    async def scenario() -> None:
        archive = archive_of(tmp_path, lambda _: None)
        for stage in range(2):
            says(archive, stage, Facts(cell="c0", stages=(stage,), iteration=4, state="training"))
        archive._look()
        assert archive._transfer.fetching == ("checkpoint:0", "checkpoint:1")
        archive._on_fetched(fetched(0, 4, rounds=2))
        archive._on_fetched(fetched(1, 4, rounds=1))
        assert archive._transfer.fetching == ()
        await asyncio.sleep(RETRY_S)
        archive._look()
        assert archive._transfer.fetching == ("checkpoint:0/1", "checkpoint:1/1")

    run_virtual(scenario())


def test_checkpoints_that_are_half_written_leave_the_whole_one_in_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has room for one more stage and not for two."""
    full = False

    def write(directory: Path, *rest: Any) -> Path:
        if full and directory.name == "stage-1":
            raise CheckpointError("No space left on device")
        return write_checkpoint(directory, *rest)

    monkeypatch.setattr("swarm.daemon.archive.write_checkpoint", write)

    async def scenario() -> None:
        nonlocal full
        archive = archive_of(tmp_path, lambda _: None)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(archive.run())
            for iteration in (4, 6, 8):
                archive._goal = ("c0", iteration)
                for stage in range(2):
                    archive._on_fetched(fetched(stage, iteration))
                await asyncio.sleep(0.1)
                full = True
            running.cancel()

    run_virtual(scenario())
    assert newest_whole(tmp_path / "checkpoints", 2).iteration == 4


def says(archive: ArchiveHalf, name: int, facts: Facts) -> NodeId:
    who = Identity.create(random.Random(name))
    record = MemberRecord(
        job="ab",
        node=who.node,
        incarnation=0,
        seq=0,
        gossip="",
        work="",
        curve_key=who.curve_public,
        certificate=b"",
        facts=facts,
    )
    archive._on_member(MemberChanged(record=who.sign("member", pack_payload(record)), status="alive"))
    return who.node


@pytest.mark.parametrize("cell", ["c0", "a0"])
def test_one_that_says_it_has_the_last_iteration_keeps_no_lower_one_out(tmp_path: Path, cell: str) -> None:
    """In the cell of the others, or in one of its own that would come first."""

    async def scenario() -> None:
        archive = archive_of(tmp_path, lambda _: None)
        for stage in range(2):
            says(archive, stage, Facts(cell="c0", stages=(stage,), iteration=5, state="training"))
        if cell != "c0":
            says(archive, 2, Facts(cell="c0", stages=(0,), iteration=5, state="training"))
        says(archive, 9, Facts(cell=cell, stages=(0, 1), iteration=8, state="finished"))
        archive._look()
        assert archive._goal == ("c0", 4)
        archive._give_up("nobody has it")
        archive._look()
        assert archive._goal == ("c0", 2), "rather the one before than none"

    run_virtual(scenario())


def test_one_standby_that_says_it_has_the_last_iteration_does_not_hide_what_the_others_have(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        archive = archive_of(tmp_path, lambda _: None)
        for name, iteration in enumerate((4, 4, 8)):
            says(archive, name, Facts(iteration=iteration))
        archive._look()
        assert archive._goal == ("", 4)
        says(archive, 7, Facts(cell="c0", stages=(0, 1), iteration=3, state="training"))
        archive._give_up("nobody has it")
        archive._look()
        assert archive._goal == ("c0", 2), "where somebody trains, what lies on disks is older"

    run_virtual(scenario())


def test_the_loop_goes_on_while_a_checkpoint_is_read_for_others(tmp_path: Path) -> None:
    root = stage_directory(tmp_path / "checkpoints", 0)
    meta = {
        "cell": "c0",
        "job": small_job(tmp_path, pipeline={"stages": 2}, recovery={"checkpoint_every": 2}).digest,
    }
    write_checkpoint(root, 4, {"parameters": torch.ones(4)}, meta)

    async def slowly(work: Callable[[], Any]) -> Any:
        await asyncio.sleep(5.0)
        return work()

    async def scenario() -> None:
        network = SimNetwork(random.Random(1), LinkShape(latency_s=0.01, bandwidth_bytes_per_s=1e9))
        archive = archive_of(tmp_path, lambda _: None, slowly, network)
        asker = network.open("7" * 64, curve_key="", schema=ARCHIVE_SCHEMA)
        asker.know(NodeId("5" * 64), archive._link.endpoint)
        archive._link.know(NodeId("7" * 64), asker.endpoint)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(archive.run())
            await asyncio.sleep(6.0)
            asker.send(NodeId("5" * 64), Message(Want(name="checkpoint:0", slot=4)))
            await asyncio.sleep(1.0)
            asker.send(NodeId("5" * 64), Message(Get(digest="ab" * 16, first=0, count=1)))
            answers = []
            while len(answers) < 2:
                event = await asker.recv()
                if isinstance(event, Received):
                    answers.append(event.message.body)
            assert [type(answer) for answer in answers] == [NotHere, Manifest], (
                "what needs no disk is answered first"
            )
            running.cancel()

    run_virtual(scenario())


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path) -> None:
    for iteration in (2, 4):
        for stage in range(2):
            root = stage_directory(tmp_path, stage)
            write_checkpoint(root, iteration, {"parameters": torch.ones(4)}, {"cell": "c1"})
    newest = tmp_path / "stage-1" / "iter-000004-round-0" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"!")
    found = newest_whole(tmp_path, 2)
    assert (found.iteration, found.cell) == (2, "c1")
    assert [reason for reason in found.refused if "does not match its hash" in reason] == [*found.refused]
    assert str(newest) in found.refused[0]
