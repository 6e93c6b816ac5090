"""Suspicion keeps, death gives away, and every loss is told once."""

from dataclasses import replace
from itertools import pairwise

import pytest

from swarm.events import Noted
from swarm.gossip.view import Facts, Member, MemberRecord, Status, View
from swarm.messages import CellRecord, Ready, Restore, Roster
from swarm.pipeline.appointments import PASSED_OVER_MAX, PAUSE_LIMIT_S, PAUSE_MAX_S, Appointments
from swarm.pipeline.asking import PASSED_OVER_S, PAUSES_APART, REFUSED_S, Asking
from swarm.planning.placement import Asked, Placement
from transport.machine import NodeId, Send
from transport.wire import Signed

A, B, C, D = (NodeId(letter * 64) for letter in "abcd")
SIGNED = Signed(signer=A, payload=b"", signature=bytes(64))
ROSTER: Roster = ((A,), (B,))


def view(**statuses: Status) -> View:
    seen = View()
    for letter, status in {"a": "alive", "b": "alive", "c": "alive", "d": "alive", **statuses}.items():
        record = MemberRecord(
            job="",
            node=letter * 64,
            incarnation=0,
            seq=0,
            gossip="",
            work="",
            curve_key="",
            certificate=b"",
        )
        seen = seen.with_member(Member(record, status))  # type: ignore[arg-type]
    return seen


def record(slot: int, roster: Roster) -> CellRecord:
    return CellRecord(
        cell="c0",
        slot=slot,
        term=1,
        act="step",
        iteration=slot,
        round=0,
        previous="",
        roster=roster,
        leader=A,
    )


def restore(stage: int, taker: NodeId = C, *, same_state: bool = False) -> Placement:
    how = "holder" if same_state else "checkfree"
    return Placement(taker=taker, stage=stage, how=how, donors=(A,), same_state=same_state, reason="because")


def made(*placements: Placement) -> Appointments:
    appointments = Appointments(
        A, lambda seen, last, asked: tuple(p for p in placements if p.taker not in asked.busy)
    )
    appointments.observe(view(), record(1, ROSTER), 0.0)
    return appointments


def ready(ok: bool = True, slot: int = 1) -> Ready:
    return Ready(cell="c0", slot=slot, term=1, stage=1, ok=ok, reason="" if ok else "no memory")


def test_a_stage_whose_holder_is_only_suspected_is_skipped_and_kept() -> None:
    """Given away on a suspicion, its state would be lost to a machine that was merely busy."""
    appointments = made()
    appointments.observe(view(b="suspect"), record(1, ROSTER), 1.0)
    roster = appointments.next_roster(ROSTER)
    assert roster == ROSTER
    assert appointments.fit_rows(roster) == ((A,), ())
    appointments.observe(view(b="dead"), record(1, ROSTER), 2.0)
    assert appointments.next_roster(ROSTER) == ((A,), ())


def test_a_suspected_holder_is_left_out_where_another_goes_on() -> None:
    appointments = made()
    appointments.observe(view(b="suspect"), record(1, ((A,), (B, C))), 1.0)
    assert appointments.next_roster(((A,), (B, C))) == ((A,), (C,))


def test_a_recovery_is_told_once_with_the_time_since_the_loss() -> None:
    appointments = made(restore(1))
    appointments.observe(view(b="dead"), record(1, ROSTER), 10.0)
    lost = record(1, ((A,), ()))
    assert len(appointments.order(lost, SIGNED, 1, lost.roster, 11.0)) == 1
    assert appointments.answered(C, ready(), lost, 13.5) == []
    back = record(2, ((A,), (C,)))
    (told,) = appointments.recoveries(back, 14.0)
    assert told.kind == "recovered"  # type: ignore[attr-defined]
    fields = told.fields  # type: ignore[attr-defined]
    assert (fields["stage"], fields["how"], fields["seconds"]) == (1, "checkfree", 3.5)
    appointments.decided(back, 14.0)
    assert appointments.recoveries(record(3, back.roster), 15.0) == []


