"""Promises 1-3: no one's death stops training, and what was committed stays."""

from itertools import pairwise

import pytest
from small_worlds import Played, fault, play, script, small_job

PROCESSES = [*(f"node:{index}" for index in range(8)), "coordinator"]
MOMENTS_S = (2.0, 3.3)
MORE_MOMENTS_S = tuple(1.05 + 0.17 * step for step in range(24))


def killed(who: str, at_s: float) -> Played:
    return play(small_job(), fault("crash", who, at_s=at_s))


@pytest.mark.parametrize("at_s", MOMENTS_S)
@pytest.mark.parametrize("who", PROCESSES)
def test_killing_any_one_process_never_stops_training(who: str, at_s: float) -> None:
    played = killed(who, at_s)
    played.assert_well()
    assert played.reached() == {"c0": 10, "c1": 10}


@pytest.mark.slow
@pytest.mark.parametrize("at_s", MORE_MOMENTS_S)
@pytest.mark.parametrize("who", PROCESSES)
def test_killing_any_one_process_at_any_moment_never_stops_training(who: str, at_s: float) -> None:
    played = killed(who, at_s)
    played.assert_well()
    assert played.reached() == {"c0": 10, "c1": 10}


def test_without_its_coordinator_a_job_loses_no_time() -> None:
    calm = play(small_job(iterations=6))
    without = play(small_job(iterations=6), fault("crash", "coordinator", at_s=1.5))
    without.assert_well()
    last = [run.commits()[-1].time for run in (calm, without)]
    assert last[1] == pytest.approx(last[0], rel=0.2)


def test_a_stage_lost_in_one_cell_comes_back_from_the_other() -> None:
    played = play(small_job(), fault("crash", "holder:2", at_iteration=4))
    played.assert_well()
    (recovered,) = played.of("recovered")
    assert (recovered.fields["stage"], recovered.fields["how"]) == (2, "other_cell")


def test_a_stage_lost_in_every_cell_is_skipped_then_rebuilt_and_the_loss_falls_again() -> None:
    job = small_job(nodes=4, cells=1, iterations=60, every=100)
    played = play(job, fault("crash", "holders:2", at_iteration=30), until_s=400)
    played.assert_well()
    at = played.of("fault")[0].time
    assert any(2 in event.fields["skipped"] for event in played.of("planned") if event.time > at)
    assert [event.fields["how"] for event in played.of("recovered", stage=2)] == ["checkfree"]
    losses = [event.fields["loss"] for event in played.commits()]
    after = [event.fields["loss"] for event in played.commits(after_s=at)]
    rebuilt = [event.fields["loss"] for event in played.commits(after_s=played.of("recovered")[0].time)]
    assert sum(rebuilt[-5:]) < 0.97 * sum(rebuilt[:5])
    assert sum(after[-5:]) / 5 < losses[0] * 0.8


def test_a_stage_lost_in_both_of_two_cells_is_rebuilt_in_both() -> None:
    played = play(small_job(iterations=20), fault("crash", "holders:2", at_iteration=7), until_s=400)
    played.assert_well()
    assert played.reached() == {"c0": 20, "c1": 20}
    assert "checkfree" in {event.fields["how"] for event in played.of("recovered", stage=2)}


def test_a_killed_node_that_comes_back_is_the_same_node_and_takes_part() -> None:
    played = play(small_job(iterations=30), fault("restart", "node:2", at_s=3.0, after_s=4), until_s=300)
    played.assert_well()
    node = played.world.nodes[2].node
    lives = [event.fields["incarnation"] for event in played.of("started") if event.node == node]
    assert len(lives) == 2 and lives[0] < lives[1]
    holders = played.commits()[-1].fields["holders"]
    everyone = {
        name
        for event in played.commits(after_s=10)
        for row in event.fields["holders"].values()
        for name in row
    }
    assert holders
    assert node[:12] in everyone


def test_half_the_swarm_dies_one_after_the_other_and_nothing_committed_is_undone() -> None:
    deaths = "\n".join(
        f'[[fault]]\nat_iteration = {at}\nkind = "crash"\nnode = "random"' for at in (4, 12, 20, 28)
    )
    played = play(small_job(iterations=40), script(deaths), until_s=400)
    played.assert_well()
    assert len(played.of("fault")) == 4
    by_cell: dict[str, list[int]] = {}
    for event in played.commits():
        by_cell.setdefault(event.fields["cell"], []).append(event.fields["iteration"])
    assert all(iterations == sorted(iterations) for iterations in by_cell.values())


@pytest.mark.parametrize("seed", [2, 3])
def test_leaders_that_are_back_before_they_are_missed_are_followed_by_others(seed: int) -> None:
    """They are alive in every view and in no cell: the others waited for them to lead."""
    back = [
        f'[[fault]]\nat_iteration = 4\nkind = "restart"\nnode = "holder:0"\nafter_s = {s}' for s in (0.2, 0.5)
    ]
    played = play(small_job(iterations=12, stages=2), script("\n".join(back)), seed=seed)
    played.assert_well()
    for cell in {event.fields["cell"] for event in played.commits()}:
        times = [event.time for event in played.of("committed", cell=cell)]
        assert max(later - sooner for sooner, later in pairwise(times)) < 5


def test_ends_without_a_copy_come_back_from_the_last_checkpoint() -> None:
    job = small_job(nodes=4, cells=1, iterations=20, checkpoint_every=6, plus_copies=False)
    played = play(job, fault("crash", "holders:0", at_iteration=14))
    played.assert_well()
    (recovered,) = played.of("recovered")
    assert (recovered.fields["stage"], recovered.fields["how"]) == (0, "checkpoint")


@pytest.mark.parametrize("victim", [0, 1])
def test_of_two_nodes_either_may_die_before_anything_is_archived(victim: int) -> None:
    """Nothing is left of the only body stage then: the other went on asking for it for ever."""
    job = small_job(nodes=2, cells=1, stages=2, iterations=12)
    played = play(job, fault("restart", f"node:{victim}", at_iteration=3, after_s=8), until_s=120)
    played.assert_well()
    hows = {event.fields["how"] for event in played.of("recovered")}
    assert hows & {"seed", "plus_copy"}
