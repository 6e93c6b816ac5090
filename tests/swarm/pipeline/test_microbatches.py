"""A microbatch is counted once or told lost, whatever arrives late, twice or broken."""

import pytest

from swarm.messages import Backward, CellRecord, Forward, Lost, Plan, PlannedMicrobatch, Report
from swarm.pipeline.early import UNNAMED_MAX
from swarm.pipeline.feeding import ATTEMPTS_MAX, Feeding
from swarm.pipeline.hops import Hops
from swarm.pipeline.work import Forget, Ship, Work
from transport.machine import Effect, NodeId, Send

DATA, HOP, SPARE = NodeId("a" * 64), NodeId("b" * 64), NodeId("c" * 64)
PATH = ((DATA, 0), (HOP, 1))
ABOUT = {"cell": "c0", "slot": 1, "term": 1}


def plan(slot: int = 1, count: int = 1) -> Plan:
    return Plan(
        cell="c0",
        slot=slot,
        term=1,
        iteration=slot,
        base="",
        roster=((DATA,), (HOP, SPARE)),
        microbatches=tuple(PlannedMicrobatch(index=i, path=PATH) for i in range(count)),
    )


def forward(position: int = 1, attempt: int = 0) -> Forward:
    return Forward(**ABOUT, microbatch=0, attempt=attempt, path=PATH, position=position)


def lost(attempt: int = 0) -> Lost:
    return Lost(**ABOUT, microbatch=0, attempt=attempt, reason="could not")


def backward(position: int = 1, slot: int = 1) -> Backward:
    about = ABOUT | {"slot": slot}
    return Backward(**about, microbatch=0, attempt=0, path=PATH, position=position, target_tokens=4)


def only(effects: list[Effect] | tuple[Effect, ...], kind: type) -> list[Effect]:
    return [effect for effect in effects if isinstance(effect, kind)]


def sent(effects: list[Effect] | tuple[Effect, ...], kind: type) -> list[object]:
    return [e.message.body for e in effects if isinstance(e, Send) and isinstance(e.message.body, kind)]


def hops() -> Hops:
    machine = Hops(HOP)
    machine.begin(plan(), held_max=2)
    return machine


def test_a_late_backward_is_dropped_and_counted() -> None:
    machine = hops()
    (work,) = machine.arrived(DATA, forward(), "x")
    machine.computed(work, "y", 0.0)
    machine.close()
    assert machine.arrived(DATA, backward(), "g") == []
    assert machine.dropped == {"late backward": 1}


def test_a_backward_is_never_done_twice() -> None:
    machine = hops()
    (work,) = machine.arrived(DATA, forward(), "x")
    machine.computed(work, "y", 0.0)
    (again,) = machine.arrived(DATA, backward(), "g")
    machine.computed(again, "h", 0.0)
    assert machine.arrived(DATA, backward(), "g") == []
    assert machine.dropped == {"backward of nothing": 1}


def test_a_forward_that_cannot_be_computed_is_told_lost_at_once() -> None:
    machine = hops()
    (work,) = machine.arrived(DATA, forward(), "garbage")
    assert sent(machine.computed(work, None, 0.0), Lost) == [
        lost().model_copy(update={"reason": "stage 1 could not compute its forward"})
    ]


def test_a_lost_forward_starts_again_on_another_holder() -> None:
    feeding = Feeding(DATA, in_flight=4)
    (embed,) = only(feeding.begin(plan(), DATA, 0.0), Work)
    feeding.computed(embed, "x", 0.0)
    (again,) = only(feeding.handle(HOP, lost(), 1.0), Work)
    assert again.key.attempt == 1
    (ship,) = only(feeding.computed(again, "x", 1.0), Ship)
    assert ship.peer == SPARE


