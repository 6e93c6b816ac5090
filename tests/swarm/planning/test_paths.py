import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.messages import PlannedMicrobatch
from swarm.planning.paths import plan_paths, reroute, start_again


def node(text):
    return text.encode().hex().ljust(64, "0")


A, B, C, D, E, F = map(node, "abcdef")


@st.composite
def rosters(draw, disjoint=False):
    """1-6 stages of 0-4 holders each; stage 0 has at least one."""
    count = draw(st.integers(1, 6))
    if disjoint:
        sizes = [draw(st.integers(1 if s == 0 else 0, 4)) for s in range(count)]
        return tuple(tuple(node(f"{s}.{i}") for i in range(size)) for s, size in enumerate(sizes))
    names = st.sampled_from([node(str(i)) for i in range(8)])
    held = [draw(st.lists(names, min_size=1 if s == 0 else 0, max_size=4, unique=True)) for s in range(count)]
    return tuple(map(tuple, held))


@given(rosters(), st.integers(0, 12), st.data())
def test_a_path_starts_at_its_data_node_and_climbs_through_every_held_stage_once(roster, count, data):
    speeds = {n: data.draw(st.floats(0, 1e15)) for n in {n for held in roster for n in held}}
    planned = plan_paths(roster, roster[0], count, speeds)
    assert [m.index for m in planned] == list(range(count * len(roster[0])))
    for microbatch in planned:
        start, *_ = microbatch.path
        assert start[1] == 0
        assert start[0] in roster[0]
        assert [stage for _, stage in microbatch.path] == [s for s, held in enumerate(roster) if held]
        assert all(holder in roster[stage] for holder, stage in microbatch.path)


@given(rosters(disjoint=True), st.integers(1, 12))
def test_holders_of_equal_speed_get_equally_many_microbatches_within_one(roster, count):
    planned = plan_paths(roster, roster[0], count)
    for stage, holders in enumerate(roster):
        loads = [sum((holder, stage) in m.path for m in planned) for holder in holders]
        assert not loads or max(loads) - min(loads) <= 1


@given(rosters(), st.integers(1, 6))
def test_plans_are_a_function_of_the_roster_and_fit_the_wire(roster, count):
    planned = plan_paths(roster, roster[0], count)
    assert planned == plan_paths(roster, roster[0], count)
    assert all(PlannedMicrobatch.model_validate(m.model_dump()) == m for m in planned)


def test_every_data_node_starts_as_many_microbatches():
    planned = plan_paths(((A, B), (C,)), (A, B), 3)
    assert [m.path[0][0] for m in planned] == [A, B, A, B, A, B]


def test_a_node_three_times_as_fast_gets_three_quarters():
    planned = plan_paths(((A,), (B, C)), (A,), 40, {B: 3e9, C: 1e9, A: 1e9})
    assert sum((B, 1) in m.path for m in planned) == 30


def test_a_node_without_a_measured_speed_counts_as_average():
    planned = plan_paths(((A,), (B, C)), (A,), 40, {A: 2e9, B: 2e9, C: 0.0})
    assert sum((B, 1) in m.path for m in planned) == 20


def test_a_node_alone_with_every_stage_serves_every_hop():
    (microbatch,) = plan_paths(((A,), (A,), (A,)), (A,), 1)
    assert microbatch.path == ((A, 0), (A, 1), (A, 2))


def test_a_tie_stays_on_the_node_the_microbatch_is_on():
    (first, *_) = plan_paths(((A,), (B, C), (B, C)), (A,), 1, {A: 1.0, B: 1.0, C: 1.0})
    assert first.path == ((A, 0), (B, 1), (C, 2))  # C has done nothing yet, so this is no tie
    (only,) = plan_paths(((B,), (A, B)), (B,), 1, {A: 1.0, B: 2.0})
    assert only.path == ((B, 0), (B, 1))  # both would be through after one unit of time


