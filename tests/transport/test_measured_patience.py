"""Deadlines follow what was measured."""

import pytest

from transport.patience import MEASURED_MAX, Patience


@pytest.mark.parametrize(
    ("seconds", "limit"),
    [
        ([], 60.0),
        ([1.0, 1.0], 60.0),
        ([1.0, 1.0, 1.0], 3.0),
        ([0.01, 0.01, 0.01], 0.5),
        ([1.0, 2.0, 3.0], 10.0),
        ([1.0, 1.0, 1.0, 100.0], 3.0),
    ],
)
def test_the_limit_is_the_median_and_its_spread_with_a_floor(seconds: list[float], limit: float) -> None:
    patience = Patience(initial_s=60.0, floor_s=0.5)
    for each in seconds:
        patience.add(each)
    assert patience.limit_s() == limit


def test_only_the_last_measurements_count() -> None:
    patience = Patience(initial_s=60.0, floor_s=0.5)
    assert patience.typical_s() == 0.0
    for each in [100.0] * MEASURED_MAX + [1.0] * MEASURED_MAX:
        patience.add(each)
    assert (patience.typical_s(), patience.limit_s()) == (1.0, 3.0)
