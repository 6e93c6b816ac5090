"""A job that nobody trains is founded again by most of its nodes, and by nobody while others may train it."""

import pytest

from swarm.daemon.outage import OUTAGE_S, Outage, Patience, look_for_outage
from swarm.gossip.view import Facts, Member, MemberRecord, Status, View


def member(name: str, status: Status = "alive", **facts: object) -> Member:
    record = MemberRecord.model_construct(
        node=name, incarnation=1, seq=0, role="worker", facts=Facts.model_validate(facts)
    )
    return Member(record, status)


def look(*members: Member) -> Outage:
    return look_for_outage(View({m.node: m for m in members}))


def test_most_nodes_without_a_cell_begin_the_job_again() -> None:
    found = look(member("a"), member("b"), member("c", "dead", cell="c0", stages=(0,)))
    assert found.again
    assert [m.node for m in found.standing.live()] == ["a", "b"]
    assert "2 of 3 nodes stand by" in found.reason


def test_half_of_the_nodes_begin_nothing_the_others_may_be_training() -> None:
    found = look(member("a"), member("b"), member("c", "dead", cell="c0"), member("d", "dead", cell="c0"))
    assert not found.again
    assert "2 of 4 nodes stand by" in found.reason


@pytest.mark.parametrize(
    "other",
    [
        member("c", cell="c0", stages=(0, 1), state="training"),
        member("c", "suspect", cell="c0", state="training"),
        member("c", state="restoring"),
        member("c", "left", cell="c0", state="finished"),
    ],
    ids=["trains", "may train", "fetches", "finished"],
)
def test_nothing_begins_again_while_somebody_trains_or_when_the_job_is_done(other: Member) -> None:
    assert look(member("a"), member("b"), other) == Outage(View(), again=False, reason="")


def test_who_left_for_good_is_not_waited_for() -> None:
    assert look(member("a"), member("b", "left"), member("c", "left")).again


def test_an_outage_is_waited_out_and_longer_after_a_founding_that_came_to_nothing() -> None:
    patience, out, trains = Patience(), look(member("a")), look(member("a", cell="c0"))
    assert not patience.over(out, 0.0)
    assert not patience.over(trains, OUTAGE_S - 1)
    assert not patience.over(out, OUTAGE_S)
    assert patience.over(out, 2 * OUTAGE_S)
    patience.founded()
    assert not patience.over(out, 100.0)
    assert not patience.over(out, 100.0 + OUTAGE_S)
    assert patience.over(out, 100.0 + 2 * OUTAGE_S)
    assert not patience.over(trains, 200.0)
    assert not patience.over(out, 201.0)
    assert patience.over(out, 201.0 + OUTAGE_S), "somebody trained in between"
