"""Every check holds on a good log, and finds the one thing that is wrong in a broken one."""

from dataclasses import replace
from typing import Any

import pytest

from swarm.job import Job
from swarm.lab.chaos_checks import (
    CHECKS,
    NOT_JUDGED,
    false_deaths,
    holders_are_identical,
    judge,
    nobody_dies_of_an_error,
    nobody_stays_buried,
    views_tell_the_truth,
)
from swarm.lab.chaos_evidence import End, Evidence, Sighting
from swarm.lab.chaos_history import (
    every_microbatch_is_accounted_for,
    nothing_committed_is_undone,
    one_record_per_slot,
    tokens_are_counted_once,
    training_went_on,
)
from swarm.lab.chaos_timeline import timeline_of
from swarm.lab.checkers import CHECKERS
from swarm.lab.tail import EventMap
from swarm.pipeline.ledger import CLOSED_BEFORE

BATCH = 2 * 32
JOB = Job.model_validate(
    {"data": {"sequence": 32}, "pipeline": {"nodes": 2, "stages": 1, "microbatch": 2, "microbatches": 4}}
)
HOLDERS = {"0": ["a", "b"]}


def event(time: float, node: str, kind: str, **fields: Any) -> EventMap:
    return {"time": time, "node": node, "event": kind} | fields


def commit(
    time: float, iteration: int, *, node: str = "a", slot: int | None = None, **fields: Any
) -> EventMap:
    told = {"cell": "c0", "slot": slot or iteration, "iteration": iteration, "seconds": 1.0, "loss": 2.0}
    more = {"tokens": 8 * BATCH, "clip_scale": 1.0, "holders": HOLDERS}
    more |= {"partial": 0, "lost": 0, "silent": [], "reasons": []}
    return event(time, node, "committed", **told | more | fields)


def plan(time: float, slot: int, microbatches: int = 8, *, term: int = 1, **fields: Any) -> EventMap:
    told = {"cell": "c0", "slot": slot, "term": term, "microbatches": microbatches, "skipped": []}
    return event(time, "a", "planned") | told | fields


def member(time: float, observer: str, subject: str, status: str) -> EventMap:
    return event(time, observer, "member", member=subject, status=status, reason="")


def fault(time: float, node: str, what: str, **fields: Any) -> EventMap:
    return event(time, node, "fault", what=what, name=f"name of {node}", **fields)


def start(time: float, node: str, others: str) -> list[EventMap]:
    views = [member(time, node, subject, "alive") for subject in (node, *others)]
    return [*views, event(time, node, "started", role="worker")]


GOOD = (
    *start(0.0, "a", "b"),
    *start(0.0, "b", "a"),
    plan(0.5, 1),
    commit(1.0, 1),
    commit(1.1, 1, node="b"),
    event(1.5, "a", "round", cell="c0", slot=2, iteration=1, seconds=0.1, round=1, members={}, reasons=[]),
    plan(1.9, 3),
    commit(2.0, 2, slot=3),
    fault(30.0, "b", "killed"),
    member(31.0, "a", "b", "dead"),
    commit(32.0, 3, slot=4, holders={"0": ["a"]}),
    commit(33.0, 4, slot=5, holders={"0": ["a"]}, tokens=4 * BATCH),
    *start(40.0, "b", "a"),
    member(40.5, "a", "b", "alive"),
    commit(60.0, 5, slot=6, tokens=4 * BATCH),
)


def seen(time: float, node: str, digest: str, **changes: Any) -> Sighting:
    first = Sighting(time, node, "cpu", "c0", 5, 1, 0, digest)
    return replace(first, **changes)


RUN = Evidence(
    job=JOB,
    story=GOOD,
    judged_at=120.0,
    sightings=(seen(61.0, "a", "x"), seen(61.0, "b", "x")),
    ends=(End("node-1", 0, wanted=True),),
    logs={"node-1": "node a takes part"},
)


def with_events(*more: EventMap) -> Evidence:
    return replace(RUN, story=tuple(sorted((*GOOD, *more), key=lambda each: float(each["time"]))))


def test_a_good_log_passes_every_check_and_each_looked_at_something() -> None:
    verdicts = judge(RUN)
    assert {name: verdict.broken for name, verdict in verdicts.items() if verdict.broken} == {}
    assert all(verdict.as_map()["held"] for verdict in verdicts.values())
    assert false_deaths(RUN) == []


