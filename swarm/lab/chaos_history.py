"""What the cells of a real run decided and counted must agree: with itself, its plans and its past"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from swarm.lab.chaos_evidence import Evidence, Verdict
from swarm.lab.chaos_timeline import ends_a_life
from swarm.lab.histories import kin
from swarm.lab.tail import EventMap
from swarm.pipeline.ledger import CLOSED_BEFORE


def one_record_per_slot(run: Evidence) -> Verdict:
    """No slot of a cell has two different records, and no iteration two slots."""
    broken, slots = [], defaultdict[tuple[int, str, int], set[int]](set)
    decided = run.decided()
    for (life, cell, slot), events in decided.items():
        if len({_content(event) for event in events}) > 1:
            broken.append(f"slot {slot} of cell {cell} has {len(events)} events that differ")
        for event in events:
            if event["event"] == "committed":
                slots[life, cell, event["iteration"]].add(slot)
    for (_, cell, iteration), found in slots.items():
        if len(found) > 1:
            broken.append(f"iteration {iteration} of cell {cell} was committed in slots {sorted(found)}")
    return Verdict(tuple(broken), len(decided), "slots")


def _content(event: EventMap) -> str:
    """What every teller of one record must say alike, whoever has closed its slot: what the record holds."""
    own = ("time", "node", "seconds", "reasons", "reason", "partial", "lost", "silent")
    return repr(sorted((key, value) for key, value in event.items() if key not in own))


def nothing_committed_is_undone(run: Evidence) -> Verdict:
    """A later slot of a cell never has an earlier iteration, nor has what its members go on as."""
    broken, newest = [], dict[tuple[int, str], int]()
    decided = run.decided()
    for (life, cell, slot), events in decided.items():
        iteration = int(events[0]["iteration"])
        before = newest.get((life, cell), 0)
        if iteration < before:
            broken.append(f"cell {cell} went back from iteration {before} to {iteration} in slot {slot}")
        newest[life, cell] = max(before, iteration)
    return Verdict((*broken, *_founded_from_less(run), *_went_on_from_less(run)), len(decided), "slots")


def _founded_from_less(run: Evidence) -> Iterator[str]:
    """Survivors have every slot of the cell that they come from, up to the one in their name."""
    had: dict[tuple[int, str], int] = {}
    decided = run.decided()
    for life, old, new, last in _foundings(run):
        known = [
            int(events[0]["iteration"])
            for (then, cell, slot), events in decided.items()
            if (then, cell) == (life, old) and slot <= last
        ]
        had[life, new] = max(*known, had.get((life, old), 0), 0)
    for (life, cell, slot), events in decided.items():
        iteration, before = int(events[0]["iteration"]), had.get((life, cell), 0)
        if iteration < before:
            yield f"cell {cell} was founded with iteration {before}, and slot {slot} has {iteration}"


def _foundings(run: Evidence) -> Iterator[tuple[int, str, str, int]]:
    """(life, old cell, new cell, last slot of the old one) of survivors: their cell's name ends with it."""
    for event in run.story:
        if event["event"] == "cell" and "~" in event["new"] and kin(event["old"], event["new"]):
            last = int(event["new"].rpartition(".")[2])
            yield run.life(event["time"]), event["old"], event["new"], last


def _went_on_from_less(run: Evidence) -> Iterator[str]:
    """Nobody shows less in a life than it has shown, in one family of cells and while it is in a cell."""
    shown: dict[str, tuple[str, int]] = {}
    for event in run.story:
        node = str(event["node"])
        if ends_a_life(event) or event["event"] == "started" or _holds_nothing(event):
            shown.pop(node, None)
        elif event["event"] == "progress" and event.get("cell"):
            cell, iteration = str(event["cell"]), int(event["iteration"])
            was, before = shown.get(node, ("", 0))
            if kin(was, cell) and iteration < before:
                yield f"{node} had iteration {before} of {was}, and goes on with {iteration} of {cell}"
            shown[node] = (cell, iteration)


def _holds_nothing(event: EventMap) -> bool:
    """Whether a node is in no cell: what a newcomer had before it does not hold now."""
    left = event["event"] == "placed" and event.get("stages") == [] and event.get("holds") is False
    return left or (event["event"] == "progress" and not event.get("cell"))


