"""State transfer, pull model: a taker names a state, donors say what they have, chunks follow.

    taker                          donor
      | -- Want(name, slot) ------>  |   takes a snapshot if it has none (`NeedSnapshot`)
      | <----- Manifest, hashes ---  |   or NotHere(reason); Queued until it is the taker's turn
      | -- Get(digest, 4 chunks) ->  |
      | <------ Chunk ... Chunk ---  |   every chunk is checked as it comes

`Transfer` is a node's whole part in this, as giver (`donor.py`) and as taker (`fetch.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from recovery.donor import Donor, DonorLimits
from recovery.fetch import Fetch, FetchOptions
from recovery.snapshot import Chunk, Get, Manifest, NotHere, Queued, Snapshot, Unwanted, Want
from transport.machine import Effect, NodeId, Send
from transport.wire import Body, Message, TensorSpec

TRANSFER_KINDS: tuple[type[Body], ...] = (Want, Unwanted, Queued, Manifest, NotHere, Get, Chunk)
"""Spoken on the work link."""


class Transfer:
    """The state-transfer machine of a node: serves its states, fetches those it needs."""

    def __init__(self, limits: DonorLimits | None = None, options: FetchOptions | None = None) -> None:
        self.dropped: Counter[str] = Counter()
        """Messages that fitted nothing, by kind: late, repeated, or never asked for."""
        self._options = options or FetchOptions()
        self._donor = Donor(limits)
        self._fetches: dict[str, Fetch] = {}

    @property
    def fetching(self) -> tuple[str, ...]:
        """Names of the states on their way here."""
        return tuple(self._fetches)

    def fetch(
        self,
        name: str,
        donors: Sequence[NodeId],
        expected: Sequence[TensorSpec],
        now: float,
        slot: int | None = None,
    ) -> list[Effect]:
        """Begin to fetch a state. Ends with one `Fetched` or `FetchFailed` of this name.

        donors are asked in order. expected (`snapshot.describe`) is what it must be made of.
        With `slot`, only the state at exactly that slot will do. Fetching a name that is
        already on its way starts it again from nothing. Only so many come at once; the others
        begin in the order in which they were asked for.
        """
        self._fetches[name] = Fetch(name, donors, expected, slot, self._options, now)
        return self._settled([], now)

    def cancel(self, name: str) -> None:
        """Stop fetching; what has come is forgotten."""
        self._fetches.pop(name, None)

    def provide(self, snapshot: Snapshot, now: float) -> list[Effect]:
        """Serve a snapshot from now on: the answer to `NeedSnapshot`."""
        return self._donor.provide(snapshot, now)

    def decline(self, name: str, slot: int | None, reason: str, now: float) -> list[Effect]:
        """The other answer to `NeedSnapshot`: this state cannot be had here."""
        return self._donor.decline(name, slot, reason, now)

    def is_waited_for(self, name: str, slot: int | None) -> bool:
        """Whether a `NeedSnapshot` of this name and slot still serves anybody; if not, drop it."""
        return self._donor.is_waited_for(name, slot)

    def lose(self, peer: NodeId, now: float) -> list[Effect]:
        """A peer died: fetch from others at once instead of waiting out the silence."""
        taking = [e for fetch in list(self._fetches.values()) for e in fetch.lose(peer, now)]
        return [*self._donor.lose(peer, now), *self._settled(taking, now)]

    def handle(self, peer: NodeId, message: Message, now: float) -> list[Effect]:
        """Take in one message. Whatever fits nothing is counted in `dropped`."""
        match message.body:
            case Want() as want:
                return self._donor.on_want(peer, want, now)
            case Unwanted() as unwanted:
                return self._donor.on_unwanted(peer, unwanted, now)
            case Get() as get:
                return self._donor.on_get(peer, get, now)
            case body:
                return self._settled(self._take(peer, body, message, now), now)

    def tick(self, now: float) -> list[Effect]:
        """Let snapshots expire and silences end."""
        taking = [effect for fetch in list(self._fetches.values()) for effect in fetch.tick(now)]
        return [*self._donor.tick(now), *self._settled(taking, now)]

    def deadline(self) -> float | None:
        """The next expiry or the end of the next silence; at once if a fetch may begin."""
        if self._next() is not None:
            return 0.0
        dues = [self._donor.deadline(), *(fetch.deadline() for fetch in self._fetches.values())]
        return min((due for due in dues if due is not None), default=None)

    def _take(self, peer: NodeId, body: Body, message: Message, now: float) -> list[Effect]:
        fetch = self._concerned(body)
        if fetch is not None:
            match body:
                case Queued():
                    return fetch.on_queued(peer, now)
                case NotHere():
                    return fetch.on_not_here(peer, body, now)
                case Manifest() if (hashes := _only_buffer(message)) is not None:
                    return fetch.on_manifest(peer, body, hashes, now)
                case Chunk() if (data := _only_buffer(message)) is not None:
                    return fetch.on_chunk(peer, body.index, data, now)
        self.dropped[body.kind] += 1
        return _declined(peer, body) if fetch is None else []

    def _concerned(self, body: Body) -> Fetch | None:
        """The fetch that a donor's message is about."""
        if isinstance(body, Manifest | Queued) or (isinstance(body, NotHere) and not body.digest):
            return self._fetches.get(body.name)
        if isinstance(body, Chunk | NotHere):
            return next((f for f in self._fetches.values() if f.digest == body.digest), None)
        return None

    def _settled(self, effects: list[Effect], now: float) -> list[Effect]:
        """Forget the fetches that ended, whose last effect tells the caller, and begin the next."""
        self._fetches = {name: fetch for name, fetch in self._fetches.items() if not fetch.done}
        while (fetch := self._next()) is not None:
            effects = [*effects, *fetch.start(now)]
            self._fetches = {name: fetch for name, fetch in self._fetches.items() if not fetch.done}
        return effects

    def _next(self) -> Fetch | None:
        """The fetch that may begin now, if any."""
        if sum(fetch.started for fetch in self._fetches.values()) >= self._options.at_once:
            return None
        return next((fetch for fetch in self._fetches.values() if not fetch.started), None)


def _declined(peer: NodeId, body: Body) -> list[Effect]:
    """Tell a donor that what it keeps for us, or keeps us in line for, is fetched no more."""
    match body:
        case Manifest() | Queued():
            return [Send(peer, Message(Unwanted(name=body.name)))]
        case Chunk():
            return [Send(peer, Message(Unwanted(digest=body.digest)))]
    return []


def _only_buffer(message: Message) -> memoryview | None:
    """The one raw buffer that hashes and chunks come in, or None if that is not what came."""
    raw = [spec for spec in message.body.tensors if spec.codec == "raw" and spec.dtype == "uint8"]
    if len(raw) != 1 or len(message.buffers) != 1:
        return None
    view = memoryview(message.buffers[0])
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")
