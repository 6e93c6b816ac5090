"""The driver: a machine hears what arrives, ticks when it said it would, and its effects happen."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

from transport.driver import BURST_MAX, Driver
from transport.machine import Effect, NodeId, Send
from transport.sim_link import SimLink
from transport.sim_network import LinkShape, SimNetwork
from transport.virtual_time import run_virtual
from transport.wire import Body, Message, Schema


class Note(Body):
    kind: ClassVar[str] = "note"
    number: int = 0


@dataclass(frozen=True, slots=True)
class Say(Effect):
    text: str


ANN, BOB = NodeId("a" * 64), NodeId("b" * 64)


@dataclass
class Diary:
    """A machine that says what it is told and when, and answers even numbers with odd ones."""

    wakes: list[float] = field(default_factory=list)

    def handle(self, peer: NodeId, message: Message, now: float) -> Sequence[Effect]:
        assert isinstance(message.body, Note)
        number = message.body.number
        said = Say(f"{number} at {now:g}")
        return (said,) if number % 2 else (said, Send(peer, Message(Note(number=number + 1))))

    def tick(self, now: float) -> Sequence[Effect]:
        due = [wake for wake in self.wakes if wake <= now]
        self.wakes = [wake for wake in self.wakes if wake > now]
        return [Say(f"tick at {now:g}") for _ in due]

    def deadline(self) -> float | None:
        return min(self.wakes, default=None)


class Pair:
    """A driven diary at Ann, and Bob's bare link a second away."""

    def __init__(self, wakes: Sequence[float] = ()) -> None:
        self.network = SimNetwork(Random(0), LinkShape(latency_s=1.0, bandwidth_bytes_per_s=1e12))
        schema = Schema((Note,))
        self.ann: SimLink = self.network.open(ANN, curve_key="a", schema=schema)
        self.bob: SimLink = self.network.open(BOB, curve_key="b", schema=schema)
        self.ann.know(BOB, self.bob.endpoint)
        self.bob.know(ANN, self.ann.endpoint)
        self.diary = Diary(list(wakes))
        self.said: list[str] = []
        self.driver = Driver(
            self.diary,
            self.ann,
            self._perform,
            closed=lambda peer, now: (Say(f"lost {peer[0]} at {now:g}"),),
            malformed=lambda peer, reason, now: (Say(f"{peer[0]}: {reason}"),),
        )

    def _perform(self, effect: Effect) -> None:
        assert isinstance(effect, Say)
        self.said.append(effect.text)

    async def run_for(self, seconds: float) -> list[str]:
        asyncio.get_running_loop().call_later(seconds, self.network.crash, ANN)
        await self.driver.run()
        return self.said


def _run(scenario: Coroutine[Any, Any, list[str]]) -> list[str]:
    return run_virtual(scenario)


def test_the_machine_ticks_exactly_at_its_deadlines() -> None:
    async def scenario() -> list[str]:
        return await Pair([2.5, 7.0, 7.0, 3600.0]).run_for(4000)

    assert _run(scenario()) == ["tick at 2.5", "tick at 7", "tick at 7", "tick at 3600"]


def test_messages_are_handled_and_answers_sent() -> None:
    async def scenario() -> list[str]:
        pair = Pair()
        pair.bob.send(ANN, Message(Note(number=4)))
        said = await pair.run_for(10)
        answer = await pair.bob.recv()
        return [*said, repr(answer)]

    said, answer = _run(scenario())
    assert said.startswith("4 at 1")
    assert "number=5" in answer


def test_a_deadline_is_kept_while_messages_pour_in() -> None:
    async def scenario() -> list[str]:
        pair, loop = Pair([5.5]), asyncio.get_running_loop()
        for second in range(10):
            loop.call_at(second, pair.bob.send, ANN, Message(Note(number=2 * second + 1)))
        return [text.split(" at")[0] for text in await pair.run_for(20)]

    assert _run(scenario()) == ["1", "3", "5", "7", "9", "tick", "11", "13", "15", "17", "19"]


def test_a_burst_is_drained_and_others_still_get_a_turn() -> None:
    async def scenario() -> list[str]:
        pair, turns = Pair(), []

        async def other() -> None:
            await asyncio.sleep(6)
            for _ in range(100):
                await asyncio.sleep(0)
                turns.append(len(pair.said))

        pair.network.pause(BOB)  # so that all arrive at one instant, 6
        for number in range(10 * BURST_MAX):
            pair.bob.send(ANN, Message(Note(number=2 * number + 1)))
        asyncio.get_running_loop().call_at(5, pair.network.resume, BOB)
        async with asyncio.TaskGroup() as group:
            group.create_task(other())
            said = await pair.run_for(50)
        assert len(set(turns)) >= 5
        return said

    assert len(_run(scenario())) == 10 * BURST_MAX


def test_a_lost_connection_is_told_to_the_machine() -> None:
    async def scenario() -> list[str]:
        pair = Pair()
        pair.bob.send(ANN, Message(Note(number=2)))
        asyncio.get_running_loop().call_at(5.0, pair.network.crash, BOB)
        return (await pair.run_for(20))[1:]

    assert _run(scenario()) == ["lost b at 6"]


def test_a_malformed_message_is_told_once() -> None:
    async def scenario() -> list[str]:
        pair = Pair()
        pair.network.corrupt(BOB, 2)
        for number in (1, 3, 5):
            pair.bob.send(ANN, Message(Note(number=number)))
        return await pair.run_for(20)

    refused, handled = _run(scenario())
    assert refused.startswith("b: not a msgpack map")
    assert handled.startswith("5 at 1")


def test_effects_from_outside_are_done_at_once_and_the_deadline_looked_at_again() -> None:
    async def scenario() -> list[str]:
        pair = Pair([100.0])

        def act() -> None:
            pair.diary.wakes.append(4.0)
            pair.driver.act([Say("from outside"), Send(BOB, Message(Note(number=9)))])
            pair.driver.wake()

        asyncio.get_running_loop().call_at(3.0, act)
        said = await pair.run_for(50)
        return [*said, repr(pair.bob.poll())]

    *said, sent = _run(scenario())
    assert said == ["from outside", "tick at 4"]
    assert "number=9" in sent


def test_waking_while_the_alarm_rings_is_harmless() -> None:
    async def scenario() -> list[str]:
        pair, loop = Pair([3.0]), asyncio.get_running_loop()
        # The driver's timer for 3.0 is set when it starts; this one rings right after it.
        loop.call_at(2.0, lambda: loop.call_at(3.0, pair.driver.wake))
        return await pair.run_for(5)

    assert _run(scenario()) == ["tick at 3"]
