"""A member that says anything at all, and what its words may not do to a node."""

from __future__ import annotations

import random
import resource
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, ClassVar

import msgpack
import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.errors import StopTest
from pydantic import BaseModel
from strategies import Said, Shapes, Words, admits, headers, messages, whole

from transport.identity import Identity
from transport.link import Endpoint
from transport.machine import NodeId
from transport.sim_link import SimLink
from transport.sim_network import SimNetwork
from transport.wire import Body, Message, Schema

KEPT = 400
"""Overheard messages to choose from."""
HELD_MAX = 280
"""Entries of any one collection of a node after a flood of more: its own limits are below that."""
HELD_BYTES_MAX = 1 << 20
"""Bytes of all that a half without a model holds after a flood: an honest one holds some kilobytes."""
GROWTH_BYTES = 1 << 29
"""By which the process may grow while it is lied to; what is drawn and under way takes most of it."""
ROOMS = ("swarm.", "recovery.", "transport.")
ELSEWHERE = ("Job", "Corpus", "SimNetwork", "SimLink", "ModelConfig")
"""What a node reads and does not fill."""


class Raw(Body):
    """A header that is exactly these bytes."""

    kind: ClassVar[str] = "raw"

    header: bytes


class Forging(Schema):
    """Packs whatever it is given."""

    def __init__(self) -> None:
        super().__init__(())

    def pack(self, body: Body) -> bytes:
        """The header, checked by nobody."""
        if isinstance(body, Raw):
            return body.header
        return bytes(msgpack.packb({"v": 1, "k": body.kind, **body.model_dump(warnings=False)}))


class Liar:
    """An admitted member and its link; `say` sends without any check."""

    def __init__(self, identity: Identity, link: SimLink) -> None:
        self.identity, self.link = identity, link
        self.crashed = True  # as far as gossip is concerned: it needs to be told nothing
        self.honest = link.schema
        self.said = 0

    def know(self, peer: NodeId, endpoint: Endpoint) -> None:
        """Learn where a victim listens."""
        self.link.know(peer, endpoint)

    def say(self, peer: NodeId, message: Message) -> None:
        """Send this, and nothing else of this link, unchecked."""
        self.link.schema = Forging()
        try:
            self.said += self.link.send(peer, message)
        except (OverflowError, ValueError, TypeError):
            return  # not even msgpack can write it
        finally:
            self.link.schema = self.honest


class Overheard:
    """The newest messages on a network, by kind, and some of their headers."""

    def __init__(self, network: SimNetwork) -> None:
        self.messages: dict[str, deque[Message]] = defaultdict(lambda: deque(maxlen=8))
        self.headers: deque[bytes] = deque(maxlen=KEPT)
        carry = network.carry

        def listening(sender: SimLink, endpoint: Endpoint, message: Message) -> int | None:
            if not isinstance(sender.schema, Forging):
                self.messages[message.body.kind].append(message)
                self.headers.append(sender.schema.pack(message.body))
            return carry(sender, endpoint, message)

        network.carry = listening  # type: ignore[method-assign]

    def numbers(self) -> tuple[int, ...]:
        """Slots, terms, iterations and whatever else is being said."""
        said = {v for v in self._values() if type(v) is int}
        return tuple(sorted(said)[-24:])

    def texts(self) -> tuple[str, ...]:
        """Names, digests and reasons that are being said."""
        return tuple(sorted({v for v in self._values() if isinstance(v, str)}))[:48]

    def _values(self) -> Iterator[Any]:
        for kept in self.messages.values():
            for message in kept:
                yield from (getattr(message.body, name) for name in type(message.body).model_fields)


def lie(data: st.DataObject, liar: Liar, victims: Sequence[NodeId], kinds: Sequence[type[Body]], words: Words,
        heard: Overheard, count: int) -> None:  # fmt: skip
    """Send `count` drawn messages, and one drawn header for every eight of them."""
    said = messages(kinds, Shapes(words))
    raw = headers(list(heard.headers)[-8:]).map(lambda header: Said(Raw(header=header)))
    for index in range(count):
        victim = data.draw(st.sampled_from(victims))
        liar.say(victim, data.draw(raw if index % 8 == 7 else said).message)


