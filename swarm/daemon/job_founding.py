"""The coordinator founds the job: once at its beginning, and again when nobody is left that trains it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from swarm.daemon.archive import InBackground, Resumable, newest_whole
from swarm.daemon.founders import fit_to_found
from swarm.daemon.genesis import TOPIC, found_job, read_genesis
from swarm.daemon.gossip_half import GossipHalf
from swarm.daemon.members import read_members
from swarm.daemon.options import UserError
from swarm.daemon.outage import Patience, look_for_outage
from swarm.events import Event, EventKind
from swarm.gossip.config import volunteer_wan
from swarm.gossip.view import MemberRecord, View, read_member
from swarm.job import Job
from swarm.messages import Count, Part
from swarm.pipeline.records import read_record
from transport.files import write_private
from transport.identity import Identity, pack_payload, unpack_payload
from transport.wire import Signed, WireError, WireLimits

SURE_S = 30.0
"""After a restart and a probe of everybody: longer than the longest suspicion of gossip, so that
nobody dead is counted."""
FOUNDED = "founded"
"""A file in the job's directory with the genesis of the job, once there is one."""
SETTLE_S = 0.5
"""Between enough nodes being there and the genesis, so that those who come together count."""
LOOK_S = 1.0


def find_checkpoint(directory: Path, job: Job) -> Resumable:
    """The newest whole checkpoint of a job's directory, iteration 0 if nothing was ever archived.

    Raises UserError if there are checkpoints and none is whole: to begin anew would bury them.
    """
    found = newest_whole(directory / "checkpoints", job.pipeline.stages)
    if not found.iteration and found.refused:
        raise UserError(
            f"{directory} has no whole checkpoint ({found.refused[0]}): restore it from a copy, "
            f"or move {directory / 'checkpoints'} away to begin anew"
        )
    return found


