"""The emulated wire, packet by packet, at made-up times."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.lab.wan_shaper import (
    BURST_BYTES,
    Access,
    Delivery,
    Disturbance,
    PathShape,
    Pipe,
    Shaper,
    address_of,
    between,
    full_mesh,
    receiver_of,
)
from transport.sim_paths import LinkShape


def packet(to: int, size: int = 100, mark: int = 0) -> bytes:
    head = bytes((0x45, *[0] * 11, 10, 77, 0, 200, 10, 77, 0, to + 1))
    return head + bytes((mark,)) + bytes(size - len(head) - 1)


def shaper(shape: PathShape, *, nodes: int = 3, access: Access | None = None, seed: int = 0) -> Shaper:
    return Shaper(full_mesh(nodes, shape), [access or Access()] * nodes, Random(seed))


def drain(wire: Shaper) -> list[tuple[float, int, bytes]]:
    """Everything that is on its way: (when, to whom, what)."""
    found = []
    while (due := wire.deadline()) is not None:
        found += [(due, delivery.receiver, delivery.packet) for delivery in wire.tick(due)]
    return found


def test_a_packet_arrives_after_the_delay_and_not_before() -> None:
    wire = shaper(PathShape(delay_s=0.04))
    wire.handle(0, packet(1), 10.0)
    assert wire.deadline() == pytest.approx(10.04)
    assert wire.tick(10.039) == []
    assert wire.tick(10.041) == [Delivery(1, packet(1))]
    assert wire.deadline() is None
    assert wire.stats.as_map() | {"delivered": 1, "bytes": 100} == wire.stats.as_map()


@given(st.lists(st.floats(0, 0.01), min_size=2, max_size=40), st.integers(0, 1000))
def test_jitter_never_lets_a_packet_overtake_one_of_its_path(gaps: list[float], seed: int) -> None:
    wire, now = shaper(PathShape(delay_s=0.01, jitter_s=0.05), seed=seed), 0.0
    for mark, gap in enumerate(gaps):
        now += gap
        wire.handle(0, packet(1, mark=mark), now)
    assert [each[2][20] for each in drain(wire)] == list(range(len(gaps)))


def test_loss_takes_its_share() -> None:
    wire = shaper(PathShape(loss=0.1))
    for _ in range(2000):
        wire.handle(0, packet(1), 0.0)
    assert len(drain(wire)) == 2000 - wire.stats.lost
    assert 150 < wire.stats.lost < 250


def test_a_rate_lets_a_burst_through_and_then_so_many_bytes_a_second() -> None:
    wire = shaper(PathShape(bytes_per_s=100_000.0, queue_s=60.0))
    for _ in range(200):
        wire.handle(0, packet(1, 1000), 0.0)
    when = [each[0] for each in drain(wire)]
    assert sum(at == 0.0 for at in when) == BURST_BYTES / 1000
    assert when[-1] == pytest.approx((200_000 - BURST_BYTES) / 100_000)


@given(st.lists(st.tuples(st.floats(0, 0.05), st.integers(40, 1500)), min_size=1, max_size=100))
def test_a_queue_is_never_longer_than_its_limit(arrivals: list[tuple[float, int]]) -> None:
    pipe, now = Pipe(bytes_per_s=20_000.0, queue_s=0.2), 0.0
    for gap, size in arrivals:
        now += gap
        passed_at = pipe.passed_at(size, now)
        if passed_at is not None:
            assert now <= passed_at <= now + 0.2 + size / 20_000.0 + 1e-9


def test_what_a_full_queue_drops_is_counted() -> None:
    wire = shaper(PathShape(bytes_per_s=10_000.0, queue_s=0.55))
    for _ in range(100):
        wire.handle(0, packet(1, 1000), 0.0)
    assert len(drain(wire)) == 100 - wire.stats.crowded_out
    assert wire.stats.crowded_out == 100 - BURST_BYTES // 1000 - 6


def test_an_uplink_is_shared_by_all_paths_of_its_node() -> None:
    wire = shaper(PathShape(queue_s=60.0), access=Access(up_bytes_per_s=100_000.0))
    for index in range(200):
        wire.handle(0, packet(1 + index % 2, 1000), 0.0)
        wire.handle(2, packet(1, 1000), 0.0)
    last = {receiver: at for at, receiver, _ in drain(wire)}
    assert last[2] == pytest.approx(last[1]) == pytest.approx((200_000 - BURST_BYTES) / 100_000)


def test_a_downlink_serves_in_the_order_of_arrival_not_of_sending() -> None:
    paths = full_mesh(3, PathShape()) | {(0, 2): PathShape(delay_s=1.0, queue_s=60.0)}
    wire = Shaper(paths, [Access(down_bytes_per_s=100_000.0)] * 3, Random(0))
    for _ in range(100):
        wire.handle(0, packet(2, 1000), 0.0)
    wire.handle(1, packet(2, 1000), 0.1)
    assert drain(wire)[0][0] == pytest.approx(0.1)


def test_a_cut_stops_what_is_sent_and_what_is_under_way_until_it_heals() -> None:
    wire = shaper(PathShape(delay_s=1.0))
    wire.handle(0, packet(1), 0.0)
    wire.cut("a", between([[0], [1]]))
    wire.handle(1, packet(0), 0.5)
    wire.handle(0, packet(2), 0.5)
    assert [each[1] for each in drain(wire)] == [2]
    assert wire.stats.cut == 2
    wire.heal("a")
    wire.handle(0, packet(1), 2.0)
    assert [each[1] for each in drain(wire)] == [1]


def test_a_one_way_cut_is_heard_the_other_way() -> None:
    wire = shaper(PathShape())
    wire.cut("a", between([[0], [1]], one_way=True))
    wire.handle(0, packet(1), 0.0)
    wire.handle(1, packet(0), 0.0)
    assert [each[1] for each in drain(wire)] == [0]


def test_what_two_cuts_hold_apart_stays_apart_until_both_heal() -> None:
    wire = shaper(PathShape())
    wire.cut("a", between([[0], [1, 2]]))
    wire.cut("b", between([[0], [1]]))
    wire.heal("a")
    wire.handle(0, packet(1), 0.0)
    wire.handle(0, packet(2), 0.0)
    assert [each[1] for each in drain(wire)] == [2]


def test_a_slow_node_takes_longer_and_carries_less_and_recovers() -> None:
    wire = shaper(PathShape(delay_s=0.1, bytes_per_s=100_000.0, queue_s=60.0))
    wire.slow(0, 2.0, 0.0)
    wire.slow(1, 3.0, 0.0)
    for _ in range(50):
        wire.handle(0, packet(1, 1000), 0.0)
    assert drain(wire)[-1][0] == pytest.approx((150_000 - BURST_BYTES) / 100_000 + 0.3)
    wire.slow(1, 1.0, 9.0)
    wire.handle(0, packet(1), 9.0)
    assert drain(wire)[-1][0] == pytest.approx(9.2)
    wire.slow(0, 1.0, 18.0)
    wire.handle(0, packet(1), 18.0)
    assert drain(wire)[-1][0] == pytest.approx(18.1)


@pytest.mark.parametrize(
    "strange",
    [b"", b"\x60" + bytes(40), packet(1)[:19], packet(0), packet(7), bytes((0x45, *[0] * 15, 10, 77, 1, 1))],
)
def test_packets_to_nobody_here_are_counted_and_dropped(strange: bytes) -> None:
    wire = shaper(PathShape())
    wire.handle(0, strange, 0.0)
    assert drain(wire) == []
    assert wire.stats.strange == 1


def test_a_link_degrades_little_by_little() -> None:
    wire = shaper(PathShape(delay_s=0.1))
    wire.slow(0, 5.0, 0.0, over_s=10.0)
    for sent_at, arrives in ((0.0, 0.1), (5.0, 5.3), (20.0, 20.5)):
        wire.handle(0, packet(1), sent_at)
        assert drain(wire)[-1][0] == pytest.approx(arrives)


def test_a_slow_node_has_longer_delays_and_no_more_jitter_than_in_the_simulated_world() -> None:
    wire, late = shaper(PathShape(delay_s=0.1, jitter_s=0.1)), []
    wire.slow(0, 5.0, 0.0)
    for number in range(100):
        wire.handle(0, packet(1), float(number))
        late.append(drain(wire)[-1][0] - number)
    slowed = LinkShape(latency_s=0.1, jitter_s=0.1).slowed(5.0)
    assert slowed.latency_s <= min(late) and max(late) <= slowed.latency_s + slowed.jitter_s + 1e-9


def test_a_packet_that_landed_before_its_node_was_slowed_lands_as_it_was() -> None:
    """Told of both at one moment, the forwarder asked how slow the node was at an earlier one, and died."""
    wire = shaper(PathShape(delay_s=0.1))
    wire.handle(0, packet(1), 0.0)
    wire.slow(1, 5.0, 0.2)
    assert wire.tick(0.3) == [Delivery(1, packet(1))]


def test_noise_loses_doubles_and_delays_the_packets_of_a_node_both_ways_and_no_others() -> None:
    def arrived(noise: Disturbance, sender: int = 0, to: int = 1) -> list[int]:
        wire = shaper(PathShape(delay_s=0.01))
        wire.disturb(1, noise)
        for number in range(200):
            wire.handle(sender, packet(to, mark=number), number / 1000)
        return [delivered[20] for _, _, delivered in drain(wire)]

    everything = list(range(200))
    for way in ({}, {"sender": 1, "to": 0}):
        assert 120 < len(arrived(Disturbance(loss=0.3), **way)) < 160
        assert 240 < len(arrived(Disturbance(duplication=0.3), **way)) < 280
        late = arrived(Disturbance(reordering=0.3), **way)
        assert sorted(late) == everything and late != everything
    assert arrived(Disturbance(0.9, 0.9, 0.9), sender=0, to=2) == everything


def test_packets_that_a_busy_machine_carries_late_are_counted() -> None:
    wire = shaper(PathShape(delay_s=0.04))
    for sent_at in (0.0, 1.0, 2.0):
        wire.handle(0, packet(1), sent_at)
    wire.tick(0.041)
    wire.tick(1.1)
    wire.tick(2.0905)
    assert (wire.stats.delivered, wire.stats.late, wire.stats.latest_ms) == (3, 2, 60)


def test_addresses_and_receivers_belong_together() -> None:
    assert address_of(7) == "10.77.0.8"
    assert receiver_of(packet(7)) == 7


def test_three_groups_are_cut_from_each_other_in_all_directions() -> None:
    ways = between([[0, 1], [2], [3]])
    assert ways == {(a, b) for a in range(4) for b in range(4) if a != b} - {(0, 1), (1, 0)}
    with pytest.raises(ValueError, match="cut"):
        PathShape(bytes_per_s=0.0)
