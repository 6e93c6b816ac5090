"""Many takers of many states draw on one donor whose uplink is a thin line that keeps its order."""

import heapq

import pytest
import torch

from recovery.donor import NeedSnapshot
from recovery.fetch import Fetched
from recovery.snapshot import Chunk, describe, take_snapshot
from recovery.transfer import Transfer
from transport.machine import Send

CHUNK = 1024
LATENCY_S, READ_S = 0.05, 0.5


class Uplink:
    """One donor with a state for each of some takers, made-up time, and a line of chunks."""

    def __init__(self, takers, chunks, chunks_per_s):
        self.states = {k: {"p": torch.full((chunks * CHUNK // 4,), float(k))} for k in range(takers)}
        self.donor, self.takers = Transfer(), [Transfer() for _ in range(takers)]
        self.pace_s = 1 / chunks_per_s
        self.now = self.line_free_at = self.disk_free_at = 0.0
        self.events, self.order = [], 0
        self.reads = self.sent = 0
        self.ended = {}

    def at(self, time, what):
        self.order += 1
        heapq.heappush(self.events, (time, self.order, what))

    def give(self, effects):
        for effect in effects:
            if isinstance(effect, NeedSnapshot):
                self.reads += 1
                self.disk_free_at = max(self.disk_free_at, self.now) + READ_S
                self.at(self.disk_free_at, lambda name=effect.name: self.read(name))
            elif isinstance(effect, Send):
                sent_at = self.now
                if isinstance(effect.message.body, Chunk):
                    self.sent += 1
                    self.line_free_at = max(self.line_free_at, self.now) + self.pace_s
                    sent_at = self.line_free_at
                k, message = int(effect.peer), effect.message
                self.at(
                    sent_at + LATENCY_S,
                    lambda k=k, m=message: self.take(k, self.takers[k].handle("donor", m, self.now)),
                )

    def read(self, name):
        state = self.states[int(name.partition(":")[2])]
        self.give(self.donor.provide(take_snapshot(name, 100, state, chunk_bytes=CHUNK), self.now))

    def take(self, k, effects):
        for effect in effects:
            if isinstance(effect, Send):
                message = effect.message
                self.at(
                    self.now + LATENCY_S,
                    lambda m=message: self.give(self.donor.handle(str(k), m, self.now)),
                )
            else:
                self.ended.setdefault(k, []).append(effect)

    def fetch(self, k):
        expected = describe(self.states[k])
        self.take(k, self.takers[k].fetch(f"checkpoint:{k}", ["donor"], expected, self.now, 100))

    def run(self, until):
        machines = [self.donor, *self.takers]
        while len(self.ended) < len(self.takers):
            due = min((d for m in machines if (d := m.deadline()) is not None), default=until)
            first = self.events[0][0] if self.events else until
            if min(due, first) >= until:
                break
            if due < first:
                self.now = max(self.now, due)
                self.give(self.donor.tick(self.now))
                for k, taker in enumerate(self.takers):
                    self.take(k, taker.tick(self.now))
            else:
                self.now, _, what = heapq.heappop(self.events)
                what()
        return self


@pytest.mark.parametrize(
    ("takers", "chunks", "chunks_per_s"), [(2, 300, 20.0), (6, 300, 20.0), (6, 60, 0.5), (12, 60, 0.5)]
)
def test_takers_of_different_states_are_served_in_the_time_the_line_needs(takers, chunks, chunks_per_s):
    """More than are held at once: nobody's is taken from under it, and nobody takes the donor for dead."""
    pure_s = takers * chunks / chunks_per_s
    net = Uplink(takers, chunks, chunks_per_s)
    for k in range(takers):
        net.at(0.01 * k, lambda k=k: net.fetch(k))
    net.run(until=10 * pure_s)
    assert sorted(net.ended) == list(range(takers))
    assert all([type(effect) for effect in ended] == [Fetched] for ended in net.ended.values())
    assert net.now < 1.1 * pure_s + takers * READ_S
    assert net.reads == takers


@pytest.mark.parametrize("chunks_per_s", [1.0, 5.0, 50.0])
@pytest.mark.parametrize("apart_s", [0.01, 30.0], ids=["together", "one after another"])
def test_chunks_that_are_only_queued_are_not_asked_for_again(chunks_per_s, apart_s):
    """Each taker sees its own few chunks close together, and then a gap in which the others have theirs."""
    takers, chunks = 3, 200
    net = Uplink(takers, chunks, chunks_per_s)
    for k in range(takers):
        net.at(apart_s * k, lambda k=k: net.fetch(k))
    net.run(until=1e5)
    assert all([type(effect) for effect in ended] == [Fetched] for ended in net.ended.values())
    assert net.sent == takers * chunks
