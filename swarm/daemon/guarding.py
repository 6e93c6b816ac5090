"""The last line of defence: what breaks on one peer's message ends that message, not the process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

PEER_FAULTS = (ValueError, LookupError, ArithmeticError)
"""What reading somebody else's values can raise. A failed assert is a local bug, and ends us."""
TOLD_MAX = 4096


class Guard:
    """Counts and attributes what a handler of peers' messages did not expect.

    It is only the last line: a handler that raises may have carried out half of a change, so
    what is wrong with a message is to be found where it is read, and dropped there. But nobody
    has thought of every message, and a swarm in which one member can end all the others with
    the one that was forgotten is none.
    """

    def __init__(self, note: Callable[..., None]) -> None:
        """note: records an event of a kind with fields."""
        self.dropped: dict[str, int] = {}
        self._note = note
        self._told: set[tuple[str, str]] = set()

    @contextmanager
    def against(self, peer: str, what: str) -> Iterator[None]:
        """Handle one message of `peer`; `what` is its type. One event per peer and type."""
        try:
            yield
        except PEER_FAULTS as error:
            name = f"{what}: broke its handler"
            self.dropped[name] = self.dropped.get(name, 0) + 1
            if (peer, what) in self._told or len(self._told) >= TOLD_MAX:
                return
            self._told.add((peer, what))
            why = f"{type(error).__name__}: {error}"[:200]
            self._note("dropped", what=f"{what} that broke its handler", peer=peer[:12], why=why)
