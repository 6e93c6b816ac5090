"""What the events of a run add up to: the numbers a person looks at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from swarm.lab.tail import EventMap
from swarm.messages import origin_of

WARM_UP = 2
"""Iterations that no speed is measured on: allocators, caches and connections come to rest."""
ALIVE = ("joining", "training", "finished")
"""What a node's row says while it takes part, or may."""


@dataclass(frozen=True, slots=True)
class Commit:
    """One committed iteration of one cell. `tokens` reached their loss; `seconds` since the last."""

    cell: str
    iteration: int
    loss: float
    tokens: int
    time: float


def longest_gap_s(commits_at: Iterable[float]) -> float:
    """The longest time without a commit of whichever cell, from the first to the last."""
    return max((later - earlier for earlier, later in pairwise(sorted(commits_at))), default=0.0)


@dataclass(slots=True)
class NodeRow:
    """One node as its own events describe it. `bytes_sent` and `memory_bytes` are its last report."""

    cell: str = ""
    stages: tuple[int, ...] = ()
    status: str = "joining"
    iteration: int = 0
    bytes_sent: int = 0
    memory_bytes: int = 0


@dataclass(slots=True)
class Tally:
    """Folds events, in any order within a second or so, into rows and totals."""

    nodes: dict[str, NodeRow] = field(default_factory=dict)
    commits: dict[tuple[str, int], Commit] = field(default_factory=dict)
    recoveries: list[dict[str, Any]] = field(default_factory=list)
    finished: set[str] = field(default_factory=set)
    rounds: int = 0

    def add(self, events: Iterable[EventMap]) -> None:
        """Take events in."""
        for event in events:
            take = getattr(self, f"_on_{event.get('event')}", None)
            if take is not None:
                take(event)

    def _row(self, event: EventMap) -> NodeRow:
        return self.nodes.setdefault(str(event.get("node", "")), NodeRow())

    def _on_committed(self, event: EventMap) -> None:
        """A new leader may tell again of its predecessor's last commit; it counts once."""
        commit = Commit(
            cell=str(event.get("cell", "")),
            iteration=int(event.get("iteration", 0)),
            loss=float(event.get("loss") or 0.0),
            tokens=int(event.get("tokens", 0)),
            time=float(event.get("time", 0.0)),
        )
        self.commits.setdefault((commit.cell, commit.iteration), commit)
        self._take_roster(commit, {int(stage): nodes for stage, nodes in event.get("holders", {}).items()})

    def _take_roster(self, commit: Commit, holders: dict[int, list[str]]) -> None:
        """Who holds what from this commit on, as the leader wrote it down."""
        members = {node for nodes in holders.values() for node in nodes}
        for node, row in self.nodes.items():
            if row.cell == commit.cell and node not in members:
                row.stages = ()
        for node in members:
            row = self.nodes.setdefault(node, NodeRow())
            row.cell, row.iteration = commit.cell, max(row.iteration, commit.iteration)
            row.stages = tuple(stage for stage in sorted(holders) if node in holders[stage])
            row.status = "training" if row.status == "joining" else row.status

    def _on_progress(self, event: EventMap) -> None:
        row = self._row(event)
        row.bytes_sent = max(row.bytes_sent, int(event.get("bytes_sent", 0)))
        row.memory_bytes = int(event.get("memory_bytes", row.memory_bytes))

    def _on_round(self, event: EventMap) -> None:
        """A round counts where a mean of some stage reached the cell."""
        if any(event.get("members", {}).values()):
            self.rounds = max(self.rounds, int(event.get("round", 0)))

    def _on_recovered(self, event: EventMap) -> None:
        self.recoveries.append({key: event.get(key) for key in ("stage", "how", "seconds")})

    def _on_finished(self, event: EventMap) -> None:
        self.finished.add(str(event.get("node", "")))
        self._row(event).status = "finished"

    def _on_left(self, event: EventMap) -> None:
        self._row(event).status = "left"

    def _on_fault(self, event: EventMap) -> None:
        self._row(event).status = str(event.get("what", "fault"))

    @property
    def iteration(self) -> int:
        """Iterations that every cell with a member alive has behind it: the slowest cell's last.

        Survivors who go on under a new name go on from where the old one was; a cell whose
        members are all gone holds nobody back.
        """
        newest: dict[str, int] = {}
        for cell, iteration in self.commits:
            origin = origin_of(cell)
            newest[origin] = max(iteration, newest.get(origin, 0))
        alive = {origin_of(row.cell) for row in self.nodes.values() if row.status in ALIVE}
        return min((last for cell, last in newest.items() if cell in alive or not alive), default=0)

    @property
    def loss(self) -> float | None:
        """Training loss of the newest commit."""
        newest = max(self.commits.values(), key=lambda commit: commit.time, default=None)
        return newest.loss if newest else None

    @property
    def bytes_sent(self) -> int:
        """By all nodes together, the killed up to their last report."""
        return sum(row.bytes_sent for row in self.nodes.values())

    def tokens_per_s(self, *, last_s: float = float("inf")) -> float:
        """Committed tokens per second of all cells, from commit to commit.

        Every cell's first commit in the window only starts its clock: its tokens were computed before.
        """
        commits = sorted(self.commits.values(), key=lambda commit: commit.time)
        return _rate([commit for commit in commits if commit.time >= commits[-1].time - last_s])

    def steady_window(self) -> tuple[float, float]:
        """(start, end) of the time in which every cell was committing and had warmed up.

        Leaves out the start, and the end in which a slower cell has the machine for itself.
        """
        cells = self._steady_commits().values()
        start = max((commits[0].time for commits in cells), default=0.0)
        return start, min((commits[-1].time for commits in cells), default=start)

    def steady_tokens_per_s(self) -> float:
        """Tokens per second in the steady window: the sum of the cells' own rates, commit to commit."""
        start, end = self.steady_window()
        return sum(
            _rate([commit for commit in commits if start <= commit.time <= end])
            for commits in self._steady_commits().values()
        )

    def _steady_commits(self) -> dict[str, list[Commit]]:
        """By cell and time, from the one on with which its warm-up ends."""
        cells: dict[str, list[Commit]] = {}
        for commit in sorted(self.commits.values(), key=lambda commit: commit.time):
            if commit.iteration >= WARM_UP:
                cells.setdefault(commit.cell, []).append(commit)
        return cells


def _rate(commits: list[Commit]) -> float:
    """Tokens per second from the first commit to the last. Each cell's first tokens came before."""
    seconds = commits[-1].time - commits[0].time if commits else 0.0
    first = {commit.cell: commit for commit in reversed(commits)}
    tokens = sum(commit.tokens for commit in commits if commit is not first[commit.cell])
    return tokens / seconds if seconds > 0 else 0.0
