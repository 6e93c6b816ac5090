"""A world without tensors is the same world: bytes, times, failures, and what its checkers see."""

from collections.abc import Collection
from typing import Any

import pytest
from small_worlds import Played, fault, play, script, small_job

from swarm.lab.hollow import VALUES
from swarm.messages import CellRecord
from swarm.pipeline.applying import Applying
from swarm.pipeline.averaging import Hold
from swarm.pipeline.computing import Computing

HOURS = """
[[fault]]
at_iteration = 4
kind = "restart"
node = "holder:1"
after_s = 6
[[fault]]
at_iteration = 8
kind = "pause"
node = "random"
for_s = 3
[[fault]]
at_iteration = 12
kind = "crash"
node = "holders:2"
"""


def sent(played: Played, lane: Any) -> int:
    return played.world.network.traffic.count(lane).sent


def test_bytes_and_times_are_those_of_the_same_run_with_tensors() -> None:
    job = small_job(nodes=5, stages=2, iterations=8, every=4, checkpoint_every=4)
    with_them, without = (play(job, tensors=tensors) for tensors in ("real", "none"))
    for played in (with_them, without):
        played.assert_well()
    assert sent(without, "bulk") == sent(with_them, "bulk") > 30_000_000
    assert sent(without, "control") == pytest.approx(sent(with_them, "control"), rel=0.03)
    assert len(without.commits()) == len(with_them.commits())
    for hollow, dense in zip(without.commits(), with_them.commits(), strict=True):
        assert hollow.time == pytest.approx(dense.time, rel=0.01)
        assert hollow.fields["tokens"] == dense.fields["tokens"]


def test_what_nobody_can_know_without_tensors_is_told_as_unknown() -> None:
    played = play(small_job(nodes=4, cells=1, iterations=3), tensors="none")
    played.assert_well()
    told = [event.fields[name] for event in played.events for name in VALUES if name in event.fields]
    assert len(told) > 6
    assert set(told) == {None}


def test_lost_stages_come_back_without_tensors_and_every_run_is_the_same() -> None:
    job = small_job(iterations=24)
    first, second = (play(job, script(HOURS), tensors="none") for _ in range(2))
    first.assert_well()
    assert first.lines() == second.lines()
    assert {event.fields["stage"] for event in first.of("recovered")} >= {2}
    assert "checkfree" in {event.fields["how"] for event in first.of("recovered")}


def test_a_stale_holder_that_serves_is_found_out_without_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder to whom a decided step has not come yet goes on as if it had taken it."""
    choose = Applying.choose

    def without(self: Applying, stages: Collection[int], now: float) -> Any:
        chosen = choose(self, stages, now)
        if chosen is None:
            self.until = None
        return {} if chosen is None else chosen

    monkeypatch.setattr(Applying, "choose", without)
    slow = fault("slow_link", "holders:1", at_s=2, factor=30, for_s=20)
    job = small_job(nodes=6, cells=1, stages=2, iterations=40)
    (sentence, *_) = play(job, slow, tensors="none").outcome.broken
    assert "differ after slot" in sentence


def test_a_gradient_that_one_holder_takes_twice_is_found_out_without_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One holder of several applies twice what the record says once."""
    decided, done = Computing._decided_tensors, list[str]()

    def twice(self: Computing, record: CellRecord, hold: Hold) -> Any:
        tensors = decided(self, record, hold)
        if done or tensors is None or len(record.roster[hold.stage]) == 1:
            return tensors
        done.append(hold.reducer)
        return tuple(2 * tensor for tensor in tensors)

    monkeypatch.setattr(Computing, "_decided_tensors", twice)
    (sentence, *_) = play(small_job(nodes=6, cells=1, stages=2, iterations=5), tensors="none").outcome.broken
    assert done
    assert "differ after slot" in sentence
