"""What a person wants to hear of a run while it happens, one line an event."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from swarm.lab.tail import EventMap

HOWS = {
    "holder": "another holder in the cell",
    "other_cell": "the other cell",
    "plus_copy": "a neighbour's copy",
    "checkfree": "its neighbours, by CheckFree",
    "checkpoint": "the last checkpoint",
    "seed": "the seed, for nothing was left of it",
    "unknown": "where an earlier leader had it fetched from",
}
"""Where a stage came back from, in words."""

Names = Mapping[str, str]
"""Node id as events have it -> the name of its process."""


class Headlines:
    """Turns events into lines; what every node says of the same thing is told once."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._names: Names = {}
        self._began: float | None = None
        self._killed: dict[str, float] = {}
        self._told: set[tuple[object, ...]] = set()

    def add(self, events: Sequence[EventMap], names: Names) -> None:
        """Take events in, by time. names: of all processes so far."""
        self._names = names
        for event in events:
            if self._began is None:
                self._began = float(event["time"])
            take: Callable[[EventMap], str] | None = getattr(self, f"_on_{event['event']}", None)
            line = take(event) if take is not None else ""
            if line:
                self.lines.append(f"{event['time'] - self._began:6.1f} s  {line}")

    def _once(self, *key: object) -> bool:
        fresh = key not in self._told
        self._told.add(key)
        return fresh

    def _on_fault(self, event: EventMap) -> str:
        self._killed[event["node"]] = event["time"]
        return f"{event['name']} was {event['what']}"

    def _on_member(self, event: EventMap) -> str:
        """The first to have a killed process down as dead speaks for all."""
        node = event["member"]
        if event["status"] != "dead" or node not in self._killed or not self._once("dead", node):
            return ""
        after_s = event["time"] - self._killed[node]
        return f"{self._names.get(node, node)} is known to be dead, {after_s:.1f} s after the kill"

    def _on_leading(self, event: EventMap) -> str:
        return (
            f"{self._names.get(event['node'], event['node'])} leads cell {event['cell']}: {event['reason']}"
        )

    def _on_recovered(self, event: EventMap) -> str:
        stage, cell, seconds = event["stage"], event["cell"], event["seconds"]
        source = HOWS.get(event["how"], event["how"])
        return f"stage {stage} of cell {cell} came back from {source} in {seconds:.1f} s"

    def _on_round(self, event: EventMap) -> str:
        met = [stage for stage, cells in event["members"].items() if len(cells) > 1]
        if not self._once("round", event["round"]) or not met:
            return ""
        return f"outer round {event['round']}: the cells averaged stages {', '.join(met)}"

    def _on_checkpoint(self, event: EventMap) -> str:
        if "refused" in event:
            return f"a checkpoint was refused: {event['refused']}"
        fresh = self._once("checkpoint", event["iteration"])
        return f"iteration {event['iteration']} goes to disk" if fresh else ""

    def _on_finished(self, event: EventMap) -> str:
        fresh = self._once("finished", event["cell"])
        return f"cell {event['cell']} has finished, loss {event['loss']:.3f}" if fresh else ""
