"""How gossip behaves; every field says what it costs to change it."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipConfig:
    """Parameters of SWIM with Lifeguard (arXiv 1707.00788) and of crash evidence.

    How long silence lasts until everybody knows, among 8 nodes: each of the 7 others probes every
    second, whom it heard of least recently first, and as both ends of a pair probe each other, a
    pair meets every 3.5 s. So nobody probes the silent one for t seconds with a chance of
    (1 - t / 3.5)^7, 0.01 % for 2.6 s. The probe fails after 2 s (probe_s). Those who hear of it look
    at once for themselves and after 0.9 s (closed_probe_s) confirm it, which is all that the
    shortest suspicion asks for: 10 s from the first word. Together less than 2.6 + 2 + 10 s and a
    gossip, below 15 s. A node that stands still for up to 8 s is first suspected 2 s after it
    stopped, and has at least 4 s left to refute.

    probe_s: between two probes, and until one counts as failed; in a swarm of fewer than 16 down to
        half of it lies between two. Smaller finds silence sooner, costs two messages a probe.
    probe_timeout_s: until a direct probe counts as failed and others are asked to try. Must
        exceed a round trip; smaller asks for nothing more often.
    indirect: members asked. More tells a dead peer from a bad path, costs messages.
    suspicion_mult: shortest suspicion = mult x max(1, log10 n) x probe_s. It must exceed the
        longest stall of a healthy node; larger is slower to free a dead node's stages.
    suspicion_max_mult: the longest suspicion, for a lone accuser, in shortest ones.
    health_max: a node that misses things itself probes up to this many times slower.
    retransmit_mult: each update is sent mult x ceil(log10(n + 1)) times. Fewer may miss a
        member, who then learns it by an exchange.
    gossip_s, gossip_nodes: updates go to that many random members that often. Sooner and more
        spreads faster, costs messages.
    to_the_dead_s: how long the dead still get gossip, so that they may refute.
    push_pull_s: between comparisons of views, by hashes; what differs is exchanged. They heal what
        gossip missed and what a partition divided; each costs 650 bytes and what differs. As no
        more than that travels, the interval need not grow with the swarm.
    first_exchange_s: from the start to the first exchange; then twice as long each time, up to
        push_pull_s. Members that start together miss what they tell each other before their
        keys are known. Longer leaves gaps that long in the first views.
    closed_probe_s: how long a peer whose connection closed has to come back and answer. Longer
        than a reconnect with its handshake (four round trips), or resets look like crashes.
    closed_dead_s: how long after that it may still refute.
    facts_s: shortest time between two records of changed facts, unless its place changes, in a
        swarm of up to 32; in larger ones proportionally longer, so that all nodes together tell
        no more than 32 do. Smaller shows iterations sooner, costs a signature and a spread
        record each.
    stall_s: a tick that comes this much late means that this node itself stood still. Smaller
        than a busy machine's hiccups, and it renews its incarnation for nothing.
    reap_s: how long the dead are remembered, and tried again. Longer heals longer partitions.
    lifeguard: a node doubts itself first (probes slower when it misses things), suspicions of few
        accusers last longer, and a suspect is told what is said of it. Without it (plain SWIM)
        silence is buried a little sooner, and so are nodes that only stood still: for comparison.
    members_max: rows of a view. More are refused.
    batch_bytes: of updates in one message, however small the updates are.
    """

    probe_s: float = 2.0
    probe_timeout_s: float = 1.0
    indirect: int = 3
    suspicion_mult: float = 5.0
    suspicion_max_mult: float = 1.5
    health_max: int = 8
    retransmit_mult: int = 4
    gossip_s: float = 0.5
    gossip_nodes: int = 3
    to_the_dead_s: float = 60.0
    push_pull_s: float = 30.0
    first_exchange_s: float = 1.0
    closed_probe_s: float = 0.9
    closed_dead_s: float = 0.3
    facts_s: float = 0.8
    stall_s: float = 1.0
    reap_s: float = 24 * 3600.0
    lifeguard: bool = True
    members_max: int = 65_536
    batch_bytes: int = 32_768

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not isinstance(value, bool) and value <= 0:
                raise ValueError(f"{each.name} must be positive")
        if self.probe_timeout_s >= self.probe_s:
            raise ValueError("probe_timeout_s leaves others no time to try before the next probe")
        if self.suspicion_max_mult < 1:
            raise ValueError("suspicion_max_mult makes the longest suspicion shorter than the shortest")


def volunteer_wan() -> GossipConfig:
    """For home and rented machines all over the world: patient with silence, quick with crashes.

    With up to ten members the shortest suspicion is 10 s, the longest 15 s.
    """
    return GossipConfig()
