"""The fault script: one clear sentence for a mistake, and each fault begun and undone once."""

from pathlib import Path
from random import Random

import pytest

from swarm.lab.faults import Crash, Cut, FaultError, Partition, load_faults, parse_faults
from swarm.lab.schedule import FaultSchedule, timed
from swarm.lab.selectors import Standing, select

SCRIPT = """
[[fault]]
at_s = 60
kind = "crash"
node = "holders:2"

[[fault]]
at_iteration = 20
kind = "restart"
node = "random"
after_s = 10

[[fault]]
at_s = 5.5
kind = "pause"
node = "node:3"
for_s = 2

[[fault]]
at_s = 70
kind = "cut"
between = [["node:0"], ["node:1", "coordinator"]]

[[fault]]
at_s = 80
kind = "partition"
groups = [["node:0"], ["node:1"], ["node:2", "holder:1"]]
for_s = 30

[[fault]]
at_s = 90
kind = "slow_link"
node = "node:1"
factor = 8
for_s = 5

[[fault]]
at_s = 90
kind = "slow_compute"
node = "node:1"
factor = 3.5

[[fault]]
at_s = 95
kind = "corrupt"
node = "coordinator"
messages = 4

[[fault]]
at_s = 120
kind = "disk_full"
node = "region:eu-west"
for_s = 7

[[fault]]
at_s = 130
kind = "clock_skew"
node = "node:1"
by_s = -3600

[[fault]]
at_s = 140
kind = "noise"
node = "node:1"
loss = 0.25
duplication = 0.1
for_s = 5
"""
STANDING = Standing(
    nodes=("a", "b", "c", "d"),
    live=("a", "b", "d"),
    coordinator="boss",
    holders={0: ("a",), 2: ("b", "d")},
    regions={"eu-west": ("a", "d")},
)


def _entry(text: str) -> str:
    return f"[[fault]]\n{text}\n"


def test_every_kind_of_fault_parses() -> None:
    faults = parse_faults(SCRIPT)
    assert [fault.kind for fault in faults] == [
        "crash",
        "restart",
        "pause",
        "cut",
        "partition",
        "slow_link",
        "slow_compute",
        "corrupt",
        "disk_full",
        "clock_skew",
        "noise",
    ]
    assert isinstance(faults[0], Crash)
    assert faults[0].node == "holders:2"
    assert isinstance(faults[3], Cut)
    assert faults[3].between == (("node:0",), ("node:1", "coordinator"))
    assert isinstance(faults[4], Partition)
    assert len(faults[4].groups) == 3
    assert [fault.lasts_s for fault in faults] == [None, 10, 2, None, 30, 5, None, None, 7, None, 5]


def test_an_empty_script_has_no_faults() -> None:
    assert parse_faults("") == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[fault]", "not valid TOML"),
        ("[[fualt]]", "fualt"),
        (_entry('at_s = 1\nkind = "explode"\nnode = "node:1"'), "explode"),
        (_entry('at_s = 1\nkind = "crash"'), "node: Field required"),
        (_entry('at_s = 1\nkind = "crash"\nnode = "nod:1"'), "'nod:1' is not node:N"),
        (_entry('kind = "crash"\nnode = "node:1"'), "exactly one of at_s, at_iteration and per_hour"),
        (_entry('at_s = 1\nat_iteration = 2\nkind = "crash"\nnode = "node:1"'), "exactly one of"),
        (_entry('at_s = 1\nkind = "crash"\nnode = "node:1"\nfor_s = 3'), "for_s"),
        (_entry('per_hour = 1.5\nkind = "crash"\nnode = "random"'), "less than 1"),
        (_entry('at_s = 1\nfrom_s = 1\nkind = "crash"\nnode = "random"'), "go with per_hour"),
        (
            _entry('per_hour = 0.1\nfrom_s = 9\nuntil_s = 9\nkind = "crash"\nnode = "random"'),
            "not after from_s",
        ),
        (_entry('at_s = 1\nkind = "crash"\nnode = "region:"'), "region:NAME"),
        (_entry('at_s = 1\nkind = "noise"\nnode = "node:1"'), "at least one of loss"),
        (_entry('at_s = nan\nkind = "crash"\nnode = "node:1"'), "finite"),
        (_entry('at_s = 1\nkind = "slow_link"\nnode = "node:1"\nfactor = 0.5'), "greater than 1"),
        (_entry('at_s = 1\nkind = "partition"\ngroups = [["node:1"]]'), "at least 2"),
        (_entry('at_s = 1\nkind = "cut"\nbetween = [["node:1"], ["node:1"]]'), "node:1 is on two sides"),
        (
            _entry('at_s = 1\nkind = "partition"\ngroups = [["node:1", "node:2"], ["node:2"]]'),
            "node:2 is on two sides",
        ),
        (_entry('at_s = 1\nkind = "cut"\nbetween = [["node:1"], []]'), "at least 1"),
    ],
)
def test_a_mistake_is_one_sentence(text: str, says: str) -> None:
    with pytest.raises(FaultError, match=r"^my\.toml") as caught:
        parse_faults(text, "my.toml")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unreadable_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FaultError, match=r"cannot read .*missing\.toml: No such file"):
        load_faults(tmp_path / "missing.toml")


