import pytest

from swarm.lab.tally import Tally, longest_gap_s


def committed(
    time: float, cell: str, iteration: int, node: str = "a", tokens: int = 100
) -> dict[str, object]:
    fields = {"cell": cell, "iteration": iteration, "loss": 5.0 - iteration, "tokens": 100}
    return {"time": time, "node": node, "event": "committed"} | fields


def test_a_commit_told_by_every_member_counts_once() -> None:
    tally = Tally()
    tally.add([committed(1, "c0", 1, node) for node in "abcd"])
    tally.add([committed(2, "c0", 2, node) for node in "abcd"])
    assert len(tally.commits) == 2
    assert tally.tokens_per_s() == 100


def test_the_iteration_is_that_of_the_slowest_cell() -> None:
    tally = Tally()
    tally.add([committed(1, "c0", 1), committed(1, "c1", 1), committed(2, "c0", 2)])
    assert tally.iteration == 1
    assert tally.loss == 3.0


@pytest.mark.parametrize(("times", "gap"), [((1.0, 2.0, 5.0, 6.0), 3.0), ((5.0, 1.0), 4.0), ((), 0.0)])
def test_the_longest_gap_is_between_two_commits(times: tuple[float, ...], gap: float) -> None:
    assert longest_gap_s(times) == gap


def test_speed_looks_back_only_as_far_as_asked() -> None:
    tally = Tally()
    tally.add(
        [committed(0, "c0", 1), committed(100, "c0", 2), committed(101, "c0", 3), committed(102, "c0", 4)]
    )
    assert tally.tokens_per_s(last_s=2) == 100
    assert tally.tokens_per_s() == pytest.approx(300 / 102)


def test_the_first_commits_of_two_cells_close_together_are_no_speed() -> None:
    """Their tokens took longer than the moment between them."""
    tally = Tally()
    tally.add([committed(10, "c0", 1), committed(10.1, "c1", 1)])
    assert tally.tokens_per_s(last_s=10) == 0
    tally.add([committed(11, "c0", 2), committed(11.1, "c1", 2)])
    assert tally.tokens_per_s(last_s=10) == pytest.approx(200 / 1.1)


def test_steady_speed_leaves_out_the_time_in_which_one_cell_had_the_machine_alone() -> None:
    tally = Tally()
    tally.add([committed(t, "c0", t) for t in range(1, 5)])
    tally.add([committed(t, "c1", t) for t in range(2, 5)])
    tally.add([committed(4 + t / 10, "c1", 4 + t) for t in range(1, 9)])
    assert tally.steady_tokens_per_s() == pytest.approx(200)


def test_nothing_committed_is_no_speed() -> None:
    assert Tally().tokens_per_s() == 0
    assert Tally().steady_tokens_per_s() == 0
    assert Tally().loss is None


def test_rows_follow_what_nodes_say_of_themselves() -> None:
    tally = Tally()
    say = {"node": "a", "time": 0.0}
    tally.add(
        [
            committed(1, "c1", 1) | {"holders": {"0": ["b"], "1": ["a"], "2": ["a", "b"]}},
            say | {"event": "progress", "bytes_sent": 70, "memory_bytes": 9},
            say | {"event": "recovered", "stage": 2, "how": "holder", "seconds": 0.5, "reason": "x"},
            say | {"event": "fault", "what": "killed"},
            {"node": "b", "event": "progress", "bytes_sent": 5},
            {"event": "of a later version", "node": "c"},
        ]
    )
    row = tally.nodes["a"]
    assert (row.cell, row.stages, row.status, row.memory_bytes) == ("c1", (1, 2), "killed", 9)
    assert tally.bytes_sent == 75
    assert tally.recoveries == [{"stage": 2, "how": "holder", "seconds": 0.5}]


def test_a_node_that_left_the_roster_holds_nothing() -> None:
    tally = Tally()
    tally.add([committed(1, "c0", 1) | {"holders": {"0": ["a", "b"]}}])
    tally.add([committed(2, "c0", 2) | {"holders": {"0": ["b"]}}])
    assert tally.nodes["a"].stages == ()
    assert (tally.nodes["b"].stages, tally.nodes["b"].iteration, tally.nodes["b"].status) == (
        (0,),
        2,
        "training",
    )


def test_a_round_that_averaged_nothing_is_not_counted() -> None:
    tally = Tally()
    tally.add([{"event": "round", "round": 1, "members": {"0": [], "1": []}}])
    assert tally.rounds == 0
    tally.add([{"event": "round", "round": 2, "members": {"0": ["c0", "c1"], "1": []}}])
    assert tally.rounds == 2


def test_a_name_that_a_minority_gave_up_holds_nobody_back() -> None:
    tally = Tally()
    tally.add([committed(1, "c0", 3) | {"holders": {"0": ["a", "b"]}}])
    tally.add([committed(2, "c0~a.4", 7) | {"holders": {"0": ["a"]}}])
    tally.add([{"event": "fault", "what": "killed", "node": "b"}])
    assert tally.iteration == 7


def test_survivors_under_a_new_name_go_on_from_where_the_old_one_was() -> None:
    tally = Tally()
    tally.add([committed(1, "c0", 3) | {"holders": {"0": ["a", "b", "spare"]}}])
    tally.add([committed(2, "c0~a.4", 7) | {"holders": {"0": ["a"]}}])
    tally.add([{"event": "fault", "what": "killed", "node": "b"}])
    assert tally.nodes["spare"].status == "training"
    assert tally.iteration == 7