def tokens_are_counted_once(run: Evidence) -> Verdict:
    """No commit counts more tokens than its plan had, nor a part of a microbatch."""
    job = run.job
    batch = job.pipeline.microbatch * job.data.sequence
    feeding: dict[tuple[int, str], list[frozenset[str]]] = defaultdict(list)
    broken, commits, plans = [], 0, _Plans(run)
    for (life, cell, slot), events in run.decided().items():
        family = (life, cell.split("~")[0])
        if "holders" in events[0]:
            feeding[family].append(frozenset(events[0]["holders"]["0"]))
        if events[0]["event"] != "committed":
            continue
        commits += 1
        # Who fed a slot was in the roster before it: the last few records of the cell and its parent.
        feeders = len(frozenset().union(*feeding[family][-3:]))
        # Who left again while it was at work is named by the plan alone.
        most = max(job.pipeline.microbatches * feeders, *plans.of(life, cell, slot), 0)
        planned, tokens = batch * most, int(events[0]["tokens"])
        if tokens > planned or tokens % batch:
            broken.append(f"slot {slot} of cell {cell} counts {tokens} tokens of {planned} planned")
    return Verdict(tuple(broken), commits, "commits")


def every_microbatch_is_accounted_for(run: Evidence) -> Verdict:
    """What a leader has counted in a slot, and what it says is partial or lost, is all that it planned.

    The tokens are of those that are done, and of the partial ones whose loss was there already. Who only
    proposed again what another had closed is not asked, nor who could not write down what it planned.
    """
    batch = run.job.pipeline.microbatch * run.job.data.sequence
    broken, looked_at, plans = [], 0, _Plans(run)
    for (life, cell, slot), events in run.decided().items():
        for event in events:
            if event["event"] != "committed" or CLOSED_BEFORE in event["reasons"]:
                continue
            planned = plans.of(life, cell, slot, by=str(event["node"]))
            looked_at += bool(planned)
            tokens, partial, lost = (int(event[name]) for name in ("tokens", "partial", "lost"))
            counted = {count - lost for count in planned}
            if planned and not any(batch * (n - partial) <= tokens <= batch * n for n in counted):
                fate = f"{tokens} tokens, {partial} partial and {lost} lost"
                of = f"the {' or '.join(map(str, planned))} microbatches of {batch} tokens planned"
                broken.append(f"slot {slot} of {cell} has {fate}: not {of}")
    return Verdict(tuple(broken), looked_at, "commits of slots whose plan is known")


class _Plans:
    """How many microbatches were planned for a slot, under whichever leaderships."""

    def __init__(self, run: Evidence) -> None:
        self._planned: dict[tuple[int, str, int], list[tuple[str, int]]] = defaultdict(list)
        self._founded: dict[tuple[int, int], set[str]] = defaultdict(set)
        for event in run.story:
            if event["event"] == "planned":
                key = (run.life(event["time"]), str(event["cell"]), int(event["slot"]))
                self._planned[key].append((str(event["node"]), int(event["microbatches"])))
        for life, _, new, last in _foundings(run):
            self._founded[life, last + 1].add(new)

    def of(self, life: int, cell: str, slot: int, by: str = "") -> list[int]:
        """All that were planned, by a node if one is given; what survivors carried on was planned before."""
        found, before = self._planned.get((life, cell, slot), []), self._open_before(life, cell, slot)
        if not found and before:
            found = [
                plan
                for (then, other, at), plans in self._planned.items()
                if then == life and at in before and kin(other, cell)
                for plan in plans
            ]
        return sorted({count for node, count in found if by in ("", node)})

    def _open_before(self, life: int, cell: str, slot: int) -> range:
        """The slots in a row before one that were foundings: of this cell, then of its kin."""
        if cell not in self._founded.get((life, slot - 1), ()):
            return range(0)
        first = slot - 1
        while any(kin(cell, other) for other in self._founded.get((life, first - 1), ())):
            first -= 1
        return range(first, slot)


def training_went_on(run: Evidence) -> Verdict:
    """After the last disturbance something was committed."""
    commits = [event for event in run.story if event["event"] == "committed"]
    after = [event for event in commits if event["time"] > run.timeline.last_disturbance]
    broken = () if after else ("nothing was committed after the last disturbance",)
    return Verdict(broken, len(commits), "commits")
