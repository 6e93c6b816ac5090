"""Microbatches in flight stay within the memory of the nodes that they pass."""

import pytest
import torch

from swarm.job import Job
from swarm.pipeline.model import ModelConfig, demo, init_parameters, run_layers
from swarm.pipeline.room import activation_bytes, microbatches_that_fit
from transport.machine import NodeId

A, B = NodeId("a" * 64), NodeId("b" * 64)
JOB = Job()
SIZES = (65_664, 393_984, 393_984, 393_984)


@pytest.mark.parametrize(
    "config",
    [
        demo(256),
        ModelConfig(vocab=256, width=256, layers=6, heads=8, kv_heads=8, hidden=1024),
        ModelConfig(vocab=256, width=192, layers=6, heads=4, kv_heads=1, hidden=500),
    ],
)
def test_what_autograd_keeps_is_what_is_counted(config: ModelConfig) -> None:
    parameters = {name: tensor.requires_grad_() for name, tensor in init_parameters(config, 0).items()}
    own = {tensor.untyped_storage().data_ptr() for tensor in parameters.values()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randn(4, 64, config.width, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run_layers(config, parameters, range(2), x)
    assert sum(kept.values()) == pytest.approx(activation_bytes(config, 4, 1, 4 * 64), rel=0.05)


def test_the_smallest_node_of_a_path_bounds_what_is_in_flight() -> None:
    config = demo(256)
    roster = ((A,), (B,), (B,), (B,))
    states = 3 * 24 * SIZES[1]
    each = 3 * activation_bytes(config, 4, 1, 4 * 256)
    fit = lambda memory: microbatches_that_fit(config, JOB, roster, SIZES, memory)  # noqa: E731
    assert fit({}) == JOB.pipeline.microbatches
    assert fit({A: 1 << 40, B: states + 3 * each}) == 3
    assert fit({B: states}) == 1, "training goes on, whatever a node says of itself"


def test_data_nodes_share_the_room_of_their_hops() -> None:
    config = demo(256)
    roster = ((A, B), (B,), (B,), (B,))
    each = activation_bytes(config, 4, 0, 1024) + 3 * activation_bytes(config, 4, 1, 1024)
    memory = {B: 24 * (SIZES[0] + 3 * SIZES[1]) + 4 * each}
    assert microbatches_that_fit(config, JOB, roster, SIZES, memory) == 2