def test_a_holder_that_came_back_before_anything_was_decided_is_no_recovery() -> None:
    appointments = made()
    appointments.observe(view(b="dead"), record(1, ROSTER), 1.0)
    appointments.observe(view(), record(1, ROSTER), 2.0)
    assert appointments.recoveries(record(2, ROSTER), 3.0) == []


def test_what_was_rebuilt_while_a_holder_was_away_is_not_put_beside_it_when_it_is_back() -> None:
    """Two states of one stage were averaged, and the rebuilt one outlived the true one (seed 783)."""
    spared = replace(restore(1), gives_up=(0,))
    appointments = made(spared)
    roster = ((A, C), (B,))
    appointments.observe(view(b="dead"), record(1, roster), 1.0)
    lost = record(1, ((A, C), ()))
    assert len(appointments.order(lost, SIGNED, 1, lost.roster, 2.0)) == 1
    appointments.answered(C, ready(), record(1, roster), 3.0)
    assert appointments.next_roster(roster) == ((A,), (C,))
    appointments.observe(view(), record(1, roster), 4.0)
    assert appointments.next_roster(roster) == roster
    appointments.observe(view(b="suspect"), record(1, roster), 5.0)
    assert appointments.next_roster(roster) == ((A,), (C,))


def test_who_refused_is_not_asked_again_at_once() -> None:
    appointments = made(restore(1))
    lost = record(1, ((A,), ()))
    assert len(appointments.order(lost, SIGNED, 1, lost.roster, 0.0)) == 1
    appointments.answered(C, ready(ok=False), lost, 1.0)
    assert appointments.order(lost, SIGNED, 1, lost.roster, 2.0) == []
    assert len(appointments.order(lost, SIGNED, 1, lost.roster, 1.0 + REFUSED_S)) == 1


@pytest.mark.parametrize("late", [ready(slot=0), ready(ok=False, slot=0)], ids=["taken", "refused"])
def test_the_late_answer_to_an_earlier_order_is_not_one_to_this(late: Ready) -> None:
    """What the taker has by then is about to be replaced by what it is ordered now."""
    appointments = made(restore(1))
    lost = record(1, ((A,), ()))
    appointments.order(lost, SIGNED, 1, lost.roster, 0.0)
    assert appointments.answered(C, late, lost, 1.0) == []
    assert appointments.newcomers == ()
    assert appointments.order(lost, SIGNED, 1, lost.roster, 1.0) == [], "the order still stands"
    appointments.answered(C, ready(), lost, 2.0)
    assert appointments.newcomers == (C,)


def test_whoever_never_takes_what_it_is_ordered_to_is_asked_ever_less() -> None:
    """The cell pauses for each such order: a member that only says it is a standby could stop it."""
    appointments = made(restore(1, same_state=True))
    asked, now = [], 0.0
    while now < 3600.0:
        if appointments.order(record(1, ROSTER), SIGNED, 1, ROSTER, now):
            asked.append(now)
        now += 1.0
    paused = len(asked) * PAUSE_LIMIT_S
    gaps = [later - sooner for sooner, later in pairwise(asked)]
    assert gaps == sorted(gaps)
    assert paused < 0.15 * now


def test_a_source_that_came_to_nothing_is_told_to_the_placement_until_the_stage_is_back() -> None:
    told: list[Asked] = []

    def place(_: View, __: CellRecord, asked: Asked) -> tuple[Placement, ...]:
        told.append(asked)
        return () if C in asked.busy else (restore(1),)

    appointments = Appointments(A, place)
    appointments.observe(view(b="dead"), record(1, ROSTER), 0.0)
    lost = record(1, ((A,), ()))
    appointments.order(lost, SIGNED, 1, lost.roster, 1.0)
    appointments.answered(C, ready(ok=False), lost, 2.0)
    appointments.order(lost, SIGNED, 1, lost.roster, 3.0)
    assert told[-1].failed == {(1, "checkfree"): 1}
    appointments.decided(record(2, ((A,), (D,))), 4.0)
    appointments.order(record(2, ((A,), (D,))), SIGNED, 1, ((A,), (D,)), 5.0)
    assert told[-1].failed == {}


