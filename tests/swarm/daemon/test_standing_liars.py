"""One member that lies in its facts costs the others nothing but its own help."""

import asyncio
import random
from itertools import count
from pathlib import Path

from cell_world import Cells, run_cells, small_job
from test_liars import an_order, says

from swarm.daemon.training_half import TrainingHalf as Half
from swarm.gossip.view import Facts
from transport.identity import Identity

ABSURD = (1 << 53) - 1
WRONG = {"0": "00", "1": "00"}
LIAR = next(i for i in (Identity.create(random.Random(seed)) for seed in count()) if i.node < "08")
"""Its id is below all others: where two differ, the lower is believed."""


def lie_to_all(cells: Cells, facts: Facts) -> None:
    said = says(cells.job.digest, LIAR, facts)
    cells.gossip.members[LIAR.node] = said
    for node in cells.nodes:
        node.inbox.put_nowait(said)


def test_a_cell_and_its_newcomer_go_on_beside_a_liar(tmp_path: Path) -> None:
    lie = Facts(cell="c0", stages=(0, 1), iteration=ABSURD, round=ABSURD, hashes=WRONG, state="training")
    job = small_job(tmp_path, inner={"iterations": 20}, pipeline={"nodes": 2, "stages": 2})

    async def scenario(cells: Cells) -> None:
        await cells.until(lambda: all(node.iteration >= 2 for node in cells.nodes))
        lie_to_all(cells, lie)
        newcomer = cells.add()
        await cells.until(lambda: newcomer.stages != ())
        assert newcomer.cell == "c0"
        await cells.finish()

    run_cells(job, tmp_path, 2, scenario)


def test_nobody_takes_its_stage_again_over_the_hashes_of_one_that_the_roster_does_not_name(
    tmp_path: Path,
) -> None:
    """It echoes what a holder says at each record, but for the hashes."""
    job = small_job(tmp_path, inner={"iterations": 12}, pipeline={"nodes": 2, "stages": 2})

    async def scenario(cells: Cells) -> None:
        while not all(node.finished for node in cells.nodes):
            facts = cells.nodes[0].half.facts
            if facts.cell:
                lie_to_all(cells, facts.model_copy(update={"stages": (0, 1), "hashes": WRONG}))
            await asyncio.sleep(0.02)
        assert not cells.of_kind("resynced")

    run_cells(job, tmp_path, 2, scenario)


def test_an_order_waits_until_the_last_record_is_applied(tmp_path: Path) -> None:
    """What it rebuilds from may be this node's own weights, and they are half a step old."""
    job = small_job(tmp_path, inner={"iterations": 12}, pipeline={"nodes": 2, "stages": 3})

    async def scenario(cells: Cells) -> None:
        await cells.until(lambda: all(node.iteration >= 2 for node in cells.nodes))
        leader, taker = (node.half for node in cells.nodes)
        trainer = taker.trainer
        assert trainer is not None and leader.trainer is not None
        order = an_order(leader.trainer.record, leader.trainer.follower.signed)
        order = order.model_copy(update={"stage": 0, "how": "holder", "donors": (leader.setup.me,)})
        trainer._stepping = True
        taker.standing.ordered(leader.setup.me, order, 0.0)
        taker.standing.look(0.0)
        assert not taker.restoring.busy
        trainer._stepping = False
        await cells.until(lambda: trainer.applied)
        taker.standing.look(0.0)
        assert taker.restoring.busy == (0,)

    run_cells(job, tmp_path, 2, scenario)


def test_a_standby_whose_order_comes_to_nothing_is_a_standby_again(tmp_path: Path) -> None:
    job = small_job(tmp_path, inner={"iterations": 60}, pipeline={"nodes": 2, "stages": 2})

    async def scenario(cells: Cells) -> None:
        await cells.until(lambda: all(node.iteration >= 1 for node in cells.nodes))
        leader, taker = cells.nodes[0].half, cells.add().half
        await cells.until(lambda: len(taker.view.members) == 3)
        assert leader.trainer is not None
        order = an_order(leader.trainer.record, leader.trainer.follower.signed)
        said: list[str] = []
        taker.say = lambda facts: (said.append(facts.state), Half.say(taker, facts))  # type: ignore[method-assign]
        taker.standing.ordered(leader.setup.me, order.model_copy(update={"donors": ()}), 0.0)
        assert not taker.restoring.busy, "nobody can give it"
        taker.standing.look(0.0)
        assert said == ["restoring", "standby"]

    run_cells(job, tmp_path, 2, scenario)