def test_a_microbatch_that_always_fails_is_reported_lost() -> None:
    feeding = Feeding(DATA, in_flight=4)
    effects = list(feeding.begin(plan(), DATA, 0.0))
    for _ in range(ATTEMPTS_MAX):
        (embed,) = only(effects, Work)
        effects = list(feeding.computed(embed, None, 0.0))
    (report,) = sent(effects, Report)
    assert isinstance(report, Report)
    assert (report.lost, report.done, report.tokens) == (1, 0, 0)


def test_a_head_that_fails_has_counted_nothing_and_may_start_again() -> None:
    feeding = Feeding(DATA, in_flight=4)
    (embed,) = only(feeding.begin(plan(), DATA, 0.0), Work)
    feeding.computed(embed, "x", 0.0)
    (head,) = only(feeding.arrived(HOP, forward(position=2), "garbage"), Work)
    effects = feeding.computed(head, None, 1.0)
    (again,) = only(effects, Work)
    assert again.key.attempt == 1
    assert not sent(effects, Report)


def at_its_head(feeding: Feeding) -> Work:
    """One microbatch's activations came back, and its head is queued."""
    (embed,) = only(feeding.begin(plan(), DATA, 0.0), Work)
    feeding.computed(embed, "x", 0.0)
    (head,) = only(feeding.arrived(HOP, forward(position=2), "y"), Work)
    assert isinstance(head, Work)
    return head


def test_a_microbatch_whose_head_has_not_begun_starts_again_when_a_hop_dies() -> None:
    feeding = Feeding(DATA, in_flight=4)
    head = at_its_head(feeding)
    assert feeding.observe(frozenset((HOP,)), 1.0) == [Forget(head.key, only_head=True)]
    (again,) = only(feeding.computed(head, None, 2.0), Work)
    assert again.key.attempt == 1
    assert feeding._flights[0].path == ((DATA, 0), (SPARE, 1))


def test_a_head_that_has_begun_is_waited_for_and_counted_once() -> None:
    feeding = Feeding(DATA, in_flight=4)
    head = at_its_head(feeding)
    feeding.observe(frozenset((HOP,)), 1.0)
    (ship,) = only(feeding.computed(head, (8.0, 4, "g"), 2.0), Ship)
    assert isinstance(ship.body, Backward)
    (report,) = sent(feeding.unreachable(ship.body, 2.0), Report)
    assert isinstance(report, Report)
    assert (report.partial, report.tokens) == (1, 4)


def test_a_microbatch_at_its_head_is_not_too_slow() -> None:
    feeding = Feeding(DATA, in_flight=4)
    head = at_its_head(feeding)
    assert feeding.deadline() is None
    assert feeding.tick(1e6) == []
    assert only(feeding.computed(head, (8.0, 4, "g"), 1e6), Ship)
    assert feeding.tick(1e6) == []


def test_what_was_computed_for_an_attempt_that_is_over_is_not_kept() -> None:
    feeding = Feeding(DATA, in_flight=4)
    (embed,) = only(feeding.begin(plan(), DATA, 0.0), Work)
    feeding.tick(1e6)
    assert feeding.computed(embed, "x", 1e6) == [Forget(embed.key)]


def test_the_hops_of_an_attempt_that_is_over_are_told_so() -> None:
    feeding = Feeding(DATA, in_flight=4)
    (embed,) = only(feeding.begin(plan(), DATA, 0.0), Work)
    feeding.computed(embed, "x", 0.0)
    effects = feeding.tick(1e6)
    assert [e.peer for e in effects if isinstance(e, Send)] == [HOP]
    (told,) = sent(effects, Lost)
    machine = hops()
    (work,) = machine.arrived(DATA, forward(), "x")
    machine.computed(work, "y", 0.0)
    assert machine.given_up(SPARE, told) == [], "of another's microbatch"
    assert machine.given_up(DATA, told) == [Forget(work.key)]
    assert machine.held == 0


