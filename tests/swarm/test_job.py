"""A job file that cannot work is refused where it is read, in one sentence."""

import random
from pathlib import Path

import pytest

from swarm.daemon.genesis import found_job, read_genesis
from swarm.gossip.view import Member, MemberRecord, View
from swarm.job import Job, JobError, dump_job, load_job, parse_job
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
    ("text", "reason"),
    [
        ("[pipeline]\nstages = true", "pipeline.stages: needs a whole number"),
        ("[pipeline]\nstages = 2.0", "pipeline.stages: needs a whole number"),
        ("[inner]\nlr = true", "inner.lr: needs a number"),
        ("[recovery]\nplus_copies = 0", "recovery.plus_copies: needs true or false"),
        ("[inner]\nbetas = [0.9]", "inner.betas: needs two numbers, as [0.9, 0.95]"),
        ("[inner]\nbetas = 0.9", "inner.betas: needs two numbers, as [0.9, 0.95]"),
        ("[inner]\nbetas = [0.9, 0.95, 0.99]", "inner.betas: needs two numbers, as [0.9, 0.95]"),
        ("[inner]\nbetas = [0.9, true]", "inner.betas.1: needs a number"),
        ("[inner]\nbetas = [0.9, 1.0]", "inner.betas.1: needs less than 1.0"),
        (f"[inner]\niterations = 1{'0' * 40}", "inner.iterations: needs at most 2147483648"),
        (f"[inner]\niterations = 1{'0' * 5000}", "is not valid TOML"),
        (f"[inner]\nclip_norm = 1{'0' * 400}", "inner.clip_norm: needs a"),
        ("[outer]\nmethod = 'mean'", "outer.method: needs 'none' or 'diloco'"),
        ("pipeline = 3", "pipeline: needs fields of its own, below a line [pipeline]"),
        ("seed = 'x'", "seed: needs a whole number"),
        ("x = " + "[" * 20_000, "it nests too deeply"),
    ],
)
def test_a_field_of_the_wrong_kind_is_told_in_plain_words(text: str, reason: str) -> None:
    with pytest.raises(JobError) as refused:
        parse_job(text)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_whole_numbers_are_numbers_and_a_list_is_a_pair() -> None:
    inner = parse_job("[inner]\nlr = 1\nbetas = [0, 0.5]").inner
    assert (inner.lr, inner.betas) == (1.0, (0.0, 0.5))


def test_a_file_with_a_byte_order_mark_is_read_and_one_that_is_no_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_bytes(b"\xef\xbb\xbfseed = 7\n")
    assert load_job(file).seed == 7
    file.write_bytes(bytes(range(256)))
    with pytest.raises(JobError, match="it is not UTF-8 text"):
        load_job(file)


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
