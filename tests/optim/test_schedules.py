import pytest
from hypothesis import given
from hypothesis import strategies as st

from optim.schedules import learning_rate

SCHEDULES = ("constant", "wsd", "cosine")


def rates(schedule: str, iterations: int = 100, warmup: int = 10, peak: float = 1.0) -> list[float]:
    return [
        learning_rate(peak=peak, schedule=schedule, warmup=warmup, iterations=iterations, iteration=i)
        for i in range(iterations + 5)
    ]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warmup_rises_linearly_to_the_peak(schedule):
    assert rates(schedule)[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates(schedule, warmup=0)[0] == 1.0


def test_wsd_holds_then_falls_linearly_over_the_last_fifth():
    values = rates("wsd")
    assert set(values[10:81]) == {1.0}
    assert values[80:100] == pytest.approx([1 - i / 20 for i in range(20)])


def test_cosine_passes_the_middle_and_ends_at_a_tenth():
    values = rates("cosine")
    assert values[55] == pytest.approx(0.55)
    assert values[99] == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_after_the_last_iteration_the_rate_stays(schedule):
    values = rates(schedule)
    assert set(values[99:]) == {values[99]}


@given(
    schedule=st.sampled_from(SCHEDULES),
    iterations=st.integers(1, 300),
    warmup=st.integers(0, 400),
    iteration=st.integers(0, 500),
)
def test_the_rate_is_positive_and_never_over_the_peak(schedule, iterations, warmup, iteration):
    rate = learning_rate(
        peak=3e-3, schedule=schedule, warmup=warmup, iterations=iterations, iteration=iteration
    )
    assert 0 < rate <= 3e-3


def test_an_unknown_schedule_is_an_error():
    with pytest.raises(ValueError, match="no learning rate schedule called 'step'"):
        learning_rate(peak=1, schedule="step", warmup=0, iterations=1, iteration=0)