def test_a_data_node_that_does_not_hold_the_ends_is_refused():
    with pytest.raises(ValueError, match="does not hold stage 0"):
        plan_paths(((A,), (B,)), (A, B), 1)


PATH = ((A, 0), (B, 1), (C, 2), (D, 3))


@pytest.mark.parametrize(
    ("position", "roster", "avoid", "path"),
    [
        (0, ((A,), (B, E), (C,), (D,)), (), ((A, 0), (E, 1), (C, 2), (D, 3))),
        (1, ((A,), (B,), (C, E), (D,)), (), ((A, 0), (B, 1), (E, 2), (D, 3))),
        (1, ((A,), (B,), (C,), (D,)), (), ((A, 0), (B, 1), (D, 3))),
        (2, ((A,), (B,), (C,), (D,)), (), ((A, 0), (B, 1), (C, 2))),
        (1, ((A,), (B,), (B, C, E), (D,)), (), ((A, 0), (B, 1), (B, 2), (D, 3))),
        (1, ((A,), (B,), (C, E, F), (D,)), (E,), ((A, 0), (B, 1), (F, 2), (D, 3))),
        (1, ((A,), (B,), (C, E), (D, F)), (D,), ((A, 0), (B, 1), (E, 2), (F, 3))),
        (1, ((A,), (B,), (C, E), (D,)), (E, D), ((A, 0), (B, 1))),
        (1, ((A,), (B,), (E,), (D,)), (), ((A, 0), (B, 1), (E, 2), (D, 3))),
        (1, ((A,), (B,), (E, C, F), (D,)), (), ((A, 0), (B, 1), (F, 2), (D, 3))),
        (1, ((A,),), (), ((A, 0), (B, 1), (D, 3))),
    ],
)
def test_a_dead_hop_is_routed_around(position, roster, avoid, path):
    way = reroute(PATH, position, roster, frozenset(avoid))
    assert way.path == path
    assert "stage" in way.reason


@pytest.mark.parametrize(("position", "avoid"), [(3, ()), (1, (A,))])
def test_the_data_node_is_never_replaced(position, avoid):
    way = reroute(PATH, position, ((A, E), (B,), (C, E), (D,)), frozenset(avoid))
    assert way.path is None
    assert "data node" in way.reason


@given(rosters(), st.data())
def test_a_new_path_keeps_what_happened_and_avoids_what_is_dead(roster, data):
    path = plan_paths(roster, roster[0][:1], 1)[0].path
    position = data.draw(st.integers(0, len(path) - 1))
    everyone = sorted({n for held in roster for n in held})
    avoid = frozenset(data.draw(st.lists(st.sampled_from(everyone))))
    way = reroute(path, position, roster, avoid)
    dead = avoid | ({path[position + 1][0]} if position + 1 < len(path) else {path[0][0]})
    assert (way.path is None) == (path[0][0] in dead)
    if way.path is not None:
        assert way.path[: position + 1] == path[: position + 1]
        rest = way.path[position + 1 :]
        assert all(n in roster[s] and n not in dead for n, s in rest)
        held = {s for s, holders in enumerate(roster) if set(holders) - dead}
        assert [s for _, s in rest] == [s for _, s in path[position + 1 :] if s in held]


@pytest.mark.parametrize(
    ("roster", "avoid", "path"),
    [
        (((A,), (B, E), (C,), (D,)), (), ((A, 0), (E, 1), (C, 2), (D, 3))),
        (((A,), (B, E), (C,), (D,)), (E,), ((A, 0), (B, 1), (C, 2), (D, 3))),
        (((A,), (B,), (C,), (D,)), (C,), ((A, 0), (B, 1), (D, 3))),
        (((A, E), (B,), (C,), (D,)), (A,), None),
    ],
)
def test_a_microbatch_that_starts_again_tries_other_holders_first(roster, avoid, path):
    assert start_again(PATH, roster, frozenset(avoid)).path == path