def test_a_standby_that_nobody_took_is_passed_over_until_somebody_does() -> None:
    asking = Asking()
    asking.observe(view(b="dead"), 0.0)
    assert asking.asked((), (), PASSED_OVER_S - 1).passed_over == frozenset()
    assert C in asking.asked((), (), PASSED_OVER_S).passed_over
    seen = view()
    fetching = seen.members[C].record.model_copy(update={"facts": Facts(state="restoring")})
    asking.observe(seen.with_member(Member(fetching, "alive")), PASSED_OVER_S)
    assert C not in asking.asked((), (), 2 * PASSED_OVER_S).passed_over


def test_a_newcomer_survives_an_iteration_that_was_abandoned() -> None:
    """Cleared at the plan, it held a stage that nobody named when the plan came to nothing."""
    appointments = made(restore(1, same_state=True))
    last = record(1, ROSTER)
    appointments.order(last, SIGNED, 1, ROSTER, 0.0)
    appointments.answered(C, ready(), last, 1.0)
    assert appointments.next_roster(ROSTER) == ((A,), (B, C))
    assert appointments.next_roster(ROSTER) == ((A,), (B, C))


@pytest.mark.parametrize("answered_before", [True, False])
def test_a_rebuilt_state_is_void_once_another_leadership_gave_the_stage_a_holder(
    answered_before: bool,
) -> None:
    """Named beside that holder, its taker would train on other weights under the same name."""
    appointments = made(restore(1))
    lost: Roster = ((A,), ())
    appointments.observe(view(b="dead"), record(1, ROSTER), 0.0)
    appointments.order(record(1, ROSTER), SIGNED, 1, lost, 1.0)
    if answered_before:
        appointments.answered(C, ready(), record(1, ROSTER), 2.0)
        assert appointments.next_roster(ROSTER) == ((A,), (C,))
    elsewhere = record(2, ((A,), (D,)))
    appointments.decided(elsewhere, 3.0)
    appointments.answered(C, ready(), elsewhere, 4.0)
    assert appointments.next_roster(elsewhere.roster) == ((A,), (D,))
    assert appointments.newcomers == ()


def test_a_rebuilt_state_counts_however_many_records_name_no_holder_of_its_stage() -> None:
    appointments = made(restore(1))
    lost: Roster = ((A,), ())
    appointments.observe(view(b="dead"), record(1, ROSTER), 0.0)
    appointments.order(record(1, ROSTER), SIGNED, 1, lost, 1.0)
    appointments.decided(record(2, lost), 2.0)
    appointments.answered(C, ready(), record(2, lost), 3.0)
    appointments.decided(record(3, lost), 4.0)
    assert appointments.next_roster(lost) == ((A,), (C,))


def test_a_state_of_another_slot_is_not_taken_for_the_same() -> None:
    appointments = made(restore(1, same_state=True))
    last = record(1, ROSTER)
    appointments.order(last, SIGNED, 1, ROSTER, 0.0)
    assert appointments.answered(C, ready(slot=0), last, 1.0) == []
    assert appointments.next_roster(ROSTER) == ROSTER


@pytest.mark.parametrize("stages", [(), (1,)])
def test_an_absent_holder_is_out_until_it_is_placed_anew(stages: tuple[int, ...]) -> None:
    appointments = made()
    appointments.absent(B, stages, record(1, ROSTER), 1.0)
    assert appointments.next_roster(ROSTER) == ((A,), ())
    without = record(2, ((A,), ()))
    appointments.decided(without, 2.0)
    appointments.decided(record(3, ROSTER), 3.0)
    assert appointments.next_roster(ROSTER) == ROSTER


def test_an_order_to_a_node_that_says_it_is_in_another_cell_is_void() -> None:
    """Its refusal may have been lost, and the cell would pause for it until the limit."""
    appointments = made(restore(1, same_state=True))
    appointments.order(record(1, ROSTER), SIGNED, 1, ROSTER, 0.0)
    assert appointments.waits_until() is not None
    seen = view()
    taken = seen.members[C].record
    there = taken.model_copy(update={"facts": Facts(cell="c1", stages=(1,))})
    appointments.observe(seen.with_member(Member(there, "alive")), record(1, ROSTER), 1.0)
    assert appointments.waits_until() is None