def flood(message: Message, count: int) -> Iterator[Message]:
    """The same message with every number and free text different each time, as far as it may be."""
    fields = {
        name: whole(info) for name, info in type(message.body).model_fields.items() if name != "tensors"
    }
    fits = {name: admits(annotation) for name, annotation in fields.items()}
    for index in range(count):
        other = {
            int: (index, index % 16),
            str: (f"{index:064x}", f"{index:032x}", f"stage:{index % 1000}", f"z{index}"),
        }
        update = {
            name: next(value for value in (*other.get(type(was), ()), was) if fits[name](value))
            for name in fields
            for was in (getattr(message.body, name),)
        }
        yield Message(message.body.model_copy(update=update), message.buffers)


def overgrown(root: object, limit: int = HELD_MAX) -> list[str]:
    """Collections that a node holds, at whatever depth, with more entries than `limit`."""
    seen: set[int] = set()
    found: list[str] = []
    todo: list[tuple[str, Any]] = [(type(root).__name__, root)]
    while todo:
        path, value = todo.pop()
        if id(value) in seen or path.count(".") > 12:
            continue
        seen.add(id(value))
        if isinstance(value, dict | list | set | deque) and len(value) > limit:
            found.append(f"{path} holds {len(value)}")
        todo += [(f"{path}.{name}", inner) for name, inner in _inside(value)]
    return found


def _inside(value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [("values", v) for v in value.values()]
    if isinstance(value, list | tuple | set | frozenset | deque):
        return [("each", v) for v in value]
    ours = type(value).__module__.startswith(ROOMS) and type(value).__name__ not in ELSEWHERE
    if not ours or isinstance(value, BaseModel | type):
        return []
    slots = [name for owner in type(value).__mro__ for name in getattr(owner, "__slots__", ())]
    names = [*getattr(value, "__dict__", {}), *(slots if is_dataclass(value) else ())]
    return [(name, getattr(value, name)) for name in names if hasattr(value, name)]


def held_bytes(root: object) -> int:
    """Bytes of all tensors, buffers and texts that a node holds, at whatever depth; shared ones once."""
    seen: set[int] = set()
    total = 0
    todo: list[Any] = [root]
    while todo:
        value = todo.pop()
        if isinstance(value, memoryview):
            value = value.obj
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            total += 0 if storage.data_ptr() in seen else storage.nbytes()
            seen.add(storage.data_ptr())
        elif isinstance(value, np.ndarray):
            todo += [value.base] if value.base is not None else []
            total += value.nbytes if value.base is None else 0
        elif isinstance(value, bytes | bytearray | str):
            total += len(value)
        elif isinstance(value, BaseModel) and type(value).__name__ not in ELSEWHERE:
            todo += [getattr(value, name, None) for name in type(value).model_fields]
        else:
            todo += [inner for _, inner in _inside(value)]
    return total


def current_bytes() -> int:
    """What this process has in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def grown_bytes(before: int) -> int:
    """By how much the process's greatest size has grown since `peak_bytes` gave `before`."""
    return peak_bytes() - before


def peak_bytes() -> int:
    """The greatest size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reraise(group: BaseExceptionGroup[BaseException]) -> None:
    """What made a task group end: hypothesis wants its own signals bare."""
    leaves: list[BaseException] = []
    todo: list[BaseException] = [group]
    while todo:
        error = todo.pop()
        if isinstance(error, BaseExceptionGroup):
            todo += error.exceptions
        else:
            leaves.append(error)
    raise next((error for error in leaves if isinstance(error, StopTest)), leaves[-1]) from None


def stranger() -> Identity:
    """Nobody has admitted this one."""
    return Identity.create(random.Random(4242))
