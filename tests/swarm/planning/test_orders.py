"""What a leader orders: the lost first, then what leavers hold, then one newcomer."""

import pytest

from swarm.gossip.view import Facts, Member, MemberRecord, View
from swarm.job import Job, row_max
from swarm.messages import CellRecord, Roster
from swarm.planning.orders import Orders
from swarm.planning.placement import Asked
from transport.machine import NodeId

A, B, C, D, E = (NodeId(letter * 64) for letter in "abcde")


def member(node: NodeId, cell: str = "c0", stages: tuple[int, ...] = (), iteration: int = 5) -> Member:
    record = MemberRecord(
        job="",
        node=node,
        incarnation=0,
        seq=0,
        gossip="",
        work="",
        curve_key="",
        certificate=b"",
        facts=Facts(cell=cell, stages=stages, iteration=iteration),
    )
    return Member(record, "alive")


def view(*members: Member) -> View:
    seen = View()
    for each in members:
        seen = seen.with_member(each)
    return seen


def record(roster: Roster) -> CellRecord:
    return CellRecord(
        cell="c0",
        slot=7,
        term=1,
        act="step",
        iteration=5,
        round=0,
        previous="",
        roster=roster,
        leader=A,
    )


def orders(stages: int = 3) -> Orders:
    job = Job.model_validate({"pipeline": {"stages": stages}})
    return Orders(job, (1,) * stages)


def test_what_only_a_leaver_holds_goes_to_a_standby_exactly_as_it_is() -> None:
    seen = view(member(A, stages=(0,)), member(B, stages=(1,)), member(C, stages=(2,)), member(D, ""))
    (order,) = orders()(seen, record(((A,), (B,), (C,))), Asked(leaving=frozenset({B})))
    assert (order.taker, order.stage, order.how) == (D, 1, "holder")
    assert order.donors == (B,)
    assert order.same_state
    assert order.replaces == B


def test_a_leavers_stage_with_another_holder_needs_no_order() -> None:
    seen = view(*(member(node, stages=(0,)) for node in (A, B, C)))
    assert orders()(seen, record(((A,), (B, D), (C,))), Asked(leaving=frozenset({B}))) == ()


def test_a_leaver_is_never_a_taker() -> None:
    seen = view(member(A, stages=(0,)), member(B, stages=(1,)), member(C, stages=(2,)))
    found = orders()(seen, record(((A,), (), (C,))), Asked(leaving=frozenset({A})))
    assert {order.taker for order in found} == {C}


def test_every_lost_stage_gets_its_own_taker() -> None:
    seen = view(
        member(A, stages=(0,)), member(D, ""), member(E, ""), member(B, "c1", (1,)), member(C, "c1", (2,))
    )
    found = orders()(seen, record(((A,), (), ())), Asked())
    assert [(order.stage, order.how) for order in found] == [(1, "other_cell"), (2, "other_cell")]
    assert len({order.taker for order in found}) == 2


@pytest.mark.parametrize("busy", [frozenset(), frozenset({D})])
def test_one_newcomer_at_a_time_and_none_that_is_busy(busy: frozenset[NodeId]) -> None:
    seen = view(
        member(A, stages=(0,)), member(B, stages=(1,)), member(C, stages=(2,)), member(D, ""), member(E, "")
    )
    (order,) = orders()(seen, record(((A,), (B,), (C,))), Asked(busy=busy))
    assert order.taker == (E if busy else D)
    assert order.same_state


def test_a_standby_that_an_invented_cell_never_takes_joins_the_real_one() -> None:
    """The invented cell has the fewest members, so every real one leaves the standby to it."""
    seen = view(
        member(A, stages=(0,)), member(B, stages=(1,)), member(C, stages=(2,)), member(D, ""), member(E, "c9")
    )
    last = record(((A,), (B,), (C,)))
    assert orders()(seen, last, Asked()) == ()
    (order,) = orders()(seen, last, Asked(passed_over=frozenset({D})))
    assert (order.taker, order.reason.split(".")[0]) == (D, "No other cell has taken this standby")


def test_a_stage_that_a_liar_says_it_has_is_had_elsewhere_after_two_orders_in_vain() -> None:
    seen = view(member(A, stages=(0,)), member(B, stages=(1,)), member(D, ""), member(E, "c9", (0, 1, 2)))
    last = record(((A,), (B,), ()))
    failed = Asked(failed={(2, "other_cell"): 2})
    assert [order.how for order in orders()(seen, last, Asked())] == ["other_cell"]
    (order,) = orders()(seen, last, failed)
    assert order.how == "checkfree"
    assert "Tried in vain before: other_cell" in order.reason


def test_a_cell_that_was_just_founded_asks_for_no_newcomer() -> None:
    """A standby may be a founder of another cell whose facts are still on their way."""
    seen = view(member(A, stages=(0,)), member(B, stages=(1,)), member(C, stages=(2,)), member(D, ""))
    last = record(((A,), (B,), (C,)))
    assert orders()(seen, last, Asked())
    assert orders()(seen, last.model_copy(update={"slot": 0}), Asked()) == ()


def test_a_lone_survivor_takes_every_lost_stage() -> None:
    other = [member(B, cell="c1", stages=(0, 1, 2))]
    placed = orders()(view(member(A, stages=(0,)), *other), record(((A,), (), ())), Asked())
    assert [(p.stage, p.taker, p.how) for p in placed] == [(1, A, "other_cell"), (2, A, "other_cell")]


def test_a_standby_is_not_placed_in_a_row_that_no_record_could_name() -> None:
    nodes = [NodeId(f"{number:064x}") for number in range(2 * row_max(2) + 1)]
    *held, standby = nodes
    rows = (tuple(held[0::2]), tuple(held[1::2]))
    seen = view(*(member(n, stages=(held.index(n) % 2,)) for n in held), member(standby, ""))
    assert orders(2)(seen, record(rows), Asked()) == ()
    (order,) = orders(2)(seen, record((rows[0], rows[1][1:])), Asked(busy=frozenset(rows[1][:1])))
    assert (order.taker, order.stage) == (standby, 1)