def said(cell: str, incarnation: int) -> View:
    """B speaks for itself; the others are as in `view`."""
    seen = view()
    record = seen.members[B].record.model_copy(update={"incarnation": incarnation, "facts": Facts(cell=cell)})
    return seen.with_member(Member(record, "alive"))


def test_a_member_that_is_back_before_it_was_missed_is_out_at_once() -> None:
    """Killed and started again within half a second: nobody buries it, and it knows nothing."""
    appointments = made()
    last = record(1, ROSTER)
    appointments.observe(said("", 1), last, 0.0)
    assert appointments.live(B), "placed just now, and its record is on its way"
    appointments.observe(said("c0", 1), last, 1.0)
    appointments.observe(said("", 2), last, 2.0)
    assert not appointments.live(B)
    assert appointments.next_roster(ROSTER) == ((A,), ())
    appointments.observe(said("c0", 2), last, 3.0)
    assert appointments.live(B), "placed anew"


def test_a_member_that_has_been_in_another_cell_for_long_is_one_no_more() -> None:
    """Soak seed 9: it went on as another cell while this node slept, which then waited for it to lead."""
    appointments = made()
    last = record(1, ROSTER)
    appointments.observe(said("c0~abc.1", 1), last, 0.0)
    appointments.observe(said("c0~abc.1", 1), last, 50.0)
    assert appointments.live(B), "it never said that it was in this one"
    appointments.observe(said("c0", 1), last, 51.0)
    appointments.observe(said("c0~abc.1", 1), last, 52.0)
    appointments.observe(said("c0~abc.1", 1), last, 61.0)
    assert appointments.live(B), "the record that takes this node along may be on its way"
    appointments.observe(said("c0~abc.1", 1), last, 62.0)
    assert not appointments.live(B)
    appointments.observe(said("c0", 1), last, 63.0)
    assert appointments.live(B), "placed anew"


def test_a_member_that_is_back_and_ready_again_counts_before_gossip_says_so() -> None:
    appointments = made(restore(1, B))
    last = record(1, ROSTER)
    for seen in (said("c0", 1), said("", 2)):
        appointments.observe(seen, last, 1.0)
    appointments.order(last, SIGNED, 1, last.roster, 1.0)
    appointments.answered(B, ready(), last, 2.0)
    appointments.observe(said("", 3), last, 2.5)
    assert appointments.next_roster(((A,), ())) == ROSTER


def test_a_member_that_refutes_a_suspicion_stays() -> None:
    appointments = made()
    for incarnation in (1, 2):
        appointments.observe(said("c0", incarnation), record(1, ROSTER), 0.0)
    assert appointments.live(B)


def test_a_new_leader_does_not_invent_where_a_stage_came_back_from() -> None:
    appointments = made()
    appointments.observe(view(b="dead"), record(1, ROSTER), 1.0)
    (noted,) = appointments.recoveries(record(2, ((A,), (C,))), 3.0)
    assert isinstance(noted, Noted)
    assert noted.fields["how"] == "unknown" and noted.fields["seconds"] == 2.0


def newcomer() -> Placement:
    return replace(restore(1, same_state=True), rehearse=True)


def test_a_cell_waits_for_a_newcomer_only_after_it_has_shown_how_long_it_needs() -> None:
    appointments = made(newcomer())
    last = record(1, ROSTER)
    (first,) = appointments.order(last, SIGNED, 1, ROSTER, 0.0)
    assert isinstance(first, Send) and isinstance(first.message.body, Restore)
    assert first.message.body.rehearsal and not first.message.body.same_state
    assert appointments.waits_until() is None
    appointments.decided(record(2, ROSTER), 10.0)
    assert appointments.order(record(2, ROSTER), SIGNED, 1, ROSTER, 10.0) == []  # still at it
    assert appointments.answered(C, ready(), record(2, ROSTER), 100.0) == []
    assert appointments.newcomers == ()
    (again,) = appointments.order(record(2, ROSTER), SIGNED, 1, ROSTER, 101.0)
    assert isinstance(again, Send) and isinstance(again.message.body, Restore)
    assert again.message.body.same_state and not again.message.body.rehearsal
    assert appointments.waits_until() == 101.0 + 5.0 + 1.5 * 100.0
    appointments.answered(C, ready(slot=2), record(2, ROSTER), 200.0)
    assert appointments.newcomers == (C,)