def test_a_hop_drops_an_attempt_when_it_gets_the_next_one() -> None:
    machine = hops()
    (old,) = machine.arrived(DATA, forward(), "x")
    machine.computed(old, "y", 0.0)
    for attempt in (1, 2, 3):
        forget, work = machine.arrived(DATA, forward(attempt=attempt), "x")
        assert forget == Forget(old.key)
        assert machine.held == 1
        old = work
    assert machine.arrived(DATA, forward(attempt=2), "x") == []
    assert machine.dropped == {"forward of an attempt that is over": 1}


def test_an_attempt_whose_backward_has_begun_is_never_dropped() -> None:
    machine = hops()
    (work,) = machine.arrived(DATA, forward(), "x")
    machine.computed(work, "y", 0.0)
    (back,) = machine.arrived(DATA, backward(), "g")
    assert machine.given_up(DATA, lost()) == []
    assert only(machine.computed(back, "h", 0.0), Ship)


def test_what_a_hop_computed_for_an_attempt_that_is_over_is_not_kept() -> None:
    machine = hops()
    (work,) = machine.arrived(DATA, forward(), "x")
    machine.given_up(DATA, lost())
    assert machine.computed(work, "y", 0.0) == [Forget(work.key)]


def test_a_hop_holds_no_more_than_it_has_room_for() -> None:
    machine = hops()
    for index in (1, 2):
        machine.arrived(DATA, forward().model_copy(update={"microbatch": index}), "x")
    (told,) = sent(machine.arrived(DATA, forward(), "x"), Lost)
    assert isinstance(told, Lost)
    assert "holds all" in told.reason
    assert machine.held == machine.held_max == 2


@pytest.mark.parametrize("takes_s", [70.0, 250.0])
def test_the_limit_of_a_slow_pipeline_grows_until_microbatches_come_through(takes_s: float) -> None:
    feeding, now = Feeding(DATA, in_flight=4), 0.0
    for slot in range(1, 9):
        begun = only(feeding.begin(plan(slot=slot, count=4), DATA, now), Work)
        for work in begun:
            feeding.computed(work, "x", now)
        due = feeding.deadline()
        assert due is not None
        if due - now > takes_s:
            return
        feeding.tick(due)
        feeding.close()
        now = due
    pytest.fail(f"microbatches of {takes_s} s never came through")


def test_a_node_that_holds_no_ends_reports_nothing() -> None:
    feeding = Feeding(HOP, in_flight=4)
    assert feeding.begin(plan(), DATA, 0.0) == []
    idle = Feeding(SPARE, in_flight=4)
    more = plan().model_copy(update={"roster": ((DATA, SPARE), (HOP,))})
    assert len(sent(idle.begin(more, DATA, 0.0), Report)) == 1, "the leader waits for all of stage 0"


def test_a_microbatch_whose_backward_is_lost_is_partial_and_counted_once() -> None:
    feeding = Feeding(DATA, in_flight=4)
    (embed,) = only(feeding.begin(plan(), DATA, 0.0), Work)
    feeding.computed(embed, "x", 0.0)
    (head,) = only(feeding.arrived(HOP, forward(position=2), "y"), Work)
    feeding.computed(head, (8.0, 4, "g"), 1.0)
    (report,) = sent(feeding.tick(1e6), Report)
    assert isinstance(report, Report)
    assert (report.partial, report.tokens, report.loss_sum) == (1, 4, 8.0)
    assert feeding.arrived(HOP, backward(position=0), "g") == []


THIEF = NodeId("f" * 64)


def test_a_hop_takes_microbatches_only_from_its_neighbours_on_a_path_of_the_plan() -> None:
    machine = hops()
    for peer in (THIEF, SPARE):
        assert machine.arrived(peer, forward(), "x") == []
    strange = forward().model_copy(update={"path": ((THIEF, 0), (HOP, 1))})
    assert machine.arrived(THIEF, strange, "x") == []
    assert sum(machine.dropped.values()) == 3
    (work,) = machine.arrived(DATA, forward(), "x")
    machine.computed(work, "y", 0.0)
    assert machine.arrived(THIEF, backward(), "g") == []
    assert len(machine.arrived(DATA, backward(), "g")) == 1
    assert machine.arrived(DATA, backward(), "g") == []
    assert machine.dropped["backward twice"] == 1