@pytest.mark.parametrize(
    ("selector", "chosen"),
    [
        ("node:2", ("c",)),
        ("node:9", ()),
        ("coordinator", ("boss",)),
        ("holders:2", ("b", "d")),
        ("holders:1", ()),
        ("holder:0", ("a",)),
        ("holder:1", ()),
        ("region:eu-west", ("a", "d")),
        ("region:nowhere", ()),
    ],
)
def test_a_selector_means(selector: str, chosen: tuple[str, ...]) -> None:
    assert select(selector, STANDING, Random(0)) == chosen


def test_random_selectors_choose_one_by_the_seed() -> None:
    for selector, among in (("random", "abd"), ("holder:2", "bd")):
        chosen = [select(selector, STANDING, Random(seed)) for seed in range(50)]
        assert chosen == [select(selector, STANDING, Random(seed)) for seed in range(50)]
        assert {node for (node,) in chosen} == set(among)


def _run(schedule: FaultSchedule, steps: list[tuple[float, int]]) -> list[tuple[float, str, bool]]:
    return [
        (now_s, firing.fault.kind, firing.undo)
        for now_s, iteration in steps
        for firing in schedule.due(now_s, iteration)
    ]


def test_each_fault_is_begun_and_undone_once() -> None:
    schedule = FaultSchedule(parse_faults(SCRIPT))
    steps = [(float(second), second // 2) for second in range(0, 200)]
    assert _run(schedule, steps) == [
        (6.0, "pause", False),
        (8.0, "pause", True),
        (40.0, "restart", False),
        (50.0, "restart", True),
        (60.0, "crash", False),
        (70.0, "cut", False),
        (80.0, "partition", False),
        (90.0, "slow_link", False),
        (90.0, "slow_compute", False),
        (95.0, "slow_link", True),
        (95.0, "corrupt", False),
        (110.0, "partition", True),
        (120.0, "disk_full", False),
        (127.0, "disk_full", True),
        (130.0, "clock_skew", False),
        (140.0, "noise", False),
        (145.0, "noise", True),
    ]
    assert schedule.next_s() is None


def test_a_world_that_wakes_when_told_misses_nothing() -> None:
    schedule = FaultSchedule(parse_faults(SCRIPT))
    times = []
    while (when := schedule.next_s()) is not None:
        times.append(when)
        assert schedule.due(when, 0)
    assert times == [5.5, 7.5, 60, 70, 80, 90, 95, 110, 120, 127, 130, 140, 145]


def test_a_late_call_begins_faults_in_order_and_keeps_their_length() -> None:
    schedule = FaultSchedule(parse_faults(SCRIPT))
    begun = schedule.due(1000.0, 0)
    assert [firing.fault.at_s for firing in begun] == [5.5, 60, 70, 80, 90, 90, 95, 120, 130, 140]
    assert schedule.next_s() == 1002.0


BY_RATE = """
[[fault]]
per_hour = 0.1
kind = "crash"
node = "random"
[[fault]]
per_hour = 0.5
from_s = 3600
until_s = 7200
kind = "restart"
node = "coordinator"
after_s = 5
"""


def test_by_rate_each_node_is_hit_in_an_hour_with_the_probability_that_the_script_gives() -> None:
    hit, each = 0, parse_faults(BY_RATE)[:1]
    for seed in range(10):
        faults = timed(each, nodes=400, until_s=3600, rng=Random(seed))
        hit += len({fault.node for fault in faults if isinstance(fault, Crash)})
    assert 0.085 < hit / 4000 < 0.115


def test_by_rate_anything_else_than_random_is_hit_as_one_and_only_between_its_times() -> None:
    one = parse_faults(BY_RATE)[1:]
    hits = [fault for seed in range(400) for fault in timed(one, nodes=9, until_s=1e9, rng=Random(seed))]
    assert {fault.kind for fault in hits} == {"restart"}
    assert all(3600 <= (fault.at_s or 0) < 7200 and fault.per_hour is None for fault in hits)
    untouched = sum(not timed(one, nodes=9, until_s=1e9, rng=Random(seed)) for seed in range(400)) / 400
    assert 0.42 < untouched < 0.58


def test_by_rate_a_longer_run_begins_like_a_shorter_one() -> None:
    script = parse_faults(BY_RATE) + parse_faults(SCRIPT)
    short, long = (timed(script, nodes=30, until_s=until_s, rng=Random(3)) for until_s in (5000, 50_000))
    assert [fault for fault in long if (fault.at_s or 0) < 5000] == list(short)
    assert len(long) > len(short)
