"""The disk seam of the simulated world: real files, in a directory whose disk can be full."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, replace
from pathlib import Path, PosixPath
from typing import IO, Any, NoReturn

from swarm.events import Event


@dataclass(slots=True)
class SimDisk:
    """The disk of one node. full: nothing more can be written; what is there can be read."""

    full: bool = False

    def directory(self, path: Path) -> Path:
        """The same directory, as everything that is kept on this disk."""

        class OnDisk(_OnDisk):
            disk = self

        return OnDisk(path)


class _OnDisk(PosixPath):
    """A path on a disk. What is derived from it is on the same one, because it has the same class."""

    disk: SimDisk

    def open(self, mode: str = "r", *args: Any, **kwargs: Any) -> IO[Any]:  # type: ignore[override]
        """See `Path`. `write_text`, `write_bytes` and `touch` come through here or are below."""
        if self.disk.full and set(mode) & set("wax+"):
            _refuse(self)
        return super().open(mode, *args, **kwargs)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """See `Path`. A directory that is there already needs no room."""
        if self.disk.full and not (exist_ok and self.is_dir()):
            _refuse(self)
        super().mkdir(mode, parents, exist_ok)


def without_place(event: Event, directory: Path) -> Event:
    """The event as it would be wherever a world's disks lie: two runs of a seed lie in two directories."""
    place = f"{directory}/"
    told = {k: v.replace(place, "") if isinstance(v, str) else v for k, v in event.fields.items()}
    return replace(event, fields=told) if told != event.fields else event


def _refuse(path: Path) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
