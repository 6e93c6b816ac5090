"""A donor as a taker of state knows it: what it was asked for, how far it is, and how long to wait."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from transport.machine import NodeId
from transport.patience import Patience


@dataclass(slots=True)
class Source:
    """What a taker knows of a donor. `owed` are the chunks asked of it, oldest first."""

    peer: NodeId
    patience: Patience
    state: Literal["unasked", "asked", "queued", "serving", "spare", "dropped"] = "unasked"
    owed: dict[int, None] = field(default_factory=dict)
    heard_at: float = 0.0
    strikes: int = 0
    wants: int = 0
    sent: int = 0
    reason: str = "was not asked"
