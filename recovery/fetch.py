"""The taking half of a state transfer: one state, from as many donors as have it.

Donors are asked in the order given. The first manifest that fits is adopted, and donors of the
same slot are then asked to help; those that turn out to have the same digest serve chunks in
parallel. A donor that dies, stays silent or sends a chunk with a wrong hash costs the chunks it
still owed, which others send; the fetch fails only when no donor is left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from recovery.snapshot import (
    HASH_BYTES,
    Assembled,
    Block,
    Get,
    Manifest,
    NotHere,
    Want,
    chunk_hash,
    layout,
    state_digest,
)
from recovery.source import Source
from transport.machine import Effect, NodeId, Send
from transport.patience import Patience
from transport.wire import Message, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchOptions:
    """How a taker fetches.

    at_once: states on their way here at the same time; others wait for their turn. Fewer than a donor
        lets one peer wait for, so that what a node may fetch does not depend on how many stages it holds.
    donors_max: donors that serve at the same time. More is faster, costs each a snapshot.
    window: chunks on their way from one donor, once the first have come. More fills long fat links,
        costs its queue.
    manifest_wait_s: how long a donor may take to answer `Want`; it may have to reach a commit. One
        that says that others are before us may take as long as it goes on saying so.
    first_wait_s: patience with a silent donor until enough chunks were measured. Its line may be
        thin and long, and a chunk asked for twice makes it longer; a dead one is known by gossip.
    floor_s: the least patience afterwards; else it follows from how long chunks took to come.
    strikes_max: silences in a row, each twice as long as the last, before a donor is dropped.
    block, chunk_hash: what chunks are put together in, and hashed by; a simulation without
        tensors has its own.
    """

    at_once: int = 3
    donors_max: int = 3
    window: int = 4
    manifest_wait_s: float = 15.0
    first_wait_s: float = 60.0
    floor_s: float = 0.5
    strikes_max: int = 3
    block: Callable[[int], Assembled] = Block
    chunk_hash: Callable[[memoryview], bytes] = chunk_hash


@dataclass(frozen=True, slots=True)
class Fetched(Effect):
    """The state is here and every chunk's hash was right.

    tensors: views into one block in raw bytes; `snapshot.to_tensors(holds, tensors)` types them.
    donors: those that sent chunks. facts: what the donor said of the state.
    """

    name: str
    slot: int
    digest: str
    holds: tuple[TensorSpec, ...]
    tensors: dict[str, memoryview]
    facts: dict[str, Any]
    seconds: float
    donors: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class FetchFailed(Effect):
    """No donor is left. The reason names the last thing each of them did."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class DonorDropped(Effect):
    """A donor is asked no more. `hostile`: it sent what no honest donor sends."""

    name: str
    peer: NodeId
    reason: str
    hostile: bool


