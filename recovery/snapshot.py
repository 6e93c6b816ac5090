"""State as it travels: a snapshot's layout, its chunks and hashes, and the messages about it.

A snapshot is one block of bytes: the tensors one after another, each starting at a multiple of
`ALIGN_BYTES`, cut into chunks of equal size. Equal states give equal digests, so a taker may
draw the chunks of one digest from several donors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from math import prod
from typing import Annotated, Any, ClassVar, Protocol, cast

import msgpack
import torch
from pydantic import Field
from torch import Tensor

from transport.codecs import DTYPE_NAMES, DTYPES
from transport.wire import ITEM_BYTES, Body, Lane, TensorSpec

ALIGN_BYTES = 64
HASH_BYTES = 16
CHUNK_BYTES = 1 << 20

StateName = Annotated[
    str, Field(pattern=r"^((stage|weights):[0-9]{1,3}|checkpoint:[0-9]{1,3}(/[0-9]{1,15})?|ends-copy)$")
]
"""What is asked for: a stage's state, its weights, its checkpoint (the newest of an iteration, or after
exactly so many rounds: "checkpoint:STAGE/ROUNDS"), or the copy of the ends."""
StateDigest = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Index = Annotated[int, Field(ge=0, lt=1 << 32)]
Slot = Annotated[int, Field(ge=0, lt=1 << 53)]
Fact = int | float | Annotated[str, Field(max_length=256)]
Facts = Annotated[dict[Annotated[str, Field(max_length=64)], Fact], Field(max_length=64)]
"""What goes with a state: iteration, round, a gradient norm. Small and plain."""


class Want(Body):
    """Taker -> donor: what do you have of `name`? With `slot`, only the state at that slot."""

    kind: ClassVar[str] = "want"

    name: StateName
    slot: Slot | None = None


class Manifest(Body):
    """Donor -> taker: I have it, this is what it is made of. Its one buffer is [chunks, 16] hashes."""

    kind: ClassVar[str] = "manifest"
    lane: ClassVar[Lane] = "bulk"

    name: StateName
    digest: StateDigest
    slot: Slot
    holds: Annotated[tuple[TensorSpec, ...], Field(max_length=8192)]
    chunk_bytes: Annotated[int, Field(ge=1024, le=8 << 20)]
    facts: Facts = Field(default={})


class NotHere(Body):
    """Donor -> taker: I cannot serve `name` (or, with a digest, no longer), and why."""

    kind: ClassVar[str] = "not_here"

    name: Annotated[str, Field(max_length=64)]
    digest: Annotated[str, Field(pattern=r"^([0-9a-f]{32})?$")] = ""
    reason: Annotated[str, Field(max_length=200)]


class Queued(Body):
    """Donor -> taker: I have not forgotten that you want `name`; it is not your turn yet."""

    kind: ClassVar[str] = "queued"

    name: StateName


class Unwanted(Body):
    """Taker -> donor: I fetch no such state (or nothing of this digest) any more; wait for me no longer."""

    kind: ClassVar[str] = "unwanted"

    name: Annotated[str, Field(max_length=64)] = ""
    digest: Annotated[str, Field(pattern=r"^([0-9a-f]{32})?$")] = ""


class Get(Body):
    """Taker -> donor: send chunks first, first + 1, ... of this state."""

    kind: ClassVar[str] = "get"

    digest: StateDigest
    first: Index
    count: Annotated[int, Field(ge=1, le=16)]


class Chunk(Body):
    """Donor -> taker: one chunk, one uint8 buffer."""

    kind: ClassVar[str] = "chunk"
    lane: ClassVar[Lane] = "bulk"

    digest: StateDigest
    index: Index


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state frozen at a slot, ready to serve. `block` is its own copy and never changes."""

    name: str
    slot: int
    holds: tuple[TensorSpec, ...]
    facts: dict[str, Any]
    chunk_bytes: int
    block: memoryview
    hashes: bytes
    digest: str

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return len(self.hashes) // HASH_BYTES

    def chunk(self, index: int) -> memoryview:
        """The bytes of a chunk, without copying; the last one may be shorter."""
        return self.block[index * self.chunk_bytes : (index + 1) * self.chunk_bytes]


