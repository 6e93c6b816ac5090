import itertools

import pytest
import torch

from optim.diloco import mean, outer_gradient
from optim.inner import AdamState, adamw_
from optim.outer import nesterov


def gradients(worker: int, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(worker)
    return [torch.randn(16, generator=generator) for _ in range(count)]


def test_one_worker_one_step_and_plain_sgd_outside_is_the_inner_optimizer():
    start = gradients(99, 1)[0]
    inner, weights, anchor = start.clone(), start.clone(), start.clone()
    alone, inside, momentum = AdamState.fresh(start), AdamState.fresh(start), torch.zeros(16)
    for gradient in gradients(0, 20):
        adamw_(inner, gradient, alone, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
        adamw_(weights, gradient, inside, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
        delta = mean([outer_gradient(anchor, weights)])
        anchor, momentum = nesterov(anchor, momentum, delta, lr=1.0, mu=0.0)
        weights = anchor.clone()
        torch.testing.assert_close(weights, inner, rtol=1e-6, atol=1e-6)


def test_workers_with_one_inner_sgd_step_are_minibatch_sgd():
    anchor, momentum, workers, inner_lr, outer_lr = torch.zeros(16), torch.zeros(16), 4, 0.1, 0.7
    plain = torch.zeros(16)
    for step in zip(*(gradients(w, 10) for w in range(workers)), strict=True):
        deltas = [outer_gradient(anchor, anchor - inner_lr * gradient) for gradient in step]
        anchor, momentum = nesterov(anchor, momentum, mean(deltas), lr=outer_lr, mu=0.0)
        plain = plain - inner_lr * outer_lr * torch.stack(step).mean(0)
        torch.testing.assert_close(anchor, plain, rtol=1e-5, atol=1e-6)


def test_the_order_of_workers_changes_nothing_but_rounding():
    deltas = [gradients(w, 1)[0] for w in range(4)]
    expected = torch.stack(deltas).mean(0)
    for order in itertools.permutations(deltas):
        torch.testing.assert_close(mean(order), expected, rtol=1e-5, atol=1e-6)


def test_the_same_order_gives_the_same_bits_and_leaves_the_deltas_alone():
    deltas = [gradients(w, 1)[0] for w in range(5)]
    copies = [delta.clone() for delta in deltas]
    assert torch.equal(mean(deltas), mean(copies))
    assert all(torch.equal(a, b) for a, b in zip(deltas, copies, strict=True))


def test_half_precision_deltas_are_added_in_single_precision():
    deltas = [torch.tensor([2048.0], dtype=torch.float16), torch.tensor([1.0], dtype=torch.float16)]
    assert mean(deltas).item() == 1024.5


def test_nothing_has_no_mean():
    with pytest.raises(ValueError, match="no outer gradients"):
        mean([])
