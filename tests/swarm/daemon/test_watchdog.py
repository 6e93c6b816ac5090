"""A training half that hangs while its gossip half answers: the node says so, and its cell goes on."""

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from cell_world import Cells, run_cells, small_job
from gossip_halves import WORLDS

from swarm.daemon.bridge import Awake, FactsChanged, MemberChanged
from swarm.daemon.watchdog import SILENCE_MAX_S, SILENCE_MIN_S, Watchdog
from swarm.gossip.view import Facts, read_member
from transport.wire import Body

TRAINING = Facts(cell="c0", stages=(1,), iteration=7, state="training")


def seconds_until_it_hangs(dog: Watchdog, start: float) -> float:
    return next(s for s in itertools.count(1) if dog.look(start + s))


def test_a_half_that_has_not_begun_does_not_hang() -> None:
    dog = Watchdog()
    assert not any(dog.look(float(second)) for second in range(1000))


def test_a_silence_that_ended_by_itself_doubles_what_is_borne() -> None:
    dog = Watchdog()
    dog.look(0.0)
    dog.heard()
    assert seconds_until_it_hangs(dog, 0.0) == SILENCE_MIN_S
    assert dog.heard() and not dog.heard()
    assert seconds_until_it_hangs(dog, SILENCE_MIN_S) == 2 * SILENCE_MIN_S
    now = 1e6
    for _ in range(10):
        dog.heard()
        dog.look(now)
        dog.heard()
        borne = seconds_until_it_hangs(dog, now)
        now += borne
    assert borne == SILENCE_MAX_S


def test_a_half_is_not_blamed_for_the_time_in_which_the_other_was_stopped() -> None:
    dog = Watchdog()
    dog.look(0.0)
    dog.heard()
    assert not dog.look(3600.0)
    assert not dog.look(3601.0)


def test_a_node_whose_training_half_hangs_says_so_and_takes_it_back_when_it_answers() -> None:
    async def scene() -> None:
        async with WORLDS["simulated"].open() as table:
            _, first, second = await table.meet(2)
            first.bridge.send(FactsChanged(facts=TRAINING))

            def says(state: str) -> Callable[[MemberChanged], bool]:
                def fits(body: MemberChanged) -> bool:
                    return body.record.signer == first.identity.node and facts_of(body).state == state

                return fits

            await second.hears(MemberChanged, says("training"))
            stuck = await second.hears(MemberChanged, says("stuck"), limit_s=2 * SILENCE_MIN_S)
            assert stuck.status == "alive" and facts_of(stuck).stages == () and facts_of(stuck).cell == ""
            assert any("said nothing" in e.fields["reason"] for e in first.events if e.kind == "error")
            first.bridge.send(Awake())
            back = await second.hears(MemberChanged, says("training"))
            assert facts_of(back) == TRAINING

    WORLDS["simulated"].run(scene())


def facts_of(body: MemberChanged) -> Facts:
    return read_member(body.record).facts


@pytest.mark.parametrize("count", [2, 4])
def test_a_cell_goes_on_without_a_member_whose_training_half_hangs(tmp_path: Path, count: int) -> None:
    """Its gossip half is alive all the time; the sole holder of a stage is frozen and comes back."""
    job = small_job(tmp_path, inner={"iterations": 60}, pipeline={"nodes": count})

    async def scenario(cells: Cells) -> None:
        loop = asyncio.get_running_loop()
        await cells.until(lambda: cells.nodes[0].iteration >= 5)
        leader = next(n for n in cells.nodes if n.half.trainer and n.half.trainer.leader.phase != "following")
        victim = next(n for n in cells.nodes if n is not leader)
        others = [n for n in cells.nodes if n is not victim]
        awake, before = victim.half.facts, others[0].iteration
        loop.freeze(victim.identity.node)
        cells.network.pause(victim.identity.node)
        await asyncio.sleep(SILENCE_MIN_S)
        cells.gossip.facts(victim, Facts(platform="test", state="stuck"))
        await cells.until(lambda: all(n.iteration >= before + 20 for n in others))
        assert victim.stages  # it knows of nothing yet
        loop.thaw(victim.identity.node)
        cells.network.resume(victim.identity.node)
        cells.gossip.facts(victim, awake)
        await cells.until(lambda: all(n.finished for n in others))
        if victim.cell == others[0].cell:
            await cells.until(lambda: victim.iteration == job.inner.iterations)

    cells = run_cells(job, tmp_path, count, scenario)
    assert any(e["how"] in ("plus_copy", "checkfree") for e in cells.of_kind("recovered"))


def test_an_awake_half_says_so_every_second(tmp_path: Path) -> None:
    job = small_job(tmp_path, pipeline={"nodes": 1})
    sent: list[Body] = []

    async def scenario(cells: Cells) -> None:
        cells.nodes[0].send = lambda body: sent.append(body)  # type: ignore[method-assign]
        await asyncio.sleep(10.0)

    run_cells(job, tmp_path, 1, scenario)
    assert sum(isinstance(body, Awake) for body in sent) >= 9
