"""A founding gets all of its stages, however many there are, or begins none of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cell_world import COORDINATOR, CellNode, Cells, corpus_of, run_cells, small_job

from recovery.checkpoint import Meta, stage_directory, write_checkpoint
from swarm.daemon.archive import ARCHIVE_SCHEMA, ArchiveHalf
from swarm.daemon.bridges import MemoryBridge
from swarm.daemon.genesis import solo_founding
from swarm.daemon.restore import Restored
from swarm.daemon.training_setup import TrainingSetup
from swarm.job import Job
from swarm.messages import Restore
from swarm.pipeline.computing import stage_size
from swarm.pipeline.model import preset
from swarm.pipeline.stage import Stage

STAGES = 7
RESUMED = 4


def test_a_standby_copies_a_cell_of_seven_stages_that_goes_on_training(tmp_path: Path) -> None:
    job = small_job(
        tmp_path,
        inner={"iterations": 5000},
        pipeline={"nodes": 1, "cells": 2, "stages": STAGES},
        outer={"method": "diloco", "every": 500},
    )

    async def scenario(cells: Cells) -> None:
        await cells.until(lambda: cells.nodes[0].iteration >= 1)
        newcomer = cells.add()
        await cells.until(lambda: len(newcomer.stages) == STAGES, limit_s=20.0)
        assert newcomer.cell != cells.nodes[0].cell
        entered = newcomer.iteration
        await cells.until(lambda: newcomer.iteration > entered)

    cells = run_cells(job, tmp_path, 1, scenario, latency_s=0.02)
    assert not cells.of_kind("dropped")


def seven_stages(folder: Path) -> Job:
    return small_job(folder, pipeline={"stages": STAGES}, inner={"iterations": RESUMED + 2})


def keep(job: Job, root: Path, stage: int) -> None:
    """Put a checkpoint of a stage where an archive has it."""
    config = preset(job.model.preset, corpus_of(job.data.path).vocab)
    meta: Meta = {"cell": "c0", "iteration": RESUMED, "round": 0, "job": job.digest, "record": "ab"}
    write_checkpoint(stage_directory(root, stage), RESUMED, Stage(job, config, stage).state(), meta)


async def slowly(work: Callable[[], Any]) -> Any:
    """A disk: the next state is asked for before the first is read."""
    await asyncio.sleep(0.2)
    return work()


def archive_for(cells: Cells, root: Path) -> ArchiveHalf:
    """The coordinator's archive, which every node of the world knows, and it them."""
    config = preset(cells.job.model.preset, corpus_of(cells.job.data.path).vocab)
    link = cells.network.open(COORDINATOR.node, curve_key=COORDINATOR.curve_public, schema=ARCHIVE_SCHEMA)
    for node in cells.nodes:
        link.know(node.identity.node, node.link.endpoint)
        node.link.know(COORDINATOR.node, link.endpoint)
    return ArchiveHalf(
        me=COORDINATOR.node,
        job=cells.job,
        sizes=[stage_size(config, STAGES, stage) for stage in range(STAGES)],
        directory=root,
        link=link,
        bridge=MemoryBridge.pair()[1],
        wall=lambda: 0.0,
        emit=lambda _: None,
        in_background=slowly,
    )


def resume_on_one_fresh_node(
    tmp_path: Path,
    scenario: Callable[[Cells, CellNode, Path], Awaitable[None]],
    lacking: tuple[int, ...] = (),
) -> Cells:
    job, root = seven_stages(tmp_path), tmp_path / "archive"
    for stage in range(STAGES):
        if stage not in lacking:
            keep(job, root, stage)

    async def with_archive(cells: Cells) -> None:
        running = cells.tasks.create_task(archive_for(cells, root).run())
        await scenario(cells, cells.nodes[0], root)
        running.cancel()

    return run_cells(job, tmp_path, 1, with_archive, resumed=RESUMED)


def test_a_job_of_seven_stages_is_resumed_on_one_fresh_node(tmp_path: Path) -> None:
    async def scenario(cells: Cells, node: CellNode, _: Path) -> None:
        await cells.until(lambda: node.stages == tuple(range(STAGES)), limit_s=10.0)
        await cells.finish(10.0)

    cells = resume_on_one_fresh_node(tmp_path, scenario)
    assert not cells.of_kind("dropped"), cells.story()
    assert [fields["iteration"] for fields in cells.of_kind("committed")] == [RESUMED + 1, RESUMED + 2]


def test_a_stage_that_is_missing_at_first_is_all_that_is_fetched_again(tmp_path: Path) -> None:
    """And meanwhile the node is in no cell with what it has, and says which stage it waits for."""
    arrived: Counter[int] = Counter()

    async def scenario(cells: Cells, node: CellNode, root: Path) -> None:
        half = node.half
        ended = half.restoring.ended

        def counting(effect: object) -> object:
            found = ended(effect)  # type: ignore[arg-type]
            arrived.update(e.order.stage for e in found if isinstance(e, Restored))
            return found

        half.restoring.ended = counting  # type: ignore[method-assign, assignment]
        await cells.until(lambda: "stage 3 of cell" in half.standing.waiting_for(), limit_s=10.0)
        assert half.trainer is None
        await asyncio.sleep(2.0)
        assert half.trainer is None, "what was on its way when one failed makes no newcomer of this node"
        keep(cells.job, root, 3)
        await cells.until(lambda: node.stages == tuple(range(STAGES)), limit_s=10.0)
        await cells.finish(10.0)

    cells = resume_on_one_fresh_node(tmp_path, scenario, lacking=(3,))
    assert cells.of_kind("dropped")
    assert arrived == dict.fromkeys(range(STAGES), 1)


def test_a_node_that_cannot_write_down_that_it_enters_waits_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = True

    def write(path: Path, data: bytes) -> None:
        if full:
            raise OSError(28, "No space left on device")
        path.write_bytes(data)

    monkeypatch.setattr("swarm.daemon.founding.write_private", write)

    async def scenario(cells: Cells, node: CellNode, _: Path) -> None:
        nonlocal full
        await cells.until(lambda: "cannot be written down" in node.half.standing.waiting_for(), limit_s=10.0)
        assert node.half.trainer is None
        full = False
        await cells.finish(10.0)

    resume_on_one_fresh_node(tmp_path, scenario)


def test_what_a_founding_collects_is_given_up_when_a_leader_has_use_for_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the last of it would put the node from the cell it is in into another."""
    monkeypatch.setattr(TrainingSetup, "wrong_with_order", lambda *_: "")

    async def scenario(cells: Cells, node: CellNode, _: Path) -> None:
        half = node.half
        await cells.until(lambda: half.founding.busy, step_s=0.001)
        sign = COORDINATOR.signing_in(cells.job.digest)
        about: dict[str, Any] = {"iteration": 4, "rounds": 0, "cells": (), "wall_s": 1.0}
        order = Restore(
            cell="c9",
            slot=3,
            term=1,
            stage=0,
            how="holder",
            donors=(COORDINATOR.node,),
            same_state=False,
            decided=solo_founding(cells.job, COORDINATOR.node, sign, **about),
            reason="",
        )
        half.standing.ordered(COORDINATOR.node, order, asyncio.get_running_loop().time())
        assert half.restoring.busy == (0,)
        assert half.transfer.fetching == ("stage:0",)
        await cells.finish(30.0)  # an archive has no such state: the order came to nothing

    resume_on_one_fresh_node(tmp_path, scenario)
