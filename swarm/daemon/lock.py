"""One process a directory: a second start must not take the first one's identity."""

from __future__ import annotations

import fcntl
import os
import select
from pathlib import Path

from swarm.daemon.options import UserError

LOCK = "lock"
TRIES = 20
PAUSE_S = 0.1
"""A process that was killed holds its lock until the kernel has buried it."""


def lock_directory(directory: Path) -> int:
    """Take the directory for this process and those it forks. Raises UserError if it is taken.

    Returns a file descriptor: the lock lasts as long as it, or a fork's copy of it, is open.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for _ in range(TRIES):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            select.select((), (), (), PAUSE_S)
        else:
            os.truncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode("ascii"), 0)
            return handle
    owner = os.pread(handle, 20, 0).decode("ascii", "replace")
    os.close(handle)
    raise UserError(f"{directory} is in use by process {owner or '?'}: stop it, or choose another directory")