@pytest.mark.parametrize(
    "other",
    [
        commit(2.1, 2, slot=3, node="b", loss=2.5),
        commit(2.1, 2, slot=3, node="b", tokens=7 * BATCH),
        commit(2.1, 1, slot=2, node="b"),
        commit(2.1, 2, slot=9, node="b"),
    ],
    ids=["another loss", "other tokens", "a step where a round was", "an iteration in two slots"],
)
def test_two_commits_of_one_slot_or_iteration_are_found(other: EventMap) -> None:
    assert one_record_per_slot(with_events(other)).broken


def test_a_leader_that_tells_again_of_a_slot_it_has_not_closed_makes_no_second_record() -> None:
    counted = commit(2.2, 2, slot=3, node="c", partial=1, lost=2, silent=["b"])
    again = commit(2.3, 2, slot=3, node="b", reasons=[CLOSED_BEFORE])
    assert one_record_per_slot(with_events(counted, again)).broken == ()


def test_an_iteration_that_goes_back_is_found() -> None:
    broken = nothing_committed_is_undone(with_events(commit(61.0, 3, slot=7))).broken
    assert broken == ("cell c0 went back from iteration 5 to 3 in slot 7",)


def founded(time: float, new: str, old: str = "c0") -> EventMap:
    return event(time, "a", "cell", old=old, new=new, reason="no majority is left")


def test_survivors_that_go_on_from_less_than_their_cell_had_are_found() -> None:
    cell = founded(61.0, "c0~a.5")  # of slot 5, that has iteration 4; slot 6 others may have decided
    went_on = commit(62.0, 4, slot=7, cell="c0~a.5")
    assert nothing_committed_is_undone(with_events(cell, went_on)).broken == ()
    back = commit(62.0, 3, slot=7, cell="c0~a.5")
    sentence = "cell c0~a.5 was founded with iteration 4, and slot 7 has 3"
    assert nothing_committed_is_undone(with_events(cell, back)).broken == (sentence,)
    grandchild = (founded(63.0, "c0~b.7", "c0~a.5"), commit(64.0, 3, slot=9, cell="c0~b.7"))
    assert nothing_committed_is_undone(with_events(cell, *grandchild)).broken == (
        "cell c0~b.7 was founded with iteration 4, and slot 9 has 3",
    )
    other_family = event(61.0, "c", "cell", old="c0", new="c0.6561f2a1", reason="nobody trained")
    begun_again = commit(62.0, 3, slot=7, cell="c0.6561f2a1")
    assert nothing_committed_is_undone(with_events(other_family, begun_again)).broken == ()


def test_a_member_that_goes_on_from_less_than_it_has_shown_is_found_unless_it_began_anew() -> None:
    def shows(time: float, cell: str, iteration: int) -> EventMap:
        return event(time, "a", "progress", cell=cell, iteration=iteration)

    had, has = shows(61.0, "c0", 5), shows(63.0, "c0~b.4", 4)
    sentence = "a had iteration 5 of c0, and goes on with 4 of c0~b.4"
    assert nothing_committed_is_undone(with_events(had, has)).broken == (sentence,)
    for between in (
        event(62.0, "a", "placed", stages=[], holds=False, reason="nobody is in cell c0 any more"),
        event(62.0, "a", "started", role="worker"),
        fault(62.0, "a", "killed"),
        shows(62.0, "", 0),
        shows(62.0, "c1", 2),
    ):
        assert nothing_committed_is_undone(with_events(had, between, has)).broken == ()


@pytest.mark.parametrize(
    ("tokens", "partial", "lost", "right"),
    [
        (8, 0, 0, True),
        (7, 0, 1, True),
        (6, 2, 0, True),
        (7, 2, 0, True),
        (7, 0, 0, False),
        (8, 0, 1, False),
        (5, 2, 0, False),
        (6, 1, 0, False),
    ],
)
def test_a_microbatch_that_is_neither_counted_nor_partial_nor_lost_is_found(
    tokens: int, partial: int, lost: int, right: bool
) -> None:
    told = commit(61.0, 6, slot=7, tokens=tokens * BATCH, partial=partial, lost=lost)
    found = every_microbatch_is_accounted_for(with_events(plan(60.5, 7), told))
    assert (found.broken == ()) is right
    assert found.looked_at == every_microbatch_is_accounted_for(RUN).looked_at + 1


def test_a_slot_that_was_planned_twice_has_the_microbatches_of_one_of_its_plans() -> None:
    plans = plan(60.1, 7, 8), plan(60.5, 7, 5, term=2)
    for tokens, right in ((8, True), (5, True), (6, False)):
        run = with_events(*plans, commit(61.0, 6, slot=7, tokens=tokens * BATCH))
        assert (every_microbatch_is_accounted_for(run).broken == ()) is right


