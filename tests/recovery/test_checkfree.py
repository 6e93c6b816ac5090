import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recovery.checkfree import LR_FACTOR, fit_layers, gradient_weight, neighbour_average, shares


def rebuilt(below, above, norm_below, norm_above):
    return neighbour_average(below, above, gradient_weight(norm_below), gradient_weight(norm_above))


def test_norms_of_two_and_one_weigh_four_fifths_and_one_fifth():
    assert shares(gradient_weight(2.0), gradient_weight(1.0)) == (0.8, 0.2)
    mixed = rebuilt(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 2.0, 1.0)
    torch.testing.assert_close(mixed, torch.tensor([0.8, 0.2]))


def test_equal_norms_give_the_mean():
    mixed = rebuilt(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0]), 0.7, 0.7)
    assert torch.equal(mixed, torch.tensor([2.0, 4.0]))


@given(st.floats(0, 1e3), st.floats(0, 1e3))
def test_equal_neighbours_come_back_bit_for_bit(norm_below, norm_above):
    weights = torch.linspace(-3, 3, 17)
    assert torch.equal(rebuilt(weights, weights.clone(), norm_below, norm_above), weights)


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_shares_add_up_to_one(below, above):
    assert math.isclose(sum(shares(below, above)), 1.0)


@pytest.mark.parametrize("norm", [0.0, math.nan, math.inf, -1.0, 1e200])
def test_norms_that_say_nothing_fall_back_to_the_mean(norm):
    assert shares(gradient_weight(norm), gradient_weight(norm)) == (0.5, 0.5)


def test_a_rebuilt_stage_is_new_memory_and_holds_nothing_of_the_lost_one():
    stages = torch.stack([torch.full((4,), 1.0), torch.full((4,), math.nan), torch.full((4,), 3.0)])
    mixed = rebuilt(stages[0], stages[2], 1.0, 1.0)
    assert torch.equal(mixed, torch.full((4,), 2.0))
    mixed.zero_()
    assert stages[0].eq(1.0).all()


def test_half_precision_is_averaged_in_single_and_returned_in_half():
    below, above = torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([3.0], dtype=torch.bfloat16)
    mixed = rebuilt(below, above, 1.0, 1.0)
    assert mixed.dtype == torch.bfloat16
    assert mixed.item() == 2.0


def test_neighbours_of_different_size_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"neighbours differ in size: \(4,\) and \(6,\)"):
        neighbour_average(torch.zeros(4), torch.zeros(6), 1.0, 1.0)


@pytest.mark.parametrize(
    ("layers", "wanted", "chosen"),
    [(3, 3, [0, 1, 2]), (3, 2, [0, 1]), (2, 3, [0, 0, 1]), (1, 2, [0, 0]), (4, 3, [0, 1, 2]), (4, 2, [0, 2])],
)
def test_a_stage_is_fitted_by_whole_layers(layers, wanted, chosen):
    flat = torch.arange(layers).repeat_interleave(5).float()
    assert fit_layers(flat, layers, wanted).reshape(wanted, 5)[:, 0].int().tolist() == chosen


def test_what_is_not_whole_layers_is_refused():
    with pytest.raises(ValueError, match="is not 3 equal layers"):
        fit_layers(torch.zeros(10), 3, 2)


def test_the_learning_rate_factor_is_the_papers():
    assert LR_FACTOR == 1.1
