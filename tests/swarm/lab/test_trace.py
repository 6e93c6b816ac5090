"""A recorded day on the nodes of a world."""

from pathlib import Path

import pytest

from swarm.lab.faults import Crash, FaultError, Restart
from swarm.lab.trace import in_company, load_trace, parse_trace, replay

DAY = """0,add,a
0,add,b
60000,remove,a
60000,no-op,
120000,add,c
180000,add,d
180000,add,e
240000,remove,e
300000,remove,b
"""


def test_who_is_added_takes_the_lowest_free_seat_and_who_finds_none_is_left_out() -> None:
    found = replay(parse_trace(DAY), 3)
    assert found.left_out == 1
    assert found.faults == (
        Restart(kind="restart", node="node:2", at_s=0.5, after_s=179.5),
        Restart(kind="restart", node="node:0", at_s=60, after_s=60),
        Crash(kind="crash", node="node:1", at_s=300),
    )


def test_a_seat_that_nobody_has_taken_yet_is_no_loss() -> None:
    found = replay(parse_trace(DAY), 6)
    assert {fault.node for fault in found.faults} == {f"node:{seat}" for seat in range(6)}  # type: ignore[union-attr]
    assert [fault.at_s for fault in found.losses] == [60, 240, 300]


def test_a_speed_up_is_that_many_times_as_fast() -> None:
    assert [fault.at_s for fault in replay(parse_trace(DAY), 3, speed_up=10).faults] == [0.5, 6, 30]


def test_nodes_that_the_trace_never_uses_are_away_for_ever() -> None:
    faults = replay(parse_trace(DAY), 6).faults
    assert [f.node for f in faults if isinstance(f, Crash) and f.at_s == 0.5] == ["node:4", "node:5"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "nobody"),
        ("0,no-op,\n", "nobody"),
        ("x,add,a\n", "line 1 is not"),
        ("0,explode,a\n", "line 1 is not"),
        ("9,add,a\n1,add,b\n", "line 2 is earlier"),
        ("0,add,\n", "names no node"),
        (f"{'9' * 5000},add,a\n", "line 1 is not"),
        (f"0,add,{'a' * 200_000}\n", "the trace is not a trace: field larger than"),
    ],
)
def test_what_is_no_trace_is_one_sentence(text: str, says: str) -> None:
    with pytest.raises(FaultError, match=says):
        parse_trace(text)


def test_a_trace_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FaultError, match=r"cannot read .*nothing\.csv"):
        load_trace(tmp_path / "nothing.csv")


def test_a_loss_has_company_if_another_is_near_it() -> None:
    assert in_company(zip([0, 30, 500, 1000, 1060], "ababa", strict=True)) == pytest.approx(0.8)
    assert in_company(zip([0, 30, 60, 1000, 1001], "aaaab", strict=True)) == pytest.approx(0.4), (
        "its own is none"
    )
    assert in_company([]) == 0.0
