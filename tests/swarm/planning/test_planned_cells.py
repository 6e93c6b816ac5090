from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.gossip.view import Facts, Member, MemberRecord, View
from swarm.job import Job, ModelSection, PipelineSection
from swarm.messages import CellRecord
from swarm.planning.cells import (
    Founder,
    assign_stages,
    cell_to_copy,
    choose_cell,
    genesis,
    place_newcomer,
    usual,
    went_on_as,
)
from transport.machine import NodeId


def node(index):
    return NodeId(f"{index:064x}")


def job(stages=4, cells=1):
    return Job(model=ModelSection(preset="7b"), pipeline=PipelineSection(stages=stages, cells=cells))


def founders(count, speeds=()):
    return [Founder(node(i), speeds[i] if speeds else 0.0) for i in range(count)]


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 6), st.randoms(use_true_random=False))
def test_every_cell_has_every_stage_and_every_node_one_cell(count, stages, cells, random):
    founded = founders(count)
    random.shuffle(founded)
    foundings = genesis(founded, job(stages, cells))
    assert len(foundings) == min(cells, count)
    nodes = [{n for held in f.roster for n in held} for f in foundings]
    assert sorted(n for members in nodes for n in members) == [node(i) for i in range(count)]
    assert max(map(len, nodes)) - min(map(len, nodes)) <= 1
    for founding in foundings:
        assert len(founding.roster) == stages
        assert all(founding.roster)
    assert foundings == genesis(founders(count), job(stages, cells))


def test_eight_nodes_found_two_cells_of_four_stages():
    foundings = genesis(founders(8), job(stages=4, cells=2))
    assert [f.cell for f in foundings] == ["c0", "c1"]
    assert foundings[0].roster == tuple((node(i),) for i in (0, 2, 4, 6))
    assert foundings[1].roster == tuple((node(i),) for i in (1, 3, 5, 7))


def test_a_node_alone_holds_every_stage():
    (founding,) = genesis(founders(1), job(stages=4, cells=3))
    assert founding.roster == ((node(0),),) * 4


@pytest.mark.parametrize(
    ("nodes", "stages", "held"),
    [(3, 4, [0, 1, 2, 2]), (2, 4, [0, 0, 1, 1]), (2, 5, [0, 0, 1, 1, 1]), (1, 2, [0, 0]), (3, 3, [0, 1, 2])],
)
def test_few_nodes_hold_consecutive_stages_the_ends_with_the_fewest(nodes, stages, held):
    assert assign_stages([node(i) for i in range(nodes)], stages) == tuple((node(i),) for i in held)


@pytest.mark.parametrize(
    ("nodes", "copies"),
    [(5, [1, 2, 1, 1]), (7, [1, 2, 2, 2]), (8, [2, 2, 2, 2]), (9, [2, 3, 2, 2])],
)
def test_extra_nodes_double_the_body_before_the_ends(nodes, copies):
    assert [len(held) for held in assign_stages([node(i) for i in range(nodes)], 4)] == copies


def test_extra_nodes_of_an_uncut_model_all_hold_it():
    assert assign_stages([node(0), node(1), node(2)], 1) == ((node(0), node(1), node(2)),)


def test_cells_get_about_equal_speed():
    speeds = (8.0, 7.0, 2.0, 1.0)
    fast = {node(i): speed for i, speed in enumerate(speeds)}
    foundings = genesis(founders(4, speeds), job(stages=1, cells=2))
    assert [sum(fast[n] for n in f.roster[0]) for f in foundings] == [9.0, 9.0]


def test_a_seed_shuffles_who_holds_what_and_repeats_itself():
    plain = genesis(founders(8), job(stages=8))
    shuffled = genesis(founders(8), job(stages=8), Random(3))
    assert shuffled == genesis(founders(8), job(stages=8), Random(3))
    assert shuffled != plain
    assert sorted(shuffled[0].roster) == sorted(plain[0].roster)


def test_no_founders_is_an_error():
    with pytest.raises(ValueError, match="no nodes"):
        genesis([], job())


A, B, C, D = map(node, range(4))


@pytest.mark.parametrize(
    ("roster", "stage", "replaces"),
    [
        (((A,), (), (B,), ()), 1, None),
        (((), (), (B, B), ()), 0, None),
        (((A,), (A,), (A,), (A,)), 3, A),
        (((A,), (A,), (B,), (B,)), 1, A),
        (((A,), (B,), (B,), (C,)), 2, B),
        (((A,), (B,), (B,), (B, C)), 2, B),
        (((A,), (B,), (C,)), 1, None),
        (((A,), (B, C), (D,)), 2, None),
        (((A,), (B, C)), 0, None),
        (((A,),), 0, None),
    ],
)
def test_where_a_newcomer_goes(roster, stage, replaces):
    place = place_newcomer(roster, node(9))
    assert (place.stage, place.replaces) == (stage, replaces)
    assert place.reason


def test_newcomers_one_after_another_take_a_lone_founders_stages_from_the_top():
    roster = [[A]] * 4
    for newcomer in (B, C, D):
        place = place_newcomer(roster, newcomer)
        assert place.replaces == A
        roster = [held if stage != place.stage else [newcomer] for stage, held in enumerate(roster)]
    assert roster == [[A], [D], [C], [B]]


def test_a_node_in_the_roster_is_no_newcomer():
    with pytest.raises(ValueError, match="no newcomer"):
        place_newcomer(((A,), (B,)), A)


