"""What was averaged for one slot is never told as another's."""

from collections.abc import Sequence

import torch

from swarm.messages import CellRecord, Close, Gradient, StageSum, Summed
from swarm.pipeline.averaging import EARLY_SLOTS, Averaging, Hold, Reduce
from swarm.pipeline.follower import Ignored
from swarm.pipeline.stage import tensor_digest
from swarm.pipeline.work import ShipFlat
from transport.machine import Effect, NodeId, Send

ME, OTHER, LIAR = NodeId("a" * 64), NodeId("b" * 64), NodeId("c" * 64)
GRADIENT = torch.ones(6)


def close(slot: int, act: str, attempt: int = 0, *, row: tuple[NodeId, ...] = (ME,)) -> Close:
    return Close.model_validate(
        {"cell": "c0", "slot": slot, "term": 1, "act": act, "round_attempt": attempt, "roster": (row,)}
    )


def gradient(
    slot: int, *, cell: str = "c0", attempt: int = 0, stage: int = 0, term: int = 1, tokens: int = 4
) -> Gradient:
    return Gradient(cell=cell, slot=slot, term=term, stage=stage, round_attempt=attempt, target_tokens=tokens)


def last(slot: int) -> CellRecord:
    """The newest decided record: ME and OTHER hold the only stage."""
    return CellRecord(
        cell="c0",
        slot=slot,
        term=1,
        act="step",
        iteration=slot,
        round=0,
        previous="",
        roster=((ME, OTHER),),
        leader=ME,
    )


def closed(averaging: Averaging, what: Close) -> Sequence[Effect]:
    own = {} if what.act == "round" else {0: ("mine", 4)}
    return averaging.close(what, ME, own, 0.0, tokens_max=8)


def reducing(averaging: Averaging, slot: int) -> Reduce:
    """A step's slot is closed and its sum is being made."""
    (reduce,) = closed(averaging, close(slot, "step"))
    assert isinstance(reduce, Reduce)
    return reduce


def test_a_sum_is_kept_and_told_in_its_own_slot() -> None:
    averaging = Averaging(ME)
    work = reducing(averaging, 5)
    effects = averaging.reduced(work, GRADIENT, 6.0, tensor_digest(GRADIENT), 1.0)
    assert [effect.slot for effect in effects if isinstance(effect, Hold)] == [5]


def test_a_sum_without_one_holder_or_without_any_is_told_as_such() -> None:
    averaging = Averaging(ME)
    closed(averaging, close(5, "step", row=(ME, OTHER)))
    (reduce,) = averaging.observe(frozenset({OTHER}))
    assert isinstance(reduce, Reduce)
    for digest, said in (("aa", f"stage 0 without {OTHER[:8]}"), ("", "stage 0 is not averaged")):
        told = [
            e.message.body
            for e in averaging.reduced(reduce, GRADIENT, 6.0, digest, 1.0)
            if isinstance(e, Send)
        ]
        (summed,) = told
        assert isinstance(summed, Summed) and summed.reason.startswith(said)


def test_a_sum_that_comes_after_the_next_close_is_nobody_s() -> None:
    for later in (close(6, "round"), close(6, "step"), close(5, "step", attempt=1)):
        averaging = Averaging(ME)
        work = reducing(averaging, 5)
        closed(averaging, later)
        assert averaging.reduced(work, GRADIENT, 6.0, tensor_digest(GRADIENT), 2.0) == []


def test_what_a_round_made_of_an_anchor_is_not_told_as_a_step() -> None:
    averaging = Averaging(ME)
    closed(averaging, close(6, "round"))
    assert averaging.settled(0, StageSum(contributors=("c0", "c1"), digest="aa"), (GRADIENT, GRADIENT))
    closed(averaging, close(7, "step"))
    assert averaging.settled(0, StageSum(contributors=("c0", "c1"), digest="aa"), (GRADIENT,)) == []


def test_a_round_that_is_closed_again_is_told_what_it_had_made_already() -> None:
    averaging = Averaging(ME)
    closed(averaging, close(6, "round", attempt=1))
    averaging.settled(0, StageSum(contributors=("c0", "c1"), digest="aa"), (GRADIENT, GRADIENT), anchor=3)
    closed(averaging, close(6, "round", attempt=2, row=(ME, OTHER)))
    told = list(averaging.settled_before(0))
    (summed,) = [e.message.body for e in told if isinstance(e, Send)]
    assert isinstance(summed, Summed)
    assert (summed.round_attempt, summed.total.contributors) == (2, ("c0", "c1"))
    assert [e.peer for e in told if isinstance(e, ShipFlat)] == [OTHER]
    assert list(averaging.settled_before(1)) == []
    closed(averaging, close(7, "round"))
    assert list(averaging.settled_before(0)) == [], "another round has another result"


