"""A planned leave: the owner wants the machine back, so the cell gets this node's state first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarm.messages import Leave
from swarm.pipeline.records import is_finished
from transport.machine import NodeId, Send
from transport.wire import Message

if TYPE_CHECKING:
    from swarm.daemon.training_half import TrainingHalf

HANDOVER_S = 8.0
"""Owners do not wait longer. What is not handed over by then is recovered like after a crash."""


class Leaving:
    """Nothing, until `begin`; then the way out."""

    def __init__(self, half: TrainingHalf) -> None:
        self._half = half
        self._until: float | None = None
        self.reason = ""

    @property
    def begun(self) -> bool:
        """Whether this node is on its way out."""
        return self._until is not None

    def begin(self, reason: str, now: float) -> None:
        """Ask the leader to give this node's stages to others."""
        if self._until is None:
            self.reason, self._until = reason, now + HANDOVER_S
            self.remind(now)

    def remind(self, now: float) -> None:
        """Ask again: whoever leads may have changed."""
        trainer = self._half.trainer
        if self._until is None or trainer is None:
            return
        leader = trainer.follower.leader or NodeId(trainer.record.leader)
        leave = Leave(
            cell=trainer.cell,
            slot=trainer.record.slot,
            term=trainer.follower.term,
            reason=self.reason[:200],
        )
        trainer.act([Send(leader, Message(leave))], now)

    def over(self, now: float) -> bool:
        """Whether nothing is left to hand over, or nobody to take it, or no time."""
        if self._until is None:
            return False
        half = self._half
        if half.trainer is None or now >= self._until:
            return True
        alone = all(member.node == half.setup.me for member in half.view.live())
        return alone or is_finished(half.trainer.record, half.setup.job)
