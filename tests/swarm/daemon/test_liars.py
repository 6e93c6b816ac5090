"""What one member says that cannot be true stops nobody else."""

import random
from pathlib import Path

import pytest
from cell_world import Cells, run_cells, small_job
from pydantic import ValidationError

from swarm.daemon.archive import ARCHIVE_SCHEMA, ArchiveHalf, inline
from swarm.daemon.bridge import MemberChanged
from swarm.daemon.bridges import MemoryBridge
from swarm.gossip.view import Facts, MemberRecord
from swarm.messages import CellRecord, Restore
from swarm.pipeline.records import sign_record
from transport.identity import Identity, pack_payload
from transport.machine import NodeId
from transport.sim_network import SimNetwork
from transport.sim_paths import LinkShape
from transport.virtual_time import run_virtual
from transport.wire import Message, Signed

LIAR = Identity.create(random.Random(666))


def says(job: str, who: Identity, facts: Facts) -> MemberChanged:
    record = MemberRecord(
        job=job,
        node=who.node,
        incarnation=0,
        seq=0,
        gossip="",
        work="",
        curve_key=who.curve_public,
        certificate=b"",
        facts=facts,
    )
    return MemberChanged(record=who.sign("member", pack_payload(record)), status="alive")


@pytest.mark.parametrize("name", ["iteration", "round", "memory_bytes"])
def test_counts_that_no_job_reaches_are_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        Facts.model_validate({name: 1 << 53})


@pytest.mark.parametrize(("said", "sought"), [((8, 8), 8), ((9, 8), 0), ((1 << 52, 1 << 52), 0), ((7, 8), 6)])
def test_the_archive_seeks_no_iteration_beyond_the_last(
    tmp_path: Path, said: tuple[int, int], sought: int
) -> None:
    job = small_job(tmp_path, pipeline={"stages": 2}, recovery={"checkpoint_every": 2})

    async def scenario() -> int:
        network = SimNetwork(random.Random(1), LinkShape(latency_s=0.01, bandwidth_bytes_per_s=1e9))
        archive = ArchiveHalf(
            me=Identity.create(random.Random(5)).node,
            job=job,
            sizes=(4, 4),
            directory=tmp_path,
            link=network.open("5" * 64, curve_key="", schema=ARCHIVE_SCHEMA),
            bridge=MemoryBridge.pair()[0],
            wall=lambda: 0.0,
            emit=lambda _: None,
            in_background=inline,
        )
        for stage, iteration in enumerate(said):
            facts = Facts(cell="c0", stages=(stage,), iteration=iteration, state="training")
            archive._on_member(says(job.digest, Identity.create(random.Random(70 + stage)), facts))
        return next(iter(archive._checkpointed("c0")), 0)

    assert run_virtual(scenario()) == sought


def test_a_new_cell_is_founded_beside_a_liar_about_its_iteration(tmp_path: Path) -> None:
    """The liar's own cell would be the furthest by far, and no record could say how far."""
    job = small_job(tmp_path, inner={"iterations": 30}, pipeline={"nodes": 4, "cells": 4, "stages": 2})

    async def scenario(cells: Cells) -> None:
        await cells.until(lambda: all(node.iteration >= 3 for node in cells.nodes))
        lie = Facts(cell="c9", stages=(0, 1), iteration=(1 << 53) - 1, round=1, state="training")
        cells.gossip.members[LIAR.node] = says(job.digest, LIAR, lie)
        newcomer = cells.add()
        await cells.until(lambda: newcomer.iteration > 3)
        assert newcomer.cell not in ("", "c9")
        await cells.finish()

    run_cells(job, tmp_path, 2, scenario)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"cell": "c8"}, "another cell or slot"),
        ({"slot": 1 << 40}, "another cell or slot"),
        ({"stage": 2}, "has not"),
        ({"neighbours": (255,)}, "has not"),
        ({"decided": Signed(payload=b"\x80", signature=bytes(64), signer=LIAR.node)}, "cell record"),
    ],
)
def test_an_order_is_obeyed_only_with_a_record_that_proves_it(
    tmp_path: Path, changes: dict[str, object], why: str
) -> None:
    job = small_job(tmp_path, inner={"iterations": 30}, pipeline={"nodes": 2, "stages": 2})

    async def scenario(cells: Cells) -> None:
        await cells.until(lambda: cells.nodes[0].iteration >= 2)
        leader, taker = cells.nodes[0].half, cells.add().half
        await cells.until(lambda: len(taker.view.members) == 3)
        trainer = leader.trainer
        assert trainer is not None
        order = an_order(trainer.record, trainer.follower.signed).model_copy(update=changes)
        sender = leader.setup.me
        assert why in taker.setup.wrong_with_order(taker.view, sender, order)
        assert bool(taker.setup.wrong_with_order(taker.view, sender, order)) == bool(why)
        assert "not of that cell" in taker.setup.wrong_with_order(
            taker.view, NodeId(LIAR.node), an_order(trainer.record, trainer.follower.signed)
        )
        forged = sign_record(trainer.record, LIAR.signing_in(job.digest))
        assert "not signed" in taker.setup.wrong_with_order(
            taker.view, sender, an_order(trainer.record, forged)
        )

    run_cells(job, tmp_path, 2, scenario)


def test_an_order_of_a_stranger_to_the_cell_is_refused_and_nothing_is_held(tmp_path: Path) -> None:
    job = small_job(tmp_path, inner={"iterations": 30}, pipeline={"nodes": 2, "stages": 2})

    async def scenario(cells: Cells) -> None:
        await cells.until(lambda: cells.nodes[0].iteration >= 2)
        trainer, (liar, taker) = cells.nodes[0].half.trainer, (cells.add(), cells.add())
        assert trainer is not None
        await cells.until(lambda: taker.identity.node in liar.half.view.members)
        order = an_order(trainer.record, trainer.follower.signed)
        taker.half._on_message(NodeId(liar.identity.node), Message(order))
        (dropped,) = taker.of_kind("dropped")
        assert dropped["peer"] == liar.identity.node[:12]
        assert not taker.half.restoring.busy
        await cells.finish()

    run_cells(job, tmp_path, 2, scenario)


def an_order(record: CellRecord, decided: Signed) -> Restore:
    return Restore(
        cell=record.cell,
        slot=record.slot,
        term=record.term,
        stage=1,
        how="other_cell",
        donors=(),
        same_state=False,
        decided=decided,
        reason="a test",
    )
