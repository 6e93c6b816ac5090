from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optim.outer import OUTER_OPTIMIZERS, heavy_ball, nesterov
from swarm.job import OuterSection


def trace(outer) -> list[float]:
    anchor, momentum, values = torch.zeros(1), torch.zeros(1), []
    for _ in range(3):
        anchor, momentum = outer(anchor, momentum, torch.ones(1), 0.7, 0.9)
        values.append(anchor.item())
    return values


def test_constant_gradient_traces_tell_the_two_momenta_apart():
    assert trace(nesterov) == pytest.approx([-1.33, -3.227, -5.6343], abs=1e-5)
    assert trace(heavy_ball) == pytest.approx([-0.7, -2.03, -3.927], abs=1e-5)


def test_nesterov_equals_torch_sgd():
    generator = torch.Generator().manual_seed(0)
    anchor, momentum = torch.randn(8, generator=generator), torch.zeros(8)
    parameter = anchor.clone().requires_grad_()
    sgd = torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=True)
    for _ in range(10):
        delta = torch.randn(8, generator=generator)
        parameter.grad = delta.clone()
        sgd.step()
        anchor, momentum = nesterov(anchor, momentum, delta, 0.7, 0.9)
        torch.testing.assert_close(anchor, parameter.detach(), rtol=1e-6, atol=1e-6)


@given(mu=st.floats(0, 0.99), lr=st.floats(0.01, 2))
@pytest.mark.parametrize("outer", [nesterov, heavy_ball])
def test_nothing_passed_in_is_changed(outer, mu, lr):
    tensors = [torch.ones(3), torch.full((3,), 2.0), torch.full((3,), 3.0)]
    outer(*tensors, lr, mu)
    assert [t[0].item() for t in tensors] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("outer", [nesterov, heavy_ball])
def test_without_momentum_both_are_plain_descent(outer):
    anchor, _ = outer(torch.ones(1), torch.zeros(1), torch.ones(1), 0.5, 0.0)
    assert anchor.item() == 0.5


def test_a_job_may_name_every_outer_optimizer_and_no_other():
    named = get_args(OuterSection.model_fields["optimizer"].annotation)
    assert set(named) == set(OUTER_OPTIMIZERS)