class Assembled(Protocol):
    """A state on its way here, from its chunks."""

    def put(self, start: int, chunk: memoryview) -> None:
        """A chunk arrived whose hash is right."""
        ...

    def part(self, start: int, nbytes: int) -> memoryview:
        """The bytes of one tensor, without copying, once all chunks are here."""
        ...


class Block:
    """A state in one piece of memory."""

    def __init__(self, nbytes: int) -> None:
        self._view = memoryview(bytearray(nbytes))

    def put(self, start: int, chunk: memoryview) -> None:
        """See `Assembled`."""
        self._view[start : start + chunk.nbytes] = chunk

    def part(self, start: int, nbytes: int) -> memoryview:
        """See `Assembled`."""
        return self._view[start : start + nbytes]


def take_snapshot(
    name: str,
    slot: int,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, int | float | str] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Snapshot:
    """Copy and hash a state. Pure and slow (about a second a gigabyte): fit for a worker thread.

    Tensors of any shape, in a dtype the wire knows, on any device. Holders whose tensors and
    facts are equal get equal digests, so facts must not name the node.
    """
    holds = describe(tensors)
    offsets, nbytes = layout(holds)
    block = torch.zeros(nbytes, dtype=torch.uint8)
    for spec, offset in zip(holds, offsets, strict=True):
        block[offset : offset + spec.nbytes] = _as_bytes(tensors[spec.name])
    view = _view(block)
    known = dict(facts or {})
    hashes = b"".join(chunk_hash(view[at : at + chunk_bytes]) for at in range(0, nbytes, chunk_bytes))
    digest = state_digest(name, slot, holds, known, chunk_bytes, hashes)
    return Snapshot(name, slot, holds, known, chunk_bytes, view, hashes, digest)


def describe(tensors: Mapping[str, Tensor]) -> tuple[TensorSpec, ...]:
    """Declarations of tensors, by name; works on tensors of the meta device."""
    return tuple(
        TensorSpec(
            name=name,
            shape=tuple(tensor.shape),
            dtype=DTYPE_NAMES[tensor.dtype],
            nbytes=tensor.numel() * tensor.element_size(),
        )
        for name, tensor in sorted(tensors.items())
    )


def layout(holds: Iterable[TensorSpec]) -> tuple[tuple[int, ...], int]:
    """Where each tensor starts in the block, and the size of the block, in bytes."""
    offsets, end = [], 0
    for spec in holds:
        offsets.append(-(-end // ALIGN_BYTES) * ALIGN_BYTES)
        end = offsets[-1] + prod(spec.shape) * ITEM_BYTES[spec.dtype]
    return tuple(offsets), end


def chunk_hash(chunk: memoryview) -> bytes:
    """BLAKE2b-128 of a chunk."""
    return blake2b(chunk, digest_size=HASH_BYTES).digest()


def state_digest(
    name: str,
    slot: int,
    holds: tuple[TensorSpec, ...],
    facts: Mapping[str, Any],
    chunk_bytes: int,
    hashes: bytes,
) -> str:
    """Hex BLAKE2b-128 of all a manifest says."""
    specs = [[spec.name, list(spec.shape), spec.dtype] for spec in holds]
    said = msgpack.packb([name, slot, specs, sorted(facts.items()), chunk_bytes, hashes])
    return blake2b(cast(bytes, said), digest_size=16).hexdigest()


def to_tensors(holds: Iterable[TensorSpec], views: Mapping[str, memoryview]) -> dict[str, Tensor]:
    """Fetched bytes as tensors that share their memory, on the CPU."""
    return {spec.name: _as_tensor(spec, views[spec.name]) for spec in holds}


def _as_tensor(spec: TensorSpec, view: memoryview) -> Tensor:
    if not spec.nbytes:
        return torch.empty(spec.shape, dtype=DTYPES[spec.dtype])
    return torch.frombuffer(view, dtype=DTYPES[spec.dtype]).reshape(spec.shape)


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _view(block: Tensor) -> memoryview:
    return block.numpy().data.cast("B") if block.numel() else memoryview(b"")
