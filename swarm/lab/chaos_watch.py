"""Looks at a real swarm while it is hurt: who holds what, with which hash, and who ended by itself"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from swarm.daemon.look import ID_CHARS, fetch_status
from swarm.daemon.options import UserError
from swarm.events import wall_time
from swarm.lab.chaos_evidence import End, Sighting
from swarm.lab.processes import RealSwarm
from swarm.lab.wan_namespaces import inside

EVERY_S = 1.0
"""Between two looks at everybody's status: as often as facts are spread."""


class Watch:
    """rows: the last status of each process that answers. sightings: distinct ones, also in `file`.

    ends: processes that ended by themselves.
    """

    def __init__(self, swarm: RealSwarm, file: Path) -> None:
        self._swarm, self._file = swarm, file
        self._seen: set[tuple[str, str, int, int, int, str]] = set()
        self._counted: set[int] = set()
        self.rows: dict[str, dict[str, Any]] = {}
        self.sightings: list[Sighting] = []
        self.ends: list[End] = []

    async def look(self, standing_still: set[str]) -> None:
        """Ask everybody who runs and is not stopped for its status, all at once."""
        asked = [name for name in self._swarm.alive if name not in standing_still]
        rows: dict[str, dict[str, Any]] = {}
        async with asyncio.TaskGroup() as tasks:
            for name in asked:
                tasks.create_task(self._ask(name, rows))
        self.rows = rows
        fresh = [each for row in rows.values() for each in self._fresh(row)]
        self.sightings += fresh
        with self._file.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(each), separators=(",", ":")) + "\n" for each in fresh)

    async def _ask(self, name: str, rows: dict[str, dict[str, Any]]) -> None:
        """A process that is starting, or was killed a moment ago, does not answer: no row then."""
        child, namespace = self._swarm.children[name], self._swarm.place(name).namespace
        if child.info:
            try:
                rows[name] = await asyncio.to_thread(look_inside, child.directory, namespace)
            except UserError:
                return

    def _fresh(self, row: Mapping[str, Any]) -> Iterator[Sighting]:
        for found in sightings_of(row, wall_time()):
            key = (found.node, found.cell, found.iteration, found.round, found.stage, found.digest)
            if key not in self._seen:
                self._seen.add(key)
                yield found

    def holders(self) -> dict[int, tuple[str, ...]]:
        """Live holders of each stage, as they say themselves."""
        alive = set(self._swarm.alive)
        found: dict[int, list[str]] = {}
        for name, row in sorted(self.rows.items()):
            for stage in row["stages"] if name in alive else ():
                found.setdefault(stage, []).append(name)
        return {stage: tuple(names) for stage, names in found.items()}

    async def count_ends(self, killed: Collection[int]) -> None:
        """Note who ended since the last call. Whom we killed (process ids) is not meant."""
        alive = set(self._swarm.alive)
        for name, child in self._swarm.children.items():
            if name in alive or child.pid in self._counted:
                continue
            self._counted.add(child.pid)
            if child.pid not in killed:
                code = await self._swarm.ended(name, timeout_s=EVERY_S)
                self._swarm.note_fault(child, "ended", code=code)
                self.ends.append(End(name, code, wanted=code == 0))


def look_inside(directory: Path, namespace: str) -> dict[str, Any]:
    """The status of a process in a namespace, which only a thread inside can reach."""
    with inside(namespace) if namespace else nullcontext():
        return fetch_status(directory)


def sightings_of(row: Mapping[str, Any], now: float) -> Sequence[Sighting]:
    """What one status tells of everybody's hashes."""
    return [
        Sighting(
            time=now,
            node=member["node"][:ID_CHARS],
            platform=member["platform"],
            cell=member["cell"],
            iteration=member["iteration"],
            round=member["round"],
            stage=int(stage),
            digest=digest,
        )
        for member in row["members"]
        for stage, digest in member["hashes"].items()
    ]
