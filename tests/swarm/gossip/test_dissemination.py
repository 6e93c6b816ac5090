"""Updates are sent so often and no oftener, fewest-sent first, as many as fit."""

from gossip_world import record_of, sign_as, signed_record
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.gossip.dissemination import OVERHEAD_BYTES, Batch, Dissemination, paged
from swarm.gossip.messages import UPDATES_MAX
from transport.wire import Signed


def update(size: int, mark: int = 0) -> Signed:
    return sign_as("0" * 64, "any", mark.to_bytes(4, "big") + bytes(size - OVERHEAD_BYTES - 4))


@settings(deadline=None)
@given(st.integers(1, 2000), st.integers(1, 6))
def test_every_update_is_sent_up_to_its_limit(members: int, mult: int) -> None:
    queue = Dissemination(mult, 10_000)
    queue.put("a", update(300), "records")
    sent = 0
    while len(queue):
        sent += len(queue.take(members).records)
    assert sent == queue.limit(members)
    assert queue.take(members).records == []


def test_newer_updates_replace_older_ones_and_start_again() -> None:
    queue = Dissemination(1, 10_000)
    old, new = signed_record(record_of(1)), signed_record(record_of(1, seq=1))
    queue.put("a", old, "records")
    queue.put("a", new, "records")
    assert queue.take(9).records == [new]
    assert len(queue) == 0


def test_the_least_sent_go_first_when_not_all_fit() -> None:
    queue = Dissemination(4, 1000)
    first, second, third = (update(400, mark) for mark in range(3))
    for mark, each in enumerate((first, second)):
        queue.put(mark, each, "claims")
    assert queue.take(9).claims == [first, second]
    queue.put(2, third, "claims")
    assert queue.take(9).claims == [third, first]
    assert queue.take(9).claims == [second, third]


def test_an_update_larger_than_a_batch_travels_alone() -> None:
    queue = Dissemination(1, 1000)
    small, large = update(400, 1), update(5000, 2)
    queue.put(1, large, "records")
    queue.put(2, small, "records")
    assert queue.take(9).records == [large]
    assert queue.take(9).records == [small]


@settings(deadline=None)
@given(st.lists(st.integers(OVERHEAD_BYTES + 4, 3000), max_size=60), st.integers(1000, 4000))
def test_pages_hold_everything_in_order_within_their_size(sizes: list[int], page_bytes: int) -> None:
    updates = [update(size, mark) for mark, size in enumerate(sizes)]
    pages = list(paged(((each, "records") for each in updates), page_bytes))
    assert pages
    assert [each for page in pages for each in page.records] == updates
    for page in pages:
        assert (
            len(page.records) <= 1 or sum(len(u.payload) + OVERHEAD_BYTES for u in page.records) <= page_bytes
        )


def test_a_batch_holds_no_more_than_a_message_may() -> None:
    batch, tiny = Batch(1 << 30), update(OVERHEAD_BYTES + 4)
    assert [batch.add(tiny, "claims") for _ in range(UPDATES_MAX + 1)] == [True] * UPDATES_MAX + [False]
