"""Delegates agree on who was in a round, and never call unaveraged averaged."""

from collections.abc import Sequence
from typing import Any

import pytest

from swarm.gossip.view import Facts, Member, MemberRecord, View
from swarm.meetings import OuterAnchor, OuterDelta, OuterMean
from swarm.pipeline.meeting import (
    COMING,
    WAIT_MIN_S,
    comes_in_s,
    leader_wait_s,
    member_wait_s,
    owner_wait_s,
)
from swarm.pipeline.outer_round import LAST_WORD_S, OuterRound
from swarm.pipeline.work import Average, Settle, ShipAnchor, ShipFlat
from transport.machine import Effect, NodeId

NODES = {"c0": NodeId("a" * 64), "c1": NodeId("b" * 64), "c2": NodeId("c" * 64)}


def member(
    cell: str,
    *,
    state: str = "training",
    status: str = "alive",
    iteration: int = 0,
    stages: tuple[int, ...] = (0,),
    node: NodeId | None = None,
) -> Member:
    record = MemberRecord(
        job="",
        node=node or NODES[cell],
        incarnation=0,
        seq=0,
        gossip="",
        work="",
        curve_key="",
        certificate=b"",
        facts=Facts(cell=cell, stages=stages, state=state, iteration=iteration),  # type: ignore[arg-type]
    )
    return Member(record, status)  # type: ignore[arg-type]


def view(*members: Member) -> View:
    seen = View()
    for each in members:
        seen = seen.with_member(each)
    return seen


def started(me: str, anchor: int, *cells: str) -> tuple[OuterRound, list[Effect]]:
    """The owner is c0."""
    outer = OuterRound(NODES[me], {0})
    outer.observe(view(*(member(cell) for cell in cells)), 0.0)
    return outer, list(begin(outer, me, anchor))


def begin(
    outer: OuterRound, me: str, anchor: int = 0, iteration: int = 0, now: float = 0.0
) -> Sequence[Effect]:
    about: dict[str, Any] = {"cell": me, "iteration": iteration, "anchor": anchor}
    return outer.start(0, **about, digest="aa", delta="mine", every=2, step_s=10.0, now=now)


def delta(cell: str, anchor: int = 0, iteration: int = 0) -> OuterDelta:
    return OuterDelta(cell=cell, stage=0, iteration=iteration, anchor=anchor, anchor_digest="aa")


def mean_of(*cells: str, iteration: int = 0) -> OuterMean:
    iterations = (iteration,) * len(cells)
    return OuterMean(stage=0, anchor=0, anchor_digest="aa", members=cells, iterations=iterations)


def settled(effects: list[Effect]) -> Settle:
    (settle,) = [effect for effect in effects if isinstance(effect, Settle)]
    return settle


@pytest.mark.parametrize(
    "after", [member("c0", state="finished"), member("c0", status="dead")], ids=["finished", "dead"]
)
def test_a_mean_on_its_way_counts_after_its_owner_is_done(after: Member) -> None:
    outer, effects = started("c1", 0, "c0", "c1")
    assert [type(effect) for effect in effects] == [ShipFlat]
    assert outer.observe(view(after, member("c1")), 1.0) == []
    assert outer.tick(1.0 + LAST_WORD_S / 2) == []
    settle = settled(list(outer.mean(NODES["c0"], mean_of("c0", "c1"), "the mean")))
    assert settle.members == ("c0", "c1")


def test_the_word_of_a_dead_owner_is_not_awaited_for_long() -> None:
    outer, _ = started("c1", 0, "c0", "c1")
    outer.observe(view(member("c0", status="dead"), member("c1")), 1.0)
    assert outer.deadline() == 1.0 + LAST_WORD_S
    settle = settled(list(outer.tick(1.0 + LAST_WORD_S)))
    assert settle.members == ()
    assert settle.mean is None


def test_who_speaks_for_the_cell_of_a_dead_owner_next_holds_the_round_with_us() -> None:
    """That cell closes its round anew; it waited in vain for a cell that had given up its share."""
    outer, _ = started("c1", 0, "c0", "c1")
    deadline, next_of_c0 = outer.deadline(), NodeId("d" * 64)
    dead = member("c0", status="dead")
    (ship,) = outer.observe(view(dead, member("c0", node=next_of_c0), member("c1")), 1.0)
    assert isinstance(ship, ShipFlat)
    assert ship.peer == next_of_c0
    assert outer.deadline() == deadline
    assert list(outer.mean(NODES["c2"], mean_of("c0", "c1"), "forged")) == []
    assert settled(list(outer.mean(next_of_c0, mean_of("c0", "c1"), "the mean"))).members == ("c0", "c1")


