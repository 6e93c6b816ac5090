"""Merging news is a join: order, grouping and repetition do not matter, and nobody is moved by others."""

import random
from dataclasses import dataclass

import pytest
from gossip_world import machine, node_name, record_of, signed_claim, signed_record, whole_view
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from swarm.gossip.config import GossipConfig
from swarm.gossip.membership import Membership
from swarm.gossip.messages import Spread
from swarm.gossip.view import Status
from transport.machine import NodeId
from transport.wire import Message, Signed

NOW = 1.0
ACCUSERS = (5, 6, 7)


@dataclass(frozen=True)
class News:
    """A record of a node and what some say of exactly it; by=None is a farewell."""

    about: int
    incarnation: int
    seq: int
    accusers: tuple[int, ...] = ()
    farewell: bool = False

    @property
    def body(self) -> Spread:
        record = signed_record(record_of(self.about, incarnation=self.incarnation, seq=self.seq))
        accusers = (*self.accusers, *([self.about] if self.farewell else []))
        claims = tuple(signed_claim(by, self.about, self.incarnation) for by in accusers)
        return Spread(records=(record,), claims=claims)


news = st.builds(
    News,
    about=st.integers(1, 2),
    incarnation=st.integers(1, 3),
    seq=st.integers(0, 3),
    accusers=st.lists(st.sampled_from(ACCUSERS), unique=True, max_size=3).map(tuple),
    farewell=st.booleans(),
)


def listener() -> Membership:
    membership = machine(0)
    membership.seed([signed_record(record_of(accuser)) for accuser in ACCUSERS], 0.0)
    return membership


def state(membership: Membership) -> dict[NodeId, tuple[tuple[int, int], Status, frozenset[NodeId]]]:
    return {
        node: (
            row.member.record.version,
            row.member.status,
            frozenset(row.suspicion.by) if row.suspicion else frozenset(),
        )
        for node, row in membership.register.rows.items()
    }


def hear(membership: Membership, pieces: list[News]) -> Membership:
    for piece in pieces:
        membership.handle(node_name(5), Message(piece.body), NOW)
    return membership


@settings(deadline=None)
@given(st.lists(news, max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_news_does_not_matter(pieces: list[News], rng: random.Random) -> None:
    shuffled = rng.sample(pieces, len(pieces))
    assert state(hear(listener(), shuffled)) == state(hear(listener(), pieces))


@settings(deadline=None)
@given(st.lists(news, max_size=8))
def test_hearing_twice_changes_nothing(pieces: list[News]) -> None:
    membership = hear(listener(), pieces)
    once = state(membership)
    assert state(hear(membership, pieces)) == once


@settings(deadline=None)
@given(st.lists(news, max_size=5), st.lists(news, max_size=5))
def test_two_views_that_exchange_become_one(left: list[News], right: list[News]) -> None:
    """Grouping does not matter: what one was told, the other learns from it in whole."""
    one, other = hear(listener(), left), hear(machine(3), left[:0])
    other.seed([signed_record(record_of(accuser)) for accuser in ACCUSERS], 0.0)
    hear(other, right)
    for giver, taker in ((one, other), (other, one)):
        for message in whole_view(giver):
            taker.handle(giver.me, message, NOW)
    mine, theirs = state(one), state(other)
    for node in (node_name(1), node_name(2)):
        assert mine.get(node) == theirs.get(node)


class Owner(RuleBasedStateMachine):
    """Whatever is said, and by whom: a node's incarnation and its death are its own affair."""

    def __init__(self) -> None:
        super().__init__()
        self.membership = listener()
        self.now = NOW
        self.signed_so_far = 0
        self.seen = (0, 0)
        self.buried_at: int | None = None

    @rule(piece=news)
    def hears(self, piece: News) -> None:
        if piece.about == 1:
            self.signed_so_far = max(self.signed_so_far, piece.incarnation)
        self.membership.handle(node_name(5), Message(piece.body), self.now)

    @rule(
        by=st.sampled_from(ACCUSERS),
        incarnation=st.integers(0, 1 << 50),
        closed=st.booleans(),
        dead=st.booleans(),
    )
    def hears_a_forged_claim(self, by: int, incarnation: int, closed: bool, dead: bool) -> None:
        before = self.membership.view.status(node_name(1))
        claim = signed_claim(by, 1, incarnation, closed=closed, dead=dead)
        self.membership.handle(node_name(by), Message(Spread(claims=(claim,))), self.now)
        after = self.membership.view.status(node_name(1))
        assert after == before or (before, after) == ("alive", "suspect")

    @rule(seconds=st.sampled_from((0.5, 3.0, 20.0)))
    def time_passes(self, seconds: float) -> None:
        end = self.now + seconds
        while self.membership.deadline() <= end:
            self.now = max(self.now, self.membership.deadline())
            self.membership.tick(self.now)
        self.now = end
        row = self.membership.register.rows.get(node_name(1))
        if row is not None and not row.believed:
            self.buried_at = row.member.record.incarnation

    @invariant()
    def incarnations_only_rise_and_only_by_their_owner(self) -> None:
        row = self.membership.register.rows.get(node_name(1))
        if row is not None:
            version = row.member.record.version
            assert self.seen <= version
            assert version[0] <= self.signed_so_far
            self.seen = version

    @invariant()
    def the_buried_stay_buried_until_they_say_something_newer(self) -> None:
        row = self.membership.register.rows.get(node_name(1))
        if row is not None and self.buried_at is not None and row.believed:
            assert row.member.record.incarnation > self.buried_at

    @invariant()
    def health_and_queues_stay_in_bounds(self) -> None:
        membership = self.membership
        assert 0 <= membership.probing.health <= 7
        assert len(membership._spreading.queue) <= 1 + len(membership.register.rows) * 10
        assert all(len(row.evidence) <= 8 for row in membership.register.rows.values())


TestOwner = Owner.TestCase
TestOwner.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@pytest.mark.parametrize("first", [0, 1])
def test_two_records_of_one_version_come_out_the_same_either_way(first: int) -> None:
    two = [signed_record(record_of(1, iteration=iteration)) for iteration in (3, 4)]
    membership = machine(0)
    for signed in (two[first], two[1 - first]):
        membership.handle(node_name(5), Message(Spread(records=(signed,))), NOW)
    assert membership.register.rows[node_name(1)].signed == max(two, key=lambda s: s.payload)


def test_facts_of_the_same_incarnation_do_not_refute() -> None:
    membership = listener()
    hear(membership, [News(1, 1, 0, accusers=(5,)), News(1, 1, 9)])
    member = membership.view.members[node_name(1)]
    assert (member.status, member.record.seq) == ("suspect", 9)
    hear(membership, [News(1, 2, 10)])
    assert membership.view.status(node_name(1)) == "alive"


def test_a_full_view_admits_nobody_else() -> None:
    membership = machine(0, config=GossipConfig(members_max=2))
    records: list[Signed] = [signed_record(record_of(index)) for index in (1, 2, 3)]
    membership.seed(records, 0.0)
    assert len(membership.register.rows) == 2
    assert membership.refused == {"the view is full": 1}
