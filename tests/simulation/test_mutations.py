"""Do the checkers see anything? Invariants are broken in the product, one at a time, and each is found out.

A mutation is made by replacing one function; then a plain soak is played from its first seed on,
until a world breaks by that.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recovery.policy import Decision, LossFacts, decide
from swarm.daemon import trust
from swarm.gossip.register import Register
from swarm.gossip.view import MemberRecord
from swarm.lab.soaking import SoakOptions, play_seed
from swarm.messages import CellRecord
from swarm.pipeline import election, follower
from swarm.pipeline.applying import Applying
from swarm.pipeline.feeding import Feeding
from swarm.pipeline.outer_round import Came, Meeting, OuterRound
from swarm.pipeline.work import Work
from swarm.planning import orders
from transport import identity
from transport.identity import RunKeyGrant, unpack_payload
from transport.machine import NodeId
from transport.wire import Signed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SEEDS = 60


def caught(sentence: str, tmp_path: Path) -> list[int]:
    """The first seed of a plain soak whose world breaks with these words, if any does."""
    options = SoakOptions(out=tmp_path)
    for seed in range(SEEDS):
        if any(sentence in each for each in play_seed(seed, options)["broken"]):
            return [seed]
    return []


def test_a_skipped_signature_test_is_found_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trust, "verify", lambda signed, domain, public_key: True)
    assert caught("that it never signed", tmp_path)


def test_a_dropped_incarnation_check_is_found_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    admit = Register.admit

    def unordered(self: Register, record: MemberRecord, signed: Signed, now: float) -> Any:
        row = self.rows.get(NodeId(record.node))
        if row is not None and record.version < row.member.record.version:
            first = row.member.record.model_copy(update={"incarnation": 0, "seq": 0})
            row.member = replace(row.member, record=first)
        return admit(self, record, signed, now)

    monkeypatch.setattr(Register, "admit", unordered)
    assert caught("and shows", tmp_path)


def test_a_partial_round_that_is_reported_whole_is_found_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    average = OuterRound._average

    def whole(self: OuterRound, stage: int, meeting: Meeting) -> Any:
        for cell in sorted(meeting.expected - meeting.parts.keys()):
            meeting.parts[cell] = Came(self.me, meeting.iteration, meeting.delta)
        return average(self, stage, meeting)

    monkeypatch.setattr(OuterRound, "_average", whole)
    monkeypatch.setattr(OuterRound, "_average_if_complete", _impatient(OuterRound._average_if_complete))
    assert caught("and nobody told them so", tmp_path)


def _impatient(complete: Callable[..., Any]) -> Callable[..., Any]:
    """An owner that is done as soon as anybody came."""

    def average(self: OuterRound, stage: int, meeting: Meeting) -> Any:
        ours = self._meetings.get(stage) is meeting and meeting.owner == self.me
        if ours and not meeting.averaging and len(meeting.expected) > 1:
            return self._average(stage, meeting)
        return complete(self, stage, meeting)

    return average


def test_a_microbatch_that_is_counted_twice_is_found_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    computed = Feeding.computed

    def twice(self: Feeding, work: Work, output: Any, now: float) -> Any:
        before = self._tokens
        effects = computed(self, work, output, now)
        if work.kind == "head" and work.key.microbatch == 0:
            self._tokens += self._tokens - before
        return effects

    monkeypatch.setattr(Feeding, "computed", twice)
    assert caught("tokens of", tmp_path)


def test_a_microbatch_that_a_leader_does_not_count_is_found_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The leader reports to itself alone: that it is done, and nothing of its tokens."""
    computed = Feeding.computed

    def without(self: Feeding, work: Work, output: Any, now: float) -> Any:
        before = self._tokens
        effects = computed(self, work, output, now)
        if work.kind == "head" and work.key.microbatch == 0 and self.me == self._leader:
            self._tokens = before
        return effects

    monkeypatch.setattr(Feeding, "computed", without)
    assert caught("tokens planned", tmp_path)


def test_survivors_that_go_back_are_found_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those who are left found their cell three iterations before what they have, and all accept it."""
    founding, wrong_with = election.founding, follower.wrong_with_record

    def earlier(last: CellRecord, *about: Any) -> CellRecord:
        return founding(last.model_copy(update={"iteration": max(0, last.iteration - 3)}), *about)

    def accepting(signed: Signed, record: CellRecord, last: CellRecord) -> str:
        return "" if record.act == "found" else wrong_with(signed, record, last)

    monkeypatch.setattr(election, "founding", earlier)
    monkeypatch.setattr(follower, "wrong_with_record", accepting)
    assert caught("and goes on with", tmp_path)


def test_a_recovery_from_less_than_there_was_is_found_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever is left of a stage, it goes on from the seed."""

    def from_seed(facts: LossFacts) -> Decision:
        decided = decide(facts)
        return replace(decided, how="seed", donors=(), neighbours=()) if decided.how != "none" else decided

    monkeypatch.setattr(orders, "decide", from_seed)
    assert caught("by seed, while", tmp_path)


def test_a_stale_holder_that_serves_is_found_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A holder to whom a decided step has not come yet goes on as if it had taken it."""
    choose = Applying.choose

    def without(self: Applying, stages: Collection[int], now: float) -> Any:
        chosen = choose(self, stages, now)
        if chosen is None:
            self.until = None
        return {} if chosen is None else chosen

    monkeypatch.setattr(Applying, "choose", without)
    assert caught("differ after slot", tmp_path)


def test_strangers_that_are_let_in_are_found_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever granted the key that issued a certificate, it is believed."""
    monkeypatch.setattr(identity, "open_grant", lambda grant, _: unpack_payload(RunKeyGrant, grant.payload))
    assert caught("has the stranger", tmp_path)