def test_what_a_round_made_first_stands() -> None:
    """It was closed again while that was in hand, and the other cells, which have had it, came no more."""
    averaging = Averaging(ME)
    closed(averaging, close(6, "round"))
    averaging.settled(0, StageSum(contributors=("c0", "c1"), digest="aa"), (GRADIENT, GRADIENT))
    assert averaging.settled(0, StageSum(), (), reason="not averaged: no answer from c1") == []
    (summed,) = [e.message.body for e in averaging.settled_before(0) if isinstance(e, Send)]
    assert isinstance(summed, Summed)
    assert summed.total.contributors == ("c0", "c1")


def closed_with_other(averaging: Averaging, slot: int, attempt: int = 0) -> list[str]:
    """What the sum of a row of two is made of, or nothing if the other's part is not there."""
    effects = closed(averaging, close(slot, "step", attempt, row=(ME, OTHER)))
    return [str(part[1]) for effect in effects if isinstance(effect, Reduce) for part in effect.parts]


def test_a_gradient_that_came_before_the_close_counts() -> None:
    averaging = Averaging(ME)
    assert averaging.handle(OTHER, gradient(5), "early", last(4)) == []
    assert closed_with_other(averaging, 5) == ["mine", "early"]


def test_a_holder_that_only_the_plan_names_may_be_early_too() -> None:
    averaging = Averaging(ME)
    assert averaging.handle(LIAR, gradient(5), "of a newcomer", last(4), ((ME, OTHER, LIAR),)) == []
    effects = closed(averaging, close(5, "step", row=(ME, LIAR)))
    assert [len(effect.parts) for effect in effects if isinstance(effect, Reduce)] == [2]


def test_early_gradients_are_kept_of_other_holders_for_slots_to_come_only() -> None:
    """Whoever else sends some takes no place, however many they are."""
    averaging = Averaging(ME)
    for refused in (
        averaging.handle(LIAR, gradient(5), "of no holder", last(4)),
        averaging.handle(OTHER, gradient(5, stage=1), "of a stage that is not ours", last(4)),
        averaging.handle(OTHER, gradient(5, cell="c1"), "of another cell", last(4)),
        averaging.handle(OTHER, gradient(4), "of a decided slot", last(4)),
        averaging.handle(OTHER, gradient(5 + EARLY_SLOTS), "of a far slot", last(4)),
        averaging.handle(OTHER, gradient(1 << 52), "of a very far slot", last(4)),
    ):
        (ignored,) = refused
        assert isinstance(ignored, Ignored)
    assert averaging._early == {}


def test_what_came_early_for_a_stage_goes_with_it() -> None:
    averaging = Averaging(ME)
    averaging.handle(OTHER, gradient(5), "early", last(4))
    averaging.forget(1)
    assert averaging.early == 1
    averaging.forget(0)
    assert averaging.early == 0


def test_one_holder_has_one_place_for_each_stage() -> None:
    averaging = Averaging(ME)
    for attempt in range(100):
        averaging.handle(OTHER, gradient(5, attempt=attempt), f"of attempt {attempt}", last(4))
    assert len(averaging._early) == 1
    assert closed_with_other(averaging, 5, attempt=99) == ["mine", "of attempt 99"]


def test_a_gradient_of_an_attempt_that_is_over_is_not_kept() -> None:
    averaging = Averaging(ME)
    closed(averaging, close(5, "step", attempt=1))
    (ignored,) = averaging.handle(OTHER, gradient(5), "of attempt 0", last(4))
    assert isinstance(ignored, Ignored)
    averaging.handle(OTHER, gradient(5, attempt=2), "early", last(4))
    assert closed_with_other(averaging, 5, attempt=2) == ["mine", "early"]


def test_nobody_counts_more_tokens_than_were_planned() -> None:
    """The sum of what holders say must fit a record, and scales the step of all."""
    for tokens, parts in ((4, 2), (5, 1), (2**53 - 1, 1)):
        averaging = Averaging(ME)
        averaging.handle(OTHER, gradient(5, tokens=tokens), "theirs", last(4))
        effects = closed(averaging, close(5, "step", row=(ME, OTHER)))
        (reduce,) = [effect for effect in effects if isinstance(effect, Reduce)]
        assert len(reduce.parts) == parts
        assert [effect.peer for effect in effects if isinstance(effect, Ignored)] == [OTHER] * (2 - parts)
        assert averaging.reduced(reduce, GRADIENT, 6.0, "aa", 1.0)
