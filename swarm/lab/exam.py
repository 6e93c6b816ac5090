"""How good the model of a simulated swarm is on text it has never seen, asked when the swarm ends."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from swarm.evaluate import validation_loss
from swarm.job import Job
from swarm.lab.sim_node import SimNode
from swarm.pipeline.data import Corpus
from swarm.pipeline.model import ModelConfig


def examine(nodes: Sequence[SimNode], job: Job, config: ModelConfig, corpus: Corpus) -> float | None:
    """Held-out loss of the cell that came furthest, in nats per token; None if no cell is whole.

    The windows are those of `farflung eval`, of the length that the job trains on.
    """
    cells: dict[tuple[int, str], dict[int, dict[str, Tensor]]] = {}
    for node in nodes:
        if node.trainer is None:
            continue
        held = cells.setdefault((node.trainer.record.iteration, node.trainer.record.cell), {})
        held |= {index: stage.named() for index, stage in node.trainer.computing.stages.items()}
    whole = [key for key, held in cells.items() if len(held) == job.pipeline.stages]
    if not whole:
        return None
    parameters: dict[str, Tensor] = {}
    for named in cells[max(whole)].values():
        parameters |= named
    return validation_loss(config, parameters, corpus, length=job.data.sequence)
