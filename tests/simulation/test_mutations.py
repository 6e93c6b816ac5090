"""Do the checkers see anything? Invariants are broken in the product, one at a time, and each is found out.

A mutation is made by replacing one function; worlds are drawn from seeds as in a soak, with the
faults on that bring the broken thing to light, until one of them breaks.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import pytest

from recovery.policy import Decision, LossFacts, decide
from swarm.daemon import trust
from swarm.gossip.register import Register
from swarm.gossip.view import MemberRecord
from swarm.lab.soak import draw, play
from swarm.pipeline.applying import Applying
from swarm.pipeline.feeding import Feeding
from swarm.pipeline.outer_round import Came, Meeting, OuterRound
from swarm.pipeline.work import Work
from swarm.planning import orders
from transport.machine import NodeId
from transport.wire import Signed

pytestmark = pytest.mark.slow
SEEDS = 30


def caught(*classes: str, liar: bool = False, cells: int = 1) -> tuple[int, str]:
    """The first seed whose world broke, and its sentence. Worlds end with the last faults."""
    for seed in range(SEEDS):
        scenario = draw(seed, classes)
        fits = scenario.options.job.pipeline.cells >= cells and scenario.options.nodes > 1
        if fits and (scenario.classes or liar):
            short = replace(scenario.options, until_s=min(90.0, scenario.options.until_s))
            broken = play(replace(scenario, liar=liar, options=short)).broken
            if broken and not broken[0].startswith("not finished"):
                return seed, broken[0]
    return SEEDS, ""


def test_a_skipped_signature_test_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "verify", lambda signed, domain, public_key: True)
    seed, sentence = caught(liar=True)
    assert "that it never signed" in sentence, seed


def test_a_dropped_incarnation_check_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    admit = Register.admit

    def unordered(self: Register, record: MemberRecord, signed: Signed, now: float) -> Any:
        row = self.rows.get(NodeId(record.node))
        if row is not None and record.version < row.member.record.version:
            first = row.member.record.model_copy(update={"incarnation": 0, "seq": 0})
            row.member = replace(row.member, record=first)
        return admit(self, record, signed, now)

    monkeypatch.setattr(Register, "admit", unordered)
    seed, sentence = caught("restart", "by_rate", liar=True)
    assert "and shows" in sentence, seed


def test_a_partial_round_that_is_reported_whole_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    average = OuterRound._average

    def whole(self: OuterRound, stage: int, meeting: Meeting) -> Any:
        for cell in sorted(meeting.expected - meeting.parts.keys()):
            meeting.parts[cell] = Came(self.me, meeting.iteration, meeting.delta)
        return average(self, stage, meeting)

    monkeypatch.setattr(OuterRound, "_average", whole)
    monkeypatch.setattr(OuterRound, "_average_if_complete", _impatient(OuterRound._average_if_complete))
    seed, sentence = caught("cut", "partition", "pause", "slow_compute", cells=2)
    assert "has sent nothing for it" in sentence or "nobody told them so" in sentence, seed


def _impatient(complete: Callable[..., Any]) -> Callable[..., Any]:
    """An owner that is done as soon as anybody came."""

    def average(self: OuterRound, stage: int, meeting: Meeting) -> Any:
        ours = self._meetings.get(stage) is meeting and meeting.owner == self.me
        if ours and not meeting.averaging and len(meeting.expected) > 1:
            return self._average(stage, meeting)
        return complete(self, stage, meeting)

    return average


def test_a_microbatch_that_is_counted_twice_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = Feeding.computed

    def twice(self: Feeding, work: Work, output: Any, now: float) -> Any:
        before = self._tokens
        effects = computed(self, work, output, now)
        if work.kind == "head" and work.key.microbatch == 0:
            self._tokens += self._tokens - before
        return effects

    monkeypatch.setattr(Feeding, "computed", twice)
    seed, sentence = caught("pause", "slow_link")
    assert "tokens of" in sentence, seed


def test_a_microbatch_that_a_leader_does_not_count_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader reports to itself alone: that it is done, and nothing of its tokens."""
    computed = Feeding.computed

    def without(self: Feeding, work: Work, output: Any, now: float) -> Any:
        before = self._tokens
        effects = computed(self, work, output, now)
        if work.kind == "head" and work.key.microbatch == 0 and self.me == self._leader:
            self._tokens = before
        return effects

    monkeypatch.setattr(Feeding, "computed", without)
    seed, sentence = caught("pause", "slow_link")
    assert "tokens planned" in sentence, seed


def test_a_recovery_from_less_than_there_was_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is left of a stage, it goes on from the seed."""

    def from_seed(facts: LossFacts) -> Decision:
        decided = decide(facts)
        return replace(decided, how="seed", donors=(), neighbours=()) if decided.how != "none" else decided

    monkeypatch.setattr(orders, "decide", from_seed)
    seed, sentence = caught("restart", "crash", "stage_lost")
    assert "by seed, while" in sentence, seed


def test_a_stale_holder_that_serves_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder to whom a decided step has not come yet goes on as if it had taken it."""
    choose = Applying.choose

    def without(self: Applying, stages: Collection[int], now: float) -> Any:
        chosen = choose(self, stages, now)
        if chosen is None:
            self.until = None
        return {} if chosen is None else chosen

    monkeypatch.setattr(Applying, "choose", without)
    seed, sentence = caught("slow_link", "by_rate")
    assert "differ after slot" in sentence, seed
