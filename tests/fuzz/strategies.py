"""Messages that a schema allows, or just forbids, made from the schema itself.

Every leaf of a body (a number, a text) is drawn from one pool: values at the limits, odd ones
such as digits that are no ASCII, and words of the world at hand (its nodes, cells, digests, the
slots around now). The field's own type says which of the pool it admits; those make messages
that reach the machines, the others make messages that the wire must refuse.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgpack
from hypothesis import find, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from swarm.gossip.compact import Renewal, renewal_of
from swarm.gossip.messages import Claim
from swarm.gossip.records import pack_claim
from transport.identity import Identity
from transport.wire import ITEM_BYTES, Body, Message, Signed, TensorSpec

NUMBERS = (0, 1, 2, 3, 15, 16, 17, 255, 256, 1023, 1024, 65_535, 65_536, 2**31, 2**32 - 1, 2**32)
LARGE = (2**40, 2**53 - 2, 2**53 - 1, 2**53, 2**63 - 1, 2**64 - 1, -1)
FLOATS = (0.0, -0.0, 1.0, -1.0, 5e-324, 1e300, -1e300, 1.7976931348623157e308, float("inf"), float("nan"))
TEXTS = (
    *("", " ", "a", "0", "²", "٣", "𝟘", "-1", "\x00", "é" * 5, "z~1", "0" * 32, "f" * 32, "0" * 64, "g" * 64),
    *("stage:²", "stage:0", "stage:1", "stage:999", "weights:٣", "weights:0", "checkpoint:0", "checkpoint:1"),
    *("checkpoint:²", "checkpoint:999", "ends-copy", "cell:", "genesis", "revoked", "cell:c0"),
    *("a" * 96, "a" * 97, "a" * 200, "a" * 201, "a" * 257),
)
BYTES = (
    b"",
    b"\x00",
    b"\x80",
    b"\xc1",
    b"\x00" * 64,
    b"\xff" * 64,
    b"\xdd\xff\xff\xff\xff",
    b"a" * 4096,
    bytes(512),
    bytes(range(256)) * 2,
)
BUFFER_MAX = 5 << 20
"""Larger buffers are only claimed, never sent."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """What means something in a world.

    numbers, texts: slots, terms, node ids, cell names, digests. heard: messages by kind, to change
    a little. parts: what members sign: the domain, the model, and fields that must be as they are.
    signers: the sender, then a stranger. sizes: shapes that tensors of this world have.
    """

    numbers: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    heard: Mapping[str, Sequence[Message]] = field(default_factory=dict)
    parts: tuple[tuple[str, type[BaseModel], Mapping[str, Any]], ...] = ()
    signers: tuple[Identity, ...] = ()
    sizes: tuple[tuple[int, ...], ...] = ((1,),)

    def pool(self, kind: type) -> tuple[Any, ...]:
        """Everything of a basic type that might be interesting."""
        near = tuple(number + step for number in self.numbers for step in (-1, 0, 1))
        pools: dict[type, tuple[Any, ...]] = {
            # What is near comes again and again, so that it is drawn as often as what is odd.
            int: (*near, *near, *NUMBERS, *LARGE),
            float: FLOATS,
            str: (*self.texts, *self.texts, *TEXTS),
            bytes: BYTES,
            bool: (False, True),
        }
        return pools[kind]


def admits(annotation: Any) -> Callable[[Any], bool]:
    """Whether a field of this type takes a value."""
    model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    adapter = TypeAdapter(annotation, config=None if model else ConfigDict(strict=True))

    def check(value: Any) -> bool:
        try:
            adapter.validate_python(value)
        except ValidationError:
            return False
        return True

    return check


class Shapes:
    """Strategies for the types of one world's messages."""

    def __init__(self, words: Words) -> None:
        self.words = words
        self._made: dict[Any, st.SearchStrategy[Any]] = {}

    def of(self, annotation: Any) -> st.SearchStrategy[Any]:
        """Values of a type that it admits."""
        key = repr(annotation)
        if key not in self._made:
            self._made[key] = self._make(annotation)
        return self._made[key]

    def beyond(self, annotation: Any) -> st.SearchStrategy[Any]:
        """Values of the pools that a type does not admit: limits and one beyond, other types."""
        key = ("beyond", repr(annotation))
        if key not in self._made:
            fits = admits(annotation)
            everything = [value for kind in (int, str, float, bytes) for value in self.words.pool(kind)]
            self._made[key] = st.sampled_from([v for v in everything if not fits(v)])
        return self._made[key]

    def part(self, model: type[BaseModel], fixed: Mapping[str, Any] | None = None) -> st.SearchStrategy[Any]:
        """A model with every field drawn, but for those that are fixed."""
        given = {name: st.just(value) for name, value in (fixed or {}).items()}
        drawn = {name: self.of(whole(info)) for name, info in model.model_fields.items() if name not in given}
        return st.fixed_dictionaries(drawn | given).map(lambda fields: built(model, fields))

    def _make(self, annotation: Any) -> st.SearchStrategy[Any]:
        bare = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
        origin, args = get_origin(bare), get_args(bare)
        if bare in (int, float, str, bytes, bool):
            fits = admits(annotation)
            return st.sampled_from([value for value in self.words.pool(bare) if fits(value)])
        if origin is Literal:
            return st.sampled_from(args)
        if origin in (Union, UnionType):
            return st.one_of(*(st.none() if arg is NoneType else self.of(arg) for arg in args))
        if origin is tuple and args[-1] is Ellipsis:
            return self._several(annotation, self.of(args[0]))
        if origin is tuple:
            return st.tuples(*(self.of(arg) for arg in args))
        if origin is dict:
            return st.dictionaries(self.of(args[0]), self.of(args[1]), max_size=2)
        if bare is Signed:
            return self._signed()
        if bare is TensorSpec:
            return self._spec()
        if bare is Renewal:
            return self._renewal()
        return self.part(bare)

    @staticmethod
    def _several(annotation: Any, one: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        """A few, or one of them as often as the field allows."""
        bounds = getattr(annotation, "__metadata__", ())
        limits = {n: v for info in bounds for m in (info, *getattr(info, "metadata", ())) for n, v in _len(m)}
        least, most = limits.get("min_length", 0), limits.get("max_length", 256)
        few = st.lists(one, min_size=least, max_size=min(3, most)).map(tuple)
        many = st.tuples(one, st.sampled_from([min(most, 256), min(most, 300)])).map(lambda p: (p[0],) * p[1])
        return st.one_of(few, few, few, few, few, many)

    def _signed(self) -> st.SearchStrategy[Signed]:
        texts, signers = self.words.texts or ("0" * 64,), self.words.signers
        nodes = [text for text in texts if len(text) == 64] or ["0" * 64]
        garbage = st.builds(
            lambda payload, signer: Signed(payload=payload, signer=signer, signature=b"\x01" * 64),
            st.sampled_from(BYTES),
            st.sampled_from(nodes),
        )
        ways = [garbage]
        for domain, model, fixed in self.words.parts:
            ways += [self._vouched(domain, self.part(model, fixed), signer) for signer in signers]
        return st.one_of(*ways)

    @staticmethod
    def _vouched(domain: str, parts: st.SearchStrategy[Any], signer: Identity) -> st.SearchStrategy[Signed]:
        def sign(part: BaseModel) -> Signed:
            return signer.sign(domain, _packed(part)[: 1 << 18])

        return parts.map(sign)

    def _renewal(self) -> st.SearchStrategy[Renewal]:
        """Ends of records: of signed ones, and of none."""
        nodes = [text for text in self.words.texts if len(text) == 64] or ["0" * 64]
        kept, check = st.sampled_from([0, 1, 400, 65_535]), st.sampled_from([0, 1, 2**32 - 1])
        tail, signature = st.sampled_from([b"\x00", *(b for b in BYTES if b)]), st.just(b"\x01" * 64)
        garbage = st.builds(Renewal, st.sampled_from(nodes), kept, check, tail, signature)
        ends = self._signed().map(renewal_of)
        return st.one_of(garbage, st.tuples(ends, garbage).map(lambda pair: pair[0] or pair[1]))

    def _spec(self) -> st.SearchStrategy[TensorSpec]:
        """Declarations: of the sizes at hand and of others, with the bytes they need or without."""
        sizes = (*self.words.sizes, (), (0,), (1,), (2**16,), (2**40,), (0,) * 6)
        shape = st.sampled_from(sizes)
        codec = st.sampled_from(["raw", "raw", "bf16", "int8", "", "²"])
        nbytes = st.sampled_from([None, None, None, 0, 1, 2**20, 2**31, 2**40])
        return st.builds(_spec, shape, st.sampled_from(["float32", *ITEM_BYTES]), codec, nbytes)


def _packed(part: BaseModel) -> bytes:
    if isinstance(part, Claim):
        with suppress(ValueError, TypeError, struct.error):
            return pack_claim(part)
    packed: bytes = msgpack.packb(part.model_dump(warnings=False))
    return packed


def _len(limit: Any) -> list[tuple[str, int]]:
    names = ("min_length", "max_length")
    return [(name, getattr(limit, name)) for name in names if isinstance(getattr(limit, name, None), int)]


def whole(info: Any) -> Any:
    """The type of a field with its limits."""
    return Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation


def built(model: type[BaseModel], fields: dict[str, Any]) -> Any:
    """A model of these fields, also if they are none it would take."""
    try:
        return model.model_validate(fields)
    except ValidationError:
        return model.model_construct(**fields)


def _spec(shape: tuple[int, ...], dtype: str, codec: str, nbytes: int | None) -> TensorSpec:
    count = 1
    for size in shape:
        count *= size
    told = count * ITEM_BYTES[dtype] if nbytes is None else nbytes
    fields = {"name": "x", "shape": shape, "dtype": dtype, "codec": codec, "nbytes": min(told, 2**40)}
    return built(TensorSpec, fields)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Said:
    """A body and what to fill its buffers with; printed without them."""

    body: Body
    fill: bytes = b"\x00"
    short: int = 0

    @property
    def message(self) -> Message:
        """The message: each buffer as long as declared, or a little short, or only claimed."""
        sizes = [max(0, getattr(spec, "nbytes", 0) - self.short) for spec in self.body.tensors]
        fill = self.fill
        return Message(
            self.body,
            tuple((fill * (size // len(fill) + 1))[:size] if size <= BUFFER_MAX else b"" for size in sizes),
        )

    def __repr__(self) -> str:
        return f"{type(self.body).__name__}({str(self.body)[:600]}) filled with {self.fill!r}"


@st.composite
def messages(draw: st.DrawFn, kinds: Sequence[type[Body]], shapes: Shapes) -> Said:
    """A message of one of these kinds: new, or one that was heard with a field or two changed.

    One in eight has a field beyond its limits, which the wire must refuse.
    """
    kind = draw(st.sampled_from(kinds))
    known = shapes.words.heard.get(kind.kind, ())
    names = sorted(set(kind.model_fields) - {"tensors"})
    fields: dict[str, Any] = {}
    if known and draw(st.sampled_from([True, True, False])):
        body = known[draw(st.integers(0, len(known) - 1))].body
        fields = {name: getattr(body, name) for name in kind.model_fields}
        names = draw(st.lists(st.sampled_from(names), max_size=2)) if names else []
    for name in names:
        fields[name] = draw(shapes.of(whole(kind.model_fields[name])))
    if "tensors" not in fields or draw(st.sampled_from([False, False, False, True])):
        fields["tensors"] = draw(st.lists(shapes.of(TensorSpec), max_size=2).map(tuple))
    if draw(st.sampled_from([False] * 7 + [True])):
        name = draw(st.sampled_from(sorted(kind.model_fields)))
        if name != "tensors":
            fields[name] = draw(shapes.beyond(whole(kind.model_fields[name])))
    body = built(kind, fields)
    fill = draw(st.sampled_from([b"\x00", b"\x00\x00\x80\x3f", b"\x00\x00\xc0\x7f", b"\xff"]))
    return Said(body, fill, draw(st.sampled_from([0, 0, 0, 1])))


def headers(heard: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Bytes where a header belongs: noise, odd msgpack, and real headers cut or with a byte changed."""
    odd = (
        *(
            b"",
            b"\xc1",
            b"\x80",
            b"\xff" * 9,
            b"\xdd\xff\xff\xff\xff",
            b"\xdf\xff\xff\xff\xff",
            b"\xc6\xff\xff\xff\xff",
        ),
        *(
            b"\x81\xa1v\x01",
            b"\x82\xa1v\x01\xa1v\x01",
            b"\x82\xa1v\x01\xa1k\x90",
            b"\x82\xa1v\x01\xa1k\xa4want",
        ),
        *(
            b"\x91" * 4000 + b"\x80",
            b"\x81\xa1v" * 2000,
            b"\xd4\x00\x00",
            b"\x81\xc4\x01v\x01",
            b"\xcb" + b"\x7f" * 8,
        ),
    )
    real = st.sampled_from(list(heard) or [b"\x80"])
    place, byte = st.integers(0, 200), st.integers(0, 255)
    changed = st.builds(lambda h, at, b: h[:at] + bytes([b]) + h[at + 1 :], real, place, byte)
    cut = st.builds(lambda h, at: h[:at], real, place)
    return st.one_of(st.sampled_from(odd), st.binary(max_size=40), changed, changed, cut)


def plainest(kind: type[Body], shapes: Shapes) -> Body:
    """The simplest body of a kind that its schema allows."""
    once = settings(max_examples=1, derandomize=True, database=None)
    return find(shapes.part(kind), admits(kind), settings=once)