def test_a_newcomer_whose_fetch_takes_too_long_costs_no_pause() -> None:
    appointments = made(newcomer())
    last = record(1, ROSTER)
    appointments.order(last, SIGNED, 1, ROSTER, 0.0)
    (noted,) = appointments.answered(C, ready(), last, PAUSE_MAX_S - 1.0)
    assert isinstance(noted, Noted) and "too long" in str(noted.fields["why"])
    assert appointments.order(last, SIGNED, 1, ROSTER, PAUSE_MAX_S) == []
    assert appointments.waits_until() is None


def test_a_pause_in_vain_is_paid_for_by_many_times_its_length_without_one() -> None:
    appointments = made(newcomer())
    last = record(1, ROSTER)
    appointments.order(last, SIGNED, 1, ROSTER, 0.0)
    appointments.answered(C, ready(), last, 10.0)
    appointments.order(last, SIGNED, 1, ROSTER, 10.0)
    until = appointments.waits_until()
    assert until == 10.0 + 20.0
    apart = PAUSES_APART * 20.0
    assert appointments.order(last, SIGNED, 1, ROSTER, until) == []
    assert appointments.order(last, SIGNED, 1, ROSTER, until + apart - 1.0) == []
    (first,) = appointments.order(last, SIGNED, 1, ROSTER, until + apart + 1.0)
    assert isinstance(first, Send) and isinstance(first.message.body, Restore)
    assert first.message.body.rehearsal  # it has to show it again


def test_a_taker_that_is_ready_and_takes_no_part_is_not_planned_with_for_ever() -> None:
    """Each plan with it was abandoned: it had given the cell up, and nobody had heard of it."""
    lost: Roster = ((A,), ())
    appointments = made(restore(1))
    appointments.order(record(1, lost), SIGNED, 1, lost, 0.0)
    appointments.answered(C, ready(), record(1, lost), 1.0)
    for slot in range(1, 1 + PASSED_OVER_MAX):
        assert appointments.next_roster(lost) == ((A,), (C,))
        appointments.decided(record(slot + 1, lost), 2.0)
    assert appointments.next_roster(lost) == lost
    assert appointments.order(record(9, lost), SIGNED, 1, lost, 3.0) == [], "nor asked again at once"


def test_a_taker_that_got_ready_before_a_round_is_named_after_it() -> None:
    """With a round after each step, every taker was passed over twice before it could be named."""
    lost: Roster = ((A,), ())
    appointments = made(restore(1))
    appointments.order(record(1, lost), SIGNED, 1, lost, 0.0)
    appointments.answered(C, ready(), record(1, lost), 1.0)  # in the middle of slot 2
    appointments.decided(record(2, lost), 2.0)
    for slot in range(3, 3 + PASSED_OVER_MAX):
        appointments.decided(record(slot, lost).model_copy(update={"act": "round"}), 3.0)
    assert appointments.next_roster(lost) == ((A,), (C,))


def test_a_taker_that_was_ready_and_is_gone_again_replaces_nobody() -> None:
    """The only holder of its stage was left out for its sake, and its cell never trained again."""
    handed_over = replace(restore(1, same_state=True), replaces=B)
    appointments = made(handed_over)
    appointments.order(record(1, ROSTER), SIGNED, 1, ROSTER, 0.0)
    appointments.answered(C, ready(), record(1, ROSTER), 1.0)
    assert appointments.next_roster(ROSTER) == ((A,), (C,))
    appointments.absent(C, (), record(1, ROSTER), 2.0)
    assert appointments.next_roster(ROSTER) == ROSTER
    assert appointments.fit_rows(ROSTER) == ROSTER
    assert appointments.order(record(1, ROSTER), SIGNED, 1, ROSTER, 3.0) == [], "it is asked again later"
