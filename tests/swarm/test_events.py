"""Events are worth keeping, but no event is worth ending a node for."""

import errno
from io import FileIO
from pathlib import Path
from typing import Any

from swarm.events import Event, EventFile, read_events


class Disk:
    """An event file on a disk with so much room. None: room for everything."""

    def __init__(self, file: FileIO) -> None:
        self._file, self.close = file, file.close
        self.room: int | None = None

    def write(self, data: bytes) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self._file.write(data[: self.room])
        if self.room is not None:
            self.room -= written
        return written


def told(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in event.items() if k not in ("time", "node")} for event in read_events(path)]


def test_events_that_a_full_disk_does_not_take_are_counted_and_told_of_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    emit = EventFile(path)
    disk = Disk(emit._file)
    emit._file = disk  # type: ignore[assignment]
    emit(Event("joined", 1.0, "a"))
    disk.room = 5  # the next line is cut off, those after it find nothing
    for _ in range(3):
        emit(Event("progress", 2.0, "a"))
    disk.room = None
    emit(Event("finished", 3.0, "a"))
    emit(Event("left", 4.0, "a"))
    dropped = {"event": "dropped", "what": "events", "why": "No space left on device", "count": 3}
    emit.close()
    assert told(path) == [{"event": "joined"}, dropped, {"event": "finished"}, {"event": "left"}]


def test_a_disk_that_stays_full_ends_nobody() -> None:
    emit = EventFile(Path("/dev/full"))
    for _ in range(3):
        emit(Event("progress", 1.0, "a"))
    assert emit._dropped == 3
    emit.close()
