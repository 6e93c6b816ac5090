"""From the checkpoints that nodes left on this machine to one model and its validation loss."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from recovery.checkpoint import Assembly, Refused, assemble, read_checkpoint
from swarm.daemon.options import UserError
from swarm.evaluate import validation_loss
from swarm.export import export_checkpoint
from swarm.job import Job, load_job
from swarm.pipeline.data import load_corpus
from swarm.pipeline.model import ModelConfig, Parameters, init_parameters, preset, unflatten


@dataclass(frozen=True, slots=True)
class Harvest:
    """A whole model by its Hugging Face names, of one iteration of one cell.

    passed_over: newer iterations of which something was saved, a sentence each.
    """

    job: Job
    config: ModelConfig
    iteration: int
    parameters: Parameters
    passed_over: tuple[str, ...] = ()


def gather(run: Path) -> Harvest:
    """The newest complete model below `run`. Raises UserError if there is none."""
    job = find_job(run)
    roots = sorted(path for path in run.rglob("checkpoints") if path.is_dir())
    assembly, refused = assemble(roots, job.pipeline.stages)
    if assembly is None:
        why = f"; {len(refused)} were refused, the first: {refused[0].reason}" if refused else ""
        raise UserError(f"below {run} there is no iteration of which every stage was saved{why}")
    config = preset(job.model.preset, load_corpus(job.data).vocab)
    parameters = _parameters(config, job.pipeline.stages, assembly)
    passed_over = _passed_over(roots, assembly.iteration, refused)
    return Harvest(job, config, assembly.iteration, parameters, passed_over)


def _passed_over(roots: list[Path], iteration: int, refused: tuple[Refused, ...]) -> tuple[str, ...]:
    """Why nothing newer than this iteration was taken: what is wrong with it, or that it is not all there."""
    saved = (path for root in roots for path in root.glob("stage-*/iter-*") if path.is_dir())
    newer = {found for path in saved if (found := _iteration(path)) > iteration}
    wrong = {_iteration(each.path): each.reason for each in reversed(refused)}
    lacking = "not every stage of one cell was saved"
    return tuple(f"passed over iteration {n}: {wrong.get(n, lacking)}" for n in sorted(newer, reverse=True))


def _iteration(path: Path) -> int:
    named = re.match(r"iter-(\d{1,15})(?!\d)", path.name)
    return int(named[1]) if named else -1


def find_job(run: Path) -> Job:
    """The job of a run's directory, of a coordinator's or of a node's."""
    files = sorted(run.rglob("job.toml"))
    if not files:
        raise UserError(f"there is no job.toml in or below {run}: name the directory of a run")
    jobs = {job.digest: job for job in map(load_job, files)}
    if len(jobs) > 1:
        raise UserError(f"below {run} there are {len(jobs)} different jobs: name the directory of one")
    return next(iter(jobs.values()))


def _parameters(config: ModelConfig, stages: int, assembly: Assembly) -> dict[str, Tensor]:
    whole: dict[str, Tensor] = {}
    for stage, checkpoint in enumerate(assembly.stages):
        whole |= unflatten(config, stages, stage, read_checkpoint(checkpoint)["parameters"])
    return whole


def export_run(run: Path, directory: Path) -> Harvest:
    """Write the newest complete model below `run` as a Hugging Face directory, and say what it is."""
    found = gather(run)
    export_checkpoint(found.parameters, found.config, directory, found.job.data.tokenizer)
    return found


def validation_losses(run: Path) -> tuple[float, float]:
    """Held-out loss in nats per token of the model before the first iteration, and of the newest."""
    found = gather(run)
    corpus, length = load_corpus(found.job.data), found.job.data.sequence
    first = init_parameters(found.config, found.job.seed)
    return (
        validation_loss(found.config, first, corpus, length=length),
        validation_loss(found.config, found.parameters, corpus, length=length),
    )
