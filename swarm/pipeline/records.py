"""The signed records of a cell's log: encode, sign, check."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import msgpack
from pydantic import ValidationError

from swarm.events import EventKind
from swarm.job import Job
from swarm.messages import CellRecord, Roster
from transport.machine import NodeId
from transport.wire import Signed, WireError, WireLimits, lists_as_tuples, unpack_map

DOMAIN = "cell-record"
Sign = Callable[[str, bytes], Signed]
"""(domain, payload) -> what this node vouches for."""
CheckRecord = Callable[[Signed], bool]
"""Whether a record's signature is its signer's, and the signer a member."""
TERM_STEP_MAX = 1 << 20
"""How far a term may be ahead of the highest one known: a month of candidacies, one after another.

A term is a counter with an end, and whoever stands for election adds to it.
"""

_LIMITS = WireLimits(header_bytes_max=1 << 18)


def sign_record(record: CellRecord, sign: Sign) -> Signed:
    """Encode and sign a record."""
    return sign(DOMAIN, msgpack.packb(record.model_dump()))


def read_record(signed: Signed) -> CellRecord:
    """Decode a record. Raises WireError. The signature is checked by whoever knows the key."""
    try:
        return CellRecord.model_validate(lists_as_tuples(unpack_map(signed.payload, _LIMITS)))
    except ValidationError as error:
        raise WireError(f"cell record: {error.errors()[0]['msg']}") from None


def record_digest(signed: Signed) -> str:
    """Hex BLAKE2b-128 of exactly the signed bytes."""
    return hashlib.blake2b(signed.payload, digest_size=16).hexdigest()


def content_digest(record: CellRecord) -> str:
    """`record_digest` of a record whose signed bytes are not at hand."""
    return hashlib.blake2b(msgpack.packb(record.model_dump()), digest_size=16).hexdigest()


def roster_nodes(roster: Roster) -> tuple[NodeId, ...]:
    """Every node of a roster once, in id order."""
    return tuple(sorted({NodeId(node) for holders in roster for node in holders}))


def wrong_with_record(signed: Signed, record: CellRecord, last: CellRecord) -> str:
    """Why a record cannot be what its leader made of a slot, or an empty text.

    last: the newest decided record known, perhaps some slots before. Who leads a slot is in the
    roster of the record before it. That a majority accepted a record nobody can see from it: a
    member that leads is trusted with the loss, and with who was averaged, but not with the count.
    """
    if signed.signer != record.leader:
        return "signed by another than its leader"
    if not stages_of(last.roster, NodeId(record.leader)):
        return "of a leader that was no member"
    if len(last.roster) != len(record.roster) or len(record.sums) not in (0, len(record.roster)):
        return "with another number of stages"
    slots, iterations, rounds = (
        record.slot - last.slot,
        record.iteration - last.iteration,
        record.round - last.round,
    )
    if slots == 1:
        counted = (iterations, rounds) in _COUNTS[record.act]
    else:
        counted = iterations >= 0 and rounds >= 0 and iterations + rounds <= slots
    return "" if counted else "with a count that its slot cannot have"


_COUNTS = {"step": ((1, 0),), "round": ((0, 0), (0, 1)), "roster": ((0, 0),), "found": ((0, 0),)}
"""Iterations and rounds that one slot adds."""


def stages_of(roster: Roster, node: NodeId) -> tuple[int, ...]:
    """The stages a node holds under a roster."""
    return tuple(stage for stage, holders in enumerate(roster) if node in holders)


def is_majority(answered: Iterable[NodeId], roster: Roster) -> bool:
    """More than half of the nodes of a roster have answered."""
    nodes = roster_nodes(roster)
    return 2 * len(set(answered) & set(nodes)) > len(nodes)


def in_reach(term: int, known: int) -> bool:
    """Whether a term may follow the highest one known."""
    return term - known <= TERM_STEP_MAX


def founding(
    last: CellRecord, digest: str, name: str, roster: Roster, term: int, leader: NodeId
) -> CellRecord:
    """The record with which what is left of a cell goes on under a new name."""
    changes = {"cell": name, "slot": last.slot + 1, "term": term, "act": "found", "previous": digest}
    return last.model_copy(update=changes | {"roster": roster, "sums": (), "leader": leader})


def committed(
    record: CellRecord,
    *,
    seconds: float,
    reasons: Iterable[str],
    partial: int,
    lost: int,
    silent: Iterable[NodeId],
) -> tuple[EventKind, dict[str, object]]:
    """The event that a decided record is worth: its kind and fields.

    partial, lost: microbatches that reached only some of the stages, or none.
    silent: data nodes that had not reported when the slot was closed, so that theirs are lost.
    reasons: what reducers said of stages that were not averaged, or not over all their holders.
    """
    fields: dict[str, object] = {
        "cell": record.cell,
        "slot": record.slot,
        "iteration": record.iteration,
        "seconds": round(seconds, 4),
    }
    if record.act == "round":
        members = {str(stage): list(total.contributors) for stage, total in enumerate(record.sums)}
        return "round", fields | {"round": record.round, "members": members, "reasons": list(reasons)}
    holders = {str(stage): [node[:12] for node in row] for stage, row in enumerate(record.roster)}
    if record.act == "roster":
        return "placed", fields | {"holders": holders, "reason": "a leaving member handed its stages over"}
    return "committed", fields | {
        "loss": round(record.loss, 5) if record.tokens else None,
        "tokens": record.tokens,
        "partial": partial,
        "lost": lost,
        "silent": [node[:12] for node in silent],
        "clip_scale": round(record.clip_scale, 6),
        "holders": holders,
        "averaged": {str(s): [n[:12] for n in total.contributors] for s, total in enumerate(record.sums)},
        "reasons": list(reasons),
    }


def round_due(record: CellRecord, job: Job) -> bool:
    """Whether the slot after this record is an outer round."""
    at_boundary = record.iteration > 0 and record.iteration % job.outer.every == 0
    return job.outer.method != "none" and record.act == "step" and at_boundary


def is_finished(record: CellRecord, job: Job) -> bool:
    """Whether the job's last iteration, and the round that may follow it, is done."""
    return record.iteration >= job.inner.iterations and not round_due(record, job)
