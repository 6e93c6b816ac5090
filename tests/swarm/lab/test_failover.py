from typing import Any

from swarm.lab.failover import told


def commit(cell: str, iteration: int, time: float) -> dict[str, Any]:
    return {"event": "committed", "cell": cell, "iteration": iteration, "time": time}


def dead(node: str, by: str, time: float) -> dict[str, Any]:
    return {"event": "member", "member": node, "status": "dead", "node": by, "time": time}


def test_a_nodes_death_is_measured_on_its_own_cell() -> None:
    story = [commit("c0", k, float(k)) for k in (1, 2, 3)] + [commit("c1", k, k / 2) for k in range(1, 20)]
    story += [dead("x", "a", 4.0), dead("x", "b", 4.5), dead("x", "b", 9.0), dead("y", "b", 9.0)]
    story += [commit("c0", 4, 5.5), commit("c0", 5, 6.5)]
    assert told(story, "x", 3.5, "c0") == {
        "first_known_s": 0.5,
        "known_to_all_s": 1.0,
        "known_to": 2,
        "next_commit_s": 2.0,
        "interval_before_s": 1.0,
        "interval_around_s": 2.5,
    }


def test_the_coordinators_death_is_measured_on_the_cell_that_waited_longest() -> None:
    story = [commit("c0", k, float(k)) for k in range(1, 9)] + [commit("c1", k, 2.0 * k) for k in range(1, 5)]
    found = told([*story, dead("x", "a", 4.75)], "x", 4.5, "")
    assert found["next_commit_s"] == 1.5
    assert found["interval_around_s"] == 2.0


def test_the_same_commit_told_twice_is_no_interval() -> None:
    story = [commit("c0", 1, 1.0), commit("c0", 2, 2.0), commit("c0", 2, 2.1), commit("c0", 3, 3.0)]
    assert told([*story, dead("x", "a", 2.5)], "x", 2.2, "c0")["interval_around_s"] == 1.0
