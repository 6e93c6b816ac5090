"""What a node says of itself: its record, its incarnation, and facts that change as it works."""

from __future__ import annotations

import math
from collections.abc import Callable

from swarm.gossip.compact import Renewal, renewal_of
from swarm.gossip.config import GossipConfig
from swarm.gossip.messages import SECONDED_MAX, Claim
from swarm.gossip.records import CLAIM, MEMBER, pack, pack_claim
from swarm.gossip.view import Facts, Member, MemberRecord
from transport.machine import NodeId
from transport.wire import Signed

URGENT = ("cell", "stages", "state")
"""Facts whose change is told at once; the others wait for `facts_s`."""
RECENT_S = 60.0
"""How long it may take until everyone has heard of something: two comparisons of views."""
TALKATIVE = 32
"""Members that may tell changed facts every `facts_s`; more share what these would say."""


class OwnRecord:
    """This node's record and signature. Only this class raises its incarnation."""

    def __init__(
        self, record: MemberRecord, sign: Callable[[str, bytes], Signed], config: GossipConfig, now: float
    ) -> None:
        self.node = NodeId(record.node)
        self.record = record
        self.signed = sign(MEMBER, pack(record))
        self.due = math.inf
        """When changed facts are told, if some wait."""
        self._sign, self._config = sign, config
        self._facts = record.facts
        self.told_at = self._begun_at = now

    @property
    def told(self) -> Signed | Renewal:
        """Its record as others hear of it: whole as long as some may have none of this beginning."""
        whole = self.told_at < self._begun_at + RECENT_S
        return self.signed if whole else renewal_of(self.signed) or self.signed

    @property
    def member(self) -> Member:
        """Its row in its own view."""
        return Member(self.record, "alive")

    def claim(
        self, node: NodeId, incarnation: int, *, closed: bool = False, dead: bool = False, seconded: int = 0
    ) -> Signed:
        """This node's word about another; about itself, its farewell."""
        claim = Claim(
            node=node,
            incarnation=incarnation,
            by=self.node,
            closed=closed,
            dead=dead,
            seconded=min(seconded, SECONDED_MAX),
        )
        return self._sign(CLAIM, pack_claim(claim))

    def set_facts(self, facts: Facts, members: int, now: float) -> bool:
        """Note these facts, for so many members; True if they cannot wait."""
        self._facts = facts
        told = self.record.facts
        if facts == told:
            self.due = math.inf
        elif self.due == math.inf:
            self.due = max(now, self.told_at + self._config.facts_s * max(1.0, members / TALKATIVE))
        return any(getattr(facts, name) != getattr(told, name) for name in URGENT)

    def recertify(self, certificate: bytes, now: float) -> None:
        """Show this certificate from the next record on, which is due now."""
        self.record = self.record.model_copy(update={"certificate": certificate})
        self.due = self._begun_at = now

    def renew(self, now: float, *, beyond: int | None = None) -> None:
        """Sign the present facts; with `beyond`, at an incarnation higher than that."""
        changes: dict[str, object] = {"seq": self.record.seq + 1, "facts": self._facts}
        if beyond is not None:
            changes["incarnation"] = max(beyond, self.record.incarnation) + 1
        self.record = self.record.model_copy(update=changes)
        self.signed = self._sign(MEMBER, pack(self.record))
        self.due, self.told_at = math.inf, now