def test_a_mean_of_an_owner_that_was_only_taken_for_dead_counts() -> None:
    outer, _ = started("c1", 0, "c0", "c1")
    suspect, beside = member("c0", status="suspect"), member("c0", node=NodeId("d" * 64))
    assert len(outer.observe(view(suspect, beside, member("c1")), 1.0)) == 1
    assert settled(list(outer.mean(NODES["c0"], mean_of("c0", "c1"), "the mean"))).mean == "the mean"


def test_an_owner_that_comes_back_is_sent_our_outer_gradient_again() -> None:
    """In its new life it has not got it, and by its id it speaks for its cell once more."""
    outer, _ = started("c1", 0, "c0", "c1")
    beside = member("c0", node=NodeId("d" * 64))
    outer.observe(view(member("c0", status="dead"), beside, member("c1")), 1.0)
    (ship,) = outer.observe(view(member("c0"), beside, member("c1")), 4.0)
    assert isinstance(ship, ShipFlat)
    assert ship.peer == NODES["c0"]


def test_only_the_owner_leaves_a_cell_out() -> None:
    outer, _ = started("c0", 0, "c0", "c1", "c2")
    assert outer.delta(NODES["c1"], delta("c1"), "theirs") == []
    (average,) = outer.observe(view(member("c0"), member("c1"), member("c2", status="dead")), 2.0)
    assert isinstance(average, Average)
    assert average.members == ("c0", "c1")


def test_an_unreadable_part_is_not_a_member() -> None:
    outer, _ = started("c0", 0, "c0", "c1")
    (average,) = outer.delta(NODES["c1"], delta("c1"), "theirs")
    assert isinstance(average, Average)
    read = Average(0, ("c0",), ("mine",))
    settle = settled(list(outer.averaged(read, "mine", 3.0)))
    assert settle.members == ()
    assert "not averaged" in settle.reason


def test_an_owner_with_an_older_anchor_ends_the_round_with_ours() -> None:
    """Its cell missed a round: nobody can average with it, and waiting would be in vain."""
    outer, _ = started("c0", 1, "c0", "c1")
    ship, settle = outer.delta(NODES["c1"], delta("c1", anchor=0), "theirs")
    assert isinstance(ship, ShipAnchor)
    assert isinstance(settle, Settle)
    assert settle.mean is None


def parts_of(effects: Sequence[Effect]) -> tuple[object, ...]:
    (average,) = effects
    assert isinstance(average, Average)
    return average.parts


def test_what_came_after_the_deadline_is_not_fresh_in_the_next_round() -> None:
    outer, _ = started("c0", 0, "c0", "c1")
    settled(list(outer.tick(10.0)))
    outer.delta(NODES["c1"], delta("c1", iteration=0), "late")
    outer.observe(view(member("c0", iteration=5), member("c1", iteration=1)), 11.0)
    assert begin(outer, "c0", iteration=5) == []
    assert outer.delta(NODES["c1"], delta("c1", iteration=0), "later still") == []
    assert parts_of(outer.delta(NODES["c1"], delta("c1", iteration=5), "fresh")) == ("mine", "fresh")


def test_of_what_came_early_the_newest_of_each_sender_counts() -> None:
    outer = OuterRound(NODES["c0"], {0})
    outer.observe(view(member("c0"), member("c1")), 0.0)
    for iteration, payload in ((5, "newer"), (0, "older")):
        outer.delta(NODES["c1"], delta("c1", iteration=iteration), payload)
    assert parts_of(begin(outer, "c0", iteration=5)) == ("mine", "newer")


@pytest.mark.parametrize(
    ("facts", "cell"),
    [(member("c1", stages=(1,)), "c1"), (member("c1"), "c2"), (member("c1"), "c0")],
    ids=["does not hold the stage", "is in another cell", "is in ours"],
)
def test_nobody_speaks_for_a_cell_whose_stage_it_does_not_hold(facts: Member, cell: str) -> None:
    outer, _ = started("c0", 0, "c0", "c1", "c2")
    outer.observe(view(member("c0"), facts, member("c2")), 1.0)
    outer.delta(NODES["c1"], delta(cell), "forged")
    after = [*outer.delta(NODES["c2"], delta("c2"), "third"), *outer.tick(10.0)]
    assert parts_of(after) == ("mine", "third")


