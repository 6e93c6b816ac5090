"""What a process waits for or does, in a sentence: for its status, and for whoever watches its terminal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from swarm.daemon.gossip_setup import StatusSnapshot
from swarm.daemon.outage import look_for_outage
from swarm.gossip.view import Facts, View
from swarm.job import Job
from transport.machine import NodeId

LOOK_S = 1.0
STEADY_S = 2.0
"""What holds for less is on its way to something else, and not worth a line."""
PAUSE_S = 5.0
"""Between two lines at least."""


def is_done(view: View) -> bool:
    """Somebody finished the job, or has all of it archived, and nobody trains it any more."""
    members = view.members.values()
    training = any(m.live and m.facts.cell and m.facts.state != "finished" for m in members)
    return not training and any(m.facts.state == "finished" for m in members)


def coordinator_waits_for(view: View, job: Job, *, begun: bool, fit: int, short: str) -> str:
    """What keeps a job from being trained, empty if nothing does.

    begun: the job was founded, and this run was not told to `--resume`. fit: live nodes that can
    hold what a founding would give them. short: what one of the others lacks.
    """
    if view.cells() or is_done(view):
        return ""
    if begun:
        outage = look_for_outage(view)
        resume = f"; {job.pipeline.nodes} are enough for `farflung coordinator run DIR --resume`"
        return outage.reason + (resume if outage.reason and not outage.again else "")
    missing = job.pipeline.nodes - fit
    if missing <= 0:
        return ""
    why = f"; {short}" if short else ""
    return f"{missing} more node{'s' if missing > 1 else ''} of {job.pipeline.nodes}{why}"


def heard(view: View) -> Facts:
    """The figures of the cell that came furthest; of those who have gone only when nobody trains.

    A coordinator's own count only when no worker is remembered: it knows no round and no loss.
    """
    workers = [member for member in view.members.values() if member.record.role == "worker"]
    told = [member.facts for member in workers if member.live and member.facts.cell]
    told = told or [member.facts for member in workers if member.facts.iteration]
    told = told or [member.facts for member in view.members.values()]
    return max(told, key=lambda facts: facts.iteration, default=Facts())


def stands(snapshot: StatusSnapshot) -> str:
    """One line for the terminal: what is waited for, or done; empty while that is not known."""
    view, progress = snapshot.view, snapshot.progress
    mine = view.members.get(NodeId(snapshot.node))
    coordinates = snapshot.role == "coordinator"
    if is_done(view) and (coordinates or mine is None or mine.facts.state == "finished"):
        done = f"the job is finished at iteration {heard(view).iteration}"
        return f"{done}: export its model, and stop this coordinator" if coordinates else done
    if progress.waiting_for:
        return f"waiting: {progress.waiting_for}"
    if coordinates:
        cells = view.cells()
        members = sum(len(view.cell(cell)) for cell in cells)
        words = f"node{'s' * (members > 1)} in {len(cells)} cell{'s' * (len(cells) > 1)}"
        return f"trained by {members} {words}" if cells else ""
    if progress.cell:
        held = " ".join(map(str, progress.stages))
        return f"in cell {progress.cell}, with {f'stages {held}' if held else 'no stage yet'}"
    return ""


class Teller:
    """Chooses the lines that are worth saying: new, steady for a while, and not one after the other."""

    def __init__(self) -> None:
        self._seen, self._since = "", 0.0
        self._said, self._said_at = "", float("-inf")

    def look(self, line: str, now: float) -> str:
        """The line if it is to be said now, else nothing."""
        if line != self._seen:
            self._seen, self._since = line, now
        steady = now - self._since >= STEADY_S and now - self._said_at >= PAUSE_S
        if not line or line == self._said or not steady:
            return ""
        self._said, self._said_at = line, now
        return line


async def keep_telling(snapshot: Callable[[], StatusSnapshot], say: Callable[[str], None]) -> None:
    """Say what a process waits for or does whenever that changes."""
    teller, clock = Teller(), asyncio.get_running_loop().time
    while True:
        await asyncio.sleep(LOOK_S)
        if line := teller.look(stands(snapshot()), clock()):
            say(line)
