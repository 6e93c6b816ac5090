"""Nobody is given at a founding what its memory cannot hold."""

import random

import pytest

from swarm.daemon.founders import check_memory, fit_to_found, state_bytes
from swarm.daemon.gossip_setup import GossipSetup
from swarm.daemon.options import UserError
from swarm.gossip.config import volunteer_wan
from swarm.gossip.view import Facts, Member, MemberRecord, View
from swarm.job import Job
from transport.identity import Identity
from transport.machine import NodeId

SIZES = (1 << 20, 1 << 19, 1 << 19, 1 << 19)
WHOLE = sum(map(state_bytes, SIZES))
JOB = Job()


def view(*limits: int) -> View:
    members = {}
    for index, limit in enumerate(limits):
        record = MemberRecord(
            job="ab",
            node=f"{index:064x}",
            incarnation=1,
            seq=0,
            gossip="",
            work="",
            curve_key="",
            certificate=b"",
            facts=Facts(memory_bytes=limit),
        )
        members[NodeId(record.node)] = Member(record, "alive")
    return View(members)


def test_a_node_alone_must_hold_every_stage() -> None:
    assert len(fit_to_found(view(WHOLE), JOB, SIZES)[0].live()) == 1
    fit, short = fit_to_found(view(WHOLE - 1), JOB, SIZES)
    assert fit.live() == ()
    assert short == "node 00000000 may hold 60.0 MiB of the 60.0 MiB that its stages need"


def test_who_does_not_know_its_memory_is_not_asked() -> None:
    assert len(fit_to_found(view(0), JOB, SIZES)[0].live()) == 1


def test_what_one_cannot_hold_falls_to_the_others_if_they_can() -> None:
    fit, short = fit_to_found(view(WHOLE, 1024), JOB, SIZES)
    assert [member.node for member in fit.live()] == [f"{0:064x}"]
    assert short.startswith("node 00000000 may hold 1.0 KiB of the ")
    assert fit_to_found(view(WHOLE // 2, 1024), JOB, SIZES)[0].live() == ()


def test_a_node_says_from_its_first_record_what_it_may_hold() -> None:
    setup = GossipSetup.for_member(
        Identity.create(random.Random(1)),
        b"",
        role="worker",
        job=JOB,
        root_key=bytes(32),
        gossip="",
        work="",
        incarnation=1,
        config=volunteer_wan(),
        rng=random.Random(1),
        wall=lambda: 0.0,
        emit=lambda event: None,
        memory_bytes=1024,
    )
    assert setup.record.facts.memory_bytes == 1024


def test_a_node_that_can_hold_no_stage_at_all_is_told_so() -> None:
    check_memory(state_bytes(1 << 19), SIZES)
    with pytest.raises(
        UserError, match=r"may hold 1\.0 KiB, and the smallest stage of the job needs 12\.0 MiB"
    ):
        check_memory(1024, SIZES)