def test_a_sender_that_the_view_does_not_place_yet_is_heard_once_it_does() -> None:
    outer, _ = started("c0", 0, "c0", "c2")
    outer.observe(view(member("c0"), member("c1", stages=()), member("c2")), 1.0)
    assert outer.delta(NODES["c1"], delta("c1"), "theirs") == []
    assert outer.observe(view(member("c0"), member("c1"), member("c2")), 2.0) == []
    assert parts_of(outer.delta(NODES["c2"], delta("c2"), "third")) == ("mine", "theirs", "third")


def test_a_mean_of_what_this_cell_sent_before_is_not_its_own() -> None:
    outer = OuterRound(NODES["c1"], {0})
    outer.observe(view(member("c0"), member("c1")), 0.0)
    begin(outer, "c1", iteration=5)
    assert outer.mean(NODES["c0"], mean_of("c0", "c1", iteration=0), "old") == []
    assert settled(list(outer.mean(NODES["c0"], mean_of("c0", "c1", iteration=5), "new"))).mean == "new"


def test_an_anchor_is_taken_only_from_who_was_told_of_ours() -> None:
    outer, _ = started("c1", 0, "c0", "c1", "c2")
    anchor = OuterAnchor(cell="c2", stage=0, iteration=0, anchor=7)
    assert outer.anchor(NODES["c2"], anchor, "forged") == []
    settle = settled(list(outer.anchor(NODES["c0"], anchor.model_copy(update={"cell": "c0"}), "theirs")))
    assert settle.adopted == "theirs"


def test_an_owner_takes_the_anchor_of_who_came_with_a_newer_one() -> None:
    outer, _ = started("c0", 0, "c0", "c1", "c2")
    assert [type(effect) for effect in outer.delta(NODES["c1"], delta("c1", anchor=1), "x")] == [ShipFlat]
    anchor = OuterAnchor(cell="c1", stage=0, iteration=0, anchor=1)
    assert outer.anchor(NODES["c2"], anchor, "forged") == []
    assert settled(list(outer.anchor(NODES["c1"], anchor, "theirs"))).adopted == "theirs"


@pytest.mark.parametrize(
    ("cell", "iteration", "anchor"), [("c0", 0, 2), ("c0", 1, 3), ("c1", 0, 4)], ids=["old", "late", "forged"]
)
def test_an_anchor_that_answers_something_else_moves_nobody(cell: str, iteration: int, anchor: int) -> None:
    """Older than ours; for what we sent in another round; in the name of our own cell, whose weights
    would jump to it."""
    outer, _ = started("c1", 3, "c0", "c1")
    body = OuterAnchor(cell=cell, stage=0, iteration=iteration, anchor=anchor)
    assert outer.anchor(NODES["c0"], body, "theirs") == []


def test_who_comes_with_an_older_anchor_takes_the_one_that_the_round_makes() -> None:
    """Taken at once it would lack this round's mean, and be one behind for as long as others meet."""
    outer, _ = started("c0", 1, "c0", "c1", "c2")
    assert outer.delta(NODES["c1"], delta("c1", anchor=0), "theirs") == []
    (average,) = outer.delta(NODES["c2"], delta("c2", anchor=1), "third")
    assert isinstance(average, Average)
    settle = settled(list(outer.averaged(average, "mean", 1.0)))
    assert (settle.members, settle.mean, settle.behind) == (("c0", "c2"), "mean", ((NODES["c1"], 0),))


def test_who_is_behind_is_answered_though_nobody_else_came() -> None:
    outer, _ = started("c0", 1, "c0", "c1", "c2")
    outer.delta(NODES["c1"], delta("c1", anchor=0), "theirs")
    settle = settled(list(outer.tick(10.0)))
    assert (settle.members, settle.behind) == ((), ((NODES["c1"], 0),))


def test_who_came_to_an_owner_that_takes_another_anchor_is_given_that() -> None:
    """It waited 40 s for a mean that nobody would make."""
    outer, _ = started("c0", 0, "c0", "c1", "c2")
    assert outer.delta(NODES["c2"], delta("c2", anchor=0), "third") == []
    outer.delta(NODES["c1"], delta("c1", anchor=1), "newer")
    settle = settled(
        list(outer.anchor(NODES["c1"], OuterAnchor(cell="c1", stage=0, iteration=0, anchor=1), "theirs"))
    )
    assert (settle.adopted, settle.behind) == ("theirs", ((NODES["c2"], 0),))


