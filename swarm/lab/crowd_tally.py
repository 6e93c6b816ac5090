"""What a crowd's run adds up to: who was found dead how soon, who was wronged, and what it cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from swarm.gossip.view import Member
from transport.machine import NodeId

GONE = ("dead", "left")


@dataclass(slots=True)
class Incident:
    """A crash. watchers: nodes that lived then and live since; unaware: those that still believe in
    the crashed one. late: who came, or came back, afterwards and believes in it, since when.
    """

    at: float
    unaware: set[NodeId]
    watchers: set[NodeId]
    late: dict[NodeId, float] = field(default_factory=dict)
    suspected_at: float | None = None
    known_at: float | None = None


@dataclass(slots=True)
class Load:
    """What one node sent, over all its lives, and how long these lasted."""

    since: float | None = None
    seconds: float = 0.0
    messages: int = 0
    nbytes: int = 0


@dataclass(slots=True)
class Tally:
    """Counts while the crowd runs.

    false_deaths, false_suspicions: views in which a live node was buried or suspected. wronged:
    (node, incarnation) of those buried anywhere. late_s: how long newcomers took somebody for alive,
    or suspected, who had crashed before they came.
    """

    incidents: list[Incident] = field(default_factory=list)
    false_deaths: int = 0
    false_suspicions: int = 0
    wronged: set[tuple[NodeId, int]] = field(default_factory=set)
    accused: set[tuple[NodeId, int]] = field(default_factory=set)
    kinds: dict[str, list[int]] = field(default_factory=dict)
    loads: dict[int, Load] = field(default_factory=dict)
    late_s: list[float] = field(default_factory=list)
    returns: int = 0
    _open: dict[NodeId, Incident] = field(default_factory=dict)
    _lives: dict[NodeId, int] = field(default_factory=dict)

    def born(self, index: int, now: float) -> None:
        """A node runs."""
        self.loads.setdefault(index, Load()).since = now

    def crashed(self, node: NodeId, index: int, watchers: Iterable[NodeId], now: float) -> None:
        """A node is gone, and `watchers` are left."""
        load = self.loads[index]
        assert load.since is not None
        load.seconds += now - load.since
        load.since = None
        self._forget_watcher(node, now)
        watching = set(watchers)
        incident = self._open[node] = Incident(now, watching, set(watching))
        self.incidents.append(incident)

    def returned(self, node: NodeId, index: int, incarnation: int, now: float) -> None:
        """A node is back."""
        self.returns += 1
        self._open.pop(node, None)
        self._lives[node] = incarnation
        self.born(index, now)

    def start_again(self, now: float) -> None:
        """Count from here: how a crowd starts is not how it lives."""
        for load in self.loads.values():
            load.since, load.seconds, load.messages, load.nbytes = now, 0.0, 0, 0
        self.kinds.clear()
        self.false_suspicions = self.false_deaths = 0
        self.accused.clear()
        self.wronged.clear()

    def sent(self, index: int, kind: str, nbytes: int) -> None:
        """A message left a node."""
        load = self.loads.get(index)
        if load is None:  # while the crowd is set up
            return
        load.messages += 1
        load.nbytes += nbytes
        count = self.kinds.get(kind)
        if count is None:
            count = self.kinds[kind] = [0, 0]
        count[0] += 1
        count[1] += nbytes

    def seen(self, viewer: NodeId, member: Member, now: float) -> None:
        """A row of a view changed."""
        if member.status == "alive" and not self._open:
            return
        node = member.node
        if node == viewer:
            return
        incident = self._open.get(node)
        if incident is not None:
            self._note(incident, viewer, member, now)
        elif member.record.incarnation >= self._lives.get(node, 1) and member.status != "alive":
            self._wrong(member)

    def _note(self, incident: Incident, viewer: NodeId, member: Member, now: float) -> None:
        if member.status in GONE:
            incident.unaware.discard(viewer)
            self._close(incident, now)
            if viewer in incident.late:
                self.late_s.append(now - incident.late.pop(viewer))
        else:
            if viewer not in incident.watchers:
                incident.late.setdefault(viewer, now)
            if member.status == "suspect" and incident.suspected_at is None:
                incident.suspected_at = now

    def _wrong(self, member: Member) -> None:
        version = (member.node, member.record.incarnation)
        if member.status in GONE:
            self.false_deaths += 1
            self.wronged.add(version)
        else:
            self.false_suspicions += 1
            self.accused.add(version)

    def _forget_watcher(self, node: NodeId, now: float) -> None:
        for incident in self._open.values():
            incident.unaware.discard(node)
            incident.watchers.discard(node)
            incident.late.pop(node, None)
            self._close(incident, now)

    @staticmethod
    def _close(incident: Incident, now: float) -> None:
        if not incident.unaware and incident.known_at is None:
            incident.known_at = now

    def summary(self, now: float) -> dict[str, Any]:
        """Numbers for a person; rates are over the seconds that each node ran."""
        loads = [
            (load, load.seconds + (now - load.since if load.since is not None else 0.0))
            for load in self.loads.values()
        ]
        hours = sum(seconds for _, seconds in loads) / 3600
        first = [i.suspected_at - i.at for i in self.incidents if i.suspected_at is not None]
        known = [i.known_at - i.at for i in self.incidents if i.known_at is not None]
        nbytes = [load.nbytes / seconds for load, seconds in loads if seconds]
        messages = [load.messages / seconds for load, seconds in loads if seconds]
        return {
            "crashes": len(self.incidents),
            "returns": self.returns,
            "node_hours": round(hours, 2),
            "first_suspicion_s": spread(first),
            "known_everywhere_s": spread(known),
            "newcomers_believed_s": spread(self.late_s),
            "never_known_everywhere": sum(i.known_at is None for i in self.incidents),
            "false_deaths": {"nodes": len(self.wronged), "views": self.false_deaths},
            "false_deaths_per_node_hour": round(len(self.wronged) / hours, 4),
            "false_dead_views_per_node_hour": round(self.false_deaths / hours, 4),
            "false_suspicions": {"nodes": len(self.accused), "views": self.false_suspicions},
            "bytes_per_s": spread(nbytes),
            "messages_per_s": spread(messages),
            "by_kind": {
                kind: {"messages": count, "bytes": size} for kind, (count, size) in sorted(self.kinds.items())
            },
        }


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Median, 99th percentile and maximum; None of nothing."""
    if not values:
        return {"median": None, "p99": None, "max": None}
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return {"median": round(median(ordered), 3), "p99": round(p99, 3), "max": round(ordered[-1], 3)}
