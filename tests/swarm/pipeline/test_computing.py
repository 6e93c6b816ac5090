"""No bytes of a peer end this node, or poison what others averaged."""

import math
from pathlib import Path

import pytest
import torch

from swarm.events import Noted
from swarm.job import Job
from swarm.meetings import EndsCopy
from swarm.messages import Averaged, CellRecord, Close, Gradient, StageSum
from swarm.pipeline.averaging import Hold, Reduce
from swarm.pipeline.computing import Computing
from swarm.pipeline.data import load_corpus
from swarm.pipeline.model import preset
from swarm.pipeline.outer_round import Average, Settle
from swarm.pipeline.stage import Stage, tensor_digest
from transport.codecs import encode
from transport.machine import NodeId
from transport.wire import Message

ME, PEER = NodeId("a" * 64), NodeId("b" * 64)
CLOSE = Close(cell="c0", slot=1, term=1, act="step", round_attempt=1, roster=((ME,), (PEER,), (ME, PEER)))


@pytest.fixture
def computing(tmp_path: Path) -> Computing:
    (tmp_path / "text.txt").write_text("words and words " * 100, encoding="utf-8")
    job = Job.model_validate({"data": {"path": str(tmp_path / "text.txt"), "sequence": 16}})
    corpus = load_corpus(job.data)
    config = preset("demo", corpus.vocab)
    return Computing(job, config, corpus, {2: Stage(job, config, 2)})


def message(tensor: torch.Tensor, *, cut: int = 0) -> Message:
    spec, buffer = encode("t0", tensor, "raw")
    body = Gradient(cell="c0", slot=1, term=1, stage=2, round_attempt=1, target_tokens=4, tensors=(spec,))
    view = memoryview(buffer).cast("B")
    return Message(body, (view[: view.nbytes - cut],))


def record_at(iteration: int, ends: NodeId = ME) -> CellRecord:
    return CellRecord(
        cell="c0",
        slot=iteration,
        term=1,
        act="step",
        iteration=iteration,
        round=0,
        previous="",
        roster=((ends,), (ME,), (ME,), (ME,)),
        leader=ME,
    )


def run(computing: Computing) -> list[object]:
    """Run the one task that is queued; its results are what `done` was called with."""
    task = computing.tasks.get()
    assert task is not None
    return list(task.done(task.run(), 0.0))


@pytest.mark.parametrize(
    "bad", [message(torch.ones(6), cut=4), torch.tensor([math.nan] * 6)], ids=["short", "nan"]
)
def test_a_gradient_that_cannot_be_used_is_left_out_and_attributed(
    computing: Computing, bad: Message | torch.Tensor
) -> None:
    work = Reduce(CLOSE, 2, ((ME, torch.ones(6), 4), (PEER, bad, 4)))
    computing.reduce(work, lambda *result: [result])  # type: ignore[arg-type, return-value]
    ((kept, _, squares, digest, _),) = run(computing)  # type: ignore[misc]
    assert [node for node, _, _ in kept.parts] == [ME]
    assert squares == pytest.approx(6.0)
    assert digest == tensor_digest(torch.ones(6))
    assert not any(PEER[:8] in what for what in computing.dropped)
    (told,) = computing.blame()
    assert isinstance(told, Noted)
    assert told.fields["peer"] == PEER[:12]
    assert computing.blame() == []


def test_nothing_usable_is_no_average(computing: Computing) -> None:
    work = Reduce(CLOSE, 2, ((PEER, message(torch.ones(6), cut=4), 4),))
    computing.reduce(work, lambda *result: [result])  # type: ignore[arg-type, return-value]
    ((kept, _, squares, digest, _),) = run(computing)  # type: ignore[misc]
    assert (kept.parts, squares, digest) == ((), 0.0, "")


def test_tensors_without_the_digest_they_came_with_change_nothing(computing: Computing) -> None:
    """Else whoever sends first could step a holder with what nobody averaged."""
    stage = computing.stages[2]
    before = stage.digest()
    flat = torch.full_like(stage.parameters, 0.5)
    spec, buffer = encode("t0", flat, "raw")
    total = StageSum(contributors=(PEER,), tokens=4, digest="00" * 16)
    body = Averaged(cell="c0", slot=1, term=1, stage=2, round_attempt=1, total=total, tensors=(spec,))
    hold = Hold(1, 2, total, (Message(body, (buffer,)),))
    computing.apply(record_at(1), {2: hold}, lambda *result: [result])  # type: ignore[arg-type, return-value]
    ((_, bad, _),) = run(computing)  # type: ignore[misc]
    assert bad == [hold]
    assert stage.digest() == before


def test_an_unreadable_outer_gradient_is_no_member(computing: Computing) -> None:
    work = Average(2, ("c0", "c1"), (torch.ones(6), message(torch.ones(6), cut=4)))
    computing.average(work, lambda *result: [result])  # type: ignore[arg-type, return-value]
    ((kept, mean, _),) = run(computing)  # type: ignore[misc]
    assert kept.members == ("c0",)
    assert torch.equal(mean, torch.ones(6))


def test_an_unreadable_mean_settles_as_not_averaged(computing: Computing) -> None:
    settle = Settle(2, ("c0", "c1"), "", mean=message(torch.ones(6), cut=4))
    computing.settle(settle, lambda *result, **more: [(result, more)])  # type: ignore[list-item]
    (((_, total, tensors), more),) = run(computing)  # type: ignore[misc]
    assert (total, tensors) == (StageSum(), ())
    assert "not averaged" in more["reason"]


def ends_copy(iteration: int, cell: str = "c0") -> Message:
    return Message(EndsCopy(cell=cell, iteration=iteration))


def test_a_copy_of_the_ends_is_taken_only_from_who_holds_them(computing: Computing) -> None:
    record = record_at(20, ends=PEER)
    kept = ends_copy(20)
    computing.keep_ends_copy(PEER, kept, record)
    computing.keep_ends_copy(NodeId("d" * 64), ends_copy(21), record)
    computing.keep_ends_copy(PEER, ends_copy(21, cell="c1"), record)
    assert computing.ends_copy is kept
    assert computing.dropped == {"copy of the ends of no holder of them here": 2}
    blamed = [told.fields["peer"] for told in computing.blame() if isinstance(told, Noted)]
    assert blamed == ["d" * 12, PEER[:12]]


def test_a_copy_of_the_ends_gives_way_to_no_older_one_and_claims_no_far_iteration(
    computing: Computing,
) -> None:
    record = record_at(20, ends=PEER)
    for iteration in (20, 15, 1000, 22):
        computing.keep_ends_copy(PEER, ends_copy(iteration), record)
    assert computing.ends_copy is not None
    assert computing.ends_copy.body == EndsCopy(cell="c0", iteration=22)