class Fetch:
    """One state on its way here. `done` once `Fetched` or `FetchFailed` was returned."""

    def __init__(
        self,
        name: str,
        donors: Sequence[NodeId],
        expected: Sequence[TensorSpec],
        slot: int | None,
        options: FetchOptions,
        now: float,
    ) -> None:
        """expected: what the state must be made of; nothing else is allocated for, ever."""
        self.name = name
        self.started = self.done = False
        self._options = options
        self._expected = tuple(sorted(expected, key=lambda spec: spec.name))
        self._slot = slot
        self._started_at = now
        self._donors = {peer: Source(peer, self._patience()) for peer in dict.fromkeys(donors)}
        self._manifest: Manifest | None = None
        self._hashes = memoryview(b"")
        self._block = options.block(0)
        self._missing: set[int] = set()
        self._pending: deque[int] = deque()

    @property
    def digest(self) -> str:
        """Digest of the state being fetched, empty until a manifest was adopted."""
        return self._manifest.digest if self._manifest else ""

    def start(self, now: float) -> list[Effect]:
        """Ask the first donors."""
        self.started, self._started_at = True, now
        return self._advance(now)

    def on_manifest(self, peer: NodeId, body: Manifest, hashes: memoryview, now: float) -> list[Effect]:
        """A donor said what it has: adopt it, take it as a second source, or keep it in reserve."""
        donor = self._donors.get(peer)
        if donor is None or donor.state not in ("asked", "queued"):
            return []
        wrong = self._wrong_with(body, hashes)
        if wrong:
            return [*self._drop(donor, wrong, hostile=True), *self._advance(now)]
        if self._manifest is None:
            self._adopt(body, hashes)
        donor.state = "serving" if body.digest == self.digest else "spare"
        return self._advance(now)

    def on_not_here(self, peer: NodeId, body: NotHere, now: float) -> list[Effect]:
        """A donor cannot serve, or no longer has this snapshot and may have a newer one."""
        donor = self._donors.get(peer)
        # Several requests may be answered so: only the first refusal of chunks says anything new.
        if donor is None or donor.state not in (("serving",) if body.digest else ("asked", "queued")):
            return []
        if donor.state == "serving":
            self._take_back(donor)
            donor.state = "unasked"
        elif self._slot is None and self._manifest is not None:
            # It was asked for the slot of another donor; should that one die, its own will do.
            donor.state = "spare"
        else:
            return [*self._drop(donor, body.reason, hostile=False), *self._advance(now)]
        return self._advance(now)

    def on_queued(self, peer: NodeId, now: float) -> list[Effect]:
        """A donor serves others first: it is waited for, and whoever comes after it is asked meanwhile."""
        donor = self._donors.get(peer)
        if donor is None or donor.state not in ("asked", "queued"):
            return []
        donor.state, donor.heard_at = "queued", now
        return self._advance(now)

    def on_chunk(self, peer: NodeId, index: int, data: memoryview, now: float) -> list[Effect]:
        """A chunk of this digest arrived: check it and put it in its place, late ones too."""
        donor = self._donors.get(peer)
        if donor is None or donor.state != "serving" or not (index in donor.owed or index in self._missing):
            return []
        if self._options.chunk_hash(data) != self._hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES]:
            wrong = f"sent chunk {index} with a wrong hash"
            return [*self._drop(donor, wrong, hostile=True), *self._advance(now)]
        self._store(index, data)
        self._pending.extendleft(donor.came(index, now))
        return self._advance(now)

    def lose(self, peer: NodeId, now: float) -> list[Effect]:
        """A donor died: others send what it owed."""
        donor = self._donors.get(peer)
        if donor is None or donor.state == "dropped":
            return []
        return [*self._drop(donor, "is gone", hostile=False), *self._advance(now)]

    def tick(self, now: float) -> list[Effect]:
        """Ask again, or ask others, where a silence outlasted its patience."""
        wait_s = self._options.manifest_wait_s
        late = [d for d in self._donors.values() if (due := d.due(wait_s)) is not None and due <= now]
        effects: list[Effect] = []
        for donor in late:
            donor.strikes += 1
            if donor.state in ("asked", "queued") or donor.strikes > self._options.strikes_max:
                effects += self._drop(donor, "did not answer in time", hostile=False)
            else:
                self._take_back(donor)
        return effects + self._advance(now) if late else effects

    def deadline(self) -> float | None:
        """When the next silence is too long."""
        wait_s = self._options.manifest_wait_s
        dues = [due for donor in self._donors.values() if (due := donor.due(wait_s)) is not None]
        return min(dues, default=None)

    def _wrong_with(self, body: Manifest, hashes: memoryview) -> str:
        """Why a manifest cannot be trusted, or an empty text. Checked before any allocation."""
        if body.holds != self._expected:
            return "offered other tensors than this state has"
        _, nbytes = layout(body.holds)
        if hashes.nbytes != -(-nbytes // body.chunk_bytes) * HASH_BYTES:
            return "sent a wrong number of chunk hashes"
        if self._slot is not None and body.slot != self._slot:
            return f"offered slot {body.slot} when asked for slot {self._slot}"
        said = (body.name, body.slot, body.holds, body.facts, body.chunk_bytes, bytes(hashes))
        return (
            "" if state_digest(*said) == body.digest else "sent a manifest that is not what its digest says"
        )

    def _adopt(self, body: Manifest, hashes: memoryview) -> None:
        self._manifest = body
        self._hashes = memoryview(bytes(hashes))
        self._block = self._options.block(layout(body.holds)[1])
        self._pending = deque(range(hashes.nbytes // HASH_BYTES))
        self._missing = set(self._pending)

    def _store(self, index: int, data: memoryview) -> None:
        assert self._manifest is not None
        self._block.put(index * self._manifest.chunk_bytes, data)
        self._missing.discard(index)

    def _take_back(self, donor: Source) -> None:
        self._pending.extendleft(reversed(donor.take_back()))

    def _drop(self, donor: Source, reason: str, *, hostile: bool) -> list[Effect]:
        self._take_back(donor)
        donor.state, donor.reason = "dropped", reason
        return [DonorDropped(self.name, donor.peer, reason, hostile)]

    def _advance(self, now: float) -> list[Effect]:
        """What follows from where things stand: finish, ask donors, ask for chunks, or give up."""
        if self.done or not self.started:
            return []
        if self._manifest is not None and not self._missing:
            return self._finish(self._manifest, now)
        if self._manifest is not None and not self._in_state("asked", "queued", "serving", "unasked"):
            self._start_over()
        effects = [*self._ask_donors(now), *self._ask_chunks(now)]
        return effects if self._in_state("asked", "queued", "serving") else [*effects, *self._fail()]

    def _start_over(self) -> None:
        """Nobody has the adopted state any more; those in reserve, or not yet asked, have another."""
        self._manifest = None
        self._missing.clear()
        self._pending.clear()
        for donor in self._in_state("spare"):
            donor.state = "unasked"

    def _ask_donors(self, now: float) -> list[Effect]:
        """One donor until a slot is known; then as many of that slot as may help."""
        slot = self._manifest.slot if self._manifest else self._slot
        active_max = 1 if slot is None else self._options.donors_max
        effects: list[Effect] = []
        for donor in self._in_state("unasked"):
            if len(self._in_state("asked", "serving")) >= active_max:
                break
            if donor.wants == self._options.strikes_max:
                effects += self._drop(donor, "kept changing what it has", hostile=False)
                continue
            donor.wants += 1
            donor.state, donor.heard_at = "asked", now
            effects.append(Send(donor.peer, Message(Want(name=self.name, slot=slot))))
        return effects

    def _ask_chunks(self, now: float) -> list[Effect]:
        """Fill every serving donor's window, the most reliable donor first."""
        effects: list[Effect] = []
        for donor in sorted(self._in_state("serving"), key=lambda d: d.strikes):
            while donor.room(self._options.window) > 0 and self._next_pending() is not None:
                effects.append(self._get(donor, now))
        return effects

    def _next_pending(self) -> int | None:
        """The next chunk to ask for; those that came late after all are passed over."""
        while self._pending and self._pending[0] not in self._missing:
            self._pending.popleft()
        return self._pending[0] if self._pending else None

    def _get(self, donor: Source, now: float) -> Effect:
        """Ask for the next pending chunk and those that follow it directly."""
        first = last = self._pending.popleft()
        donor.ask(first, now)
        while donor.room(self._options.window) > 0 and self._next_pending() == last + 1:
            last = self._pending.popleft()
            donor.ask(last, now)
        return Send(donor.peer, Message(Get(digest=self.digest, first=first, count=last - first + 1)))

    def _finish(self, manifest: Manifest, now: float) -> list[Effect]:
        self.done = True
        offsets, _ = layout(manifest.holds)
        pieces = zip(manifest.holds, offsets, strict=True)
        tensors = {spec.name: self._block.part(at, spec.nbytes) for spec, at in pieces}
        donors = tuple(donor.peer for donor in self._donors.values() if donor.sent)
        seconds = now - self._started_at
        facts = dict(manifest.facts)
        digest, slot = manifest.digest, manifest.slot
        return [Fetched(self.name, slot, digest, manifest.holds, tensors, facts, seconds, donors)]

    def _fail(self) -> list[Effect]:
        self.done = True
        reasons = "; ".join(f"{donor.peer[:8]} {donor.reason}" for donor in self._donors.values())
        return [FetchFailed(self.name, f"No donor is left for {self.name}: {reasons or 'none was named'}.")]

    def _patience(self) -> Patience:
        return Patience(self._options.first_wait_s, self._options.floor_s)

    def _in_state(self, *states: str) -> list[Source]:
        return [donor for donor in self._donors.values() if donor.state in states]