def member(index, cell="", status="alive", role="worker"):
    record = MemberRecord(
        job="00",
        node=node(index),
        incarnation=0,
        seq=0,
        role=role,
        gossip="",
        work="",
        curve_key="",
        certificate=b"",
        facts=Facts(cell=cell),
    )
    return Member(record, status)


def view(*members):
    return View({m.node: m for m in members})


TWO = (member(0, "c0"), member(1, "c0"), member(2, "c1"))


@pytest.mark.parametrize(
    ("members", "cells", "me", "act", "cell"),
    [
        ((*TWO, member(5)), 2, 5, "join", "c1"),
        ((*TWO, member(3, "c1"), member(5)), 2, 5, "join", "c0"),
        ((*TWO, member(5)), 3, 5, "found", None),
        ((*TWO, member(5), member(6)), 3, 6, "join", "c1"),
        ((member(5), member(6)), 1, 5, "found", None),
        ((member(5), member(6)), 1, 6, "wait", None),
        ((member(0, "c0"), member(2, "c1", "suspect"), member(5)), 2, 5, "join", "c0"),
        ((member(0, "c0"), member(2, "c1", "dead"), member(5)), 2, 5, "found", None),
        ((member(0, "c0", "suspect"), member(5)), 1, 5, "wait", None),
        ((member(0, role="coordinator"), member(5)), 1, 5, "found", None),
        ((), 1, 5, "found", None),
    ],
)
def test_what_a_standby_does(members, cells, me, act, cell):
    choice = choose_cell(view(*members), job(cells=cells), node(me))
    assert (choice.act, choice.cell) == (act, cell)
    assert choice.reason.endswith(".")


@given(st.integers(1, 6), st.integers(1, 6), st.lists(st.sampled_from(["c0", "c1", "c2", ""]), max_size=8))
def test_standbys_with_one_view_found_at_most_one_cell(cells, standbys, placed):
    members = [member(i, cell) for i, cell in enumerate(placed)]
    members += [member(100 + i) for i in range(standbys)]
    everyone = view(*members)
    acts = [choose_cell(everyone, job(cells=cells), m.node).act for m in everyone.standby()]
    assert acts.count("found") <= 1


def at(index, cell, iteration, round=0):
    facts = Facts(cell=cell, iteration=iteration, round=round)
    return Member(member(index).record.model_copy(update={"facts": facts}), "alive")


HONEST = (
    at(0, "c0", 50),
    at(1, "c0", 51),
    at(2, "c0", 50),
    at(3, "c1", 60),
    at(4, "c1", 60),
    at(5, "c1", 61),
)


@pytest.mark.parametrize("lie", [at(9, "c9", 1999), at(9, "c9", 0), at(9, "c1", 1999), at(9, "c1", 0)])
def test_one_liar_changes_little_of_where_a_new_cell_begins(lie):
    members = cell_to_copy(view(*HONEST, lie), job())
    assert members[0].facts.cell in ("c0", "c1")
    assert 50 <= usual(m.facts.iteration for m in members) <= 60


def test_nobody_s_state_is_copied_where_nobody_trains():
    assert cell_to_copy(view(member(5), at(9, "c9", 10**9)), job()) == ()


def holding(index, cell, *stages, status="alive"):
    facts = Facts(cell=cell, stages=stages)
    return Member(member(index).record.model_copy(update={"facts": facts}), status)


def of_four(cell="c0", slot=8):
    """A record of four members, of which the last holds stage 1 alone."""
    roster = ((node(0), node(1), node(2)), (node(3),))
    return CellRecord(
        cell=cell,
        slot=slot,
        term=1,
        act="step",
        iteration=4,
        round=0,
        previous="",
        roster=roster,
        leader=node(0),
    )


@pytest.mark.parametrize(
    ("others", "record", "name"),
    [
        ([holding(0, "c0~0.8", 0), holding(1, "c0~0.8", 1)], of_four(), "c0~0.8"),
        ([holding(0, "c0~0.9", 0), holding(1, "c0~0.9", 1)], of_four(), "c0~0.9"),
        ([holding(0, "c0~0.8", 0), holding(1, "c0~0.8"), holding(7, "c0~0.8", 1)], of_four(), "c0~0.8"),
        ([holding(0, "c0~0.8", 0), holding(1, "c0~0.8", 0)], of_four(), ""),
        ([holding(0, "c0~0.8", 0, 1), holding(1, "c0", 0), holding(2, "c0", 0)], of_four(), ""),
        ([holding(0, "c0~0.8", 0), holding(1, "c0~0.8", 1, status="dead")], of_four(), ""),
        ([holding(0, "c0~0.8", 0, 1), holding(1, "c0~1.8", 0, 1)], of_four(), ""),
        ([holding(0, "c1~0.8", 0), holding(1, "c1~0.8", 1)], of_four(), ""),
        ([holding(0, "c0~0.7", 0), holding(1, "c0~0.7", 1)], of_four(), ""),
        ([holding(0, "c0", 0), holding(1, "c0", 1)], of_four("c0~0.8", 9), ""),
        ([holding(0, "c0~0.8", 0), holding(1, "c0~0.8", 1)], of_four("c0~0.8", 9), ""),
    ],
)
def test_a_cell_went_on_without_a_member_where_half_of_it_has_what_that_one_holds(others, record, name):
    assert went_on_as(view(*others, holding(3, record.cell, 1)), record, node(3)) == name


def test_whom_the_record_does_not_name_is_not_left_behind():
    others = [holding(0, "c0~0.8", 0), holding(1, "c0~0.8", 1)]
    assert went_on_as(view(*others, member(5)), of_four(), node(5)) == ""
