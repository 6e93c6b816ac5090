"""Promises 5 and 6: who is not admitted learns and changes nothing; no message crashes anybody."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest
from pydantic import ValidationError
from small_worlds import play, script, small_job

from recovery.transfer import TRANSFER_KINDS
from swarm.daemon.node import GOSSIP_SCHEMA
from swarm.daemon.training_setup import WORK_SCHEMA
from swarm.gossip.messages import GOSSIP_KINDS
from swarm.lab.world import World
from swarm.meetings import MEETING_KINDS
from swarm.messages import WORK_KINDS
from transport.identity import Identity
from transport.link import Endpoint
from transport.sim_link import SimLink
from transport.wire import Body, Message, lists_as_tuples

JOB = small_job(nodes=4, cells=1, stages=2, iterations=20)
KINDS = (set(GOSSIP_KINDS), {*WORK_KINDS, *MEETING_KINDS, *TRANSFER_KINDS})
"""Of the two links of every node."""
KEPT = 400


def overhear(world: World) -> list[Message]:
    """What is sent from now on, in a list that grows up to `KEPT`."""
    heard: list[Message] = []
    carry = world.network.carry

    def listening(sender: SimLink, endpoint: Endpoint, message: Message) -> int | None:
        heard.append(message)
        del heard[:-KEPT]
        return carry(sender, endpoint, message)

    world.network.carry = listening  # type: ignore[method-assign]
    return heard


class Stranger:
    """Knows every address, repeats whatever it overhears to everybody, and has no certificate."""

    def __init__(self) -> None:
        self.sent = 0
        self.learned: list[object] = []

    async def knock(self, world: World) -> None:
        me = Identity.create(Random(99))
        network = world.network
        links = [
            network.open(me.node, curve_key=me.curve_public, schema=s) for s in (GOSSIP_SCHEMA, WORK_SCHEMA)
        ]
        heard = overhear(world)
        while True:
            await asyncio.sleep(0.5)
            newest = heard[-10:]
            for process in world.live():
                for mine, theirs, kinds in zip(links, process.links, KINDS, strict=True):
                    mine.know(process.node, theirs.endpoint)
                    said = [message for message in newest if type(message.body) in kinds]
                    self.sent += sum(mine.send(process.node, message) for message in said)
            self.learned += [event for link in links if (event := link.poll()) is not None]


def test_without_a_certificate_one_learns_nothing_and_changes_nothing() -> None:
    stranger = Stranger()
    alone, knocked = play(JOB), play(JOB, meddle=stranger.knock)
    knocked.assert_well()
    assert stranger.sent > 100
    assert stranger.learned == []
    assert knocked.lines() == alone.lines()


def mutated(body: Body, others: list[Message], rng: Random) -> Body | None:
    """A body with one field replaced, if its schema still allows it."""
    fields = body.model_dump()
    name = rng.choice(sorted(fields))
    same = [getattr(m.body, name) for m in others if hasattr(m.body, name)]
    was = fields[name]
    fields[name] = (
        {
            int: rng.choice([0, 1, 2, 5, 2**40]),
            float: rng.choice([0.0, -1.0, 1e30]),
            bool: not was,
            tuple: (),
        }.get(type(was), rng.choice(same))
        if rng.random() < 0.5
        else rng.choice(same)
    )
    try:
        return type(body).model_validate(lists_as_tuples(_plain(fields)))
    except ValidationError:
        return None


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: v.model_dump() if hasattr(v, "model_dump") else v for k, v in fields.items()}


class Insider:
    """An admitted node that besides its work sends everybody what it overheard, a little changed."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.sent = 0

    async def lie(self, world: World) -> None:
        heard = overhear(world)
        await asyncio.sleep(1.5)
        while world.nodes[0].running:
            await asyncio.sleep(0.05)
            for message in self.rng.sample(heard, min(10, len(heard))):
                body = mutated(message.body, heard, self.rng)
                if body is not None:
                    self._say(world, Message(body, self._spoil(message)))

    def _spoil(self, message: Message) -> tuple[Any, ...]:
        """Half of the time the tensors are noise of the same size."""
        if self.rng.random() < 0.5:
            return tuple(message.buffers)
        return tuple(self.rng.randbytes(memoryview(buffer).nbytes) for buffer in message.buffers)

    def _say(self, world: World, message: Message) -> None:
        me, peer = world.nodes[0], self.rng.choice(world.nodes[1:])
        for link, kinds in zip(me.links, KINDS, strict=True):
            if type(message.body) in kinds:
                self.sent += link.send(peer.node, message)


@pytest.mark.parametrize("seed", range(3))
def test_no_member_s_message_crashes_another_or_fills_its_queues(seed: int) -> None:
    insider = Insider(seed)
    played = play(JOB, seed=seed, until_s=20, meddle=insider.lie)
    assert insider.sent > 200
    assert played.world.evidence.failures == []
    assert not [found for found in played.outcome.broken if "keeps" in found]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 140))
def test_no_member_s_message_ever_crashes_another(seed: int) -> None:
    played = play(JOB, seed=seed, until_s=40, meddle=Insider(seed).lie)
    assert played.world.evidence.failures == []


def test_damaged_messages_are_dropped_and_counted_and_training_goes_on() -> None:
    damage = "\n".join(
        f'[[fault]]\nat_s = {1 + 0.5 * index}\nkind = "corrupt"\nnode = "node:{index % 4}"\nmessages = 4'
        for index in range(12)
    )
    played = play(JOB, script(damage), until_s=300)
    played.assert_well()
    malformed = sum(link.stats.dropped_malformed for node in played.world.nodes for link in node.links)
    assert malformed > 10
