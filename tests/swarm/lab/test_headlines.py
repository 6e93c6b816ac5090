from typing import Any

from swarm.lab.headlines import Headlines

NAMES = {"a": "node-1", "b": "node-2", "c": "coordinator"}


def lines(*events: dict[str, Any]) -> list[str]:
    told = Headlines()
    told.add([{"time": 10.0, "node": "c", "event": "started"}], NAMES)
    told.add(events, NAMES)
    return [" ".join(line.split()) for line in told.lines]


def dead(by: str, time: float) -> dict[str, Any]:
    return {"time": time, "node": by, "event": "member", "member": "a", "status": "dead"}


def test_a_kill_is_told_and_when_the_first_of_the_others_knew() -> None:
    kill = {"time": 12.0, "node": "a", "event": "fault", "what": "killed", "name": "node-1"}
    assert lines(kill, dead("b", 13.25), dead("c", 13.5)) == [
        "2.0 s node-1 was killed",
        "3.2 s node-1 is known to be dead, 1.2 s after the kill",
    ]


def test_a_death_that_nobody_caused_is_left_to_the_table() -> None:
    assert lines(dead("b", 13.0)) == []


def test_a_recovery_names_its_source_and_does_not_invent_one() -> None:
    back = {"time": 11.0, "event": "recovered", "cell": "c0", "stage": 2, "seconds": 0.56}
    assert lines(back | {"how": "other_cell"}, back | {"how": "unknown"}) == [
        "1.0 s stage 2 of cell c0 came back from the other cell in 0.6 s",
        "1.0 s stage 2 of cell c0 came back from where an earlier leader had it fetched from in 0.6 s",
    ]


def test_what_every_cell_says_is_told_once() -> None:
    met = {"time": 11.0, "event": "round", "round": 1, "members": {"0": ["c0", "c1"], "1": ["c1"]}}
    saved = {"time": 11.0, "event": "checkpoint", "iteration": 20, "path": "x"}
    assert lines(met, met, saved, saved) == [
        "1.0 s outer round 1: the cells averaged stages 0",
        "1.0 s iteration 20 goes to disk",
    ]