def test_what_survivors_carry_on_has_the_microbatches_that_were_planned_before() -> None:
    before = plan(60.5, 7), founded(61.0, "c0~a.6")
    for tokens, right in ((8, True), (7, False)):
        carried = commit(62.0, 6, slot=8, cell="c0~a.6", tokens=tokens * BATCH)
        assert (every_microbatch_is_accounted_for(with_events(*before, carried)).broken == ()) is right


def test_whose_plan_no_log_holds_and_who_has_not_closed_the_slot_is_not_asked_for_microbatches() -> None:
    wrong = commit(61.0, 6, slot=7, tokens=BATCH)
    for unknown in ((), (plan(60.5, 7, node="b"),)):
        assert every_microbatch_is_accounted_for(with_events(wrong, *unknown)).broken == ()
    told_again = {**wrong, "reasons": [CLOSED_BEFORE]}
    assert every_microbatch_is_accounted_for(with_events(plan(60.5, 7), told_again)).broken == ()


def test_every_promise_of_the_simulated_world_is_judged_or_named_as_not_judged() -> None:
    simulated = {checker.__name__ for checker in CHECKERS}
    judged = {check.__name__ for check in CHECKS}
    assert simulated - judged == set(NOT_JUDGED)
    assert judged - simulated == {"training_went_on"}


def test_a_job_founded_again_from_a_checkpoint_begins_its_names_anew() -> None:
    again = (
        fault(70.0, "c", "resuming"),
        event(71.0, "a", "placed", cell="c0", stages=[0], reason="to enter cell c0"),
        commit(72.0, 3, slot=1, tokens=4 * BATCH),
    )
    run = with_events(*again)
    assert run.refoundings == (71.0,)
    assert nothing_committed_is_undone(run).broken == ()
    assert one_record_per_slot(run).broken == ()
    assert one_record_per_slot(with_events(*again[1:])).broken


@pytest.mark.parametrize("tokens", [9 * BATCH, 8 * BATCH - 1], ids=["more than planned", "part of a batch"])
def test_tokens_counted_twice_or_in_part_are_found(tokens: int) -> None:
    assert tokens_are_counted_once(with_events(commit(61.0, 6, slot=7, tokens=tokens))).broken


def test_tokens_of_a_newcomer_that_left_before_the_slot_was_decided_are_of_its_plan() -> None:
    told = commit(61.0, 6, slot=7, tokens=12 * BATCH)
    assert tokens_are_counted_once(with_events(told)).broken
    assert tokens_are_counted_once(with_events(plan(60.5, 7, 12), told)).broken == ()


def test_a_node_that_fed_the_slot_before_it_left_the_roster_may_be_counted() -> None:
    alone = {"0": ["a"]}
    late = (commit(61.0, 6, slot=7, holders=alone), commit(62.0, 7, slot=8, holders=alone, tokens=4 * BATCH))
    assert tokens_are_counted_once(with_events(*late)).broken == ()


def test_holders_that_differ_are_found_unless_they_said_that_they_missed_a_step() -> None:
    run = replace(RUN, sightings=(seen(61.0, "a", "x"), seen(61.0, "b", "y")))
    assert len(holders_are_identical(run).broken) == 1
    missed = event(60.5, "b", "dropped", what="step of stage 0, slot 6", why="no holder has it")
    assert holders_are_identical(replace(run, story=(*GOOD, missed))).broken == ()
    long_ago = {**missed, "time": 20.0}
    assert holders_are_identical(replace(run, story=(*GOOD, long_ago))).broken != ()


def test_hashes_of_unequal_machines_and_of_single_holders_say_nothing() -> None:
    unequal = replace(RUN, sightings=(seen(61.0, "a", "x"), seen(61.0, "b", "y", platform="cuda")))
    assert "not_checked" in holders_are_identical(unequal).as_map()


@pytest.mark.parametrize(
    "broken",
    [
        replace(RUN, ends=(End("node-1", 1, wanted=False),)),
        replace(RUN, ends=(End("node-1", -9, wanted=True),)),
        replace(RUN, logs={"node-1": "Traceback (most recent call last):\n  ...\nKeyError: 3"}),
        with_events(event(50.0, "a", "error", reason="the training process ended")),
    ],
    ids=["ended unasked", "had to be killed", "a traceback", "an error event"],
)
def test_whoever_dies_of_an_error_is_found(broken: Evidence) -> None:
    assert nobody_dies_of_an_error(broken).broken


