"""Two candidates of one term, of whom the stronger has missed the last record."""

from __future__ import annotations

from test_cell_log import IDENTITIES, IDS, Node, view_of

from swarm.messages import CellRecord, Commit, Query, Roster
from swarm.pipeline.records import record_digest, sign_record
from transport.machine import NodeId
from transport.wire import Message, Signed

BY_ID = sorted(range(5), key=lambda index: IDS[index])
LOW, HIGH, LEAVER = BY_ID[0], BY_ID[1], BY_ID[2]
NAMES = {name: IDS[index] for name, index in (("low", LOW), ("high", HIGH), ("leaver", LEAVER))}


def record(slot: int, roster: Roster, previous: str = "", leader: str = NAMES["leaver"]) -> Signed:
    """A record that the leaver led, or another."""
    act = "step" if slot else "found"
    body = CellRecord(
        cell="c0",
        slot=slot,
        term=1,
        act=act,
        iteration=slot,
        round=0,
        previous=previous,
        roster=roster,
        leader=leader,
    )
    return sign_record(body, IDENTITIES[IDS.index(NodeId(leader))].sign)


def test_two_candidates_whose_last_records_differ_do_not_wait_for_each_other() -> None:
    """The leaver's last record reached one alone, and by each one's own record it is first in line.

    The one that is behind has the higher id: its candidacy deposes the other's, then it learns
    that it is behind. Somebody must still lead, and not only when all patience is over.
    """
    low, high, leaver = NAMES["low"], NAMES["high"], NAMES["leaver"]
    first = record(0, ((high, leaver), (low,)))
    last = record(1, ((low, high), (low, high)), record_digest(first))
    nodes = {node.me: node for node in (Node(LOW, first), Node(HIGH, first))}
    for node in nodes.values():
        node.leader.election.heard(leaver, 1)
    wire: list[tuple[NodeId, NodeId, Message]] = []

    def send(sender: NodeId, out: list[tuple[NodeId, Message]]) -> None:
        wire.extend((peer, sender, message) for peer, message in out if peer in nodes)

    told = Message(Commit(cell="c0", slot=1, term=1, record=last))
    send(low, nodes[low].take(leaver, told, 0.0))
    gone = view_of({LOW, HIGH}, "left")
    for node in nodes.values():
        send(node.me, node.run(list(node.leader.observe(gone, 0.0)), 0.0))
    for _ in range(200):
        if not wire:
            break
        peer, sender, message = wire.pop(0)
        send(peer, nodes[peer].take(sender, message, 0.0))

    assert {node.follower.record.slot for node in nodes.values()} == {1}
    phases = {name: nodes[NAMES[name]].leader.phase for name in ("low", "high")}
    assert sorted(phases.values()) == ["closing", "following"], phases


def test_who_stood_while_it_was_cut_off_does_not_wait_for_a_leader_that_it_will_refuse() -> None:
    """It had raised the term, so each took the other for the leader, and all were patient in vain."""
    low, high = NAMES["low"], NAMES["high"]
    first = record(0, ((high,), (low,)), leader=high)
    node = Node(LOW, first)
    node.run(list(node.leader.observe(view_of({LOW, HIGH, LEAVER}), 0.0)), 0.0)
    node.leader.heard(high, 1, 0.0)
    due = node.leader.deadline()
    assert due is not None
    node.run(list(node.leader.tick(due)), due)
    assert (node.leader.phase, node.leader.term) == ("querying", 2)
    missed = record(1, ((high,), (low,)), record_digest(first), leader=high)
    out = node.take(high, Message(Commit(cell="c0", slot=1, term=1, record=missed)), due)
    asked = [(peer, body.slot, body.term) for peer, m in out if isinstance(body := m.body, Query)]
    assert asked == [(high, 1, 3)]
