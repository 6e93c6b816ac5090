"""The pipeline oracle: stages that pass tensors on are the whole model, cut."""

import math

import pytest
import torch
import torch.nn.functional as F

from swarm.job import InnerSection, Job, PipelineSection
from swarm.pipeline.model import ModelConfig, forward, init_parameters
from swarm.pipeline.stage import SCALAR_NAMES, STATE_NAMES, Stage, StageStateError, WorkError
from transport.codecs import decode, encode

CONFIG = ModelConfig(vocab=64, width=32, layers=6, heads=4, kv_heads=2, hidden=64)
INNER = InnerSection(lr=3e-3, schedule="constant", warmup=0)


def a_job(stages: int) -> Job:
    return Job(seed=11, pipeline=PipelineSection(stages=stages), inner=INNER)


def holders(stages: int) -> list[Stage]:
    return [Stage(a_job(stages), CONFIG, index) for index in range(stages)]


def microbatches(count: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(0, 64, (2, 2, 24), generator=generator)) for _ in range(count)]


def run(path: list[Stage], key: int, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    """One microbatch along a path of holders and back."""
    ends, *body = path
    x = ends.embed(key, inputs)
    for stage in body:
        x = stage.forward(key, x)
    loss, tokens, grad = ends.head(key, x, targets)
    for stage in reversed(body):
        grad = stage.backward(key, grad, tokens)
    ends.embed_backward(key, grad)
    return loss


def whole_model(batches) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of a plain PyTorch loop over the same microbatches, summed over tokens."""
    p = {name: t.requires_grad_() for name, t in init_parameters(CONFIG, 11).items()}
    losses = [
        F.cross_entropy(forward(CONFIG, p, x).flatten(0, 1), y.flatten(), reduction="sum") for x, y in batches
    ]
    torch.stack(losses).sum().backward()
    return sum(loss.item() for loss in losses), {name: t.grad for name, t in p.items()}


def gradients(stage: Stage) -> dict[str, torch.Tensor]:
    return {name: leaf.grad for name, leaf in stage._leaves.items()}


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_a_pipeline_gives_the_loss_and_gradients_of_the_whole_model(stages):
    batches = microbatches(3)
    expected_loss, expected = whole_model(batches)
    path = holders(stages)
    loss = sum(run(path, key, *batch) for key, batch in enumerate(batches))
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    actual = {name: grad for stage in path for name, grad in gradients(stage).items()}
    assert actual.keys() == expected.keys()
    for name, grad in actual.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-5, atol=1e-5)
    assert {stage.target_tokens for stage in path} == {3 * 2 * 24}
    assert all(stage.held() == 0 for stage in path)


@pytest.mark.parametrize("stages", [2, 4])
def test_two_holders_of_every_stage_sum_to_one(stages):
    batches = microbatches(4)
    _, expected = whole_model(batches)
    first, second = holders(stages), holders(stages)
    for key, batch in enumerate(batches):
        # The two columns cross over, as paths in a cell do.
        run([(first, second)[(key + i) % 2][i] for i in range(stages)], key, *batch)
    for a, b in zip(first, second, strict=True):
        assert a.target_tokens + b.target_tokens == 4 * 2 * 24
        for name, grad in gradients(a).items():
            torch.testing.assert_close(grad + gradients(b)[name], expected[name], rtol=1e-5, atol=1e-5)


def test_microbatches_in_flight_together_do_not_mix():
    batches = microbatches(2)
    alone, together = holders(2), holders(2)
    for key, batch in enumerate(batches):
        run(alone, key, *batch)
    ends, body = together
    outputs = [body.forward(key, ends.embed(key, x)) for key, (x, _) in enumerate(batches)]
    assert body.held() == ends.held() == 2
    for key in (1, 0):
        _, tokens, grad = ends.head(key, outputs[key], batches[key][1])
        ends.embed_backward(key, body.backward(key, grad, tokens))
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a.gradient, b.gradient, rtol=1e-5, atol=1e-6)


def test_twenty_iterations_follow_a_plain_torch_loop_with_adamw():
    path = holders(4)
    p = {name: t.requires_grad_() for name, t in init_parameters(CONFIG, 11).items()}
    plain = torch.optim.AdamW(p.values(), INNER.lr, INNER.betas, weight_decay=INNER.weight_decay)
    for iteration in range(20):
        (x, y), *_ = microbatches(1, seed=iteration)
        loss = F.cross_entropy(forward(CONFIG, p, x).flatten(0, 1), y.flatten())
        plain.zero_grad()
        loss.backward()
        plain.step()
        assert run(path, 0, x, y) / y.numel() == pytest.approx(loss.item(), abs=1e-4)
        for stage in path:
            stage.step(stage.gradient / stage.target_tokens, iteration)
            stage.clear()


def test_any_cut_starts_from_the_same_model():
    one = holders(1)[0].named()
    for stages in (2, 3, 4):
        cut = {name: t for stage in holders(stages) for name, t in stage.named().items()}
        assert all(torch.equal(one[name], t) for name, t in cut.items())


def test_equal_work_gives_equal_bits():
    paths = [holders(2), holders(2)]
    for path in paths:
        for key, batch in enumerate(microbatches(3)):
            run(path, key, *batch)
        for stage in path:
            stage.step(stage.gradient / stage.target_tokens, 0)
    for a, b in zip(*paths, strict=True):
        assert a.digest() == b.digest() != Stage(a_job(2), CONFIG, a.index).digest()


def test_read_only_activations_are_not_written_to():
    ends, body = holders(2)
    batch = microbatches(1)[0]
    x = ends.embed(0, batch[0])
    spec, buffer = encode("x", x, "raw")
    received = decode(spec, bytes(buffer))
    y = body.forward(0, received)
    _, tokens, grad = ends.head(0, y, batch[1])
    before = grad.clone()
    body.backward(0, grad, tokens)
    assert torch.equal(received, x)
    assert torch.equal(grad, before)


def test_a_dropped_microbatch_leaves_no_trace():
    ends, body = holders(2)
    body.forward(0, ends.embed(0, microbatches(1)[0][0]))
    for stage in (ends, body):
        stage.drop(0)
        stage.drop("never seen")
        assert stage.held() == 0
        assert stage.gradient.abs().sum() == stage.target_tokens == 0


def test_a_repeated_forward_is_refused_and_the_first_goes_on():
    ends, body = holders(2)
    x = ends.embed(0, microbatches(1)[0][0])
    y = body.forward(0, x)
    with pytest.raises(WorkError, match="in flight already"):
        body.forward(0, x)
    body.backward(0, torch.zeros_like(y), 48)
    assert body.target_tokens == 48


def test_backward_of_an_unknown_microbatch_changes_nothing():
    ends, body = holders(2)
    _, y = microbatches(1)[0]
    with pytest.raises(KeyError):
        body.backward(0, torch.zeros(2, 24, 32), 48)
    with pytest.raises(KeyError):
        ends.head(0, torch.zeros(2, 24, 32), y)
    with pytest.raises(KeyError):
        ends.embed_backward(0, torch.zeros(2, 24, 32))
    assert body.target_tokens == ends.target_tokens == 0
    assert ends.gradient.abs().sum() == 0


def test_tensors_of_another_shape_dtype_or_size_are_refused_and_the_microbatch_goes_on():
    ends, body = holders(2)
    inputs, targets = microbatches(1)[0]
    x = ends.embed(0, inputs)
    for wrong in (x[..., :-1], x[0], x.double()):
        with pytest.raises(WorkError):
            body.forward(0, wrong)
    y = body.forward(0, x)
    with pytest.raises(WorkError):
        ends.head(0, y[:1], targets)
    _, tokens, grad = ends.head(0, y, targets)
    for wrong in (grad[:1], grad.half(), torch.full_like(grad, 3e38), torch.full_like(grad, math.nan)):
        with pytest.raises(WorkError):
            body.backward(0, wrong, tokens)
        with pytest.raises(WorkError):
            ends.embed_backward(0, wrong)
    assert body.target_tokens == 0
    ends.embed_backward(0, body.backward(0, grad, tokens))
    assert ends.held() == body.held() == 0
    assert body.target_tokens == tokens


@pytest.mark.parametrize("spoil", [3e38, math.nan], ids=["overflows", "nan"])
def test_a_loss_that_is_not_finite_is_refused_before_it_is_counted(spoil):
    (ends, body), (inputs, targets) = holders(2), microbatches(1)[0]
    x = ends.embed(0, inputs)
    with pytest.raises(WorkError):
        ends.head(0, torch.full_like(x, spoil), targets)
    assert ends.gradient.abs().sum() == ends.target_tokens == 0
    assert ends.head(0, body.forward(0, x), targets)[1] == ends.target_tokens


def test_clear_starts_a_slot():
    path = holders(2)
    run(path, 0, *microbatches(1)[0])
    path[0].embed(1, microbatches(1)[0][0])
    for stage in path:
        stage.clear()
        assert stage.gradient.abs().sum() == stage.target_tokens == stage.held() == 0


def trained(seed: int = 0) -> Stage:
    stage = Stage(a_job(2), CONFIG, 1)
    generator = torch.Generator().manual_seed(seed)
    for iteration in range(3):
        stage.step(torch.randn(stage.parameters.shape, generator=generator), iteration)
    stage.adopt_anchor(stage.anchor * 0.5, stage.anchor * 0.1, 1, rebase=False)
    stage.lr_factor = 1.1
    return stage


def test_a_holder_that_took_the_state_goes_on_bit_for_bit():
    donor, taker = trained(), Stage(a_job(2), CONFIG, 1)
    taker.load_state(donor.state())
    assert taker.lr_factor == donor.lr_factor
    for stage in (donor, taker):
        stage.step(torch.ones_like(stage.parameters), 3)
    assert taker.digest() == donor.digest()
    for name, tensor in donor.state().items():
        assert torch.equal(tensor, taker.state()[name]), name


def test_a_state_does_not_change_with_later_steps():
    stage = trained()
    state = stage.state()
    copies = {name: tensor.clone() for name, tensor in state.items()}
    stage.step(torch.ones_like(stage.parameters), 3)
    stage.adopt_anchor(stage.anchor + 1, stage.outer_momentum + 1, 2, rebase=True)
    assert all(torch.equal(state[name], copies[name]) for name in state)


@pytest.mark.parametrize("name", [*STATE_NAMES, *SCALAR_NAMES])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t[:-1],
        lambda t: t.to(torch.float64),
        lambda t: t.to(torch.float32).fill_(math.nan),
        None,
    ],
    ids=["shape", "dtype", "nan", "missing"],
)
def test_a_spoiled_state_is_refused_and_changes_nothing(name, spoil):
    stage = Stage(a_job(2), CONFIG, 1)
    before = stage.state()
    state = trained().state()
    if spoil is None:
        del state[name]
    else:
        state[name] = spoil(state[name])
    with pytest.raises(StageStateError, match=name):
        stage.load_state(state)
    after = stage.state()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_states_that_no_holder_can_have_are_refused():
    for change in (
        {"adam_square": -torch.ones_like(trained().parameters)},
        {"adam_steps": torch.tensor([-1])},
        {"anchor_count": torch.tensor([1 << 60])},
        {"lr_factor": torch.tensor([1e9])},
        {"extra": torch.zeros(1)},
    ):
        with pytest.raises(StageStateError):
            Stage(a_job(2), CONFIG, 1).load_state(trained().state() | change)


def test_rebuilt_weights_start_with_fresh_moments_and_are_their_own_anchor():
    rebuilt, fresh = trained(), Stage(a_job(2), CONFIG, 1)
    weights = fresh.parameters.clone()
    rebuilt.load_parameters(weights)
    rebuilt.lr_factor = 1.0
    assert torch.equal(rebuilt.anchor, weights)
    assert rebuilt.outer_momentum.abs().sum() == 0
    for stage in (rebuilt, fresh):
        stage.step(torch.ones_like(weights), 0)
    assert rebuilt.digest() == fresh.digest()
    with pytest.raises(StageStateError):
        rebuilt.load_parameters(weights[1:])
    with pytest.raises(StageStateError):
        rebuilt.load_parameters(weights * math.nan)


def test_gradients_still_arrive_after_weights_were_replaced():
    path = holders(2)
    for stage in path:
        stage.load_parameters(stage.parameters.clone())
        stage.load_state(stage.state())
        stage.adopt_anchor(stage.anchor, stage.outer_momentum, 1, rebase=False)
    run(path, 0, *microbatches(1)[0])
    reference = holders(2)
    run(reference, 0, *microbatches(1)[0])
    assert all(torch.equal(a.gradient, b.gradient) for a, b in zip(path, reference, strict=True))


def test_learning_rate_factor_scales_the_step_without_compounding():
    plain, raised = (Stage(a_job(2), CONFIG, 1) for _ in range(2))
    start = plain.parameters.clone()
    raised.lr_factor = 1.1
    raised.lr_factor = 1.1
    for stage in (plain, raised):
        stage.step(torch.ones_like(start), 0)
    torch.testing.assert_close(
        raised.parameters - start, (plain.parameters - start) * 1.1, rtol=1e-4, atol=1e-7
    )


def test_an_outer_round_keeps_inner_moments_and_moves_the_weights_to_the_anchor():
    stage = trained()
    before = stage.state()
    stage.adopt_anchor(before["anchor"] + 1, before["outer_momentum"] + 2, 5, rebase=False)
    after = stage.state()
    assert torch.equal(after["parameters"], after["anchor"])
    assert torch.equal(after["anchor"], before["anchor"] + 1)
    assert torch.equal(after["outer_momentum"], before["outer_momentum"] + 2)
    assert after["anchor_count"] == 5
    for name in ("adam_mean", "adam_square", "adam_steps"):
        assert torch.equal(after[name], before[name])


def test_a_cell_that_missed_a_round_moves_with_the_anchor_and_keeps_its_progress():
    stage = trained()
    stage.step(torch.ones_like(stage.parameters), 3)
    progress = stage.parameters - stage.anchor
    stage.adopt_anchor(stage.anchor + 0.25, stage.outer_momentum, 2, rebase=True)
    torch.testing.assert_close(stage.parameters - stage.anchor, progress, rtol=0, atol=1e-6)
    assert progress.abs().max() > 1e-3
