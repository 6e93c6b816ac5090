"""Whoever has been gone for long is forgotten everywhere: a swarm that lives for months meets many."""

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest
from cell_world import Cells, run_cells, small_job
from gossip_halves import WORLDS

from swarm.daemon.archive import ARCHIVE_SCHEMA, ArchiveHalf, inline
from swarm.daemon.bridge import MemberChanged, MemberGone
from swarm.daemon.bridges import MemoryBridge
from swarm.gossip.config import volunteer_wan
from swarm.gossip.view import MemberRecord
from transport.identity import Identity, pack_payload
from transport.sim_network import SimNetwork
from transport.sim_paths import LinkShape
from transport.virtual_time import run_virtual

PASSERBY = Identity.create(random.Random(666))


def passes_by(job: str) -> MemberChanged:
    record = MemberRecord(
        job=job,
        node=PASSERBY.node,
        incarnation=0,
        seq=0,
        gossip="",
        work="",
        curve_key=PASSERBY.curve_public,
        certificate=b"",
    )
    return MemberChanged(record=PASSERBY.sign("member", pack_payload(record)), status="dead")


def test_the_gossip_half_tells_of_whom_it_forgets_and_keeps_nothing_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    brief = replace(volunteer_wan(), reap_s=300.0)
    monkeypatch.setattr("gossip_halves.volunteer_wan", lambda: brief)

    async def scenario() -> None:
        async with WORLDS["simulated"].open() as table:
            _, stays, goes = await table.meet(2)
            await table.kill(goes)
            await stays.sees(goes, "dead", limit_s=60.0)
            assert goes.identity.node in stays.half._statuses
            gone = await stays.hears(MemberGone, limit_s=2 * brief.reap_s)
            assert gone == MemberGone(node=goes.identity.node)
            assert goes.identity.node not in stays.half._statuses
            assert goes.identity.node not in stays.half.view.members

    WORLDS["simulated"].run(scenario())


def test_the_training_half_forgets_whom_the_gossip_half_has_forgotten(tmp_path: Path) -> None:
    job = small_job(tmp_path, pipeline={"nodes": 1, "stages": 1})

    async def scenario(cells: Cells) -> None:
        [node] = cells.nodes
        node.inbox.put_nowait(passes_by(job.digest))
        await cells.until(lambda: PASSERBY.node in node.half.view.members)
        node.inbox.put_nowait(MemberGone(node=PASSERBY.node))
        await cells.until(lambda: PASSERBY.node not in node.half.view.members)

    run_cells(job, tmp_path, 1, scenario)


def test_the_archive_forgets_whom_the_gossip_half_has_forgotten(tmp_path: Path) -> None:
    job = small_job(tmp_path, pipeline={"stages": 2})
    me = "5" * 64

    async def scenario() -> None:
        ours, theirs = MemoryBridge.pair()
        archive = ArchiveHalf(
            me=Identity.create(random.Random(5)).node,
            job=job,
            sizes=(4, 4),
            directory=tmp_path,
            link=SimNetwork(random.Random(1), LinkShape(latency_s=0.01)).open(
                me, curve_key="", schema=ARCHIVE_SCHEMA
            ),
            bridge=theirs,
            wall=lambda: 0.0,
            emit=lambda _: None,
            in_background=inline,
        )
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(archive.run())
            ours.send(passes_by(job.digest))
            await asyncio.sleep(0.1)
            assert PASSERBY.node in archive._view.members
            ours.send(MemberGone(node=PASSERBY.node))
            await asyncio.sleep(0.1)
            assert PASSERBY.node not in archive._view.members
            running.cancel()

    run_virtual(scenario())
