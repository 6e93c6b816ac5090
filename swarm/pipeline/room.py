"""How many microbatches may be on their way before a node of the cell runs out of memory."""

from __future__ import annotations

from collections.abc import Mapping

from swarm.job import Job
from swarm.messages import Roster
from swarm.pipeline.model import ModelConfig, stage_layers
from swarm.pipeline.records import roster_nodes, stages_of
from transport.machine import NodeId

FLOAT_BYTES = 4
STATE_FLATS = 6
"""Flat float32 tensors of a held stage: weights, gradient, two moments, anchor, outer momentum."""


def activation_bytes(config: ModelConfig, stages: int, stage: int, tokens: int) -> int:
    """What autograd keeps of one microbatch of `tokens` tokens in a stage until its backward.

    A layer keeps about 8 width + 2 key-and-value width + 4 hidden values a token; the ends keep
    the embedded activations and, while the loss is computed, two rows of logits.
    """
    layers = len(stage_layers(config.layers, stages)[stage])
    narrow = config.kv_heads * config.head_width
    values = layers * (8 * config.width + 2 * narrow + 4 * config.hidden)
    if stage == 0:
        values += config.width + 2 * config.vocab
    return FLOAT_BYTES * tokens * values


def microbatches_that_fit(
    config: ModelConfig, job: Job, roster: Roster, sizes: tuple[int, ...], memory: Mapping[NodeId, int]
) -> int:
    """How many microbatches each data node may have on their way, at least 1.

    sizes: parameters by stage. memory: bytes that each node may hold; one that is missing or 0
    is not asked. Every node may meet the microbatches of all data nodes at once, in all its stages.
    """
    fits = job.pipeline.microbatches
    tokens = job.pipeline.microbatch * job.data.sequence
    for node in roster_nodes(roster):
        limit = memory.get(node, 0)
        if limit:
            held = stages_of(roster, node)
            states = sum(FLOAT_BYTES * STATE_FLATS * sizes[stage] for stage in held)
            each = sum(activation_bytes(config, len(roster), stage, tokens) for stage in held)
            fits = min(fits, (limit - states) // (each * max(1, len(roster[0]))))
    return max(1, fits)