def test_who_takes_us_for_the_owner_is_given_what_our_round_makes() -> None:
    """Its view knows of other cells than ours."""
    outer, _ = started("c1", 0, "c0", "c1", "c2")
    assert outer.delta(NODES["c2"], delta("c2"), "third") == []
    settle = settled(list(outer.mean(NODES["c0"], mean_of("c0", "c1"), "mean")))
    assert (settle.mean, settle.behind) == ("mean", ((NODES["c2"], 0),))


def test_who_comes_while_the_owner_averages_is_given_what_comes_of_it() -> None:
    outer, _ = started("c0", 0, "c0", "c1", "c2")
    outer.delta(NODES["c1"], delta("c1"), "theirs")
    (average,) = outer.tick(10.0)
    assert isinstance(average, Average)
    assert outer.delta(NODES["c2"], delta("c2"), "late") == []
    settle = settled(list(outer.averaged(average, "mean", 11.0)))
    assert (settle.members, settle.behind) == (("c0", "c1"), ((NODES["c2"], 0),))


def test_who_has_gone_on_meanwhile_is_sent_no_anchor() -> None:
    outer, _ = started("c0", 1, "c0", "c1", "c2")
    outer.delta(NODES["c1"], delta("c1", anchor=0), "theirs")
    outer.observe(view(member("c0"), member("c1", iteration=1), member("c2")), 1.0)
    assert settled(list(outer.tick(10.0))).behind == ()


def test_who_came_is_not_forgotten_when_the_round_is_closed_once_more_for_other_cells() -> None:
    """c2 took c1 for the owner, which it was not; now it is, and has a new meeting with its part."""
    outer, _ = started("c1", 0, "c0", "c1", "c2")
    outer.delta(NODES["c2"], delta("c2"), "third")
    outer.observe(view(member("c0", state="finished"), member("c1"), member("c2")), 1.0)
    assert parts_of(begin(outer, "c1", now=1.0)) == ("mine", "third")


def test_what_came_for_an_older_anchor_is_not_taken_over() -> None:
    outer, _ = started("c1", 0, "c0", "c1", "c2")
    outer.delta(NODES["c2"], delta("c2"), "third")
    outer.observe(view(member("c0", state="finished"), member("c1"), member("c2")), 1.0)
    begin(outer, "c1", 1, now=1.0)
    assert settled(list(outer.tick(10.0))).behind == ((NODES["c2"], 0),)


def test_who_came_is_not_forgotten_when_all_others_are_gone() -> None:
    outer, _ = started("c1", 0, "c0", "c1", "c2")
    outer.delta(NODES["c2"], delta("c2"), "third")
    gone = [member(cell, state="finished") for cell in ("c0", "c2")]
    outer.observe(view(member("c1"), *gone), 1.0)
    assert settled(list(begin(outer, "c1", now=1.0))).behind == ((NODES["c2"], 0),)
    assert outer.deadline() is None


def test_a_round_that_averages_is_not_begun_again() -> None:
    """Its mean, when it came, belonged to no meeting, and ended the node."""
    outer, _ = started("c0", 0, "c0", "c1", "c2")
    outer.delta(NODES["c1"], delta("c1"), "theirs")
    (average,) = outer.tick(10.0)
    assert isinstance(average, Average)
    outer.observe(view(member("c0"), member("c1")), 11.0)
    assert begin(outer, "c0", now=11.0) == []
    assert settled(list(outer.averaged(average, "mean", 12.0))).mean == "mean"


def test_a_round_that_averages_is_not_begun_again_though_the_others_seem_gone() -> None:
    """They would wait for its mean, and this cell go on with its own outer gradient alone."""
    outer, _ = started("c0", 0, "c0", "c1")
    (average,) = outer.delta(NODES["c1"], delta("c1"), "theirs")
    assert isinstance(average, Average)
    outer.observe(view(member("c0"), member("c1", status="suspect")), 1.0)
    assert begin(outer, "c0", now=2.0) == []
    assert settled(list(outer.averaged(average, "mean", 3.0))).members == ("c0", "c1")


