"""What a soak of many seeds found, each as the smallest world that shows it."""

from pathlib import Path

import pytest
from small_worlds import fault, play, script, small_job

from swarm.daemon.node import next_incarnation
from swarm.lab.checkers import SETTLE_S, views_tell_the_truth
from swarm.lab.sim_node import virtual_now
from swarm.lab.simulate import whole_until_s
from swarm.lab.soak import TINY
from swarm.lab.wiretap import Wiretap
from swarm.meetings import OuterDelta, OuterMean
from swarm.messages import Plan, PlannedMicrobatch


def test_a_coordinator_whose_disk_is_full_goes_on_and_founds_the_job_when_there_is_room() -> None:
    """Seed 36: it could not write down who is here, and died of that."""
    full = script('[[fault]]\nat_s = 0.4\nkind = "disk_full"\nnode = "coordinator"\nfor_s = 8')
    played = play(small_job(nodes=3, cells=1, stages=2), full, model=TINY)
    played.assert_well()
    assert played.commits()[0].time > 8
    said = {event.fields["what"] for event in played.of("dropped") if "No space left" in event.fields["why"]}
    assert said == {"members", "founding"}


def test_a_node_that_cannot_write_down_that_it_entered_a_cell_enters_it_when_it_can() -> None:
    """Seed 36, next to it: entered and not written down, it would enter again after a restart."""
    full = script('[[fault]]\nat_s = 0.4\nkind = "disk_full"\nnode = "node:1"\nfor_s = 6')
    played = play(small_job(nodes=3, cells=1, stages=2), full, model=TINY)
    played.assert_well()
    node = played.world.nodes[1].node
    assert "entering" in {event.fields["what"] for event in played.of("dropped") if event.node == node}
    assert min(event.time for event in played.of("placed") if event.node == node) > 6


def test_a_node_that_starts_again_while_the_coordinator_is_away_finds_the_others() -> None:
    """Seed 37: it knew only whom the lobby had named when it joined: the coordinator."""
    gone = """
    [[fault]]
    at_s = 5
    kind = "crash"
    node = "coordinator"
    [[fault]]
    at_s = 7
    kind = "restart"
    node = "node:0"
    after_s = 3
    """
    job = small_job(nodes=4, cells=1, stages=2, iterations=60)
    played = play(job, script(gone), until_s=400, model=TINY, flops_per_s=1e6)
    played.assert_well()
    node = played.world.nodes[0].node
    assert all(other.view.status(node) == "alive" for other in played.world.nodes)


def test_a_plan_that_comes_twice_counts_each_microbatch_once() -> None:
    """Seed 36: begun again it forgot the tokens that it had counted, and reported none of what was done."""
    noise = '[[fault]]\nat_s = 2\nkind = "noise"\nnode = "node:{}"\nduplication = 0.9\nfor_s = 60'
    faults = "\n".join(noise.format(node) for node in range(3))
    job = small_job(nodes=3, cells=1, stages=1, iterations=6)
    play(job, script(faults), model=TINY, flops_per_s=1e6, latency_s=(0.05, 0.2)).assert_well()


def test_what_survivors_finish_is_held_against_the_plan_that_was_open_when_they_were_left() -> None:
    """Seed 14: a newcomer of that plan was gone, and in no roster, but what it had computed counted."""
    told = Wiretap(small_job(nodes=3, cells=1, stages=1))
    a, b, c = "a" * 64, "b" * 64, "c" * 64
    made = tuple(PlannedMicrobatch(index=i, path=((node, 0),)) for i, node in enumerate((a, b, c)))
    plan = Plan(
        cell="c0", slot=14, term=2, iteration=13, base="0" * 32, roster=((a, b, c),), microbatches=made
    )
    told.hear(a, "c0", plan, 1.0)
    assert told.planned_in("c0~aaaaaaaa.13", 15, foundings_before=1) == 3
    assert told.planned_in("c0~bbbbbbbb.14", 16, foundings_before=2) == 3  # seed 37: survivors of survivors
    assert told.planned_in("c0~aaaaaaaa.13", 15) == 0


def test_an_owner_tells_of_its_own_part_by_the_name_that_its_cell_had_when_it_was_given() -> None:
    """Seed 371: the round went on when its owner's cell had become another, and was held to be made up."""
    told = Wiretap(small_job(nodes=3, cells=1, stages=1))
    a, b = "a" * 64, "b" * 64
    mean = OuterMean(stage=0, anchor=0, anchor_digest="", members=("c0", "c1"), iterations=(5, 5))
    told.parts.add(("c0", 0, 5))
    told.hear(a, "c1", OuterDelta(cell="c1", stage=1, iteration=5, anchor=0, anchor_digest=""), 1.0)
    told.hear(a, "c1~aaaaaaaa.9", mean, 1.0)
    assert told.wrong == []
    told.hear(b, "c2", mean, 1.0)
    assert [sentence.endswith("but c1 has sent nothing for it") for sentence in told.wrong] == [True]


