"""What is waited for is one sentence, and a terminal hears of it when it changes."""

from dataclasses import replace
from typing import Any

from swarm.daemon.bridge import Progress
from swarm.daemon.gossip_setup import StatusSnapshot
from swarm.daemon.waiting import PAUSE_S, STEADY_S, Teller, coordinator_waits_for, heard, stands
from swarm.gossip.view import Facts, Member, MemberRecord, Status, View
from swarm.job import Job

JOB = Job.model_validate({"pipeline": {"nodes": 3}})
COORDINATOR = 9


def member(index: int, status: Status = "alive", **facts: Any) -> Member:
    record = MemberRecord(
        job="ab",
        node=f"{index:064x}",
        incarnation=1,
        seq=0,
        role="coordinator" if index == COORDINATOR else "worker",
        gossip="",
        work="",
        curve_key="",
        certificate=b"",
        facts=Facts.model_validate(facts),
    )
    return Member(record, status)


def view(*members: Member) -> View:
    return View({each.node: each for each in members})


def waits(seen: View, *, begun: bool = False, short: str = "") -> str:
    return coordinator_waits_for(seen, JOB, begun=begun, fit=len(seen.live()), short=short)


TRAINS = member(1, cell="c0", stages=(0, 1), iteration=7, round=2, loss=4.5, state="training")
ARCHIVE = member(COORDINATOR, iteration=5, state="training")


def test_a_coordinator_says_how_many_nodes_are_missing_and_what_one_lacks() -> None:
    assert waits(view(ARCHIVE)) == "3 more nodes of 3"
    assert waits(view(member(1), member(2), ARCHIVE)) == "1 more node of 3"
    assert waits(view(member(1), member(2)), short="too small") == "1 more node of 3; too small"
    assert waits(view(member(1), member(2), member(3))) == ""


def test_a_coordinator_whose_job_nobody_trains_says_what_would_go_on() -> None:
    assert waits(view(TRAINS), begun=True) == ""
    assert "so it begins again" in waits(view(member(1), ARCHIVE), begun=True)
    few = waits(view(member(1), member(2, "dead"), ARCHIVE), begun=True)
    assert few.startswith("nobody trains this job: 1 of 2 nodes stand by, and more than half of them")
    assert few.endswith("3 are enough for `farflung coordinator run DIR --resume`")
    finished = replace(member(1, "left", state="finished", iteration=9))
    assert waits(view(finished, member(2)), begun=True) == ""
    archived = member(COORDINATOR, iteration=9, state="finished")
    assert waits(view(member(1), member(2), archived), begun=True) == ""


def test_the_figures_are_those_of_who_trains_then_of_who_did() -> None:
    gone = member(2, "left", cell="c1", iteration=9, round=3, loss=4.0, state="finished")
    assert heard(view(TRAINS, gone, member(3), ARCHIVE)) == TRAINS.facts
    assert heard(view(gone, member(3), ARCHIVE)) == gone.facts
    assert heard(view(member(3), ARCHIVE)).iteration == 5


def shown(seen: View, index: int, **progress: Any) -> str:
    snapshot = StatusSnapshot(
        node=f"{index:064x}",
        role="coordinator" if index == COORDINATOR else "worker",
        job=JOB,
        view=seen,
        progress=Progress.model_validate(progress),
        gossip_sent_bytes=0,
        gossip_received_bytes=0,
        dropped={},
    )
    return stands(snapshot)


def test_a_terminal_shows_what_is_waited_for_trained_and_finished() -> None:
    seen = view(TRAINS, ARCHIVE)
    assert shown(seen, COORDINATOR) == "trained by 1 node in 1 cell"
    assert shown(seen, COORDINATOR, waiting_for="a node") == "waiting: a node"
    assert shown(seen, 1, cell="c0", stages=(0, 1)) == "in cell c0, with stages 0 1"
    assert shown(seen, 2, waiting_for="a place") == "waiting: a place"
    assert shown(seen, 2) == ""
    done = view(member(1, cell="c0", iteration=9, state="finished"), ARCHIVE)
    assert shown(done, 1, cell="c0", stages=(0,)) == "the job is finished at iteration 9"
    assert shown(done, COORDINATOR).startswith("the job is finished at iteration 9: export its model")


def test_a_line_is_said_once_when_it_is_steady_and_not_right_after_another() -> None:
    teller = Teller()
    assert [teller.look("a", now) for now in (0.0, 1.0, STEADY_S, STEADY_S + 1)] == ["", "", "a", ""]
    assert teller.look("b", 4.0) == ""
    assert teller.look("b", 4.0 + STEADY_S) == ""
    assert teller.look("b", STEADY_S + PAUSE_S) == "b"
    assert teller.look("", 20.0) == ""
    assert teller.look("b", 30.0) == ""