def test_a_mean_of_a_round_that_is_over_is_nothing() -> None:
    outer, _ = started("c0", 0, "c0", "c1", "c2")
    outer.delta(NODES["c1"], delta("c1"), "theirs")
    (average,) = outer.tick(10.0)
    assert isinstance(average, Average)
    begin(outer, "c0", 1, iteration=2, now=20.0)
    assert outer.averaged(average, "mean", 21.0) == []
    assert outer.deadline() is not None


@pytest.mark.parametrize("members", [("c0",), ("c0", "c1")], ids=["nobody else's", "one of two"])
def test_whose_outer_gradient_cannot_be_read_is_told_all_the_same(members: tuple[str, ...]) -> None:
    outer, _ = started("c0", 0, "c0", "c1", "c2")
    outer.delta(NODES["c1"], delta("c1"), "theirs")
    (average,) = outer.delta(NODES["c2"], delta("c2"), "third")
    assert isinstance(average, Average)
    settle = settled(list(outer.averaged(Average(0, members, average.parts[: len(members)]), "mean", 1.0)))
    assert [peer for peer, _ in settle.behind] == [NODES[cell] for cell in NODES if cell not in members]


def test_who_speaks_next_for_a_cell_while_its_part_is_averaged_is_told() -> None:
    """Only the one before, which is dead, was told the mean; with an anchor instead the part, which is in
    it, would count twice."""
    outer, _ = started("c0", 0, "c0", "c1")
    (average,) = outer.delta(NODES["c1"], delta("c1"), "theirs")
    assert isinstance(average, Average)
    successor = NodeId("d" * 64)
    outer.observe(view(member("c0"), member("c1", status="dead"), member("c1", node=successor)), 1.0)
    assert outer.delta(successor, delta("c1"), "theirs, too") == []
    told = outer.averaged(average, "mean", 2.0)
    assert settled(list(told)).behind == ()
    assert [ship.peer for ship in told if isinstance(ship, ShipFlat)] == [successor]


def test_a_newer_anchor_that_comes_while_the_owner_averages_waits_for_the_next_round() -> None:
    outer, _ = started("c0", 0, "c0", "c1", "c2")
    outer.delta(NODES["c1"], delta("c1"), "theirs")
    (average,) = outer.tick(10.0)
    assert isinstance(average, Average)
    assert outer.delta(NODES["c2"], delta("c2", anchor=5), "newer") == []
    assert settled(list(outer.averaged(average, "mean", 11.0))).behind == ()
    assert outer.early == 1


def test_who_is_behind_waits_for_the_mean_of_a_cell_that_was_not_expected() -> None:
    outer, _ = started("c0", 1, "c0", "c1")
    outer.observe(view(*(member(cell) for cell in NODES)), 1.0)
    assert outer.delta(NODES["c2"], delta("c2", anchor=1), "third") == []
    (average,) = outer.delta(NODES["c1"], delta("c1", anchor=0), "theirs")
    assert isinstance(average, Average)
    assert settled(list(outer.averaged(average, "mean", 2.0))).behind == ((NODES["c1"], 0),)


def test_an_outer_gradient_of_whom_the_view_does_not_know_is_left_out() -> None:
    outer, _ = started("c0", 0, "c0", "c1")
    assert outer.delta(NodeId("e" * 64), delta("c2"), "theirs") == []
    assert outer.early == 0


@pytest.mark.parametrize(("status", "kept"), [("suspect", 1), ("dead", 0)])
def test_what_came_early_is_kept_while_its_sender_is_only_suspected(status: str, kept: int) -> None:
    """It does not send it again: a pause of 8 s would cost its cell a wait of 50 s."""
    outer = OuterRound(NODES["c0"], {0})
    outer.observe(view(member("c0"), member("c1")), 0.0)
    outer.delta(NODES["c1"], delta("c1", iteration=5), "theirs")
    outer.observe(view(member("c0"), member("c1", status=status)), 3.0)
    assert outer.early == kept


@pytest.mark.parametrize("me", ["c0", "c1"], ids=["owner", "member"])
def test_a_round_that_is_closed_once_more_is_not_given_its_time_anew(me: str) -> None:
    outer, _ = started(me, 0, "c0", "c1")
    until = outer.deadline()
    assert until is not None
    assert list(begin(outer, me, now=until - 1.0)) == []
    assert outer.deadline() == until
    assert settled(list(outer.tick(until))).reason.startswith("not averaged: no answer from")
    begin(outer, me, now=until + 5.0)
    assert settled(list(outer.tick(until + 5.0))).reason.startswith("not averaged: no answer from")
    begin(outer, me, iteration=2, now=until + 9.0)
    assert outer.deadline() == pytest.approx(until + until + 9.0)


