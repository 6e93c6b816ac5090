"""No bytes of a peer end this node, or poison what others averaged."""

import math
from pathlib import Path

import pytest
import torch

from swarm.events import Noted
from swarm.job import Job
from swarm.meetings import EndsCopy, OuterAnchor
from swarm.messages import Averaged, CellRecord, Close, Gradient, StageSum
from swarm.pipeline.averaging import Hold, Reduce
from swarm.pipeline.computing import Computing
from swarm.pipeline.data import load_corpus
from swarm.pipeline.model import preset
from swarm.pipeline.stage import Stage, result_digest
from swarm.pipeline.work import Average, Key, Settle, ShipFlat, Work
from transport.codecs import encode
from transport.machine import NodeId
from transport.wire import Message

ME, PEER = NodeId("a" * 64), NodeId("b" * 64)
CLOSE = Close(cell="c0", slot=1, term=1, act="step", round_attempt=1, roster=((ME,), (PEER,), (ME, PEER)))


@pytest.fixture
def computing(tmp_path: Path) -> Computing:
    return computing_of(tmp_path, {})


def computing_of(tmp_path: Path, fields: dict[str, object]) -> Computing:
    (tmp_path / "text.txt").write_text("words and words " * 100, encoding="utf-8")
    job = Job.model_validate({"data": {"path": str(tmp_path / "text.txt"), "sequence": 16}, **fields})
    corpus = load_corpus(job.data)
    config = preset("demo", corpus.vocab)
    return Computing(job, config, corpus, {2: Stage(job, config, 2)})


def message(tensor: torch.Tensor, *, cut: int = 0) -> Message:
    spec, buffer = encode("t0", tensor, "raw")
    body = Gradient(cell="c0", slot=1, term=1, stage=2, round_attempt=1, target_tokens=4, tensors=(spec,))
    view = memoryview(buffer).cast("B")
    return Message(body, (view[: view.nbytes - cut],))


