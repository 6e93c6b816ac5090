"""One message on the wire: a msgpack header and zero or more raw tensor buffers.

The header is a map `{"v": version, "k": kind, ...fields}`. It is decoded under hard limits,
checked for what msgpack itself lets through (depth, duplicate keys, non-finite numbers,
trailing bytes), and validated against the schema of its kind, all *before* anything is
allocated for its tensors. Every tensor is declared in the header before its first byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite, prod
from typing import Annotated, Any, ClassVar, Literal

import msgpack
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

PROTOCOL_VERSION = 1
"""Stands in every header that this node writes."""
VERSIONS_READ = (PROTOCOL_VERSION,)
"""What it reads. Any other version is an `OtherVersion`: dropped, told once, held against nobody.

An upgrade rolls in two releases: the first reads versions N and N + 1 and writes N, the second
writes N + 1, once all members read it. So nobody has to guess at what it was not taught, and a
field that a version does not have is refused in every version: whoever ignored it would act on
half a message.
"""

Lane = Literal["control", "bulk"]
Buffer = bytes | bytearray | memoryview
DType = Literal["float32", "bfloat16", "float16", "int8", "uint8", "int32", "int64"]
ITEM_BYTES: dict[str, int] = {
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "int8": 1,
    "uint8": 1,
    "int32": 4,
    "int64": 8,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WireLimits:
    """What one peer may make us hold. Exceeding any of them drops the message.

    header_bytes_max: msgpack header. Larger costs memory per message, smaller limits plans.
    depth_max: nesting of the header; deeper input is an attack, not a message.
    tensors_max: buffers of one message.
    message_bytes_max: declared bytes of all tensors of one message together.
    """

    header_bytes_max: int = 1 << 20
    depth_max: int = 12
    tensors_max: int = 64
    message_bytes_max: int = 2 << 30


class WireError(ValueError):
    """A message from the network that is dropped and counted. The text says why."""


class OtherVersion(WireError):
    """A well-formed header of a protocol version that this node does not read."""


class TooLarge(WireError):
    """A header that this node would send is over the size limit. Who was to get it did nothing wrong."""


class TensorSpec(BaseModel):
    """Declaration of one buffer: what it decodes to and how many bytes travel.

    `codec` names the tensor codec (`transport.codecs`); `nbytes` is the encoded size, while
    `shape` and `dtype` are those of the decoded tensor.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: Annotated[str, Field(max_length=128)]
    shape: Annotated[tuple[Annotated[int, Field(ge=0, le=1 << 40)], ...], Field(max_length=6)]
    dtype: DType
    codec: Annotated[str, Field(max_length=16)] = "raw"
    nbytes: Annotated[int, Field(ge=0, le=1 << 40)]

    @model_validator(mode="after")
    def _raw_size_follows_from_shape(self) -> TensorSpec:
        if self.codec == "raw" and self.nbytes != prod(self.shape) * ITEM_BYTES[self.dtype]:
            raise ValueError("declared bytes do not match shape and dtype")
        return self