@dataclass(frozen=True, slots=True)
class Rollcall:
    """Tells who is here from who was here before this coordinator started, and may be gone.

    seeds: node -> (incarnation, seq) of the record that an earlier run kept. sure_at: from then
    on whoever is gone has been found out.
    """

    seeds: Mapping[str, tuple[int, int]]
    sure_at: float

    @classmethod
    def of(cls, directory: Path, now: float) -> Rollcall:
        """Begin with the members that are kept in a directory: each takes one probe to find out."""
        seeds: dict[str, tuple[int, int]] = {}
        for signed in read_members(directory):
            with suppress(WireError):  # of another version: gossip refuses it just so
                record = read_member(signed)
                seeds[record.node] = (record.incarnation, record.seq)
        return cls(seeds, now + SURE_S + volunteer_wan().probe_s * len(seeds))

    def present(self, view: View, now: float) -> View:
        """The live workers that spoke since, or all once the others would have been buried."""
        here = [m for m in view.live() if now >= self.sure_at or self._is_news(m.record)]
        return View({member.node: member for member in here})

    def _is_news(self, record: MemberRecord) -> bool:
        return (record.incarnation, record.seq) > self.seeds.get(record.node, (-1, -1))


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFounding:
    """What a coordinator founds its job with.

    directory: of the job. corpus: digest of its tokens. sizes: parameters of each stage; nodes
    that cannot hold their share do not count. in_background: where checkpoints are read. collecting:
    whether one is on its way into the archive.
    """

    half: GossipHalf
    job: Job
    identity: Identity
    directory: Path
    corpus: str
    sizes: Sequence[int]
    wall: Callable[[], float]
    in_background: InBackground
    collecting: Callable[[], bool]

    async def found_once(self, resumed: Resumable | None) -> None:
        """Found the job once enough nodes are here, unless it lives already or was founded.

        resumed: what to found it with once more if nobody trains it, None to keep to the first founding.
        """
        kept = read_founded(self.directory)
        if kept is not None and resumed is None:
            self.half.publish(TOPIC, kept.version, kept.notice)
            return
        clock, least = asyncio.get_running_loop().time, self.job.pipeline.nodes
        rollcall = Rollcall.of(self.directory, clock())
        settled = False
        # All may speak at once, so what they do is asked in the very moment in which the job is founded.
        while not (seen := rollcall.present(self.half.view, clock())).cells():
            here, _ = fit_to_found(seen, self.job, self.sizes)
            if settled and len(here.live()) >= least and self._found(here, resumed or Resumable()):
                return
            settled = len(seen.live()) >= least
            await asyncio.sleep(SETTLE_S)

    async def found_again(self) -> None:
        """Whenever a job that has begun stands still, found it with what is archived, for ever.

        With nothing archived it begins at its seed. What cannot be read is not buried under a new beginning.
        """
        clock = asyncio.get_running_loop().time
        sure_at, patience = Rollcall.of(self.directory, clock()).sure_at, Patience()
        while True:
            await asyncio.sleep(LOOK_S)
            over = patience.over(look_for_outage(self.half.view), clock())
            busy = clock() < sure_at or self.collecting()
            if not over or busy or read_founded(self.directory) is None:
                continue
            patience.founded()
            archive = self.directory / "checkpoints"
            found: Resumable = await self.in_background(partial(newest_whole, archive, len(self.sizes)))
            outage = look_for_outage(self.half.view)
            here, short = fit_to_found(outage.standing, self.job, self.sizes)
            if found.iteration >= self.job.inner.iterations:
                short = "its last checkpoint is archived"
            elif not found.iteration and found.refused:
                short = f"no archived checkpoint is whole: {found.refused[0]}"
            elif outage.again and here.live():
                self._found(here, found, outage.reason)
                continue
            self._note("dropped", what="founding", why=short or "somebody trains it after all")

    def _found(self, here: View, resumed: Resumable, reason: str = "") -> bool:
        """Found the job on these nodes.

        What it is founded with is kept before anybody hears of it, and published again at each start:
        killed in between, a coordinator would else forget a job that has begun, or never begin it.
        """
        kept, job = read_founded(self.directory), self.job
        version = max(int(self.wall()), kept.version + 1 if kept else 0)
        notice = found_job(
            here,
            job,
            self.identity.node,
            self.identity.signing_in(job.digest),
            corpus=self.corpus,
            resumed=resumed.iteration,
            resumed_round=resumed.round,
            resumed_cell=resumed.cell,
            again=version if kept is not None or resumed.iteration else 0,
        )
        try:
            write_founded(self.directory, version, notice)
        except OSError as error:
            # Not founded yet: a crash would forget what everybody had begun.
            self._note("dropped", what="founding", why=f"it cannot be written down: {error.strerror}")
            return False
        for founding in read_genesis(notice).foundings if reason else ():
            self._note("cell", old=resumed.cell, new=read_record(founding).cell, reason=reason)
        self.half.publish(TOPIC, version, notice)
        return True

    def _note(self, kind: EventKind, **fields: object) -> None:
        self.half.setup.emit(Event(kind, self.wall(), self.identity.node, fields))


def write_founded(directory: Path, version: int, notice: Signed) -> None:
    """Keep the genesis and its version, in one step."""
    write_private(directory / FOUNDED, pack_payload(_Founded(version=version, notice=notice)))


def read_founded(directory: Path) -> _Founded | None:
    """The genesis that was kept, None if there is none. Raises UserError if it cannot be read."""
    path = directory / FOUNDED
    try:
        return unpack_payload(_Founded, path.read_bytes(), WireLimits(header_bytes_max=64 << 20))
    except FileNotFoundError:
        return None
    except (OSError, WireError):
        raise UserError(
            f"{path} cannot be read, and nobody else knows how this job began: restore it from a copy, "
            "or remove it and go on from the newest checkpoint with --resume"
        ) from None


class _Founded(Part):
    version: Count
    notice: Signed
