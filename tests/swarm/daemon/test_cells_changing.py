"""Members come, go, stand still and are cut off; the cell's log stays one log."""

import asyncio
from pathlib import Path

import pytest
from cell_world import Cells, run_cells, small_job
from test_liars import an_order

from swarm.daemon.restore import Restored
from swarm.messages import Commit
from swarm.pipeline.records import read_record
from transport.machine import NodeId
from transport.virtual_time import VirtualTimeLoop
from transport.wire import Message


def loop() -> VirtualTimeLoop:
    running = asyncio.get_running_loop()
    assert isinstance(running, VirtualTimeLoop)
    return running


def held(cells: Cells) -> dict[int, int]:
    """How many live nodes hold each stage."""
    counts: dict[int, int] = {}
    for node in cells.alive:
        for stage in node.stages:
            counts[stage] = counts.get(stage, 0) + 1
    return counts


def test_newcomers_to_a_node_that_holds_everything_spread_the_stages(tmp_path: Path) -> None:
    job = small_job(tmp_path, inner={"iterations": 40})

    async def scenario(cells: Cells) -> None:
        for _ in range(4):
            before = cells.nodes[0].iteration
            await cells.until(lambda before=before: cells.nodes[0].iteration >= before + 3)
            cells.add()
        await cells.until(lambda: all(node.stages for node in cells.nodes))
        await asyncio.sleep(1.0)
        assert held(cells) == {0: 1, 1: 2, 2: 1, 3: 1}, cells.story()
        assert all(len(node.stages) == 1 for node in cells.nodes)
        await cells.finish()

    cells = run_cells(job, tmp_path, 1, scenario)
    assert not cells.of_kind("recovered")
    assert [fields["iteration"] for fields in cells.of_kind("committed")] == list(range(1, 41))


@pytest.mark.parametrize("leaver", range(5))
def test_a_leaver_hands_its_stages_over_and_is_gone_in_seconds(tmp_path: Path, leaver: int) -> None:
    """The leader too: its successor does not wait for a silence."""
    job = small_job(tmp_path, inner={"iterations": 12}, pipeline={"nodes": 5})

    async def scenario(cells: Cells) -> None:
        await cells.until(lambda: cells.nodes[0].iteration >= 4)
        node = cells.nodes[leaver]
        node.stop()
        asked = loop().time()
        await cells.until(lambda: node.left, step_s=0.01)
        assert loop().time() - asked < 3.0, cells.story()
        cells.gossip.judge(node, "left")
        cells.network.crash(node.identity.node)
        await cells.finish()

    cells = run_cells(job, tmp_path, 5, scenario)
    assert not cells.of_kind("recovered"), cells.story()
    assert [fields["iteration"] for fields in cells.of_kind("committed")] == list(range(1, 13))
    seconds = [fields["seconds"] for fields in cells.of_kind("committed")]
    assert max(seconds) < 1.0, "nobody waited out a silence"


def test_the_last_node_leaves_at_once(tmp_path: Path) -> None:
    job = small_job(tmp_path, inner={"iterations": 500})

    async def scenario(cells: Cells) -> None:
        await cells.until(lambda: cells.nodes[0].iteration >= 2)
        cells.nodes[0].stop()
        asked = loop().time()
        await cells.until(lambda: cells.nodes[0].left, step_s=0.01)
        assert loop().time() - asked < 0.5

    run_cells(job, tmp_path, 1, scenario, checkpoints=True)
    assert list((tmp_path / "node0" / "checkpoints").glob("stage-*/iter-*"))


@pytest.mark.parametrize("victim", [0, 4])
@pytest.mark.parametrize("noticed", [False, True])
def test_a_node_that_stood_still_does_no_harm(tmp_path: Path, victim: int, noticed: bool) -> None:
    """Node 4 leads. Not noticed: it comes back before anybody suspects it."""
    job = small_job(tmp_path, inner={"iterations": 20}, pipeline={"nodes": 5})

    async def scenario(cells: Cells) -> None:
        await cells.until(lambda: cells.nodes[0].iteration >= 3)
        node = cells.nodes[victim]
        loop().freeze(node.identity.node)
        cells.network.pause(node.identity.node)
        await asyncio.sleep(2.0)
        if noticed:
            cells.gossip.judge(node, "dead")
            await asyncio.sleep(2.0)
        loop().thaw(node.identity.node)
        cells.network.resume(node.identity.node)
        node.incarnation += 1
        cells.gossip.facts(node, node.half.facts)
        await cells.finish()

    cells = run_cells(job, tmp_path, 5, scenario, latency_s=0.03)
    assert max(node.iteration for node in cells.nodes) == 20
    assert all(node.iteration == 20 for node in cells.nodes if node.cell), cells.story()
    assert sorted(held(cells)) == [0, 1, 2, 3]


