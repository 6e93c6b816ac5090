"""A job begins: news of it reaches some members later than what their cell's leader asks of them."""

from small_worlds import play, small_job


def test_a_member_that_has_not_heard_of_the_founding_is_not_counted_out_of_its_cell() -> None:
    """It answered that it was in no cell, and the cell split before its first iteration."""
    played = play(small_job(iterations=3), seed=2)
    played.assert_well()
    assert played.of("cell") == []
    assert set(played.reached().values()) == {3}