class Signed(BaseModel):
    """Bytes and who vouches for them. The signature covers a domain tag and exactly `payload`.

    `signer` is a node id or the hex of a run key's hash; `transport.identity` signs and checks.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    payload: Annotated[bytes, Field(max_length=1 << 18)]
    signer: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    signature: Annotated[bytes, Field(min_length=64, max_length=64)]


class Body(BaseModel):
    """Base of every message body. Subclasses set `kind` and `lane` and declare fields.

    A body that carries tensors has a non-empty `tensors`; buffers follow in that order.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    kind: ClassVar[str] = ""
    lane: ClassVar[Lane] = "control"

    tensors: tuple[TensorSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """A body and the buffers it declares. Whoever holds a message never writes to its buffers."""

    body: Body
    buffers: tuple[Buffer, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers together."""
        return sum(spec.nbytes for spec in self.body.tensors)


BytesMax = Callable[[Body], int]
"""How many bytes of tensors a body may announce, by its kind and what it says of itself."""


class Schema:
    """The kinds of message one side of a link speaks.

    nbytes_max: asked of every body that announces tensors, before the first byte of them comes.
        Without it only `WireLimits.message_bytes_max` holds.
    """

    def __init__(
        self,
        kinds: Iterable[type[Body]],
        limits: WireLimits | None = None,
        nbytes_max: BytesMax | None = None,
    ) -> None:
        self.limits = limits or WireLimits()
        self._nbytes_max = nbytes_max
        self._kinds: dict[str, type[Body]] = {}
        for kind in kinds:
            assert kind.kind, f"{kind.__name__} has no kind"
            assert kind.kind not in self._kinds, f"two messages are called {kind.kind}"
            self._kinds[kind.kind] = kind

    def bounded(self, nbytes_max: BytesMax) -> Schema:
        """The same kinds, each with no more bytes than whoever opens a link says."""
        return Schema(self._kinds.values(), self.limits, nbytes_max)

    def pack(self, body: Body) -> bytes:
        """Encode a header. Raises TooLarge if nobody would read it.

        A body of a kind not in this schema is a local bug; its size may be what others made it.
        """
        assert type(body) is self._kinds.get(body.kind), f"{body.kind} is not in this schema"
        fields = body.model_dump(exclude_defaults=True)
        header: bytes = msgpack.packb({"v": PROTOCOL_VERSION, "k": body.kind, **fields})
        if len(header) > self.limits.header_bytes_max:
            raise TooLarge(f"{body.kind}: too large to send")
        return header

    def unpack(self, header: Buffer) -> Body:
        """Decode and validate a header. Raises WireError, and nothing else, on bad input."""
        fields = unpack_map(header, self.limits)
        version, kind = fields.pop("v", None), fields.pop("k", None)
        if type(version) is not int or version < 1:
            raise WireError("no protocol version")
        if version not in VERSIONS_READ:
            spoken = " and ".join(str(number) for number in VERSIONS_READ)
            raise OtherVersion(f"speaks version {version}; this node speaks {spoken}")
        model = self._kinds.get(kind) if isinstance(kind, str) else None
        if model is None:
            raise WireError(f"unknown kind {str(kind)[:32]!r}")
        try:
            body = model.model_validate(lists_as_tuples(fields))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise WireError(f"{kind}: {where}: {first['msg']}") from None
        if len(body.tensors) > self.limits.tensors_max:
            raise WireError(f"{kind}: {len(body.tensors)} tensors")
        nbytes = sum(spec.nbytes for spec in body.tensors)
        if nbytes > self.limits.message_bytes_max:
            raise WireError(f"{kind}: declared bytes over the limit")
        if nbytes and self._nbytes_max is not None and nbytes > self._nbytes_max(body):
            raise WireError(f"{kind}: declares more than the {self._nbytes_max(body)} bytes it may have")
        return body


def check_buffers(body: Body, buffers: Sequence[Buffer]) -> None:
    """Raise WireError unless the buffers are exactly what the body declared."""
    if len(buffers) != len(body.tensors):
        raise WireError(f"{body.kind}: {len(buffers)} buffers for {len(body.tensors)} tensors")
    for spec, buffer in zip(body.tensors, buffers, strict=True):
        if memoryview(buffer).nbytes != spec.nbytes:
            raise WireError(f"{body.kind}: {spec.name} has {memoryview(buffer).nbytes} bytes")


def unpack_map(data: Buffer, limits: WireLimits) -> dict[str, Any]:
    """Decode one bounded msgpack map with string keys. Raises WireError on anything else."""
    if memoryview(data).nbytes > limits.header_bytes_max:
        raise WireError("header over the size limit")
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_unique_keys,
            max_array_len=65_536,
            max_map_len=4_096,
            max_str_len=65_536,
            max_bin_len=limits.header_bytes_max,
            max_ext_len=0,
        )
    except WireError:
        raise
    except (ValueError, TypeError, UnicodeDecodeError, msgpack.UnpackException) as error:
        raise WireError(f"not a msgpack map: {type(error).__name__}") from None
    if not isinstance(value, dict):
        raise WireError("header is not a map")
    _check_plain(value, limits.depth_max)
    return value


def _unique_keys(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise WireError("duplicate key")
    return mapping


def _check_plain(value: Any, depth: int) -> None:
    if depth < 0:
        raise WireError("nested too deep")
    if isinstance(value, float) and not isfinite(value):
        raise WireError("non-finite number")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise WireError("map key is not text")
            _check_plain(item, depth - 1)
    elif isinstance(value, list):
        for item in value:
            _check_plain(item, depth - 1)


def lists_as_tuples(value: Any) -> Any:
    """Lists as tuples: bodies are frozen, and strict validation wants the exact type."""
    if isinstance(value, list):
        return tuple(lists_as_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: lists_as_tuples(item) for key, item in value.items()}
    return value
