import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarm.job import PRESET_LAYERS
from swarm.pipeline.model import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    PRESETS,
    ModelConfig,
    demo,
    forward,
    hf_config,
    init_parameter,
    init_parameters,
    llama_1b,
    llama_7b,
    llama_125m,
    parameter_names,
    parameter_shapes,
    preset,
    stage_flops,
    stage_layers,
    unflatten,
)

TINY = ModelConfig(vocab=64, width=32, layers=4, heads=4, kv_heads=2, hidden=64)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (demo(256), 1_246_848),
        (llama_125m(32_000), 134_105_856),
        (llama_1b(32_000), 1_100_048_384),  # TinyLlama 1.1B
        (llama_7b(32_000), 6_738_415_616),  # Llama 7B
    ],
)
def test_presets_have_the_published_number_of_parameters(config, parameters):
    assert config.parameters == parameters


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_and_runs_on_the_meta_device(name):
    config = preset(name, 320)
    with torch.device("meta"):
        p = {name: torch.empty(shape) for name, shape in parameter_shapes(config).items()}
        inputs = torch.zeros(2, 16, dtype=torch.int64)
    assert sum(t.numel() for t in p.values()) == config.parameters
    assert forward(config, p, inputs).shape == (2, 16, 320)


def test_same_logits_as_transformers():
    transformers = pytest.importorskip("transformers")
    reference = transformers.LlamaForCausalLM(transformers.LlamaConfig(**hf_config(TINY)))
    p = init_parameters(TINY, seed=3)
    reference.load_state_dict(p)
    inputs = torch.randint(0, 64, (2, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (reference(inputs).logits - forward(TINY, p, inputs)).abs().max()
    assert difference < 1e-5


def test_the_future_does_not_change_the_past():
    p = init_parameters(TINY, seed=0)
    inputs = torch.zeros(1, 8, dtype=torch.int64)
    changed = inputs.clone()
    changed[0, 5] = 7
    before, after = forward(TINY, p, inputs), forward(TINY, p, changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


@given(layers=st.integers(1, 40), body=st.integers(1, 40))
def test_stages_split_the_layers_evenly_in_order(layers, body):
    if body > layers:
        with pytest.raises(ValueError, match="cannot be cut"):
            stage_layers(layers, body + 1)
        return
    ends, *rest = stage_layers(layers, body + 1)
    assert len(ends) == 0
    assert [i for part in rest for i in part] == list(range(layers))
    sizes = {len(part) for part in rest}
    assert max(sizes) - min(sizes) <= 1


def test_one_stage_holds_everything():
    assert stage_layers(6, 1) == (range(6),)
    assert set(parameter_names(TINY, 1, 0)) == set(parameter_shapes(TINY))


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 5])
def test_stages_partition_the_parameters(stages):
    names = [name for stage in range(stages) for name in parameter_names(TINY, stages, stage)]
    assert sorted(names) == sorted(parameter_shapes(TINY))
    if stages > 1:
        assert parameter_names(TINY, stages, 0) == (EMBEDDING, FINAL_NORM, HEAD)


def test_unflattened_tensors_are_views():
    size = sum(math.prod(parameter_shapes(TINY)[name]) for name in parameter_names(TINY, 3, 1))
    flat = torch.zeros(size)
    for tensor in unflatten(TINY, 3, 1, flat).values():
        tensor.fill_(1.0)
    assert flat.sum() == size
    with pytest.raises(ValueError, match="stage 1 has"):
        unflatten(TINY, 3, 1, flat[:-1])


def test_initial_parameters_depend_on_seed_and_name_alone():
    first = init_parameter(TINY, HEAD, 5)
    torch.rand(3)  # the global generator moves on
    assert torch.equal(first, init_parameter(TINY, HEAD, 5))
    assert not torch.equal(first, init_parameter(TINY, HEAD, 6))
    assert not torch.equal(first, init_parameter(TINY, EMBEDDING, 5))


def test_residual_writers_start_smaller():
    config = demo(256)
    up = init_parameter(config, "model.layers.0.mlp.up_proj.weight", 0)
    down = init_parameter(config, "model.layers.0.mlp.down_proj.weight", 0)
    assert up.std() == pytest.approx(0.02, rel=0.02)
    assert down.std() == pytest.approx(0.02 / math.sqrt(12), rel=0.02)
    assert (init_parameter(config, FINAL_NORM, 0) == 1).all()


def test_heads_must_fit_the_width():
    with pytest.raises(ValueError, match="even width"):
        ModelConfig(vocab=64, width=30, layers=1, heads=4, kv_heads=2, hidden=64)
    with pytest.raises(ValueError, match="do not divide"):
        ModelConfig(vocab=64, width=32, layers=1, heads=4, kv_heads=3, hidden=64)


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_flops_add_up_to_six_per_weight_and_token_plus_attention(stages):
    config, tokens, sequence = demo(256), 1024, 256
    total = sum(sum(stage_flops(config, stages, stage, tokens, sequence)) for stage in range(stages))
    norms = config.width * (2 * config.layers + 1)
    weights = config.parameters - config.vocab * config.width - norms
    attention = 6 * config.layers * sequence * config.width
    # Norm weights are counted though they cost one operation instead of two: below a percent.
    assert total == pytest.approx(tokens * (6 * weights + attention), rel=0.01)


@pytest.mark.parametrize("name", sorted(PRESET_LAYERS))
def test_a_job_file_is_checked_against_the_layers_its_preset_has(name: str) -> None:
    assert preset(name, 256).layers == PRESET_LAYERS[name]
