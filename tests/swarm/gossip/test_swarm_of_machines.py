"""Many machines in virtual time: who is found dead, how soon, and who never is."""

import random
from math import inf

import pytest
from gossip_world import World, machine, node_name, record_of, sign_as, signed_claim, whole_view

from swarm.gossip.config import volunteer_wan
from swarm.gossip.messages import Spread
from swarm.gossip.suspicion import timeout_s
from swarm.gossip.view import Facts
from transport.machine import Send

WAN = volunteer_wan()
SEEDS = range(5)


def settled(nodes: int, seed: int, **options: float) -> World:
    world = World(nodes, seed=seed, **options)  # type: ignore[arg-type]
    world.run_until(world.agree, 35.0)
    world.run(10.0)
    return world


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("nodes", [2, 8, 16])
def test_newcomers_are_soon_known_everywhere(nodes: int, seed: int) -> None:
    world = World(nodes, seed=seed)
    assert world.run_until(world.agree, 60.0) < 5.0
    world.run(120.0)
    assert world.agree()
    assert not world.buried()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("nodes", [2, 3, 4, 8, 16])
def test_a_crash_is_known_everywhere_within_two_seconds(nodes: int, seed: int) -> None:
    world = settled(nodes, seed)
    victim = node_name(random.Random(seed).randrange(nodes))
    world.crash(victim)
    assert world.run_until(lambda: world.statuses(victim) == {"dead"}, 20.0) <= 2.0
    world.run(60.0)
    assert {node for _, _, node, _ in world.buried()} == {victim}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_deadline_moved_into_the_past_is_no_stall(seed: int) -> None:
    """Confirmations shorten a suspicion; whoever hears them late has not stood still."""
    world = settled(8, seed)
    world.stop(node_name(7), inf)
    world.run(60.0)
    noted = [kind for node in world.live() if node != node_name(7) for kind, _ in world.hosts[node].noted]
    assert "stalled" not in noted


def test_last_words_that_overtake_the_loss_hide_no_crash() -> None:
    world = settled(3, 135)
    world.crash(node_name(0))
    assert world.run_until(lambda: world.statuses(node_name(0)) == {"dead"}, 20.0) <= 2.0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dead", [2, 5, 7])
def test_crashes_at_once_are_known_as_soon(dead: int, seed: int) -> None:
    world = settled(8, seed)
    victims = [node_name(index) for index in range(dead)]
    for victim in victims:
        world.crash(victim)
    known = lambda: all(world.statuses(victim) == {"dead"} for victim in victims)  # noqa: E731
    assert world.run_until(known, 20.0) <= 2.0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("nodes", [2, 3, 8, 16])
def test_silence_is_suspected_soon_and_buried_patiently(nodes: int, seed: int) -> None:
    world = settled(nodes, seed)
    victim = node_name(nodes - 1)
    world.stop(victim, inf)
    live = [node for node in world.live() if node != victim]
    suspected = world.run_until(lambda: "suspect" in world.statuses(victim, live), 30.0)
    assert suspected <= 2 * (nodes - 1) * WAN.probe_s + WAN.probe_s
    buried = world.run_until(lambda: world.statuses(victim, live) == {"dead"}, 40.0)
    assert timeout_s(WAN, nodes, nodes) - 0.1 <= buried <= timeout_s(WAN, nodes, 0) + 2 * WAN.probe_s


@pytest.mark.parametrize("seed", SEEDS)
def test_a_member_asleep_is_back_when_it_wakes(seed: int) -> None:
    world = settled(8, seed)
    sleeper = node_name(4)
    world.stop(sleeper, 300.0)
    world.run(60.0)
    assert world.statuses(sleeper, [n for n in world.live() if n != sleeper]) == {"dead"}
    world.run(240.0)
    assert world.run_until(world.agree, 60.0) < 5.0
    assert any(kind == "stalled" for kind, _ in world.hosts[sleeper].noted)
    assert {node for _, _, node, _ in world.buried()} == {sleeper}


@pytest.mark.parametrize("seed", range(3))
def test_stalls_bury_nobody_in_ten_minutes(seed: int) -> None:
    world, chance = settled(8, seed), random.Random(seed)
    stallers = [node_name(index) for index in range(4)]
    stalls = 0
    for _ in range(22):
        for node in stallers:
            world.at(chance.uniform(0, 30), lambda node=node: world.stop(node, chance.uniform(2, 8)))
            stalls += 1
        world.run(30.0)
    assert stalls == 88
    assert not world.buried()
    assert world.run_until(world.agree, 60.0) < 20.0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("nodes", [2, 3, 8])
def test_a_reset_connection_buries_nobody(nodes: int, seed: int) -> None:
    world, chance = settled(nodes, seed), random.Random(seed)
    for _ in range(40):
        world.reset(*chance.sample(world.live(), 2))
        world.run(chance.uniform(0.1, 3.0))
    for other in world.live()[1:]:
        world.reset(world.live()[0], other)
    world.run(30.0)
    assert not world.buried()
    assert world.agree()


