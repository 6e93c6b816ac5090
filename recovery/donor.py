"""The giving half of a state transfer: snapshots, served a few chunks at a time.

Only a few snapshots are held at once, and none is dropped while somebody draws on it: whoever wants
another one stands in line meanwhile, and is told so, that it does not take this donor for dead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from recovery.snapshot import HASH_BYTES, Chunk, Get, Manifest, NotHere, Queued, Snapshot, Unwanted, Want
from transport.machine import Effect, NodeId, Send
from transport.patience import Patience
from transport.wire import Message, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class DonorLimits:
    """What takers may cost a donor.

    snapshots_max: snapshots held or being taken at once; each is a full copy of a state. Only one
        that nobody draws on gives way, the least recently used first; else the next Want waits.
    snapshots_per_peer_max: those that serve one peer and nobody else, so that none can take them all.
    silence_s: how long a taker that has not been sent everything may ask for nothing before it
        draws on a snapshot no more. Longer for one whose own pace was slower.
    keep_s: how long a snapshot is kept that nobody draws on, and how old one may be to serve a taker that
        named no slot. Longer helps slow takers, costs memory.
    waiting_max: takers waiting for a snapshot; the next one is told to ask someone else.
    waiting_per_peer_max: states one peer waits for, so that none can take all the places.
    wait_s: how long a taker waits for a snapshot that is being taken before it is told there is none.
    tell_s: how often those who wait are told that they do. Well below a taker's patience.
    """

    snapshots_max: int = 3
    snapshots_per_peer_max: int = 2
    silence_s: float = 60.0
    keep_s: float = 60.0
    waiting_max: int = 64
    waiting_per_peer_max: int = 4
    wait_s: float = 30.0
    tell_s: float = 5.0


@dataclass(frozen=True, slots=True)
class NeedSnapshot(Effect):
    """Take a snapshot of `name` (at `slot`, if given) and `provide` it, or `decline`.

    A need that cannot be met yet may be kept while `is_waited_for` says so, and no longer: when
    its takers are gone or served it is forgotten, and the next one that asks makes it anew.
    """

    name: str
    slot: int | None
    peer: NodeId


SPAN = 4
"""Requests of a taker that a measure of its pace goes over: on a line that it shares they come in bursts."""


@dataclass(slots=True)
class _Drawing:
    """A taker of a snapshot: how long its last requests took it, and how many chunks it was sent."""

    paces: tuple[Patience, Patience]
    """Its own, and that of all takers of this donor: what there is to go by for one that has just come."""
    heard_at: float
    sent: int = 0
    asked_at: deque[float] = field(default_factory=lambda: deque(maxlen=SPAN))

    def ask(self, chunks: int, now: float) -> None:
        """It asked, and is sent so many chunks."""
        if len(self.asked_at) == SPAN:
            for pace in self.paces:
                pace.add(now - self.asked_at[0])
        self.asked_at.append(now)
        self.heard_at = now
        self.sent += chunks

    def until(self) -> float:
        """When its silence is too long."""
        return self.heard_at + max(pace.limit_s() for pace in self.paces)


@dataclass(slots=True)
class _Open:
    snapshot: Snapshot
    taken_at: float
    used_at: float
    drawing: dict[NodeId, _Drawing] = field(default_factory=dict)

    def until(self) -> dict[NodeId, float]:
        """Who has not been sent everything, and when it draws on this no more if it stays silent."""
        takers = ((peer, t) for peer, t in self.drawing.items() if t.sent < self.snapshot.chunks)
        return {peer: t.until() for peer, t in takers}

    def free_at(self) -> float:
        """When nobody draws on it any more, as far as can be told now."""
        return max(self.until().values(), default=self.taken_at)


@dataclass(slots=True)
class _Waiting:
    """A taker without a snapshot yet. until: endless while it stands in line for one to be taken."""

    peer: NodeId
    name: str
    slot: int | None
    until: float = inf

    @property
    def need(self) -> tuple[str, int | None]:
        return (self.name, self.slot)

    def served_by(self, snapshot: Snapshot) -> bool:
        return self.name == snapshot.name and self.slot in (None, snapshot.slot)


class Donor:
    """Answers `Want` and `Get`. Snapshots are taken by the caller, only when asked for."""

    def __init__(self, limits: DonorLimits | None = None) -> None:
        self.limits = limits or DonorLimits()
        self._open: dict[str, _Open] = {}
        self._waiting: list[_Waiting] = []
        self._needed: set[tuple[str, int | None]] = set()
        self._tell_at = inf
        self._looked_at = -inf
        self._pace = Patience(self.limits.silence_s, self.limits.silence_s)

    def on_want(self, peer: NodeId, want: Want, now: float) -> list[Effect]:
        """Answer with a manifest, have a snapshot taken, or keep the taker in line for one."""
        asker = _Waiting(peer, want.name, want.slot)
        for held in reversed(self._open.values()):
            fresh = want.slot is not None or held.taken_at + self.limits.keep_s > now
            if fresh and asker.served_by(held.snapshot):
                return [self._serve(held, peer, now)]
        if not any((w.peer, w.need) == (peer, asker.need) for w in self._waiting):
            self._forget(lambda w: (w.peer, w.name) == (peer, want.name))
            own = sum(w.peer == peer for w in self._waiting)
            if len(self._waiting) >= self.limits.waiting_max or own >= self.limits.waiting_per_peer_max:
                return [_not_here(asker, "too many are waiting for state here")]
            self._waiting.append(asker)
            self._tell_at = min(self._tell_at, now + self.limits.tell_s)
        effects = self._take_next(now)
        return effects if asker.need in self._needed else [*effects, _queued(asker)]

    def on_get(self, peer: NodeId, get: Get, now: float) -> list[Effect]:
        """Send chunks. Buffers are views of the snapshot: a queued chunk costs no copy."""
        held = self._open.get(get.digest)
        if held is None:
            gone = NotHere(name="", digest=get.digest, reason="this snapshot is no longer kept")
            return [Send(peer, Message(gone))]
        last = min(get.first + get.count, held.snapshot.chunks)
        self._drawing(held, peer, now).ask(max(0, last - get.first), now)
        held.used_at = now
        chunks = [Send(peer, _chunk_of(held.snapshot, index)) for index in range(get.first, last)]
        return [*chunks, *self._take_next(now)]

    def on_unwanted(self, peer: NodeId, unwanted: Unwanted, now: float) -> list[Effect]:
        """A taker gave up what it had asked for: it neither waits nor draws on it any more."""
        if unwanted.name:
            self._forget(lambda w: (w.peer, w.name) == (peer, unwanted.name))
        for digest, held in self._open.items():
            if unwanted.name == held.snapshot.name or unwanted.digest == digest:
                held.drawing.pop(peer, None)
        return self._take_next(now)

    def provide(self, snapshot: Snapshot, now: float) -> list[Effect]:
        """Keep a snapshot and answer those who waited for it."""
        self._open.pop(snapshot.digest, None)
        while len(self._open) >= self.limits.snapshots_max:
            del self._open[min(self._open, key=lambda digest: self._open[digest].used_at)]
        held = self._open[snapshot.digest] = _Open(snapshot, now, now)
        served = self._forget(lambda w: w.served_by(snapshot))
        return [*(self._serve(held, w.peer, now) for w in served), *self._take_next(now)]

    def decline(self, name: str, slot: int | None, reason: str, now: float) -> list[Effect]:
        """Tell those who wait for `name` and named this `slot`, or none, that it cannot be had here."""
        turned_away = self._forget(lambda w: w.need == (name, slot))
        return [*(_not_here(w, reason) for w in turned_away), *self._take_next(now)]

    def is_waited_for(self, name: str, slot: int | None) -> bool:
        """Whether a `NeedSnapshot` of this name and slot still serves anybody."""
        return (name, slot) in self._needed

    def lose(self, peer: NodeId, now: float) -> list[Effect]:
        """A peer is gone: it waits for nothing any more, and draws on nothing."""
        self._forget(lambda w: w.peer == peer)
        for held in self._open.values():
            held.drawing.pop(peer, None)
        return self._take_next(now)

    def tick(self, now: float) -> list[Effect]:
        """Drop what nobody uses, turn away those who waited too long, and tell the others that they wait."""
        self._open = {d: held for d, held in self._open.items() if self._expires_at(held) > now}
        late = self._forget(lambda w: w.until <= now)
        effects = [_not_here(w, "no snapshot was taken in time") for w in late]
        if self._tell_at <= now:
            self._tell_at = now + self.limits.tell_s if self._waiting else inf
            effects += [_queued(w) for w in self._waiting]
        return [*effects, *self._take_next(now)]

    def deadline(self) -> float | None:
        """When the next snapshot or waiting taker expires, is told, or has its turn."""
        ends = [self._expires_at(held) for held in self._open.values()]
        if self._waiting:
            ends += [self._tell_at, *(w.until for w in self._waiting)]
        if any(w.need not in self._needed for w in self._waiting):
            # What was free already when last looked at did not help those in line, and will not now.
            frees = (held.free_at() for held in self._open.values())
            ends += [free_at for free_at in frees if free_at > self._looked_at]
        return min(ends, default=None)

    def _serve(self, held: _Open, peer: NodeId, now: float) -> Effect:
        held.used_at = now
        self._drawing(held, peer, now)
        return Send(peer, manifest_of(held.snapshot))

    def _drawing(self, held: _Open, peer: NodeId, now: float) -> _Drawing:
        own = Patience(self.limits.silence_s, self.limits.silence_s)
        return held.drawing.setdefault(peer, _Drawing((own, self._pace), now))

    def _expires_at(self, held: _Open) -> float:
        return max(held.used_at + self.limits.keep_s, held.free_at())

    def _forget(self, which: Callable[[_Waiting], bool]) -> list[_Waiting]:
        """Take these out of the line, and with the last of its takers a need."""
        gone = [w for w in self._waiting if which(w)]
        self._waiting = [w for w in self._waiting if not which(w)]
        self._needed &= {w.need for w in self._waiting}
        return gone

    def _take_next(self, now: float) -> list[Effect]:
        """Have snapshots taken for those next in line, as far as there is room."""
        effects: list[Effect] = []
        self._looked_at = now
        for asker in self._waiting:
            if asker.need not in self._needed:
                if self._own(asker.peer, now) >= self.limits.snapshots_per_peer_max:
                    continue
                if not self._make_room(now):
                    break
                self._needed.add(asker.need)
                effects.append(NeedSnapshot(asker.name, asker.slot, asker.peer))
            asker.until = min(asker.until, now + self.limits.wait_s)
        return effects

    def _own(self, peer: NodeId, now: float) -> int:
        """Snapshots that are kept or being taken for this peer alone."""
        held = ({p for p, until in o.until().items() if until > now} for o in self._open.values())
        needed = ({w.peer for w in self._waiting if w.need == need} for need in self._needed)
        return sum(peers == {peer} for peers in (*held, *needed))

    def _make_room(self, now: float) -> bool:
        """Whether one more snapshot may be taken, if need be for one that nobody draws on."""
        while len(self._open) + len(self._needed) >= self.limits.snapshots_max:
            free = [digest for digest, held in self._open.items() if held.free_at() <= now]
            if not free:
                return False
            del self._open[min(free, key=lambda digest: self._open[digest].used_at)]
        return True


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


def _queued(asker: _Waiting) -> Send:
    return Send(asker.peer, Message(Queued(name=asker.name)))


def _not_here(asker: _Waiting, reason: str) -> Send:
    return Send(asker.peer, Message(NotHere(name=asker.name, reason=reason[:200])))
