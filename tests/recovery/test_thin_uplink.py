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
        while self.events:
            due = min((d for m in machines if (d := m.deadline()) is not None), default=until)
            if min(due, self.events[0][0]) >= until:
                break
            if due < self.events[0][0]:
                self.now = max(self.now, due)
                self.give(self.donor.tick(self.now))
                for k, taker in enumerate(self.takers):
                    self.take(k, taker.tick(self.now))
            else:
                self.now, _, what = heapq.heappop(self.events)
                what()
        return self


@pytest.mark.parametrize("takers", [2, 6])
def test_takers_of_different_states_are_served_in_the_time_the_line_needs(takers):
    """More than are held at once: nobody's is taken from under it, and nobody takes the donor for dead."""
    chunks, chunks_per_s = 300, 20.0
    pure_s = takers * chunks / chunks_per_s
    net = Uplink(takers, chunks, chunks_per_s)
    for k in range(takers):
        net.at(0.01 * k, lambda k=k: net.fetch(k))
    net.run(until=10 * pure_s)
    assert sorted(net.ended) == list(range(takers))
    assert all([type(effect) for effect in ended] == [Fetched] for ended in net.ended.values())
    assert net.now < 1.1 * pure_s + takers * READ_S
    assert net.reads == takers
