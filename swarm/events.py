"""Structured events: one line of JSON per fact, written where it happened.

`run.jsonl` of a run is the nodes' event files merged by time. Nothing else is logged.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transport.machine import Effect

EventKind = Literal[
    "started",  # node, role, platform
    "joined",  # a node was admitted; on the node itself: certificate received
    "refused",  # a joiner or a key was turned away, with the reason
    "member",  # a member's status changed in this node's view: status, reason
    "stalled",  # this node noticed that it was not scheduled: seconds
    "placed",  # stages a node holds from now on, and why
    "planned",  # leader: slot, term, iteration, how many microbatches, skipped stages
    "rerouted",  # a hop or data node chose another way: microbatch, reason
    "lost",  # a microbatch was started again or given up: reason
    "dropped",  # late or malformed input, counted: what, why
    "committed",  # iteration, loss, tokens, seconds, partial, lost, silent, clip_scale, holders
    "round",  # an outer round: members and coverage per stage, or why it was skipped
    "leading",  # this node leads its cell from now on: term, reason
    "cell",  # a minority became a new cell, or nobody trained and the job was founded again: old, new, reason
    "recovered",  # a stage is back: stage, how, seconds, reason
    "resynced",  # a holder differed from its peers and took the state again
    "checkpoint",  # written or refused (hash): iteration, path
    "progress",  # periodic: tokens_per_s, bytes_sent, memory_bytes
    "finished",  # the job's last iteration is committed
    "left",  # planned leave
    "fault",  # something the environment did: injected kill, cut, pause
    "error",  # an unexpected local error, one line, before the process ends
]


@dataclass(frozen=True, slots=True)
class Event:
    """One fact. `time` is seconds: wall time in the real world, virtual in the simulated."""

    kind: EventKind
    time: float
    node: str
    fields: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """Compact JSON with keys in a fixed order, so that equal runs are equal bytes."""
        head = {"time": round(self.time, 6), "node": self.node[:12], "event": self.kind}
        return json.dumps(head | self.fields, separators=(",", ":"), default=str)


@dataclass(frozen=True, slots=True)
class Noted(Effect):
    """A machine's wish to have a fact recorded; the driver adds time and node."""

    kind: EventKind
    fields: dict[str, Any] = field(default_factory=dict)


Emit = Callable[[Event], None]


def wall_time() -> float:
    """Seconds since the epoch: for events and expiry only, never for order or deadlines."""
    return time.time()  # noqa: TID251 - this is the edge


class EventFile:
    """Appends events to a file, one write a line, so that two processes may share it.

    What a full disk does not take is dropped and counted, and told of once it takes events again:
    training goes on without.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._dropped, self._why, self._torn = 0, "", False

    def __call__(self, event: Event) -> None:
        """Append one event, if the disk takes it."""
        if self._dropped:
            fields = {"what": "events", "why": self._why, "count": self._dropped}
            if self._append(Event("dropped", event.time, event.node, fields)):
                self._dropped = 0
        if self._dropped or not self._append(event):
            self._dropped += 1

    def _append(self, event: Event) -> bool:
        line = event.line().encode() + b"\n"
        data = b"\n" + line if self._torn else line
        try:
            written = self._file.write(data)
        except OSError as error:
            self._why = error.strerror or str(error)
            return False
        self._torn = written < len(data)
        if self._torn:
            self._why = "a line was written in part"
        return not self._torn

    def close(self) -> None:
        """Close the file; later events are a local bug."""
        self._file.close()


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a file. A last line cut off by a crash is left out."""
    events = []
    for line in path.read_bytes().split(b"\n"):
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events
