"""Pauses between tries grow, end, and differ from one node to the next."""

import random

from hypothesis import given
from hypothesis import strategies as st

from transport.backoff import Backoff

SECONDS = st.floats(1e-3, 1e4)


@given(SECONDS, SECONDS, st.integers(0, 1000), st.integers(0))
def test_a_pause_is_at_most_twice_the_last_and_between_half_the_limit_and_all_of_it_in_the_end(
    first_s: float, most_s: float, tries: int, seed: int
) -> None:
    backoff = Backoff(first_s, most_s, random.Random(seed), tries)
    longest_s = min(most_s, first_s * 2.0 ** min(tries, 32))
    assert longest_s / 2 <= backoff.pause_s() <= longest_s
    assert backoff.tries == tries + 1
    if tries > 32:
        assert longest_s == most_s


@given(st.integers(0, 100))
def test_after_an_answer_the_pause_is_short_again(tries: int) -> None:
    backoff = Backoff(1.0, 60.0, random.Random(1), tries)
    backoff.reset()
    assert backoff.pause_s() <= 1.0


def test_of_a_hundred_nodes_that_lost_a_peer_at_once_no_tenth_of_a_pause_sees_more_than_forty() -> None:
    pauses = [Backoff(10.0, 10.0, random.Random(seed)).pause_s() for seed in range(100)]
    crowds = [sum(low <= pause < low + 1.0 for pause in pauses) for low in (5.0, 6.0, 7.0, 8.0, 9.0)]
    assert sum(crowds) == 100
    assert max(crowds) < 40
