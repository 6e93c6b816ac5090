"""Faults of one kind that overlap on a node: the end of one is not the end of the others."""

import asyncio

import pytest
from small_worlds import play, script, small_job

from swarm.lab.soak import TINY
from swarm.lab.world import World

JOB = small_job(nodes=3, cells=1, stages=2, iterations=30)


def two(kind: str, first: str = "", second: str = "") -> str:
    """Twice the same kind on one node: from 2 s to 6 s, and from 4 s to 12 s."""
    return "\n".join(
        f'[[fault]]\nkind = "{kind}"\nnode = "node:1"\nat_s = {at}\nfor_s = {lasts}\n{fields}\n'
        for at, lasts, fields in ((2, 4, first), (4, 8, second))
    )


def test_of_two_overlapping_faults_of_a_kind_the_newer_holds_until_each_has_ended() -> None:
    faults = two("slow_compute", "factor = 5", "factor = 9") + two("disk_full")
    seen: dict[float, tuple[float, bool]] = {}

    async def look(world: World) -> None:
        for at_s in (3, 5, 7, 13):
            await asyncio.sleep(at_s - asyncio.get_running_loop().time())
            seen[at_s] = (world.nodes[1].compute.slowdown, world.nodes[1].disk.full)

    played = play(JOB, script(faults), model=TINY, meddle=look, flops_per_s=1e6)
    played.assert_well()
    assert seen == {3: (5, True), 5: (9, True), 7: (9, True), 13: (1, False)}


def test_a_node_paused_twice_stands_still_until_the_later_end() -> None:
    played = play(JOB, script(two("pause")), model=TINY)
    played.assert_well()
    mine = [event.time for event in played.events if event.node == played.world.nodes[1].node]
    said = [event.time for event in played.events if event.kind != "fault" and event.time in mine]
    assert not [at for at in said if 2.5 < at < 12]
    assert [at for at in said if at >= 12]


def test_a_pause_ends_with_the_life_that_it_stopped() -> None:
    killed = '[[fault]]\nkind = "restart"\nnode = "node:1"\nat_s = 5\nafter_s = 1'
    played = play(JOB, script(two("pause") + "\n" + killed), model=TINY)
    played.assert_well()
    node = played.world.nodes[1].node
    assert [e.time for e in played.of("member") if e.node == node and 6 < e.time < 11]


def test_noise_of_one_end_of_a_path_outlasts_the_noise_of_the_other() -> None:
    noise = '[[fault]]\nkind = "noise"\nnode = "node:{}"\nat_s = 2\nfor_s = {}\nduplication = {}'
    seen: dict[float, float] = {}

    async def look(world: World) -> None:
        one, other = world.nodes[0].node, world.nodes[1].node
        for at_s in (3, 5, 9):
            await asyncio.sleep(at_s - asyncio.get_running_loop().time())
            seen[at_s] = world.network.shape(one, other).duplication

    faults = "\n".join((noise.format(0, 6, 0.3), noise.format(1, 2, 0.1)))
    play(JOB, script(faults), model=TINY, meddle=look, flops_per_s=1e6).assert_well()
    assert seen == {3: 0.1, 5: 0.3, 9: 0.0}


def test_a_fault_waits_for_somebody_to_hit_and_what_never_happened_is_told() -> None:
    early = '[[fault]]\nat_s = 0.1\nkind = "restart"\nnode = "holder:{}"\nafter_s = 3\n'
    job = small_job(nodes=3, cells=1, stages=2, iterations=6)
    played = play(job, script(early.format(1) + early.format(7)), model=TINY, flops_per_s=1e6)
    played.assert_well()
    (hit,) = played.of("fault", what="restart")
    assert hit.time >= played.of("placed")[0].time > 0.5
    assert played.of("fault", what="restart ended")[0].time == pytest.approx(hit.time + 3)
    assert played.outcome.missed == ("restart of holder:7 met nobody alive",)


def test_who_still_sends_damaged_messages_has_not_been_left_alone() -> None:
    """Soak seed 396: of 33 messages it had sent a few, and was held to be buried without a cause."""
    calm: list[tuple[float, float]] = []

    async def look(world: World) -> None:
        await asyncio.sleep(30.5)
        calm.append((world.quiet_s(), world.evidence.calm_s(world.nodes[0].node, 30.5)))

    broken = '[[fault]]\nat_s = 2\nkind = "corrupt"\nnode = "node:0"\nmessages = {}\n'
    for messages in (1, 1_000_000):
        play(JOB, script(broken.format(messages)), until_s=31, model=TINY, meddle=look, flops_per_s=1e5)
    (quiet, alone), (never_quiet, never_alone) = calm
    assert min(quiet, alone) > 20
    assert max(never_quiet, never_alone) <= 1


def test_a_fault_that_never_happened_is_told() -> None:
    faults = script(
        """
        [[fault]]
        kind = "crash"
        node = "node:1"
        at_s = 2

        [[fault]]
        kind = "pause"
        node = "node:1"
        at_s = 3
        for_s = 1

        [[fault]]
        kind = "pause"
        node = "node:0"
        at_iteration = 999
        for_s = 1
        """
    )
    late = script('[[fault]]\nkind = "pause"\nnode = "node:0"\nat_s = 9e6\nfor_s = 1\n')
    played = play(small_job(nodes=3, cells=1, stages=2, iterations=5), faults, model=TINY, drawn=late)
    assert played.outcome.missed == (
        "pause of node:1 met nobody alive",
        "pause of node:0 was to be at iteration 999, and the run ended before",
    )
    assert played.outcome.drawn == (0, 1)


def test_a_fault_by_rate_that_never_happened_is_told() -> None:
    """One that drew no hit, or whose hits met nobody or came too late, vanished without a word."""
    rate = '[[fault]]\nkind = "{}"\nnode = "{}"\nper_hour = {}\nfrom_s = {}\nuntil_s = {}\n'
    often = 1 - 2**-53  # once in 98 s
    faults = script(
        rate.format("corrupt", "random", often, 1, 300)
        + rate.format("corrupt", "node:7", often, 1, 300)
        + rate.format("crash", "node:0", often, 5000, 9000)
        + rate.format("crash", "random", 1e-9, 1, 9000)
    )
    played = play(JOB, faults, model=TINY, until_s=9000, settle_s=100)
    assert played.of("fault", what="corrupt")
    nobody, late, rare = played.outcome.missed
    assert nobody == "corrupt of node:7 met nobody alive"
    assert late.startswith("crash of node:0 with per_hour = 1 was to be ")
    assert rare == "crash of random with per_hour = 1e-09 drew no hit in the run"


def test_who_was_killed_while_it_stood_still_is_hindered_by_that_no_more() -> None:
    """Its next life was excused from being believed to live, for as long as the pause was to last."""
    faults = """
    [[fault]]
    kind = "pause"
    node = "node:1"
    at_s = 2
    [[fault]]
    kind = "restart"
    node = "node:1"
    at_s = 4
    after_s = 2
    """
    played = play(JOB, script(faults), model=TINY)
    played.assert_well()
    node = played.world.nodes[1].node
    assert played.world.evidence.calm_s(node, played.outcome.seconds) > 0