@pytest.mark.parametrize("seed", SEEDS)
def test_liars_with_closed_connections_bury_nobody(seed: int) -> None:
    world = settled(8, seed)
    victim, liars = node_name(0), (5, 6, 7)
    for _ in range(60):
        incarnation = world.hosts[victim].membership.own.record.incarnation
        for liar in liars:
            for other in (1, 2, 3, 4):
                claim = signed_claim(liar, 0, incarnation, closed=True, dead=True)
                world.tell(node_name(liar), node_name(other), Spread(claims=(claim,)))
        world.run(1.0)
    assert not [entry for entry in world.buried() if entry[2] == victim]
    world.run(20.0)
    assert world.agree()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("small", [1, 2, 4])
def test_a_partition_heals_into_one_view(small: int, seed: int) -> None:
    world = settled(8, seed)
    left = {node_name(index) for index in range(small)}
    world.cut = lambda a, b: (a in left) != (b in left)
    world.run(120.0)
    right = [node for node in world.live() if node not in left]
    assert all(world.statuses(node, right) == {"dead"} for node in left)
    # One that reaches nobody doubts itself, and takes its time to doubt others.
    assert "dead" in {status for node in right for status in world.statuses(node, left)}
    world.cut = lambda _a, _b: False
    assert world.run_until(world.agree, 2 * WAN.push_pull_s) <= 2 * WAN.push_pull_s
    views = [host.membership.view.members for host in world.hosts.values()]
    world.run(5.0)
    versions = [{n: m.record.version for n, m in view.items()} for view in views]
    assert len({len(version) for version in versions}) == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_one_broken_path_does_not_flap(seed: int) -> None:
    """Two members that do not reach each other, but others do: nobody suspects either."""
    world = settled(8, seed)
    pair = {node_name(1), node_name(2)}
    world.cut = lambda a, b: {a, b} == pair
    world.run(300.0)
    assert not world.buried()
    changes = [h for host in world.hosts.values() for h in host.history if h[2] == "suspect"]
    assert not changes


@pytest.mark.parametrize("seed", SEEDS)
def test_a_one_way_partition_flaps_no_more_than_once_per_suspicion(seed: int) -> None:
    """Nothing that one member says arrives, but it hears all: it refutes into the void, and is buried."""
    world = settled(8, seed)
    mute = node_name(3)
    world.cut = lambda a, _b: a == mute
    seconds = 300.0
    world.run(seconds)
    others = [node for node in world.live() if node != mute]
    assert world.statuses(mute, others) == {"dead"}
    for other in others:
        turns = [h for h in world.hosts[other].history if h[1] == mute and h[2] == "suspect"]
        assert len(turns) <= 1 + seconds / timeout_s(WAN, 8, 3)


@pytest.mark.parametrize("seed", SEEDS)
def test_leaving_is_not_dying(seed: int) -> None:
    world = settled(8, seed)
    world.leave(node_name(2))
    assert world.run_until(lambda: world.statuses(node_name(2)) == {"left"}, 5.0) < 1.0
    world.start(20)
    world.run(60.0)
    assert world.statuses(node_name(2)) <= {"left", None}
    assert not world.buried()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_restart_is_believed_at_its_higher_incarnation(seed: int) -> None:
    world = settled(8, seed)
    world.crash(node_name(2))
    world.run(1.0 if seed % 2 else 5.0)
    world.start(2, incarnation=2)
    assert world.run_until(world.agree, 35.0) < 5.0


def test_facts_and_notices_reach_everyone_within_seconds() -> None:
    world = settled(16, 0)
    facts = Facts(cell="c0", stages=(0, 1), state="training")
    notice = sign_as(node_name(5), "notice", b"hello")
    world.call(node_name(5), lambda m, now: m.set_facts(facts, now))
    world.call(node_name(5), lambda m, now: m.publish("cell:c0", 1, notice, now))
    views = [host.membership for host in world.hosts.values()]
    assert world.run_until(lambda: all(len(v.view.cell("c0")) == 1 for v in views), 10.0) < 4.0
    world.run(4.0)
    assert all(len(host.notices) == 1 for host in world.hosts.values())
    late = world.start(30)
    world.run(3.0)
    assert len(world.hosts[late].notices) == 1


def test_a_large_view_travels_in_pages_that_fit() -> None:
    world = World(2)
    book = machine(99)
    for index in range(100, 1100):
        record = record_of(index, hashes={str(stage): "ab" * 32 for stage in range(60)})
        book.register.admit(record, sign_as(record.node, "member", bytes(6000)), 0.0)
    pages = whole_view(book)
    assert len(pages) > 10
    world.hosts[node_name(99)] = world.hosts[node_name(1)]
    for page in pages:
        world._send(node_name(99), Send(node_name(0), page))
    assert world.largest < 1 << 19


def test_quiet_swarms_are_quiet() -> None:
    world = settled(16, 0)
    before = sum(host.sent for host in world.hosts.values())
    world.run(60.0)
    per_node_per_s = (sum(host.sent for host in world.hosts.values()) - before) / 16 / 60
    assert per_node_per_s < 1.5


def test_the_same_seed_gives_the_same_history() -> None:
    histories = []
    for _ in range(2):
        world = settled(8, 7)
        world.crash(node_name(3))
        world.stop(node_name(4), 6.0)
        world.run(60.0)
        histories.append([host.history for host in world.hosts.values()])
    assert histories[0] == histories[1]
