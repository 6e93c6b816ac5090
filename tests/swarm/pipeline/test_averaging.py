"""What was averaged for one slot is never told as another's."""

import torch

from swarm.messages import Close, Gradient, StageSum
from swarm.pipeline.averaging import EARLY_MAX, EARLY_SLOTS, Averaging, Hold, Reduce
from swarm.pipeline.follower import Ignored
from swarm.pipeline.stage import tensor_digest
from transport.machine import NodeId

ME, OTHER, LIAR = NodeId("a" * 64), NodeId("b" * 64), NodeId("c" * 64)
GRADIENT = torch.ones(6)


def close(slot: int, act: str, attempt: int = 0, *, row: tuple[NodeId, ...] = (ME,)) -> Close:
    return Close.model_validate(
        {"cell": "c0", "slot": slot, "term": 1, "act": act, "round_attempt": attempt, "roster": (row,)}
    )


def gradient(slot: int, *, cell: str = "c0", attempt: int = 0, stage: int = 0) -> Gradient:
    return Gradient(cell=cell, slot=slot, term=1, stage=stage, round_attempt=attempt, target_tokens=4)


def reducing(averaging: Averaging, slot: int) -> Reduce:
    """A step's slot is closed and its sum is being made."""
    (reduce,) = averaging.close(close(slot, "step"), ME, {0: (GRADIENT, 4)}, 0.0)
    assert isinstance(reduce, Reduce)
    return reduce


def test_a_sum_is_kept_and_told_in_its_own_slot() -> None:
    averaging = Averaging(ME)
    work = reducing(averaging, 5)
    effects = averaging.reduced(work, GRADIENT, 6.0, tensor_digest(GRADIENT), 1.0)
    assert [effect.slot for effect in effects if isinstance(effect, Hold)] == [5]


def test_a_sum_that_comes_after_the_next_close_is_nobody_s() -> None:
    for later in (close(6, "round"), close(6, "step"), close(5, "step", attempt=1)):
        averaging = Averaging(ME)
        work = reducing(averaging, 5)
        averaging.close(later, ME, {0: (GRADIENT, 4)}, 1.0)
        assert averaging.reduced(work, GRADIENT, 6.0, tensor_digest(GRADIENT), 2.0) == []


def test_what_a_round_made_of_an_anchor_is_not_told_as_a_step() -> None:
    averaging = Averaging(ME)
    averaging.close(close(6, "round"), ME, {}, 0.0)
    assert averaging.settled(0, StageSum(contributors=("c0", "c1"), digest="aa"), (GRADIENT, GRADIENT))
    averaging.close(close(7, "step"), ME, {0: (GRADIENT, 4)}, 1.0)
    assert averaging.settled(0, StageSum(contributors=("c0", "c1"), digest="aa"), (GRADIENT,)) == []


def closed_with_other(averaging: Averaging, slot: int, attempt: int = 0) -> list[str]:
    """What the sum of a row of two is made of, or nothing if the other's part is not there."""
    effects = averaging.close(close(slot, "step", attempt, row=(ME, OTHER)), ME, {0: ("mine", 4)}, 0.0)
    return [str(part[1]) for effect in effects if isinstance(effect, Reduce) for part in effect.parts]


def test_a_gradient_that_came_before_the_close_counts() -> None:
    averaging = Averaging(ME)
    averaging.handle(OTHER, gradient(5), "early")
    assert closed_with_other(averaging, 5) == ["mine", "early"]


def test_gradients_for_what_is_closed_keep_no_place_from_those_to_come() -> None:
    averaging = Averaging(ME)
    for stage in range(EARLY_MAX):
        averaging.handle(OTHER, gradient(5, stage=stage), "orphan")
    averaging.close(close(6, "step"), ME, {0: (GRADIENT, 4)}, 0.0)
    averaging.handle(OTHER, gradient(7), "early")
    assert closed_with_other(averaging, 7) == ["mine", "early"]


def test_a_gradient_of_an_attempt_that_is_over_is_not_kept() -> None:
    averaging = Averaging(ME)
    averaging.close(close(5, "step", attempt=1), ME, {0: (GRADIENT, 4)}, 0.0)
    for stage in range(EARLY_MAX):
        averaging.handle(OTHER, gradient(5, stage=stage), "of attempt 0")
    averaging.handle(OTHER, gradient(5, attempt=2), "early")
    assert closed_with_other(averaging, 5, attempt=2) == ["mine", "early"]


def test_gradients_for_far_slots_keep_no_place_from_those_of_the_next() -> None:
    averaging = Averaging(ME)
    averaging.close(close(5, "step"), ME, {0: (GRADIENT, 4)}, 0.0)
    for index in range(2 * EARLY_MAX):
        (ignored,) = averaging.handle(OTHER, gradient(6 + EARLY_SLOTS + index), "of a far slot")
        assert isinstance(ignored, Ignored)
    assert averaging.handle(OTHER, gradient(6), "early") == []
    assert closed_with_other(averaging, 6) == ["mine", "early"]


def test_one_sender_has_one_place_for_each_stage() -> None:
    averaging = Averaging(ME)
    for attempt in range(2 * EARLY_MAX):
        assert averaging.handle(LIAR, gradient(6, attempt=attempt), "of some attempt") == []
    assert averaging.handle(OTHER, gradient(6), "early") == []
    assert closed_with_other(averaging, 6) == ["mine", "early"]


def test_a_gradient_of_another_cell_is_none_of_this_one() -> None:
    averaging = Averaging(ME)
    averaging.handle(OTHER, gradient(5, cell="c1"), "of another cell")
    assert closed_with_other(averaging, 5) == []
    (ignored,) = averaging.handle(OTHER, gradient(5, cell="c1"), "of another cell")
    assert isinstance(ignored, Ignored)
