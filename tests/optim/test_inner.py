import pytest
import torch

from optim.inner import AdamState, adamw_


def steps(count: int, shape: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) * 10.0 ** -(i % 5) for i in range(count)]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_flat_adamw_equals_torch_on_the_unflattened_model(weight_decay):
    start = steps(1, (60,), seed=1)[0]
    flat, state = start.clone(), AdamState.fresh(start)
    parts = [start[:20].clone().view(4, 5).requires_grad_(), start[20:].clone().requires_grad_()]
    torch_adamw = torch.optim.AdamW(parts, lr=1e-2, betas=(0.9, 0.95), weight_decay=weight_decay)
    for gradient in steps(50, (60,)):
        adamw_(flat, gradient, state, lr=1e-2, betas=(0.9, 0.95), weight_decay=weight_decay)
        parts[0].grad, parts[1].grad = gradient[:20].view(4, 5), gradient[20:]
        torch_adamw.step()
        expected = torch.cat([part.detach().view(-1) for part in parts])
        torch.testing.assert_close(flat, expected, rtol=1e-6, atol=1e-6)
    assert state.steps == 50


def test_first_step_is_the_sign_of_the_gradient():
    p = torch.zeros(3)
    adamw_(p, torch.tensor([5.0, -0.1, 0.0]), AdamState.fresh(p), lr=0.1, betas=(0.9, 0.95), weight_decay=0)
    torch.testing.assert_close(p, torch.tensor([-0.1, 0.1, 0.0]), rtol=1e-5, atol=0)


def test_decay_does_not_depend_on_the_gradient():
    p = torch.tensor([2.0])
    adamw_(p, torch.zeros(1), AdamState.fresh(p), lr=0.1, betas=(0.9, 0.95), weight_decay=0.5)
    assert p.item() == pytest.approx(2.0 * (1 - 0.05))
