"""Event files while they are being written, and as one when the run is over."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from swarm.events import read_events

EventMap = dict[str, Any]
"""An event as read back: keys `time`, `node`, `event`, and the event's own fields."""


class Tail:
    """What was appended to a set of event files since the last look.

    A file need not exist yet. A line that is not finished yet waits for the next look.
    """

    def __init__(self) -> None:
        self._offsets: dict[Path, int] = {}

    def follow(self, path: Path) -> None:
        """Read this file too, from its beginning. Idempotent."""
        self._offsets.setdefault(path, 0)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files followed, in the order they were named."""
        return tuple(self._offsets)

    def read(self) -> list[EventMap]:
        """New events of all files, by time."""
        events = [event for path in self._offsets for event in self._read_file(path)]
        return sorted(events, key=_time)

    def _read_file(self, path: Path) -> list[EventMap]:
        try:
            with path.open("rb") as file:
                file.seek(self._offsets[path])
                data = file.read()
        except FileNotFoundError:
            return []
        whole, newline, _ = data.rpartition(b"\n")
        self._offsets[path] += len(whole) + len(newline)
        return parse_lines(whole)


def parse_lines(data: bytes) -> list[EventMap]:
    """Events of these lines; one torn by a crash is left out."""
    events = []
    for line in data.split(b"\n"):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


def merge(paths: Iterable[Path], target: Path) -> int:
    """Write the events of all files to `target` by time, one a line. Returns how many."""
    events = [event for path in paths if path.exists() for event in read_events(path)]
    events.sort(key=_time)
    lines = (json.dumps(event, separators=(",", ":")) + "\n" for event in events)
    target.write_text("".join(lines), encoding="utf-8")
    return len(events)


def _time(event: EventMap) -> float:
    time = event.get("time", 0.0)
    return float(time) if isinstance(time, int | float) else 0.0
