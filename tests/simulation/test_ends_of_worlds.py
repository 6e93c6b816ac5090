"""How a world ends: its views are judged first, and who could have gone on is not excused."""

import asyncio
from math import inf

import pytest
from small_worlds import fault, script, small_job
from small_worlds import play as play_world

from swarm.daemon.job_founding import JobFounding
from swarm.lab.checkers import SETTLE_S, views_tell_the_truth
from swarm.lab.faults import Fault
from swarm.lab.sim_node import virtual_now
from swarm.lab.soak import TINY, Scenario, draw, play
from swarm.lab.soaking import summary
from swarm.lab.world import Outcome, WorldOptions

CRASH = '[[fault]]\nkind = "crash"\nnode = "{}"\nat_s = {}\n'
RESTART = '[[fault]]\nkind = "restart"\nnode = "node:0"\nat_s = {}\nafter_s = 2\n'


@pytest.mark.parametrize("settle_s", [0.0, SETTLE_S + 5])
def test_a_world_that_may_settle_lives_on_until_its_views_were_judged(settle_s: float) -> None:
    """Nearly all ended with their job, before any view had to tell the truth."""
    faults = script(CRASH.format("node:2", 3))
    job = small_job(nodes=3, cells=1, stages=2, iterations=4)
    played = play_world(job, faults, settle_s=settle_s, model=TINY, flops_per_s=1e8)
    played.assert_well()
    looked = played.outcome.looked.get(views_tell_the_truth.__name__, 0)
    assert (looked > 0) is (settle_s > 0)
    assert not played.of("left"), "who is to be judged stays"


def one_node(*faults: Fault) -> Outcome:
    """A drawn world of one node whose job would take a minute."""
    job = small_job(nodes=1, cells=1, stages=2, iterations=40)
    options = WorldOptions(job=job, faults=faults, model=TINY, flops_per_s=1e7, until_s=50.0)
    return play(Scenario(classes=("restart",), options=options))


def test_who_could_have_gone_on_and_did_not_is_not_excused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was enough that at any moment nobody held a stage, though all were back and nothing moved."""

    async def never(_: JobFounding) -> None:
        await asyncio.sleep(1000.0)

    monkeypatch.setattr(JobFounding, "found_again", never)
    outcome = one_node(*script(RESTART.format(5)))
    assert outcome.hopeless == ""
    assert "not finished" in outcome.broken[0]


def test_who_lost_everything_with_the_coordinator_gone_is_excused_in_words() -> None:
    outcome = one_node(*script(CRASH.format("coordinator", 4) + RESTART.format(5)))
    assert outcome.broken == ()
    assert not outcome.finished
    assert (
        outcome.hopeless == "no node that runs holds the ends or any body stage, and the coordinator is gone"
    )


@pytest.mark.parametrize("until_s", [20.0, inf])
def test_a_world_is_not_finished_while_a_cell_that_could_train_on_has_not(
    until_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was finished for good when all who trained at that moment were done, though a cell was away."""
    hangs = lambda _: ("cell c1 could go on",) if virtual_now() < until_s else ()  # noqa: E731
    monkeypatch.setattr("swarm.lab.world.stuck", hangs)
    job = small_job(nodes=1, cells=1, stages=2, iterations=4)
    options = WorldOptions(job=job, model=TINY, flops_per_s=1e8, until_s=50.0, settle_s=5.0)
    outcome = play(Scenario(classes=(), options=options))
    assert max(event.time for event in outcome.events if event.kind == "finished") < 10
    assert outcome.finished is (until_s < inf)
    assert outcome.seconds >= min(until_s, 50)
    assert [sentence for sentence in outcome.broken if "c1" in sentence] == list(outcome.stuck)
    assert bool(outcome.broken) is not outcome.finished


@pytest.mark.parametrize("cut_off", [False, True])
def test_a_drawn_world_has_its_patience_from_the_last_fault_that_fell(cut_off: bool) -> None:
    """It was told to be unfinished so long after a fault that fell at an iteration, and so perhaps late."""
    job = small_job(nodes=3, cells=1, stages=2, iterations=40)
    slow = fault("slow_compute", "node:0", at_iteration=30, factor=9, for_s=9)
    options = WorldOptions(job=job, faults=slow, model=TINY, flops_per_s=1e7, until_s=30.0, patience_s=60.0)
    outcome = play(Scenario(classes=(), options=options, cut_off=cut_off))
    assert outcome.finished is not cut_off
    assert outcome.broken == ()


def test_some_drawn_faults_last_longer_than_views_take_to_settle() -> None:
    """None lasted for more than 40 s, and what is false after 60 s of one was never seen."""
    lasting = [fault.lasts_s or 0.0 for seed in range(100) for fault in draw(seed).options.faults]
    assert 0 < sum(lasts_s > SETTLE_S for lasts_s in lasting) < len(lasting) / 10


def test_a_soak_tells_which_worlds_did_not_finish_and_why_and_what_was_never_looked_at() -> None:
    found = {
        "seed": 4,
        "finished": True,
        "hopeless": "",
        "broken": [],
        "looked": {"views_tell_the_truth": 6},
        "virtual_s": 36.0,
        "cpu_s": 1.0,
        "faults": 1,
    }
    gone = found | {"seed": 5, "finished": False, "hopeless": "no node runs any more", "looked": {}}
    late = found | {"seed": 6, "finished": False, "broken": ["not finished in time"]}
    told = summary([found, gone, late]).splitlines()
    assert "views_tell_the_truth looked at 12 in 2 of 3 worlds" in told
    assert "memory_is_bounded looked at 0 in 0 of 3 worlds" in told
    assert "seed 5 did not finish: no node runs any more" in told
    assert "seed 6 did not finish: not finished in time" in told
    assert told[-1].endswith("unfinished: 5, 6; broken: 6")


def test_a_job_is_finished_though_its_last_holders_are_gone_before_anybody_looked() -> None:
    """Seed 806: looked at every second, such a world was never seen finished, and nothing was left to do."""
    job = small_job(nodes=1, cells=1, stages=2, iterations=4)
    played = play_world(job, script(RESTART.format(2.25)), model=TINY, flops_per_s=1.5e8)
    played.assert_well()
    (finished,) = played.of("finished")
    assert 1.3 < finished.time < 2.25, "between two looks"
    coordinator = played.world.coordinator
    said = coordinator.view.members[coordinator.node].facts
    assert (said.iteration, said.state) == (4, "finished"), "or its standbys would wait for ever"