def record_at(
    iteration: int, ends: NodeId = ME, *, act: str = "step", total: StageSum | None = None
) -> CellRecord:
    return CellRecord(
        cell="c0",
        slot=iteration,
        term=1,
        act=act,  # type: ignore[arg-type]
        iteration=iteration,
        round=0,
        previous="",
        roster=((ends,), (ME,), (ME,), (ME,)),
        sums=(StageSum(), StageSum(), total or StageSum()),
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
    assert digest == result_digest((torch.ones(6),))
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


def came(tensors: tuple[torch.Tensor, ...], total: StageSum, anchor: int = 0) -> Hold:
    """A result as it came from its reducer."""
    pairs = [encode(f"t{i}", tensor, "raw") for i, tensor in enumerate(tensors)]
    body = Averaged(
        cell="c0",
        slot=1,
        term=1,
        stage=2,
        round_attempt=1,
        total=total,
        anchor=anchor,
        tensors=tuple(spec for spec, _ in pairs),
    )
    payload = Message(body, tuple(buffer for _, buffer in pairs))
    return Hold(1, 2, total, (payload,), anchor, PEER, (1, 1))


def bad_holds(computing: Computing, record: CellRecord, hold: Hold) -> list[Hold]:
    computing.apply(record, {2: hold}, lambda *result: [result])  # type: ignore[arg-type, return-value]
    ((_, bad, _),) = run(computing)  # type: ignore[misc]
    return bad  # type: ignore[no-any-return, has-type]


def test_tensors_without_the_digest_they_came_with_change_nothing(computing: Computing) -> None:
    """Else whoever sends first could step a holder with what nobody averaged."""
    stage = computing.stages[2]
    before = stage.digest()
    total = StageSum(contributors=(PEER,), tokens=4, digest="00" * 16)
    hold = came((torch.full_like(stage.parameters, 0.5),), total)
    assert bad_holds(computing, record_at(1, total=total), hold) == [hold]
    assert stage.digest() == before


@pytest.mark.parametrize("spoilt", ["anchor", "momentum", "count", "no momentum"])
def test_a_round_is_applied_whole_as_it_was_decided_or_not_at_all(computing: Computing, spoilt: str) -> None:
    """Holders whose weights are alike must have the same momentum, or they part at the next round."""
    stage = computing.stages[2]
    before = stage.state()
    anchor, momentum = torch.full_like(stage.anchor, 0.5), torch.full_like(stage.anchor, 0.25)
    total = StageSum(contributors=("c0", "c1"), digest=result_digest((anchor, momentum), 3))
    record = record_at(1, act="round", total=total)
    tensors = {
        "anchor": (anchor + 1, momentum),
        "momentum": (anchor, momentum + 1),
        "no momentum": (anchor,),
    }.get(spoilt, (anchor, momentum))
    hold = came(tensors, total, 4 if spoilt == "count" else 3)
    assert bad_holds(computing, record, hold) == [hold]
    assert all(torch.equal(value, before[name]) for name, value in stage.state().items())
    assert bad_holds(computing, record, came((anchor, momentum), total, 3)) == []
    assert torch.equal(stage.outer_momentum, momentum)
    assert stage.anchor_count == 3


def test_a_step_has_one_tensor_and_a_round_two_whatever_their_digest(computing: Computing) -> None:
    flat = torch.zeros_like(computing.stages[2].parameters)
    for act, tensors in (("step", (flat, flat)), ("round", (flat,))):
        total = StageSum(tokens=4, digest=result_digest(tensors))
        hold = came(tensors, total)
        assert bad_holds(computing, record_at(1, act=act, total=total), hold) == [hold]


def test_a_head_that_is_withdrawn_before_it_begins_counts_nothing(computing: Computing) -> None:
    """Forward may be retried, so what was not counted yet never is."""
    ends = computing.stages[0] = Stage(computing.job, computing.config, 0)
    key = Key(1, 1, ME, 0, 0)
    for only_head in (True, False):
        computing.clear()
        outputs: list[object] = []
        done = lambda _work, output, _now: outputs.append(output) or ()  # noqa: B023, E731
        computing.work(Work("embed", key, 0, 0), "c0", 0, done)
        run(computing)
        computing.work(Work("head", key, 0, 1, outputs[0]), "c0", 0, done)
        computing.forget(key, only_head=only_head)
        run(computing)
        assert outputs[1] is None
        assert ends.target_tokens == ends.gradient.abs().sum() == 0
        assert ends.held() == only_head


def test_an_unreadable_outer_gradient_is_no_member(computing: Computing) -> None:
    work = Average(2, ("c0", "c1"), (torch.ones(6), message(torch.ones(6), cut=4)))
    computing.average(work, lambda *result: [result])  # type: ignore[arg-type, return-value]
    ((kept, mean, _),) = run(computing)  # type: ignore[misc]
    assert kept.members == ("c0",)
    assert torch.equal(mean, torch.ones(6))


def test_an_unreadable_mean_settles_as_not_averaged(computing: Computing) -> None:
    settle = Settle(2, ("c0", "c1"), "", mean=message(torch.ones(6), cut=4))
    computing.settle(settle, "c0", lambda *result, **more: [(result, more)])  # type: ignore[list-item]
    (((_, total, tensors), more),) = run(computing)  # type: ignore[misc]
    assert (total, tensors) == (StageSum(), ())
    assert "not averaged" in more["reason"]


@pytest.mark.parametrize(("optimizer", "step"), [("nesterov", 1.9 * 0.7), ("heavy_ball", 0.7)])
def test_the_outer_optimizer_that_the_job_names_moves_the_anchor(
    tmp_path: Path, optimizer: str, step: float
) -> None:
    computing = computing_of(tmp_path, {"outer": {"optimizer": optimizer, "lr": 0.7, "momentum": 0.9}})
    before = computing.stages[2].anchor.clone()
    computing.settle(
        Settle(2, ("c0",), "", mean=message(torch.ones_like(before))),
        "c0",
        lambda *result, **more: [(result, more)],  # type: ignore[list-item]
    )
    (((_, _, (anchor, _)), _),) = run(computing)  # type: ignore[misc]
    torch.testing.assert_close(before - anchor, torch.full_like(before, step))


@pytest.mark.parametrize("averaged", [True, False])
def test_who_is_behind_gets_the_anchor_that_a_round_makes_or_the_present_one(
    computing: Computing, averaged: bool
) -> None:
    anchor = computing.stages[2].anchor.clone()
    mean = message(torch.ones_like(anchor)) if averaged else None
    computing.settle(Settle(2, ("c0",), "", mean=mean, behind=((PEER, 6),)), "c0", lambda *_, **__: [])
    (ship,) = run(computing)
    assert isinstance(ship, ShipFlat)
    assert (ship.peer, ship.body) == (
        PEER,
        OuterAnchor(cell="c0", stage=2, iteration=6, anchor=int(averaged)),
    )
    assert torch.equal(ship.tensors[0], anchor) is not averaged


def settled_with(computing: Computing, settle: Settle) -> tuple[StageSum, str]:
    computing.settle(settle, "c0", lambda *result, **more: [(result, more)])  # type: ignore[list-item]
    (((_, total, _), more),) = run(computing)  # type: ignore[misc]
    return total, more["reason"]


def test_a_mean_is_not_applied_to_an_anchor_that_it_was_not_made_for(computing: Computing) -> None:
    """Another delegate's result of the same round was committed meanwhile: it would be applied twice."""
    computing.stages[2].anchor_count = 1
    settle = Settle(2, ("c0", "c1"), "", mean=message(torch.ones(6)), anchor=0)
    assert settled_with(computing, settle) == (StageSum(), "not averaged: the anchor has moved meanwhile")


def test_the_same_anchor_taken_once_more_is_no_round(computing: Computing) -> None:
    stage = computing.stages[2]
    encoded = [
        encode(name, tensor, "raw") for name, tensor in (("a", stage.anchor), ("m", stage.outer_momentum))
    ]
    body = OuterAnchor(cell="c1", stage=2, iteration=0, anchor=0, tensors=tuple(spec for spec, _ in encoded))
    same = Message(body, tuple(buffer for _, buffer in encoded))
    total, reason = settled_with(computing, Settle(2, ("c1",), "took it", adopted=same))
    assert (total, "not averaged" in reason) == (StageSum(), True)


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
