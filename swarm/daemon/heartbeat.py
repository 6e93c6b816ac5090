"""What a training half tells its gossip half every second: that it lives, and its numbers."""

from __future__ import annotations

from collections.abc import Mapping

from recovery.transfer import Transfer
from swarm.daemon.bridge import Awake, Bridge, Progress
from swarm.daemon.guarding import Guard
from swarm.daemon.reporting import Speed, progress_of
from swarm.events import EventKind
from swarm.pipeline.trainer import Trainer
from transport.link import LinkStats


class Heartbeat:
    """Counts what happened, and says it.

    It is told from the event loop that the work waits for, so a half that hangs falls silent.
    """

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._progress, self._speed = Progress(), Speed()
        self._tokens = self._recoveries = 0

    def count(self, kind: EventKind, fields: Mapping[str, object]) -> None:
        """An event of this node's own cell."""
        self._tokens += int(str(fields.get("tokens", 0))) if kind == "committed" else 0
        self._recoveries += kind == "recovered"

    def beat(
        self,
        trainer: Trainer | None,
        transfer: Transfer,
        guard: Guard,
        stats: LinkStats,
        *,
        memory_bytes: int,
        waiting_for: str,
        now: float,
    ) -> None:
        """Say that this half is awake, and its numbers if they are others than a second ago."""
        self._bridge.send(Awake())
        progress = progress_of(
            trainer,
            transfer,
            guard,
            stats,
            tokens=self._tokens,
            tokens_per_s=self._speed.tokens_per_s(self._tokens, now),
            recoveries=self._recoveries,
            memory_bytes=memory_bytes,
            waiting_for=waiting_for,
        )
        if progress != self._progress:
            self._bridge.send(progress)
        self._progress = progress
