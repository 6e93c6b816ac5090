from dataclasses import replace

import pytest

from recovery.policy import Candidate, Elsewhere, LossFacts, choose_taker, decide

ALL = {1: ("n1",), 2: ("n2",), 3: ("n3",), 4: ("n4",)}


def left(stage, *, stages=5, live=None, **facts):
    others = {s: nodes for s, nodes in (ALL if live is None else live).items() if s != stage}
    return LossFacts(stage=stage, stages=stages, live=others, **facts)


EVERYTHING = {
    "holders": ("here",),
    "other_cells": (Elsewhere("there", 7),),
    "plus_copies": ("copy",),
    "checkpoint_iteration": 5,
}


def without(*names):
    return {name: value for name, value in EVERYTHING.items() if name not in names}


@pytest.mark.parametrize(
    ("facts", "how", "donors"),
    [
        (left(2, **EVERYTHING), "holder", ("here",)),
        (left(2, **without("holders")), "other_cell", ("there",)),
        (left(0, **without("holders")), "other_cell", ("there",)),
        (left(0, **without("holders", "other_cells")), "plus_copy", ("copy",)),
        (left(2, **without("holders", "other_cells")), "checkfree", ("n1", "n3")),
        (left(0, **without("holders", "other_cells", "plus_copies")), "checkpoint", ()),
        (left(1, stages=2, live={}, **without("holders", "other_cells")), "checkpoint", ()),
        (left(2, live={}), "none", ()),
        (left(0), "none", ()),
        (left(2, live={}, no_archive=True, lost_s=9.9), "none", ()),
        (left(2, live={}, no_archive=True, lost_s=10.0), "seed", ()),
        (left(0, no_archive=True, lost_s=10.0), "seed", ()),
        (left(0, lost_s=1e6), "none", ()),
        (left(2, no_archive=True, lost_s=99.0), "checkfree", ("n1", "n3")),
        (
            left(0, no_archive=True, lost_s=99.0, plus_copies=("copy",), failed={"plus_copy": 5}),
            "plus_copy",
            ("copy",),
        ),
    ],
)
def test_auto_takes_the_first_source_that_is_left(facts, how, donors):
    decision = decide(facts)
    assert (decision.how, decision.donors) == (how, donors)


@pytest.mark.parametrize(
    ("facts", "how"),
    [
        (left(2, policy="checkfree", **EVERYTHING), "holder"),
        (left(2, policy="checkfree", **without("holders")), "checkfree"),
        (left(0, policy="checkfree", **without("holders")), "plus_copy"),
        (left(0, policy="checkfree", **without("holders", "plus_copies")), "other_cell"),
        (left(2, live={}, policy="checkfree", **without("holders")), "other_cell"),
    ],
)
def test_policy_checkfree_rebuilds_whatever_can_be_rebuilt(facts, how):
    assert decide(facts).how == how


@pytest.mark.parametrize(
    ("failed", "how"),
    [
        ({}, "plus_copy"),
        ({"plus_copy": 1}, "plus_copy"),
        ({"plus_copy": 2}, "checkpoint"),
        ({"plus_copy": 2, "checkpoint": 2}, "plus_copy"),
        ({"plus_copy": 4, "checkpoint": 3}, "checkpoint"),
        ({"other_cell": 9}, "plus_copy"),
    ],
)
def test_a_source_that_proved_empty_gives_way_to_the_next_and_they_take_turns(failed, how):
    """Neighbours that ought to keep a copy of the ends may have none: the checkpoint is there."""
    decision = decide(left(0, failed=failed, **without("holders", "other_cells")))
    assert decision.how == how
    assert ("in vain before: plus_copy" in decision.reason) == (how == "checkpoint")


def test_other_cells_are_asked_newest_first():
    others = (Elsewhere("b", 3), Elsewhere("c", 9), Elsewhere("a", 3))
    assert decide(left(2, other_cells=others)).donors == ("c", "a", "b")


