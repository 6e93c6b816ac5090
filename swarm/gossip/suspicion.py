"""How long a suspicion lasts: Lifeguard's timer, and the short one for closed connections."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from swarm.gossip.config import GossipConfig
from swarm.gossip.messages import Claim
from transport.machine import NodeId

CONFIRMERS = 3
"""k of Lifeguard: accusers beyond the first that bring a suspicion down to its shortest."""


def shortest_s(config: GossipConfig, members: int) -> float:
    """The suspicion of a node that enough others accuse."""
    return config.suspicion_mult * max(1.0, math.log10(max(1, members))) * config.probe_s


def timeout_s(config: GossipConfig, members: int, confirmations: int) -> float:
    """T(c) = max(min, max - (max - min) ln(c + 1) / ln(k + 1)), Lifeguard section IV-B.

    c counts accusers beyond the first; k, the number that brings it down to the minimum, is
    3, or as many as there are others, at least 1.
    """
    low = shortest_s(config, members)
    if not config.lifeguard:
        return low
    high = config.suspicion_max_mult * low
    enough = max(1, min(CONFIRMERS, members - 2))
    return max(low, high - (high - low) * math.log(confirmations + 1) / math.log(enough + 1))


@dataclass(slots=True)
class Suspicion:
    """An open suspicion about the newest incarnation of a node. Each accuser counts once.

    by, closed_by: accusers, and those of them whose connection to the node closed.
    """

    me: NodeId
    since: float
    by: set[NodeId] = field(default_factory=set)
    closed_by: set[NodeId] = field(default_factory=set)
    own_since: float = math.inf

    def is_news(self, claim: Claim) -> bool:
        """Whether a claim adds an accuser or closed connection."""
        return NodeId(claim.by) not in (self.closed_by if claim.closed else self.by)

    def add(self, claim: Claim, now: float) -> None:
        """Count an accuser."""
        accuser = NodeId(claim.by)
        self.by.add(accuser)
        if claim.closed:
            self.closed_by.add(accuser)
            if accuser == self.me:
                self.own_since = min(self.own_since, now)

    def is_crash(self, witnesses: int) -> bool:
        """Whether this node lost the connection, and a witness did, if there is any left.

        witnesses: members that are alive and not suspected, this node not counted. Without our
        own evidence it is hearsay, and any two liars could bury a healthy node at once.
        """
        return self.me in self.closed_by and len(self.closed_by) > min(1, witnesses)

    def until(self, config: GossipConfig, members: int, witnesses: int) -> float:
        """When the node is buried, unless it refutes."""
        patient = self.since + timeout_s(config, members, len(self.by) - 1)
        if not self.is_crash(witnesses):
            return patient
        return min(patient, self.own_since + config.closed_dead_s)

    def postpone(self, seconds: float) -> None:
        """This node itself stood still that long: nobody had a chance to refute."""
        self.since += seconds
        self.own_since += seconds
