"""Whether nobody trains a job that has begun, and enough of its nodes are back to begin it again."""

from __future__ import annotations

from dataclasses import dataclass

from swarm.gossip.view import Member, View

OUTAGE_S = 30.0
"""For how long nobody must train before a job is founded again: whoever comes back has come by then."""
OUTAGE_MAX_S = 1800.0
"""As long at most, twice as long after each founding that came to nothing."""


@dataclass(frozen=True, slots=True)
class Outage:
    """What a view shows of a job that nobody trains.

    standing: who could take part in a founding. again: whether they are enough for one. reason: why
    so, in a sentence; empty while somebody trains or nothing is left to train.
    """

    standing: View
    again: bool
    reason: str


def look_for_outage(view: View) -> Outage:
    """Whether a job that has begun is to be founded again by who is here.

    More than half of its nodes have to stand by, those that are thought dead counted: a few that
    are cut off with the coordinator must not begin again what the others go on with. Who is only
    suspected may train still, and who is fetching what an earlier founding gave it is waited for.
    """
    workers = [m for m in view.members.values() if m.record.role == "worker"]
    known = [m for m in workers if m.status != "left"]
    if any(m.facts.state == "finished" for m in workers) or any(map(_may_train, known)):
        return Outage(View(), again=False, reason="")
    standing = [m for m in known if m.live and m.facts.state == "standby"]
    who = f"nobody trains this job: {len(standing)} of {len(known)} nodes stand by"
    if 2 * len(standing) <= len(known):
        reason = f"{who}, and more than half of them would begin it again"
        return Outage(View(), again=False, reason=reason)
    return Outage(View({m.node: m for m in standing}), again=True, reason=f"{who}, so it begins again")


def _may_train(member: Member) -> bool:
    busy = bool(member.facts.cell) or member.facts.state == "restoring"
    return busy and member.status in ("alive", "suspect")


class Patience:
    """How long nobody has trained, and for how long that is waited for."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._wait_s = OUTAGE_S

    def over(self, outage: Outage, now: float) -> bool:
        """Whether an outage that looks so now has lasted long enough."""
        if not outage.again:
            self._since = None
            if not outage.reason:
                self._wait_s = OUTAGE_S
            return False
        if self._since is None:
            self._since = now
        return now - self._since >= self._wait_s

    def founded(self) -> None:
        """The job was founded again: the next time more patience is needed."""
        self._since, self._wait_s = None, min(OUTAGE_MAX_S, 2 * self._wait_s)
