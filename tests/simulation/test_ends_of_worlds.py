"""How a world ends: its views are judged first, and who could have gone on is not excused."""

import asyncio

import pytest
from small_worlds import play as play_world
from small_worlds import script, small_job

from swarm.daemon.job_founding import JobFounding
from swarm.lab.checkers import SETTLE_S, views_tell_the_truth
from swarm.lab.faults import Fault
from swarm.lab.soak import TINY, Scenario, play
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