def test_a_restarted_node_is_placed_anew(tmp_path: Path) -> None:
    """The same identity, an empty memory, and back before anybody noticed that it was gone."""
    job = small_job(tmp_path, inner={"iterations": 15}, pipeline={"nodes": 5})

    async def scenario(cells: Cells) -> None:
        await cells.until(lambda: cells.nodes[0].iteration >= 3)
        old = cells.nodes[0]
        old.kill()
        cells.add(index=0, incarnation=1)
        await cells.until(lambda: bool(cells.nodes[-1].stages))
        await cells.finish()

    cells = run_cells(job, tmp_path, 5, scenario, latency_s=0.03)
    assert cells.nodes[-1].iteration == 15, cells.story()


@pytest.mark.parametrize("few", [(0, 1), (4,), (4, 3)], ids=["bodies", "ends", "majority of the ends"])
def test_a_minority_is_never_the_same_cell(tmp_path: Path, few: tuple[int, ...]) -> None:
    """It goes on under a new name if it has every stage, or waits; in the end all are one swarm."""
    job = small_job(
        tmp_path,
        inner={"iterations": 24},
        pipeline={"nodes": 5, "stages": 2},
        outer={"method": "diloco", "every": 8},
    )

    async def scenario(cells: Cells) -> None:
        await cells.until(lambda: cells.nodes[0].iteration >= 3)
        one = [cells.nodes[index] for index in few]
        other = [node for node in cells.nodes if node not in one]
        cut = cells.partition(one, other)
        await asyncio.sleep(4.0)
        cells.heal(cut)
        await cells.finish()

    cells = run_cells(job, tmp_path, 5, scenario, latency_s=0.05)
    assert "c0" in {fields["cell"] for fields in cells.of_kind("committed")}
    assert all(node.iteration == 24 for node in cells.nodes if node.cell), cells.story()


def test_cut_in_two_both_sides_train_and_meet_again(tmp_path: Path) -> None:
    """Two holders of the only stage on either side of five: the two are a new cell."""
    job = small_job(
        tmp_path,
        inner={"iterations": 24},
        pipeline={"nodes": 5, "stages": 1},
        outer={"method": "diloco", "every": 8},
    )

    async def scenario(cells: Cells) -> None:
        await cells.until(lambda: cells.nodes[0].iteration >= 3)
        cut = cells.partition(cells.nodes[:2], cells.nodes[2:])
        await asyncio.sleep(8.0)
        cells.heal(cut)
        await cells.finish()

    cells = run_cells(job, tmp_path, 5, scenario, latency_s=0.1)
    (founded,) = cells.of_kind("cell")
    names = {fields["cell"] for fields in cells.of_kind("committed")}
    assert names == {"c0", founded["new"]}, cells.story()
    met = [fields["members"]["0"] for fields in cells.of_kind("round")]
    assert sorted(["c0", founded["new"]]) in met, cells.story()


def test_who_missed_the_last_round_learns_that_the_job_has_ended(tmp_path: Path) -> None:
    """Who has finished is at the same iteration: the round alone tells them apart. So is a taker of it.

    Seed 216 of the soak: it waited to be three iterations behind before it asked.
    """
    job = small_job(
        tmp_path,
        inner={"iterations": 4},
        pipeline={"nodes": 2, "stages": 2},
        outer={"method": "diloco", "every": 4},
    )

    async def scenario(cells: Cells) -> None:
        await cells.until(lambda: all(node.stages for node in cells.nodes))
        leads, body = sorted(cells.nodes, key=lambda node: node.stages)
        trainer = leads.half.trainer
        assert trainer is not None
        send = trainer._send

        def lose_the_round(peer: NodeId, message: Message) -> bool:
            lost = isinstance(message.body, Commit) and read_record(message.body.record).act == "round"
            if lost:
                trainer._send = send
            return lost or send(peer, message)

        trainer._send = lose_the_round
        await cells.until(lambda: leads.finished)
        assert body.half.trainer is not None
        assert body.half.trainer.record.act == "step"
        await cells.finish(limit_s=10.0)

    run_cells(job, tmp_path, 2, scenario)


def test_whose_leader_died_while_it_fetched_is_of_use_elsewhere(tmp_path: Path) -> None:
    """Nobody was left in the cell that it came into, so none of it ever went on without naming it."""
    job = small_job(tmp_path, inner={"iterations": 60}, pipeline={"nodes": 1, "stages": 2})

    async def scenario(cells: Cells) -> None:
        await cells.until(lambda: cells.nodes[0].iteration >= 2)
        leads, taker = cells.nodes[0], cells.add().half
        trainer = leads.half.trainer
        assert trainer is not None
        order = an_order(trainer.record, trainer.follower.signed)
        await leads.crash()
        await cells.until(lambda: taker.view.cells() == ())
        (stage,) = taker.setup.build_stages((order.stage,)).values()
        taker.perform(Restored(leads.identity.node, order, stage))
        assert taker.trainer is not None
        await cells.until(lambda: taker.trainer is None, limit_s=10.0)

    run_cells(job, tmp_path, 1, scenario)
