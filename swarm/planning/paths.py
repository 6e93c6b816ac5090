"""Which way each microbatch goes, and the way around a hop that died.

For now every path visits the stages in order, at the least loaded holder of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from statistics import fmean

from swarm.messages import Hop, PlannedMicrobatch

Holders = Sequence[Sequence[str]]
"""Holders of each stage, by stage: a roster."""


def plan_paths(
    roster: Holders,
    data_nodes: Sequence[str],
    microbatches: int,
    speeds: Mapping[str, float] | None = None,
) -> tuple[PlannedMicrobatch, ...]:
    """Paths for `microbatches` of each data node, dealt out in turn, so early ones spread.

    A stage with no holder is skipped. Each hop goes to the holder that would finish its share
    first, counting all its stages and one unit of work a hop; a tie stays where the microbatch
    is, else goes to the lowest id. speeds are relative; a node without one counts as average.
    Raises ValueError for a data node that does not hold stage 0.
    """
    strangers = sorted(set(data_nodes) - set(roster[0]))
    if strangers:
        raise ValueError(f"{strangers[0]} does not hold stage 0, so it cannot start microbatches")
    known = {node: speed for node, speed in (speeds or {}).items() if speed > 0}
    loads = _Loads(known, fmean(known.values()) if known else 1.0)
    starts = [node for _ in range(microbatches) for node in data_nodes]
    return tuple(PlannedMicrobatch(index=i, path=_path(node, roster, loads)) for i, node in enumerate(starts))


class _Loads:
    """Units of work given to each node so far, and when it would be through with one more."""

    def __init__(self, speeds: Mapping[str, float], average: float) -> None:
        self._speeds, self._average = speeds, average
        self._units: dict[str, int] = {}

    def give(self, node: str) -> None:
        self._units[node] = self._units.get(node, 0) + 1

    def finish(self, node: str) -> float:
        return (self._units.get(node, 0) + 1) / self._speeds.get(node, self._average)


def _path(start: str, roster: Holders, loads: _Loads) -> tuple[Hop, ...]:
    path: list[Hop] = [(start, 0)]
    loads.give(start)
    for stage, holders in enumerate(roster[1:], start=1):
        if holders:
            here = path[-1][0]
            node = min(holders, key=lambda holder: (loads.finish(holder), holder != here, holder))
            loads.give(node)
            path.append((node, stage))
    return tuple(path)


@dataclass(frozen=True, slots=True)
class Reroute:
    """A new path for a microbatch on its way, or None if it must start again; and why."""

    path: tuple[Hop, ...] | None
    reason: str


def reroute(
    path: Sequence[Hop], position: int, roster: Holders, avoid: AbstractSet[str] = frozenset()
) -> Reroute:
    """The way on from path[position] when the next hop cannot be reached.

    Hops up to `position` have happened and stay. The node of the next hop, and those in `avoid`,
    are replaced on the rest of the path: by this node itself if it holds the stage, else by the
    next holder after the dead one in the roster; a stage with no holder left is skipped. Only
    the data node, path[0], can never be replaced, for it alone knows the targets.
    """
    here, data_node = path[position][0], path[0][0]
    dead = {*avoid, path[position + 1][0]} if position + 1 < len(path) else {*avoid, data_node}
    if data_node in dead:
        return Reroute(None, "The data node cannot be reached, and no other knows the targets.")
    rest: list[Hop] = []
    changes: list[str] = []
    for node, stage in path[position + 1 :]:
        other = node if node not in dead else _another(stage, node, here, roster, dead)
        if other is not None:
            rest.append((other, stage))
        if other != node:
            by = "is skipped, no holder is left" if other is None else f"is done by {other[:8]}"
            changes.append(f"stage {stage} of {node[:8]} {by}")
    return Reroute((*path[: position + 1], *rest), f"Unreachable on the way: {'; '.join(changes)}.")


def start_again(path: Sequence[Hop], roster: Holders, avoid: AbstractSet[str] = frozenset()) -> Reroute:
    """A new path for a microbatch that starts again at its data node.

    Each stage goes to the live holder after the one that had it, so that a slow hop is not tried
    twice where there is another; a stage without a live holder is skipped.
    """
    before = {stage: node for node, stage in path}
    rest: list[Hop] = []
    for stage in range(1, len(roster)):
        holder = _another(stage, before.get(stage, ""), "", roster, avoid)
        if holder is not None:
            rest.append((holder, stage))
    if path[0][0] in avoid:
        return Reroute(None, "The data node cannot be reached, and no other knows the targets.")
    return Reroute((path[0], *rest), f"Starts again over {len(rest)} of {len(roster) - 1} body stages.")


def _another(stage: int, node: str, here: str, roster: Holders, dead: AbstractSet[str]) -> str | None:
    """A live holder of a stage; after the dead one in turn, so that its load spreads out."""
    holders = list(roster[stage]) if stage < len(roster) else []
    after = holders.index(node) + 1 if node in holders else 0
    live = [holder for holder in holders[after:] + holders[:after] if holder not in dead]
    return here if here in live else next(iter(live), None)