def test_a_round_that_is_closed_while_it_averages_is_told_the_result_of_who_came() -> None:
    outer, _ = started("c0", 0, "c0", "c1")
    (work,) = outer.delta(NODES["c1"], delta("c1"), "theirs")
    assert isinstance(work, Average)
    begin(outer, "c0", now=1.0)
    assert settled(list(outer.averaged(work, "mean", 2.0))).members == ("c0", "c1")


@pytest.mark.parametrize("step_s", [0.0, 0.1, 30.0, 3600.0])
def test_a_leader_waits_longer_than_any_delegate(step_s: float) -> None:
    waits = [wait(12, step_s) for wait in (owner_wait_s, member_wait_s, leader_wait_s)]
    assert waits == sorted(set(waits))


def test_what_comes_early_takes_no_more_room_than_other_cells_can_need() -> None:
    """Of stages held here, of each sender what it can hold, and only while it is there."""
    outer = OuterRound(NODES["c0"], {0})
    standby = member("c1", stages=(), state="standby")
    outer.observe(view(member("c0"), standby), 0.0)
    for stage in range(200):
        outer.delta(NODES["c1"], delta("c9").model_copy(update={"stage": stage}), "x")
    assert set(outer._early) == {(0, NODES["c1"])}
    outer.observe(view(member("c0")), 1.0)
    assert outer._early == {}


@pytest.mark.parametrize(
    ("before", "now_at", "seconds"),
    [(1, 9, 11 * 10.0 / 8), (7, 7, None), (0, 0, None), (20, 20, None), (11, 20, None)],
    ids=["comes", "stands still", "has not begun", "in its round", "came to its round"],
)
def test_a_cell_comes_at_the_pace_that_it_had(before: int, now_at: int, seconds: float | None) -> None:
    assert comes_in_s(20, before, now_at, waited_s=10.0) == seconds


@pytest.mark.parametrize(("cell", "left"), [("c0", 9.0), ("c0", 14.0), ("c1", 9.0), ("c1", 19.0)])
def test_two_cells_apart_by_more_than_half_a_round_meet(cell: str, left: float) -> None:
    """Each waited for half a round, so neither was ever there when the other came."""
    outer = OuterRound(NODES[cell], {0})
    other = "c1" if cell == "c0" else "c0"
    every, step_s = 20, 1.0
    wait_s = (owner_wait_s if cell == "c0" else member_wait_s)(every, step_s)

    def at(now: float) -> None:
        """The other cell reaches its next round at `wait_s + left`."""
        iteration = 40 + int((now - wait_s - left) / step_s)
        outer.observe(view(member(cell, iteration=40), member(other, iteration=iteration)), now)

    at(0.0)
    about: dict[str, Any] = {"cell": cell, "iteration": 40, "anchor": 0, "digest": "aa", "delta": "mine"}
    outer.start(0, **about, every=every, step_s=step_s, now=0.0)
    at(wait_s)
    assert list(outer.tick(wait_s)) == []
    at(wait_s + left)
    assert list(outer.tick(wait_s + left)) == []
    if cell == "c0":
        assert parts_of(outer.delta(NODES["c1"], delta("c1", iteration=40), "theirs")) == ("mine", "theirs")
    else:
        body = mean_of("c0", "c1", iteration=40)
        assert settled(list(outer.mean(NODES["c0"], body, "the mean"))).members == ("c0", "c1")


def test_a_cell_that_comes_is_waited_for_until_it_should_be_here() -> None:
    outer, _ = started("c0", 0, "c0", "c1")
    outer.observe(view(member("c0"), member("c1", iteration=1)), 9.0)
    assert list(outer.tick(10.0)) == []
    assert outer.deadline() == 20.0 + WAIT_MIN_S < 10.0 * COMING
    assert settled(list(outer.tick(20.0 + WAIT_MIN_S))).reason == "not averaged: no answer from c1"


def test_with_more_than_two_cells_an_owner_in_its_round_may_wait_for_others() -> None:
    outer = OuterRound(NODES["c1"], {0})
    outer.observe(view(member("c0", iteration=2), member("c1", iteration=2), member("c2", iteration=1)), 0.0)
    begin(outer, "c1", iteration=2)
    assert list(outer.tick(15.0)) == []
    assert outer.deadline() == 15.0 * COMING
