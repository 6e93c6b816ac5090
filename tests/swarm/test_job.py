"""A job file that cannot work is refused where it is read, in one sentence."""

import random

import pytest

from swarm.daemon.genesis import found_job, read_genesis
from swarm.gossip.view import Member, MemberRecord, View
from swarm.job import Job, JobError, dump_job, parse_job
from swarm.messages import StageSum
from swarm.pipeline.ledger import NAMES_CHARS_MAX
from swarm.pipeline.records import read_record, sign_record
from transport.identity import Identity
from transport.machine import NodeId


def test_a_written_job_reads_back_equal() -> None:
    job = Job(seed=7)
    assert parse_job(dump_job(job)) == job
    assert parse_job(dump_job(job)).digest == job.digest
    assert Job(seed=8).digest != job.digest


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[model]\npreset = 'huge'", "model.preset"),
        ("[inner]\nlearning = 1", "inner.learning: there is no such field"),
        ("[inner]\nclip_norm = inf", "inner.clip_norm"),
        ("[inner]\nbetas = [2.0, -1.0]", "inner.betas"),
        ("[pipeline]\nstages = 8", "pipeline.stages is over 7"),
        ("[pipeline]\nnodes = 2\ncells = 3", "pipeline.cells is larger than pipeline.nodes"),
        ("name = 'No Spaces'", "name"),
        ("[pipeline", "not valid TOML"),
    ],
)
def test_a_job_that_cannot_work_is_refused_in_one_sentence(text: str, reason: str) -> None:
    with pytest.raises(JobError, match=reason.replace("[", r"\[")) as refused:
        parse_job(text)
    assert "\n" not in str(refused.value).removesuffix("\n") or "TOML" in str(refused.value)


@pytest.mark.parametrize(
    ("stages", "cells", "nodes"), [(2, 1, 512), (4, 1, 1024), (7, 3, 2970), (1, 250, 500)]
)
def test_a_job_as_large_as_may_be_is_founded_and_recorded(stages: int, cells: int, nodes: int) -> None:
    pipeline = {"stages": stages, "cells": cells, "nodes": nodes, "microbatches": 1}
    job = Job.model_validate({"pipeline": pipeline})
    members: dict[NodeId, Member] = {}
    for number in range(nodes):
        record = MemberRecord(
            job="",
            node=f"{number:064x}",
            incarnation=0,
            seq=0,
            gossip="",
            work="",
            curve_key="",
            certificate=b"",
        )
        members[NodeId(record.node)] = Member(record, "alive")
    someone = Identity.create(random.Random(1))
    genesis = read_genesis(found_job(View(members), job, someone.node, someone.sign, corpus="aa"))
    for signed in genesis.foundings:
        founding = read_record(signed)
        sums = tuple(StageSum(contributors=row, tokens=1, digest="a" * 32) for row in founding.roster)
        assert read_record(sign_record(founding.model_copy(update={"sums": sums}), someone.sign)).sums == sums
        assert sum(map(len, (name for row in founding.roster for name in row))) <= NAMES_CHARS_MAX


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[pipeline]\nstages = 4\nnodes = 1025", "pipeline.nodes is over 1024"),
        ("[pipeline]\nstages = 1\nnodes = 257", "256 holders of each of 1 stages in each of 1 cells"),
        ("[pipeline]\nstages = 4\ncells = 30\nnodes = 2900", "over the 3000 names that a founding can hold"),
    ],
)
def test_a_job_whose_rosters_no_record_can_hold_is_refused(text: str, what: str) -> None:
    with pytest.raises(JobError, match=what):
        parse_job(text)
