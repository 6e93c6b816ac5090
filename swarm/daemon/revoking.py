"""Who is revoked: read again and again from a file that a person may edit, and told to all members."""

from __future__ import annotations

import asyncio

from swarm.daemon.gossip_half import GossipHalf
from swarm.daemon.jobdir import NODE_ID_CHARS, JobDir
from swarm.daemon.options import UserError
from swarm.daemon.trust import revoke
from swarm.events import Emit, Event, wall_time


class RevokedList:
    """The names that a job's directory revokes.

    While its file cannot be read, those of the last time it could: a slip of a person's pen must
    neither end a running coordinator nor let anybody in again.
    """

    def __init__(self, jobdir: JobDir, emit: Emit) -> None:
        """Read the file. Raises UserError if it is damaged."""
        self._jobdir, self._emit = jobdir, emit
        self._names = jobdir.revoked()
        self._said = ""

    def names(self) -> frozenset[str]:
        """Node ids and invitation ids that are refused from now on."""
        try:
            self._names, self._said = self._jobdir.revoked(), ""
        except UserError as error:
            if str(error) != self._said:
                fields = {"what": "revoked.json", "why": f"{error}; until then the last list holds"}
                self._emit(Event("dropped", wall_time(), self._jobdir.identity.node, fields))
            self._said = str(error)
        return self._names

    def nodes(self) -> frozenset[str]:
        """Only the node ids among them: those whose membership ends everywhere."""
        return frozenset(name for name in self.names() if len(name) == NODE_ID_CHARS)


async def tell_revocations(half: GossipHalf, jobdir: JobDir, revoked: RevokedList) -> None:
    """Tell all members who was revoked, at the start and whenever somebody more is."""
    told: frozenset[str] = frozenset()
    while True:
        nodes = told | revoked.nodes()
        if nodes != told:
            told = nodes
            notice = revoke(jobdir.authority.run_key, jobdir.job.digest, nodes)
            half.publish(notice.topic, notice.version, notice.notice)
        await asyncio.sleep(1.0)
