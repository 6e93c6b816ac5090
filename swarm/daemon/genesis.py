"""How a job begins: the coordinator's notice that names the first cells and their holders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from swarm.gossip.view import View
from swarm.job import Job
from swarm.messages import CellName, CellRecord, Count, Digest, Part
from swarm.pipeline.records import Sign, read_record, sign_record
from swarm.planning.cells import Founder, genesis
from transport.identity import pack_payload, unpack_payload
from transport.machine import NodeId
from transport.wire import Signed, WireLimits

TOPIC = "genesis"
DOMAIN = "genesis"
_AGAIN = re.compile(r"c[0-9]+\.([0-9a-f]{1,16})")
_LIMITS = WireLimits(header_bytes_max=1 << 18)


class Genesis(Part):
    """Founding records of all cells, and what else must agree.

    corpus: digest of the tokens that the coordinator found at `data.path`; a node with others
    would train on other windows, and nothing would show it. resumed, resumed_cell: iteration and
    cell of the checkpoints to start from; between rounds those of two cells do not fit together.
    """

    foundings: Annotated[tuple[Signed, ...], Field(min_length=1, max_length=4096)]
    corpus: Digest
    resumed: Count = 0
    resumed_cell: CellName = ""


def found_job(
    view: View,
    job: Job,
    me: NodeId,
    sign: Sign,
    *,
    corpus: str,
    resumed: int = 0,
    resumed_round: int = 0,
    resumed_cell: str = "",
    again: int = 0,
) -> Signed:
    """The signed notice that founds a job on the live workers of a view.

    corpus: digest of the job's tokens. resumed, resumed_round, resumed_cell: iteration, outer
    rounds and cell of the checkpoints that every holder starts from, 0 for the job's seed. again: a
    number that no earlier founding of this job had, for one after the first: members of the first
    may still be somewhere, and a name never has two histories.
    """
    founders = [Founder(m.node, m.facts.speed_flops) for m in view.live()]
    records = [
        CellRecord(
            cell=f"{founding.cell}.{again:x}" if again else founding.cell,
            slot=0,
            term=0,
            act="found",
            iteration=resumed,
            round=resumed_round,
            previous="",
            roster=founding.roster,
            leader=me,
        )
        for founding in genesis(founders, job)
    ]
    foundings = tuple(sign_record(r, sign) for r in records)
    notice = Genesis(foundings=foundings, corpus=corpus, resumed=resumed, resumed_cell=resumed_cell)
    return sign(DOMAIN, pack_payload(notice))


def founded_as(cell: str) -> int:
    """The number of the founding that gave a cell its name, 0 if it was the first or none of a job."""
    found = _AGAIN.fullmatch(cell)
    return int(found[1], 16) if found else 0


def read_genesis(notice: Signed) -> Genesis:
    """Decode a notice. Raises WireError. Whose signature it is has been checked by gossip."""
    return unpack_payload(Genesis, notice.payload, _LIMITS)


def founding_of(notice: Genesis, node: NodeId) -> Signed | None:
    """The founding record in whose roster a node is, if any."""
    for signed in notice.foundings:
        if any(node in row for row in read_record(signed).roster):
            return signed
    return None


def solo_founding(
    job: Job, me: NodeId, sign: Sign, *, iteration: int, rounds: int, cells: Sequence[str], wall_s: float
) -> Signed:
    """The founding record of a new cell of one node that took every stage's state from others.

    wall_s: the time, for the name: an earlier cell of this node may be gone, and what it decided is
    still signed. cells: those that are here, should the clock have been set back.
    """
    name = f"c-{me[:8]}.{int(1000 * wall_s):x}"
    while name in cells:
        name += "-"
    record = CellRecord(
        cell=name,
        slot=0,
        term=0,
        act="found",
        iteration=iteration,
        round=rounds,
        previous="",
        roster=((me,),) * job.pipeline.stages,
        leader=me,
    )
    return sign_record(record, sign)
