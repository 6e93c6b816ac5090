"""A real swarm on this machine: one coordinator and any number of nodes, each a process.

The swarm below `directory`:

    job/            the coordinator's directory, made by `init_job`
    nodes/NAME/     one node's identity, events, checkpoints and stderr.log
    lab.jsonl       what this module did to them (event "fault")
    run.jsonl       all events by time, written when the swarm is left
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from swarm.daemon.options import CoordinatorOptions, NodeOptions, UserError
from swarm.events import Event, EventFile, wall_time
from swarm.job import Job
from swarm.lab.fork_server import kill_group
from swarm.lab.spawner import Spawner
from swarm.lab.tail import EventMap, Tail, merge

HOST = "127.0.0.1"
LOOK_S = 0.25
"""Between two looks at the event files: prompt for a person, nothing for two busy cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a process runs: the address it listens on, and its network namespace (empty: ours)."""

    host: str = HOST
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class Child:
    """One process of the swarm (for a node: its gossip half, which leads the group)."""

    name: str
    pid: int
    directory: Path

    @property
    def info(self) -> dict[str, Any]:
        """What it wrote of itself once it ran: node id, ports, work_pid. Empty until then."""
        for name in ("node.json", "coordinator.json"):
            try:
                found = json.loads((self.directory / name).read_bytes())
            except (FileNotFoundError, ValueError):
                continue
            if isinstance(found, dict) and found.get("pid") == self.pid:
                return found
        return {}

    @property
    def node(self) -> str:
        """Node id as events have it (12 characters), empty until it runs."""
        return str(self.info.get("node", ""))[:12]


class RealSwarm:
    """An async context manager. On leaving, no process of it is left and run.jsonl is written.

    killed: names, in order. story: every event that was read so far. places: by name, of the
    processes that do not run on loopback.
    """

    def __init__(
        self,
        directory: Path,
        job: Job,
        spawner: Spawner | None = None,
        places: Mapping[str, Place] | None = None,
    ) -> None:
        self.directory = directory
        self.job = job
        self.children: dict[str, Child] = {}
        self.killed: list[str] = []
        self.places = dict(places or {})
        self.story: list[EventMap] = []
        self._spawner = spawner or Spawner()
        self._tail = Tail()
        self._invitation = ""

    async def __aenter__(self) -> RealSwarm:
        self._found()
        await self._spawner.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._spawner.__aexit__(kind, error, trace)
        self._faults.close()
        merge(self._tail.paths, self.run_file)

    @property
    def run_file(self) -> Path:
        """Where the merged events go."""
        return self.directory / "run.jsonl"

    @property
    def job_directory(self) -> Path:
        """The coordinator's directory."""
        return self.directory / "job"

    @property
    def alive(self) -> list[str]:
        """Names of the processes that have not ended."""
        living = set(self._spawner.children)
        return [child.name for child in self.children.values() if child.pid in living]

    def _found(self) -> None:
        """Make the job's directory and one invitation that admits every node."""
        from swarm.daemon.jobdir import init_job, make_invitation

        if self.directory.exists() and any(self.directory.iterdir()):
            raise UserError(f"{self.directory} is not empty: name a new directory with --out")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._faults = EventFile(self.directory / "lab.jsonl")
        self._tail.follow(self.directory / "lab.jsonl")
        init_job(self.job_directory, job=self.job, host=self.place("coordinator").host, lobby_port=0)
        uses = 4 * self.job.pipeline.nodes + 4  # the first nodes, and those that replace the killed
        self._invitation = make_invitation(self.job_directory, days=1, uses=uses).text

    def place(self, name: str) -> Place:
        """Where a process runs."""
        return self.places.get(name, Place())

    async def start_coordinator(self, **choices: Any) -> Child:
        """Start the coordinator of the job. choices: fields of CoordinatorOptions."""
        host = self.place("coordinator").host
        options = replace(CoordinatorOptions(directory=self.job_directory, host=host), **choices)
        return await self._start("coordinator", "coordinator", options, self.job_directory)

    async def start_node(self, name: str, **choices: Any) -> Child:
        """Start a node; a name that ran before comes back with its identity and disk.

        choices: fields of NodeOptions, such as another `invitation`.
        """
        directory = self.directory / "nodes" / name
        options = NodeOptions(invitation=self._invitation, data_dir=directory, host=self.place(name).host)
        return await self._start(name, "node", replace(options, **choices), directory)

    async def _start(self, name: str, kind: str, options: Any, directory: Path) -> Child:
        log, namespace = directory / "stderr.log", self.place(name).namespace
        pid = await self._spawner.spawn(kind, options, log, namespace)
        child = Child(name, pid, directory)
        self.children = {**self.children, name: child}
        self._tail.follow(directory / "events.jsonl")
        return child

    def kill(self, name: str) -> None:
        """SIGKILL both halves of a process, as a power cut would."""
        child = self.children[name]
        self.killed.append(name)
        self.note_fault(child, "killed")
        kill_group(child.pid)

    def pause(self, name: str) -> None:
        """SIGSTOP both halves of a process, as a suspended machine would."""
        child = self.children[name]
        self.note_fault(child, "paused")
        os.killpg(child.pid, signal.SIGSTOP)

    def proceed(self, name: str) -> None:
        """Let a paused process go on."""
        child = self.children[name]
        os.killpg(child.pid, signal.SIGCONT)
        self.note_fault(child, "proceeding")

    def leave(self, name: str) -> None:
        """Ask one process to hand over and go."""
        self._spawner.signal(self.children[name].pid, signal.SIGTERM)

    def note_fault(self, child: Child, what: str, **fields: Any) -> None:
        """Write down what was done to a process."""
        self._faults(Event("fault", wall_time(), child.node, {"what": what, "name": child.name} | fields))

    def note(self, what: str, **fields: Any) -> None:
        """Write down what was done to no process in particular."""
        self._faults(Event("fault", wall_time(), "", {"what": what} | fields))

    def events(self) -> list[EventMap]:
        """Events since the last call, of all processes."""
        fresh = self._tail.read()
        self.story += fresh
        return fresh

    async def until(self, done: Callable[[EventMap], bool], *, timeout_s: float) -> EventMap:
        """The first new event for which `done`. Raises TimeoutError; those before it are in `story`."""
        async with asyncio.timeout(timeout_s):
            while True:
                for event in self.events():
                    if done(event):
                        return event
                await asyncio.sleep(LOOK_S)

    async def until_true(self, done: Callable[[], bool], *, timeout_s: float) -> None:
        """Look until `done()`, which may read `story`. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while not done():
                await asyncio.sleep(LOOK_S)
                self.events()

    async def ended(self, name: str, *, timeout_s: float) -> int:
        """The exit code of a process, once it has ended. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            return await self._spawner.wait(self.children[name].pid)

    async def stop(self, *, timeout_s: float = 20.0) -> dict[str, int]:
        """Ask all to leave, kill what does not within the time. Returns exit codes by name."""
        for name in self.alive:
            self.leave(name)
        try:
            async with asyncio.timeout(timeout_s):
                for child in self.children.values():
                    await self._spawner.wait(child.pid)
        except TimeoutError:
            for name in self.alive:
                kill_group(self.children[name].pid)
        return {child.name: await self._spawner.wait(child.pid) for child in self.children.values()}

    def log(self, name: str) -> str:
        """What a process wrote to its standard error: the end of it."""
        path = self.children[name].directory / "stderr.log"
        return path.read_text(errors="replace")[-2000:] if path.exists() else ""