@pytest.mark.parametrize(
    "last",
    [
        (member(50.0, "a", "b", "suspect"),),
        (fault(50.0, "b", "killed"),),
        (fault(50.0, "b", "killed"), member(51.0, "a", "b", "dead"), event(52.0, "b", "started")),
    ],
    ids=["the living suspected", "the dead alive", "a returned one still dead"],
)
def test_views_that_are_wrong_at_the_end_are_found(last: tuple[EventMap, ...]) -> None:
    assert views_tell_the_truth(with_events(*last)).broken


def test_views_are_not_judged_soon_after_a_disturbance_nor_across_a_cut() -> None:
    soon = replace(with_events(fault(50.0, "b", "killed")), judged_at=55.0)
    assert "not_checked" in views_tell_the_truth(soon).as_map()
    apart = with_events(
        fault(50.0, "", "cut", cut="x", sides=[["a"], ["b"]]),
        member(61.0, "a", "b", "dead"),
        member(61.0, "b", "a", "dead"),
    )
    assert views_tell_the_truth(apart).broken == ()


def test_a_living_node_that_stays_buried_is_found_and_a_cut_excuses_it() -> None:
    buried = member(45.0, "a", "b", "dead")
    assert nobody_stays_buried(with_events(buried)).broken
    assert nobody_stays_buried(with_events(buried, member(100.0, "a", "b", "alive"))).broken == ()
    cut = fault(44.0, "", "cut", cut="x", sides=[["a"], ["b"]])
    healed = fault(80.0, "", "healed", cut="x")
    assert nobody_stays_buried(with_events(buried, cut, healed)).broken == ()


def test_only_the_burial_of_somebody_who_could_be_heard_is_false() -> None:
    assert false_deaths(with_events(member(90.0, "a", "b", "dead"))) == ["a buried b at 90.000"]
    paused = (fault(70.0, "b", "paused"), member(85.0, "a", "b", "dead"), fault(90.0, "b", "proceeding"))
    assert false_deaths(with_events(*paused)) == []
    just_back = member(45.0, "a", "b", "dead")
    assert false_deaths(with_events(just_back)) == []


@pytest.mark.parametrize(("begins", "ends"), [("slow_link", "link_restored"), ("noise", "noise_over")])
def test_whoever_a_bad_link_made_deaf_is_excused_while_it_lasts(begins: str, ends: str) -> None:
    bad, buried = fault(61.0, "b", begins), member(90.0, "a", "b", "dead")
    lasting = replace(with_events(bad, buried), judged_at=300.0)
    assert false_deaths(lasting) == []
    assert nobody_stays_buried(lasting).broken == ()
    over = {**fault(91.0, "", ends), "name": bad["name"]}  # noted while the process was down
    ended = replace(with_events(bad, buried, over), judged_at=300.0)
    assert false_deaths(ended) == []
    assert nobody_stays_buried(ended).broken == ("a had b buried for 209 s in which it could be heard",)
    again = with_events(bad, over, member(112.0, "a", "b", "dead"))
    assert false_deaths(again) == ["a buried b at 112.000"]


def test_training_that_stops_is_found() -> None:
    assert training_went_on(with_events(fault(61.0, "b", "paused"))).broken


def test_a_check_without_anything_to_look_at_has_not_been_passed() -> None:
    empty = Evidence(job=JOB, story=(), judged_at=1.0)
    maps = {name: verdict.as_map() for name, verdict in judge(empty).items()}
    assert [name for name, found in maps.items() if "not_checked" not in found] == ["training_went_on"]
    assert maps["training_went_on"]["held"] is False


def test_two_nodes_hear_each_other_while_both_are_up_and_nothing_lies_between() -> None:
    story = with_events(
        fault(50.0, "", "cut", cut="x", sides=[["a"], ["b", "c"]]), fault(70.0, "", "healed", cut="x")
    ).story
    found = timeline_of(story)
    assert found.hearing("a", "b", (0.0, 100.0)) == [(0.0, 30.0), (40.0, 50.0), (70.0, 100.0)]
    assert found.heard_for_s("a", "b", 80.0) == 10.0
    assert found.heard_for_s("a", "b", 60.0) == 0.0
    assert found.last_disturbance == 70.0
    assert found.nodes_up(35.0) == ["a"]


def test_whoever_has_finished_and_goes_is_down_and_disturbed_nobody() -> None:
    found = timeline_of(with_events(fault(90.0, "b", "ended", code=0)).story)
    assert found.nodes_up(95.0) == ["a"]
    assert found.last_disturbance == 40.0, "when b was back"
    assert timeline_of(with_events(fault(90.0, "b", "ended", code=1)).story).last_disturbance == 90.0
