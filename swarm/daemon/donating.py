"""Which states this node can give: to others, as snapshots made when they ask; and to its disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from recovery.checkpoint import (
    At,
    Checkpoint,
    CheckpointError,
    Meta,
    newest_checkpoint,
    newest_common,
    read_checkpoint,
    stage_directory,
    write_checkpoint,
)
from recovery.donor import NeedSnapshot
from recovery.snapshot import Snapshot
from swarm.pipeline.computing import ENDS_COPY_EVERY, Computing
from swarm.pipeline.matter import DENSE, Matter, payload_tensors
from swarm.pipeline.records import content_digest
from swarm.pipeline.trainer import Trainer


def checkpoint_name(stage: int, rounds: int | None = None) -> str:
    """The `StateName` of a checkpoint: after exactly so many rounds, or the newest of its iteration."""
    return f"checkpoint:{stage}" if rounds is None else f"checkpoint:{stage}/{rounds}"


def stage_of(name: str) -> int:
    """The stage that a state is of, -1 for the copy of the ends."""
    return _parts_of(name)[1]


def _parts_of(name: str) -> tuple[str, int, int | None]:
    """(kind, stage, rounds) of a `StateName`; no stage has the number -1."""
    kind, _, rest = name.partition(":")
    index, _, rounds = rest.partition("/")
    return kind, int(index) if index else -1, int(rounds) if rounds else None


def local_state(trainer: Trainer | None, name: str) -> dict[str, Tensor] | None:
    """A state of a few tensors that this node has at hand, for others or for a restore here."""
    if trainer is None:
        return None
    computing = trainer.computing
    if name == "ends-copy":
        if computing.ends_copy is not None:
            return {"parameters": payload_tensors((computing.ends_copy,), computing.matter)[0]}
        # Before the first copy was sent the seed's own weights are the newest there are.
        early = trainer.record.iteration < ENDS_COPY_EVERY
        return {"parameters": computing.seeded_ends()} if early else None
    kind, stage, _ = _parts_of(name)
    held = kind == "weights" and stage in computing.stages
    return _weights(computing, stage) if held else None


def _weights(computing: Computing, stage: int) -> dict[str, Tensor]:
    squares = computing.gradient_squares.get(stage, 0.0)
    parameters = computing.stages[stage].parameters.detach().cpu().clone()
    return {"parameters": parameters, "squares": torch.tensor([squares])}


def snapshot_for(
    need: NeedSnapshot, trainer: Trainer | None, checkpoints: Path, job: str, matter: Matter = DENSE
) -> Snapshot | str | None:
    """The snapshot, the reason why there is none, or None: not yet at that slot, ask again later.

    Names: "stage:K" is a held stage's whole state after the last record, "weights:K" only its
    parameters, neither while a step is half applied; "ends-copy" is the CheckFree+ copy;
    "checkpoint:K" what is on disk here of this job (its digest), whose slot is its iteration.
    """
    kind, stage, rounds = _parts_of(need.name)
    if kind == "checkpoint":
        return _from_disk(need, _checkpoint_of(job, checkpoints, stage, need.slot, rounds), matter)
    if trainer is None:
        return "this node is in no cell"
    if kind in ("stage", "weights") and stage in trainer.computing.stages:
        slot = _slot_for(need, trainer)
        if not isinstance(slot, int):
            return slot
        computing = trainer.computing
        held = computing.stages[stage].state() if kind == "stage" else _weights(computing, stage)
        return matter.snapshot(need.name, slot, held)
    state = local_state(trainer, need.name)
    if state is not None:
        return matter.snapshot(need.name, trainer.record.slot, state)
    return f"this node has no {need.name[:32]}"


def _slot_for(need: NeedSnapshot, trainer: Trainer) -> int | str | None:
    """The slot that the stages are at, if it is the one asked for; else what `snapshot_for` answers.

    Only the next slot is waited for: one further ahead may never come.
    """
    slot = trainer.record.slot
    if need.slot is not None and not slot <= need.slot <= slot + 1:
        return f"it is at slot {slot}, not {need.slot}"
    return slot if trainer.applied and need.slot in (None, slot) else None


def _from_disk(need: NeedSnapshot, found: Checkpoint | None, matter: Matter) -> Snapshot | str:
    if found is None:
        return "no such checkpoint on this disk"
    try:
        tensors = read_checkpoint(found)
    except CheckpointError:
        return "this checkpoint cannot be read any more"
    facts: dict[str, int | float | str] = {"cell": str(found.meta.get("cell", "")), "round": found.at[1]}
    return matter.snapshot(need.name, found.iteration, tensors, facts)


def _checkpoint_of(
    job: str, checkpoints: Path, stage: int, iteration: int | None, rounds: int | None
) -> Checkpoint | None:
    """A directory may have served another job before: its checkpoints are not ours."""
    found = newest_checkpoint(stage_directory(checkpoints, stage), iteration, rounds).found
    return found if found is not None and found.meta.get("job") == job else None


def disk_states(
    checkpoints: Path, stages: Sequence[int], at: At, cell: str, job: str
) -> dict[str, dict[str, Tensor]]:
    """Checkpoints of exactly this job, cell, iteration and round on this disk: states without a network.

    Between rounds the stages of two cells do not fit together.
    """
    found = {stage: _checkpoint_of(job, checkpoints, stage, *at) for stage in stages}
    states: dict[str, dict[str, Tensor]] = {}
    for stage, checkpoint in found.items():
        if checkpoint is not None and checkpoint.meta.get("cell") == cell:
            with suppress(CheckpointError):  # it went bad since it was verified: it is not there
                states[checkpoint_name(stage, at[1])] = read_checkpoint(checkpoint)
    return states


def write_stages(trainer: Trainer, checkpoints: Path, job: str) -> Iterator[dict[str, object]]:
    """Write every held stage to disk; for each the fields of its event. job: the job's digest."""
    record = trainer.reached
    meta: Meta = {
        "cell": record.cell,
        "iteration": record.iteration,
        "job": job,
        "round": record.round,
        "record": content_digest(record),
    }
    held = trainer.computing.stages
    protect = newest_common(checkpoints, held, job)
    for index, stage in sorted(held.items()):
        fields: dict[str, object] = {"iteration": record.iteration, "stage": index}
        try:
            root = stage_directory(checkpoints, index)
            path = write_checkpoint(root, record.iteration, stage.state(), meta, protect)
        except CheckpointError as error:
            yield fields | {"refused": str(error)}
        else:
            yield fields | {"path": path.name}
