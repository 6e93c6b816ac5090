"""What the tensors of a node are made of: numbers; a simulation may leave those out and keep the sizes.

Stages, messages and snapshots are made here and nowhere else, so whoever brings another `Matter`
changes what a node computes on, and nothing of what it says, to whom, or when.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from recovery.fetch import Fetched, FetchOptions
from recovery.snapshot import Snapshot, take_snapshot, to_tensors
from swarm.job import Job
from swarm.pipeline.model import ModelConfig
from swarm.pipeline.stage import Stage
from transport.codecs import decode, encode
from transport.wire import Body, Message


class Matter(Protocol):
    """How a node's tensors are made, sent, and read again. fetching: how it fetches states."""

    @property
    def fetching(self) -> FetchOptions:
        """How states are fetched that are made of this."""
        ...

    def stage(self, job: Job, config: ModelConfig, index: int, device: str = "cpu") -> Stage:
        """A fresh stage, as the job's seed makes it."""
        ...

    def pack(self, body: Body, named: Mapping[str, Tensor], codec: str) -> Message:
        """Tensors as a message with this body, which declares them. Raises CodecError."""
        ...

    def unpack(self, message: Message) -> tuple[Tensor, ...]:
        """The tensors of a received message, not to be written to. Raises CodecError."""
        ...

    def snapshot(
        self,
        name: str,
        slot: int,
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, int | float | str] | None = None,
    ) -> Snapshot:
        """A state, ready to serve. See `recovery.snapshot.take_snapshot`."""
        ...

    def restored(self, fetched: Fetched) -> dict[str, Tensor]:
        """The tensors of a state that arrived."""
        ...


class Dense:
    """Tensors as torch has them."""

    fetching = FetchOptions()

    def stage(self, job: Job, config: ModelConfig, index: int, device: str = "cpu") -> Stage:
        """See `Matter`."""
        return Stage(job, config, index, device)

    def pack(self, body: Body, named: Mapping[str, Tensor], codec: str) -> Message:
        """See `Matter`."""
        pairs = [encode(name, tensor, codec) for name, tensor in named.items()]
        declared = body.model_copy(update={"tensors": tuple(spec for spec, _ in pairs)})
        return Message(declared, tuple(buffer for _, buffer in pairs))

    def unpack(self, message: Message) -> tuple[Tensor, ...]:
        """See `Matter`."""
        pairs = zip(message.body.tensors, message.buffers, strict=True)
        return tuple(decode(spec, buffer) for spec, buffer in pairs)

    def snapshot(
        self,
        name: str,
        slot: int,
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, int | float | str] | None = None,
    ) -> Snapshot:
        """See `Matter`."""
        return take_snapshot(name, slot, tensors, facts)

    def restored(self, fetched: Fetched) -> dict[str, Tensor]:
        """See `Matter`."""
        return to_tensors(fetched.holds, fetched.tensors)


DENSE: Matter = Dense()
"""What every node computes with that is not told otherwise."""


def payload_tensors(payloads: Sequence[Any], matter: Matter) -> tuple[Tensor, ...]:
    """Tensors as they are; a message as the tensors it carries. Raises CodecError."""
    tensors: list[Tensor] = []
    for payload in payloads:
        tensors += matter.unpack(payload) if isinstance(payload, Message) else (payload,)
    return tuple(tensors)
