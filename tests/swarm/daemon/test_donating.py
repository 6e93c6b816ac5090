"""A node gives only states that are whole, of this job, and of the slot asked for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from cell_world import Cells, corpus_of, run_cells, small_job

from recovery.checkpoint import (
    Checkpoint,
    CheckpointError,
    Meta,
    assemble,
    stage_directory,
    write_checkpoint,
)
from recovery.donor import NeedSnapshot
from recovery.snapshot import Snapshot
from swarm.daemon.donating import disk_states, snapshot_for, write_stages
from swarm.job import Job
from swarm.pipeline.computing import Computing
from swarm.pipeline.model import preset
from swarm.pipeline.stage import Stage
from swarm.pipeline.trainer import Trainer
from transport.machine import NodeId

PEER = NodeId("b" * 64)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return small_job(tmp_path)


def trainer_at(job: Job, slot: int, *, applied: bool = True) -> Trainer:
    """What donating looks at of a trainer that holds stage 1."""
    corpus = corpus_of(job.data.path)
    config = preset("demo", corpus.vocab)
    computing = Computing(job, config, corpus, {1: Stage(job, config, 1)})
    known: Any = SimpleNamespace(
        computing=computing, applied=applied, record=SimpleNamespace(slot=slot, iteration=slot)
    )
    return cast(Trainer, known)


@pytest.mark.parametrize("name", ["stage:1", "weights:1"])
def test_a_state_is_not_read_while_a_step_is_half_applied(job: Job, tmp_path: Path, name: str) -> None:
    need = NeedSnapshot(name, None, PEER)
    assert snapshot_for(need, trainer_at(job, 5, applied=False), tmp_path, "j1") is None
    answer = snapshot_for(need, trainer_at(job, 5), tmp_path, "j1")
    assert isinstance(answer, Snapshot)
    assert answer.slot == 5


@pytest.mark.parametrize("name", ["stage:1", "weights:1"])
def test_only_the_next_slot_is_waited_for(job: Job, tmp_path: Path, name: str) -> None:
    asked = {
        slot: snapshot_for(NeedSnapshot(name, slot, PEER), trainer_at(job, 5), tmp_path, "j1")
        for slot in range(4, 9)
    }
    assert isinstance(asked[5], Snapshot)
    assert asked[6] is None
    assert [asked[slot] for slot in (4, 7, 8)] == [f"it is at slot 5, not {slot}" for slot in (4, 7, 8)]


def on_disk(root: Path, stage: int, *, job: str = "j1", cell: str = "c0", rounds: int = 0) -> Path:
    """A checkpoint of iteration 10."""
    meta: Meta = {"cell": cell, "iteration": 10, "job": job, "round": rounds}
    return write_checkpoint(stage_directory(root, stage), 10, {"parameters": torch.ones(4)}, meta)


def test_a_checkpoint_of_another_job_is_not_there(tmp_path: Path) -> None:
    on_disk(tmp_path, 0)
    on_disk(tmp_path, 1, job="j2")
    assert set(disk_states(tmp_path, (0, 1), (10, 0), "c0", "j1")) == {"checkpoint:0/0"}
    ours, theirs = (
        snapshot_for(NeedSnapshot(f"checkpoint:{stage}", 10, PEER), None, tmp_path, "j1") for stage in (0, 1)
    )
    assert isinstance(ours, Snapshot)
    assert ours.facts == {"cell": "c0", "round": 0}
    assert theirs == "no such checkpoint on this disk"


def test_a_resumed_cell_takes_no_checkpoint_of_another(tmp_path: Path) -> None:
    on_disk(tmp_path, 0)
    on_disk(tmp_path, 1, cell="c1")
    assert set(disk_states(tmp_path, (0, 1), (10, 0), "c0", "j1")) == {"checkpoint:0/0"}
    assert set(disk_states(tmp_path, (0, 1), (10, 0), "c1", "j1")) == {"checkpoint:1/0"}


def test_a_checkpoint_that_cannot_be_read_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk(tmp_path, 0)

    def unreadable(_: Checkpoint) -> dict[str, torch.Tensor]:
        raise CheckpointError("the disk failed")

    monkeypatch.setattr("swarm.daemon.donating.read_checkpoint", unreadable)
    assert disk_states(tmp_path, (0,), (10, 0), "c0", "j1") == {}
    answer = snapshot_for(NeedSnapshot("checkpoint:0", None, PEER), None, tmp_path, "j1")
    assert answer == "this checkpoint cannot be read any more"


def test_a_state_from_after_an_outer_round_does_not_stand_for_one_from_before(tmp_path: Path) -> None:
    on_disk(tmp_path, 0, rounds=1)
    on_disk(tmp_path, 0, rounds=2)
    on_disk(tmp_path, 1, rounds=1)
    assert set(disk_states(tmp_path, (0, 1), (10, 1), "c0", "j1")) == {"checkpoint:0/1", "checkpoint:1/1"}
    assert set(disk_states(tmp_path, (0, 1), (10, 2), "c0", "j1")) == {"checkpoint:0/2"}
    for name, rounds in (("checkpoint:0", 2), ("checkpoint:0/1", 1)):
        answer = snapshot_for(NeedSnapshot(name, 10, PEER), None, tmp_path, "j1")
        assert isinstance(answer, Snapshot)
        assert answer.facts["round"] == rounds


def test_who_leaves_after_the_round_leaves_what_the_others_wrote_before_it(tmp_path: Path) -> None:
    job = small_job(
        tmp_path,
        inner={"iterations": 40},
        pipeline={"nodes": 3, "stages": 3},
        outer={"method": "diloco", "every": 5},
        recovery={"checkpoint_every": 10},
    )

    async def scenario(cells: Cells) -> None:
        def met() -> bool:
            trainer = cells.nodes[0].half.trainer
            return trainer is not None and (trainer.reached.iteration, trainer.reached.act) == (10, "round")

        await cells.until(met, step_s=0.001)
        leaver = next(node for node in cells.nodes if 1 in node.stages)
        assert leaver.half.trainer is not None
        list(
            write_stages(leaver.half.trainer, leaver.root / f"node{leaver.index}" / "checkpoints", job.digest)
        )
        found, _ = assemble([tmp_path / f"node{index}" / "checkpoints" for index in range(3)], 3)
        assert found is not None
        assert {checkpoint.at for checkpoint in found.stages} == {(10, 1)}
        assert len({checkpoint.meta["record"] for checkpoint in found.stages}) == 1

    run_cells(job, tmp_path, 3, scenario, checkpoints=True)
