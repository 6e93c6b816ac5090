"""The giving half of a state transfer: snapshots, served a few chunks at a time."""

from __future__ import annotations

from dataclasses import dataclass

from recovery.snapshot import HASH_BYTES, Chunk, Get, Manifest, NotHere, Snapshot, Want
from transport.machine import Effect, NodeId, Send
from transport.wire import Message, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class DonorLimits:
    """What takers may cost a donor.

    snapshots_max: snapshots held at once; each is a full copy of a state. The least recently
        used one goes first, and its takers ask again.
    keep_s: how long an unused snapshot is kept, and how old one may be to serve a taker that
        named no slot. Longer helps slow takers, costs memory.
    waiting_max: takers waiting for a snapshot; the next one is told to ask someone else.
    waiting_per_peer_max: states one peer waits for, so that none can take all the places.
    wait_s: how long a taker waits for a snapshot before it is told there is none.
    """

    snapshots_max: int = 3
    keep_s: float = 60.0
    waiting_max: int = 64
    waiting_per_peer_max: int = 4
    wait_s: float = 30.0


@dataclass(frozen=True, slots=True)
class NeedSnapshot(Effect):
    """Take a snapshot of `name` (at `slot`, if given) and `provide` it, or `decline`.

    A need that cannot be met yet may be kept while `is_waited_for` says so, and no longer: when
    its takers are gone or served it is forgotten, and the next one that asks makes it anew.
    """

    name: str
    slot: int | None
    peer: NodeId


@dataclass(slots=True)
class _Open:
    snapshot: Snapshot
    taken_at: float
    used_at: float


@dataclass(frozen=True, slots=True)
class _Waiting:
    peer: NodeId
    name: str
    slot: int | None
    until: float

    def served_by(self, snapshot: Snapshot) -> bool:
        return self.name == snapshot.name and self.slot in (None, snapshot.slot)


class Donor:
    """Answers `Want` and `Get`. Snapshots are taken by the caller, only when asked for."""

    def __init__(self, limits: DonorLimits | None = None) -> None:
        self.limits = limits or DonorLimits()
        self._open: dict[str, _Open] = {}
        self._waiting: list[_Waiting] = []

    def on_want(self, peer: NodeId, want: Want, now: float) -> list[Effect]:
        """Answer with a manifest, or have a snapshot taken."""
        asker = _Waiting(peer, want.name, want.slot, now + self.limits.wait_s)
        for held in reversed(self._open.values()):
            fresh = want.slot is not None or held.taken_at + self.limits.keep_s > now
            if fresh and asker.served_by(held.snapshot):
                held.used_at = now
                return [Send(peer, manifest_of(held.snapshot))]
        self._waiting = [w for w in self._waiting if (w.peer, w.name) != (peer, want.name)]
        own = sum(w.peer == peer for w in self._waiting)
        if len(self._waiting) >= self.limits.waiting_max or own >= self.limits.waiting_per_peer_max:
            return [_not_here(asker, "too many are waiting for state here")]
        under_way = self.is_waited_for(want.name, want.slot)
        self._waiting.append(asker)
        return [] if under_way else [NeedSnapshot(want.name, want.slot, peer)]

    def on_get(self, peer: NodeId, get: Get, now: float) -> list[Effect]:
        """Send chunks. Buffers are views of the snapshot: a queued chunk costs no copy."""
        held = self._open.get(get.digest)
        if held is None:
            gone = NotHere(name="", digest=get.digest, reason="this snapshot is no longer kept")
            return [Send(peer, Message(gone))]
        held.used_at = now
        last = min(get.first + get.count, held.snapshot.chunks)
        return [Send(peer, _chunk_of(held.snapshot, index)) for index in range(get.first, last)]

    def provide(self, snapshot: Snapshot, now: float) -> list[Effect]:
        """Keep a snapshot and answer those who waited for it."""
        self._open.pop(snapshot.digest, None)
        while len(self._open) >= self.limits.snapshots_max:
            del self._open[min(self._open, key=lambda digest: self._open[digest].used_at)]
        self._open[snapshot.digest] = _Open(snapshot, now, now)
        served = [w for w in self._waiting if w.served_by(snapshot)]
        self._waiting = [w for w in self._waiting if not w.served_by(snapshot)]
        return [Send(w.peer, manifest_of(snapshot)) for w in served]

    def decline(self, name: str, slot: int | None, reason: str) -> list[Effect]:
        """Tell those who wait for `name` and named this `slot`, or none, that it cannot be had here."""
        turned_away = [w for w in self._waiting if (w.name, w.slot) == (name, slot)]
        self._waiting = [w for w in self._waiting if (w.name, w.slot) != (name, slot)]
        return [_not_here(w, reason) for w in turned_away]

    def is_waited_for(self, name: str, slot: int | None) -> bool:
        """Whether a `NeedSnapshot` of this name and slot still serves anybody."""
        return any((w.name, w.slot) == (name, slot) for w in self._waiting)

    def lose(self, peer: NodeId) -> None:
        """A peer is gone: it waits for nothing any more."""
        self._waiting = [w for w in self._waiting if w.peer != peer]

    def tick(self, now: float) -> list[Effect]:
        """Drop what nobody uses, and turn away those who waited too long."""
        self._open = {d: held for d, held in self._open.items() if held.used_at + self.limits.keep_s > now}
        late = [w for w in self._waiting if w.until <= now]
        self._waiting = [w for w in self._waiting if w.until > now]
        return [_not_here(w, "no snapshot was taken in time") for w in late]

    def deadline(self) -> float | None:
        """When the next snapshot or waiting taker expires."""
        ends = [held.used_at + self.limits.keep_s for held in self._open.values()]
        return min(ends + [w.until for w in self._waiting], default=None)


def manifest_of(snapshot: Snapshot) -> Message:
    """What a donor says of a snapshot: its manifest, with the chunk hashes as buffer."""
    shape = (snapshot.chunks, HASH_BYTES)
    hashes = TensorSpec(name="hashes", shape=shape, dtype="uint8", nbytes=len(snapshot.hashes))
    body = Manifest(
        tensors=(hashes,),
        name=snapshot.name,
        digest=snapshot.digest,
        slot=snapshot.slot,
        holds=snapshot.holds,
        chunk_bytes=snapshot.chunk_bytes,
        facts=snapshot.facts,
    )
    return Message(body, (snapshot.hashes,))


def _chunk_of(snapshot: Snapshot, index: int) -> Message:
    data = snapshot.chunk(index)
    spec = TensorSpec(name="chunk", shape=(data.nbytes,), dtype="uint8", nbytes=data.nbytes)
    return Message(Chunk(tensors=(spec,), digest=snapshot.digest, index=index), (data,))


def _not_here(asker: _Waiting, reason: str) -> Send:
    return Send(asker.peer, Message(NotHere(name=asker.name, reason=reason[:200])))
