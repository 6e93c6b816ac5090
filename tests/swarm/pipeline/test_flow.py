"""What a node keeps of microbatches on their way follows from its memory, and from what is still of use."""

from pathlib import Path

import pytest

from swarm.gossip.view import Facts, Member, MemberRecord, View
from swarm.job import Job
from swarm.messages import Forward, Lost, Plan, PlannedMicrobatch
from swarm.pipeline.computing import Computing
from swarm.pipeline.data import load_corpus
from swarm.pipeline.flow import Flow
from swarm.pipeline.model import preset
from swarm.pipeline.room import activation_bytes
from swarm.pipeline.stage import Stage
from swarm.pipeline.work import Forget
from transport.machine import NodeId

DATA, MORE, HOP = (NodeId(letter * 64) for letter in "abc")
ABOUT = {"cell": "c0", "slot": 1, "term": 1}
PATH = ((DATA, 0), (HOP, 1), (HOP, 2))


def plan() -> Plan:
    return Plan(
        **ABOUT,
        iteration=1,
        base="",
        roster=((DATA, MORE), (HOP,), (HOP,), (DATA,)),
        microbatches=(PlannedMicrobatch(index=0, path=PATH),),
    )


def view(memory_bytes: int) -> View:
    record = MemberRecord(
        job="",
        node=HOP,
        incarnation=0,
        seq=0,
        gossip="",
        work="",
        curve_key="",
        certificate=b"",
        facts=Facts(cell="c0", stages=(1, 2), memory_bytes=memory_bytes),
    )
    return View().with_member(Member(record, "alive"))


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    (tmp_path / "text.txt").write_text("words and words " * 100, encoding="utf-8")
    job = Job.model_validate({"data": {"path": str(tmp_path / "text.txt"), "sequence": 16}})
    corpus = load_corpus(job.data)
    config = preset("demo", corpus.vocab)
    stages = {index: Stage(job, config, index) for index in (1, 2)}
    return Flow(HOP, job, Computing(job, config, corpus, stages), lambda _peer, _message: True)


def test_a_hop_holds_what_its_memory_allows_all_data_nodes_together(flow: Flow) -> None:
    job, computing = flow._job, flow._computing
    flow.begin(plan(), DATA, 0.0)
    assert flow.hops.held_max == job.pipeline.microbatches * 2 * 2, "of two data nodes, in two stages"
    tokens = job.pipeline.microbatch * job.data.sequence
    each = 2 * activation_bytes(computing.config, job.pipeline.stages, 1, tokens)
    states = 24 * sum(computing.stage_sizes[1:3])
    flow.observe(view(states + 2 * 3 * each), frozenset(), 0.0)
    flow.begin(plan(), DATA, 0.0)
    assert flow.hops.held_max == 3 * 2 * 2


def test_a_data_node_s_word_that_an_attempt_is_over_frees_what_is_kept_of_it(flow: Flow) -> None:
    flow.begin(plan(), DATA, 0.0)
    flow.arrived(DATA, Forward(**ABOUT, microbatch=0, attempt=0, path=PATH, position=1), "x")
    lost = Lost(**ABOUT, microbatch=0, attempt=0, reason="too slow")
    assert flow.lost(MORE, lost, 1.0) == []
    (forget,) = flow.lost(DATA, lost, 1.0)
    assert isinstance(forget, Forget)
    assert flow.hops.held == 0