@pytest.mark.parametrize(
    ("stage", "lost", "neighbours", "says"),
    [
        (2, (), (1, 3), "average of stages 1 and 3."),
        (1, (), (2,), "copy of stage 2"),
        (4, (), (3,), "copy of stage 3"),
        (2, (3,), (1, 4), "stage 3 beside it is lost too"),
        (3, (2,), (1, 4), "stage 2 beside it is lost too"),
        (3, (4,), (2,), "stage 4 beside it is lost too"),
        (2, (1, 3), (4,), "stage 1 and 3 beside it is lost too"),
    ],
)
def test_checkfree_uses_the_nearest_live_body_stage_on_either_side(stage, lost, neighbours, says):
    live = {s: nodes for s, nodes in ALL.items() if s not in lost} | {0: ("ends",)}
    decision = decide(left(stage, live=live))
    assert decision.how == "checkfree"
    assert decision.neighbours == neighbours
    assert decision.donors == tuple(f"n{s}" for s in neighbours)
    assert says in decision.reason


def test_the_ends_are_never_averaged_even_with_every_body_stage_alive():
    decision = decide(left(0, policy="checkfree"))
    assert decision.how == "none"
    assert "cannot be averaged" in decision.reason


def test_a_node_that_holds_both_neighbours_is_named_once():
    assert decide(left(2, live={1: ("x", "y"), 3: ("x",)})).donors == ("x", "y")


def node(name, *stages, free=None):
    return Candidate(node=name, stages=stages, free_bytes=free)


@pytest.mark.parametrize(
    ("candidates", "taker", "gives_up"),
    [
        ([node("a", 0), node("b", 1), node("z")], "z", ()),
        ([node("a", 0), node("b", 1), node("y"), node("x")], "x", ()),
        ([node("a", 0), node("b", 1), node("c", 1)], "b", (1,)),
        ([node("a", 0), node("b", 0), node("c", 1), node("d", 1)], "c", (1,)),
        ([node("a", 0), node("b", 1), node("c", 1), node("d", 3), node("e", 3), node("f", 3)], "d", (3,)),
        ([node("a", 0, 1), node("b", 3)], "b", ()),
        ([node("a", 0), node("b", 1), node("c", 3)], "b", ()),
        ([node("a", 0), node("b", 4), node("c", 3)], "c", ()),
        ([node("a", 0, 1), node("b", 1, 3)], "a", ()),
    ],
)
def test_the_taker_of_stage_2(candidates, taker, gives_up):
    choice = choose_taker(2, candidates)
    assert (choice.node, choice.gives_up) == (taker, gives_up)


def test_a_standby_without_the_memory_is_passed_over():
    choice = choose_taker(2, [node("a", 0), node("b", 1, free=100), node("s", free=5)], stage_bytes=50)
    assert choice.node == "b"
    assert choose_taker(2, [node("a", 1, free=5), node("s", free=5)], stage_bytes=50).node is None


def test_a_node_that_refused_or_holds_the_stage_already_is_not_asked():
    assert choose_taker(2, [node("a", 1), node("s")], refused=frozenset({"s"})).node == "a"
    assert choose_taker(2, [node("a", 2)]).node is None


def test_every_choice_says_why():
    for candidates in ([node("s")], [node("a", 1), node("b", 1)], [node("a", 1)], []):
        assert choose_taker(2, candidates).reason.endswith(".")


def test_what_is_ordered_in_vain_for_minutes_is_none_at_all():
    """A cell whose only neighbour of the ends had no copy of them asked it for one for ever."""
    facts = left(0, no_archive=True, lost_s=300.0, plus_copies=("copy",), failed={"plus_copy": 6})
    decision = decide(facts)
    assert decision.how == "seed"
    assert "in vain from plus_copy" in decision.reason
    assert decide(replace(facts, no_archive=False)).how == "plus_copy", "an archive may come back"
    assert decide(replace(facts, checkpoint_iteration=5)).how == "checkpoint"