def test_a_node_that_came_back_before_everybody_else_finds_them_at_their_new_addresses() -> None:
    """Seed 140: all were down at once, and whoever was back before the coordinator stayed alone for good."""
    down = '[[fault]]\nat_s = 4\nkind = "restart"\nnode = "{}"\nafter_s = {}'
    outage = [down.format("coordinator", 40), down.format("node:0", 1)]
    outage += [down.format(f"node:{node}", 60) for node in (1, 2)]
    job = small_job(nodes=3, cells=1, stages=1, iterations=8, checkpoint_every=2)
    played = play(job, script("\n".join(outage)), until_s=200, model=TINY, flops_per_s=1e6)
    assert played.outcome.broken == ()
    everyone = played.world.processes
    assert {one.view.status(other.node) for one in everyone for other in everyone} == {"alive"}


def test_survivors_of_the_ends_alone_go_on_from_the_seed_of_the_job() -> None:
    """Seed 203: with every holder of the body gone and no checkpoint they stood still and did not say why."""
    job = small_job(nodes=4, cells=1, stages=2, iterations=12)
    played = play(job, fault("crash", "holders:1", at_s=3), model=TINY, flops_per_s=1e6)
    played.assert_well()
    assert {event.fields["how"] for event in played.of("recovered")} == {"seed"}


def test_who_slept_while_its_cell_went_on_under_another_name_is_of_use_there() -> None:
    """Seed 312: it waited ten minutes for a leader that was in the new cell, then trained by itself."""
    gone = """
    [[fault]]
    at_s = 3
    kind = "crash"
    node = "node:1"
    [[fault]]
    at_s = 3
    kind = "pause"
    node = "node:2"
    for_s = 30
    """
    job = small_job(nodes=4, cells=1, stages=2, iterations=30)
    played = play(job, script(gone), until_s=400, model=TINY, flops_per_s=1e6)
    played.assert_well()
    (founded,) = played.of("cell")
    slept = played.world.nodes[2].node
    finished = {event.node: event.fields["cell"] for event in played.of("finished")}
    assert finished[slept] == founded.fields["new"]


@pytest.mark.parametrize("breaks_s", [5.0, 6.3, 7.7])
def test_what_is_printed_replays_a_world_to_its_last_whole_look(
    breaks_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It played on for a second after its end, and found the same thing broken again."""
    bad = lambda world: ["broken"] if virtual_now() >= breaks_s else []  # noqa: E731
    monkeypatch.setattr("swarm.lab.world.CHECKERS", (bad,))
    job = small_job(nodes=2, cells=1, stages=1, iterations=40)
    first = play(job, model=TINY, flops_per_s=1e6).outcome
    again = play(job, model=TINY, flops_per_s=1e6, until_s=whole_until_s(first.seconds)).outcome
    assert first.broken
    assert not again.broken
    assert breaks_s - 1.01 <= again.seconds < breaks_s


GONE = """
[[fault]]
at_s = 3
kind = "crash"
node = "coordinator"
[[fault]]
at_s = 11
kind = "partition"
groups = [["node:0"], ["node:1", "node:2"]]
for_s = 58
"""


def test_sides_that_buried_each_other_and_restarted_meet_again_without_a_coordinator() -> None:
    """Seed 287: they came back on new ports, knew the others at old ones only, and nobody could tell them."""
    again = '[[fault]]\nat_s = 33\nkind = "restart"\nnode = "node:{}"\nafter_s = 2'
    faults = script("\n".join([GONE, *(again.format(node) for node in range(3))]))
    job = small_job(nodes=3, cells=1, stages=1, iterations=200)
    played = play(job, faults, until_s=132, model=TINY, flops_per_s=1e5)
    assert played.outcome.broken == ()
    nodes = played.world.nodes
    assert {one.view.status(other.node) for one in nodes for other in nodes} == {"alive"}


def test_two_that_buried_each_other_are_not_kept_apart_by_those_who_are_really_dead() -> None:
    """As in seed 396. What was wrong there, one of the dead called at a time, has a test of its own."""
    gone = "".join(
        f'[[fault]]\nat_s = 3\nkind = "crash"\nnode = "{who}"\n'
        for who in ("coordinator", "node:2", "node:3", "node:4")
    )
    apart = '[[fault]]\nat_s = 10\nkind = "partition"\ngroups = [["node:0"], ["node:1"]]\nfor_s = 60\n'
    job = small_job(nodes=5, cells=1, stages=1, iterations=4000)
    played = play(job, script(gone + apart), until_s=72 + SETTLE_S, model=TINY, flops_per_s=1e5)
    one, other = (played.world.nodes[index].node for index in (0, 1))
    for viewer, member in ((one, other), (other, one)):
        assert [e for e in played.of("member", member=member[:12], status="dead") if e.node == viewer]
    assert played.outcome.looked[views_tell_the_truth.__name__]
    assert played.outcome.broken == ()


def test_a_life_outranks_whatever_the_last_one_refuted(tmp_path: Path) -> None:
    """Seed 16: it came back with an incarnation that it had refuted with, and was not believed for good."""
    last = next_incarnation(tmp_path)
    assert next_incarnation(tmp_path) > last + 10_000
