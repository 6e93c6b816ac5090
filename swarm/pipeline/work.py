"""What the machines of the pipeline ask the node to compute and to ship, and what they tell it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from swarm.messages import Backward, CellRecord, Forward, Restore
from transport.machine import Effect, NodeId
from transport.wire import Body, Signed

WorkKind = Literal["backward", "head", "forward", "embed"]
PRIORITY: tuple[WorkKind, ...] = ("backward", "head", "forward", "embed")
"""Backward first: it frees memory and lets others go on. New microbatches come last."""


class Key(NamedTuple):
    """One attempt at one microbatch of one data node, in one slot."""

    slot: int
    term: int
    data_node: NodeId
    microbatch: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Work(Effect):
    """Compute this. `payload` is a tensor, or a message whose one buffer is to be decoded.

    embed needs no payload; head takes the activations that came back; target_tokens goes with
    a backward. `position` is the index of the stage's hop in the path.
    """

    kind: WorkKind
    key: Key
    stage: int
    position: int
    payload: Any = None
    target_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Ship(Effect):
    """Encode `tensor` and send it with `body`; to this node itself it goes without encoding.

    When the peer cannot take it the machine that asked is told through `unreachable`.
    """

    peer: NodeId
    body: Forward | Backward
    tensor: Any


@dataclass(frozen=True, slots=True)
class Forget(Effect):
    """Drop the activations kept under this key, in every stage of this node.

    only_head: drop nothing but a head that has not begun; its work then comes to nothing.
    """

    key: Key
    only_head: bool = False


@dataclass(frozen=True, slots=True)
class ShipFlat(Effect):
    """Encode flat tensors exactly (codec raw) and send them with `body`."""

    peer: NodeId
    body: Body
    tensors: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Applied(Effect):
    """A decided record took effect on this node's stages."""

    record: CellRecord
    signed: Signed


@dataclass(frozen=True, slots=True)
class Dropped(Effect):
    """A stage left this node, because the roster gives it to others."""

    stage: int


@dataclass(frozen=True, slots=True)
class Ordered(Effect):
    """This node's own leader orders it to hold a stage."""

    order: Restore