LAST = CellRecord(
    cell="c0",
    slot=1,
    term=1,
    act="step",
    iteration=1,
    round=0,
    previous="",
    roster=((DATA,), (HOP,)),
    leader=DATA,
)


def soon(sender: NodeId = DATA, **changes: object) -> Forward:
    """A forward of the slot to come."""
    return forward().model_copy(update={"slot": 2, "path": ((sender, 0), (HOP, 1)), **changes})


def test_only_what_is_of_a_slot_soon_to_come_waits_for_it() -> None:
    """Far slots would fill the room of the next one, for good."""
    machine = hops()
    for index in range(300):
        assert machine.arrived(DATA, soon(slot=1000 + index), "x", LAST) == []
        assert machine.arrived(DATA, soon(term=1 << 40), "x", LAST) == []
    assert len(machine.early) == 0
    assert machine.arrived(THIEF, soon(), "x", LAST) == []
    assert machine.arrived(DATA, soon(), "x", LAST) == []
    assert len(only(machine.begin(plan(slot=2), held_max=2), Work)) == 1


def test_who_is_no_member_takes_no_place_of_those_who_are() -> None:
    """A newcomer is named by a plan that is still on its way, so a few of strangers are kept."""
    machine = Hops(HOP)
    machine.begin(plan(), held_max=8)
    for index in range(300):
        machine.arrived(THIEF, soon(THIEF, microbatch=index), "x", LAST)
    assert len(machine.early) == UNNAMED_MAX
    for index in range(300):
        machine.arrived(DATA, soon(microbatch=index), "x", LAST)
    assert len(machine.early) == 8, "as many as a slot may bring, and no more"
    assert len(only(machine.begin(plan(slot=2), held_max=8), Work)) == 8 - UNNAMED_MAX


def test_of_one_microbatch_the_newest_attempt_waits() -> None:
    machine = hops()
    for attempt in (0, 2, 1):
        machine.arrived(DATA, soon(attempt=attempt), attempt, LAST)
    (work,) = only(machine.begin(plan(slot=2), held_max=2), Work)
    assert (work.key.attempt, work.payload) == (2, 2)


def test_a_data_node_believes_the_hops_of_its_paths_only() -> None:
    feeding = Feeding(DATA, in_flight=4)
    (embed,) = only(feeding.begin(plan(), DATA, 0.0), Work)
    feeding.computed(embed, "x", 0.0)
    assert feeding.handle(THIEF, lost(), 1.0) == []
    assert feeding.arrived(THIEF, forward(position=2), "y") == []
    (head,) = only(feeding.arrived(HOP, forward(position=2), "y"), Work)
    feeding.computed(head, (8.0, 4, "g"), 1.0)
    assert feeding.handle(HOP, lost(), 1.0) == []
    assert feeding.arrived(THIEF, backward(position=0), "g") == []
    assert len(feeding.arrived(HOP, backward(position=0), "g")) == 1


def test_an_embedding_gradient_that_comes_twice_is_reported_once() -> None:
    feeding = Feeding(DATA, in_flight=4)
    (embed,) = only(feeding.begin(plan(), DATA, 0.0), Work)
    feeding.computed(embed, "x", 0.0)
    (head,) = only(feeding.arrived(HOP, forward(position=2), "y"), Work)
    feeding.computed(head, (8.0, 4, "g"), 1.0)
    (back,) = only(feeding.arrived(HOP, backward(position=0), "g"), Work)
    assert feeding.arrived(HOP, backward(position=0), "g") == []
    assert len(sent(feeding.computed(back, "done", 2.0), Report)) == 1
    assert feeding.computed(back, None, 3.0) == []
