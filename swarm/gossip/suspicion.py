"""How long a suspicion lasts: Lifeguard's timer, and the short one for closed connections."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from swarm.gossip.config import GossipConfig
from swarm.gossip.messages import Claim
from transport.machine import NodeId

CONFIRMERS = 3
"""k of Lifeguard: accusers beyond the first that bring a suspicion down to its shortest."""
SMALL = 32
"""Members of a swarm in which everything may be told to everyone."""


def confirmers(members: int) -> int:
    """k among so many members: as many as there are others, at most 3, and 1 in a large swarm.

    There each further accuser costs everybody 140 bytes several times over, and even the shortest
    suspicion leaves a suspect that 16 members warn more than 15 s to refute. Who did not reach the
    suspect for the first accuser (a nack) counts as another: what is left is accusers that do not
    reach the others either.
    """
    return max(1, min(CONFIRMERS, members - 2)) if members <= SMALL else 1


def shortest_s(config: GossipConfig, members: int) -> float:
    """The suspicion of a node that enough others accuse."""
    return config.suspicion_mult * max(1.0, math.log10(max(1, members))) * config.probe_s


def timeout_s(config: GossipConfig, members: int, confirmations: int) -> float:
    """T(c) = max(min, max - (max - min) ln(c + 1) / ln(k + 1)), Lifeguard section IV-B.

    c counts accusers beyond the first; k, the number that brings it down to the minimum, is
    what `confirmers` says.
    """
    low = shortest_s(config, members)
    if not config.lifeguard:
        return low
    high = config.suspicion_max_mult * low
    confirmed = math.log(confirmations + 1) / math.log(confirmers(members) + 1)
    return max(low, high - (high - low) * confirmed)


@dataclass(slots=True)
class Suspicion:
    """An open suspicion about the newest incarnation of a node. Each accuser counts once.

    by, closed_by: accusers, and those of them whose connection to the node closed. seconded: how
    many did not reach the node for one accuser, at most.
    """

    me: NodeId
    since: float
    by: set[NodeId] = field(default_factory=set)
    closed_by: set[NodeId] = field(default_factory=set)
    own_since: float = math.inf
    seconded: int = 0

    def is_news(self, claim: Claim, members: int) -> bool:
        """Whether a claim adds a closed connection, or an accuser that is needed.

        In a large swarm no more are needed than bring the suspicion to its shortest.
        """
        if claim.closed:
            return NodeId(claim.by) not in self.closed_by
        enough = members > SMALL and self.confirmations(members) >= confirmers(members)
        return not enough and NodeId(claim.by) not in self.by

    def confirmations(self, members: int) -> int:
        """Accusers beyond the first."""
        return len(self.by) - 1 + (self.seconded if members > SMALL else 0)

    def add(self, claim: Claim, now: float) -> None:
        """Count an accuser."""
        accuser = NodeId(claim.by)
        self.by.add(accuser)
        self.seconded = max(self.seconded, claim.seconded)
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
        patient = self.since + timeout_s(config, members, self.confirmations(members))
        if not self.is_crash(witnesses):
            return patient
        return min(patient, self.own_since + config.closed_dead_s)

    def postpone(self, seconds: float) -> None:
        """This node itself stood still that long: nobody had a chance to refute."""
        self.since += seconds
        self.own_since += seconds
