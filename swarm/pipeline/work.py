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


class FlowEffect(Effect):
    """What the flow of tensors through this node carries out."""


@dataclass(frozen=True, slots=True)
class Work(FlowEffect):
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
class Ship(FlowEffect):
    """Encode `tensor` and send it with `body`; to this node itself it goes without encoding.

    When the peer cannot take it the machine that asked is told through `unreachable`.
    """

    peer: NodeId
    body: Forward | Backward
    tensor: Any


@dataclass(frozen=True, slots=True)
class Forget(FlowEffect):
    """Drop the activations kept under this key, in every stage of this node.

    only_head: drop nothing but a head that has not begun; its work then comes to nothing.
    """

    key: Key
    only_head: bool = False


@dataclass(frozen=True, slots=True)
class ShipFlat(FlowEffect):
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


@dataclass(frozen=True, slots=True)
class Average(Effect):
    """Mean of these outer gradients, in this order; answer with `averaged`."""

    stage: int
    members: tuple[str, ...]
    parts: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class ShipAnchor(Effect):
    """Send this node's anchor and momentum of a stage to a delegate with another one.

    iteration: of the outer gradient that this answers.
    """

    peer: NodeId
    stage: int
    iteration: int


@dataclass(frozen=True, slots=True)
class Settle(Effect):
    """A stage's round is over.

    mean: the outer gradient to step with, or None. adopted: a message with another cell's
    anchor and momentum to move to, or None. With neither the stage was not averaged. anchor: how
    many rounds made the one that `mean` is for. behind: (delegate, iteration it came at) of those
    who wait for the anchor that comes of it, or for the present one if none does.
    """

    stage: int
    members: tuple[str, ...]
    reason: str
    mean: Any = None
    adopted: Any = None
    anchor: int = 0
    behind: tuple[tuple[NodeId, int], ...] = ()
