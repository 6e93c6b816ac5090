"""What to do about a lost stage: the facts in, one decision and its reason out.

Two questions, both pure. Where do the values come from (`decide`), in the order of how much
training each source keeps; and who holds the stage from now on (`choose_taker`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Literal

How = Literal["holder", "other_cell", "plus_copy", "checkfree", "checkpoint", "seed", "none"]
SEED_AFTER_S = 10.0
"""How long a stage with no source must be lost before it goes on from the seed: a checkpoint may be on its
way to the archive, or the word of it on its way here."""
TRIES = 2
"""Orders of one source that come to nothing before the next is tried; one may be its taker's fault."""
GIVEN_UP = 3 * TRIES
"""Orders of a source that come to nothing, minutes apart, before it counts for none at all."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A holder of the lost stage in another cell, and the iteration its state is from."""

    node: str
    iteration: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LossFacts:
    """What is left after a loss, as one node sees it.

    stage, stages: the lost stage and how many there are; stage 0 is the ends.
    holders: live holders of the stage in this cell; not empty means a newcomer only doubles it.
    other_cells: live holders in other cells.
    plus_copies: live members of this cell that keep a CheckFree+ copy; only the ends have any.
    live: live holders in this cell of every other stage; a stage that is lost too is absent or
        empty. A stage restored a moment ago counts as live.
    checkpoint_iteration: newest checkpoint of the stage that the cell can read, None if none.
    no_archive: whoever keeps checkpoints is there and says that it has none. If it is not there,
        it may come back with one, and the stage waits for it.
    lost_s: since when the stage has no holder.
    failed: how often each source was ordered in vain since the stage was lost.
    policy: the job's `recovery.policy`.
    """

    stage: int
    stages: int
    holders: tuple[str, ...] = ()
    other_cells: tuple[Elsewhere, ...] = ()
    plus_copies: tuple[str, ...] = ()
    live: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    checkpoint_iteration: int | None = None
    no_archive: bool = False
    lost_s: float = 0.0
    failed: Mapping[How, int] = field(default_factory=dict)
    policy: Literal["auto", "checkfree"] = "auto"


@dataclass(frozen=True, slots=True)
class Decision:
    """Where the stage's values come from, and one sentence that says why.

    donors: whom to ask, in order; empty for "checkpoint", "seed" and "none". For "checkfree" they are
        the holders of `neighbours`, lower stage first.
    neighbours: stages to average for "checkfree": (lower, upper), or one stage to copy.
    """

    how: How
    donors: tuple[str, ...]
    reason: str
    neighbours: tuple[int, ...] = ()


def decide(facts: LossFacts) -> Decision:
    """The best source for a lost stage: the first of the job's order that exists.

    Another holder in the cell comes first under either policy, because holders of a stage must
    be bit-identical: what another holder goes on with can be taken, never reinvented. A source
    that proved empty (`TRIES` orders came to nothing) goes behind the others: what members say
    that they have is not what they have, and a stage must not wait for one word of one of them.
    The seed gives nothing back of what was learned, so it is taken only when nothing else exists, or
    when all that is said to exist was ordered in vain `GIVEN_UP` times.
    """
    rebuilt_first = (_holder, _checkfree, _plus_copy, _other_cell, _checkpoint)
    kept_first = (_holder, _other_cell, _plus_copy, _checkfree, _checkpoint)
    sources = kept_first if facts.policy == "auto" else rebuilt_first
    found = [decision for source in sources if (decision := source(facts)) is not None]
    vain = [decision.how for decision in found if facts.failed.get(decision.how, 0) >= GIVEN_UP]
    if len(vain) == len(found) and facts.no_archive and facts.lost_s >= SEED_AFTER_S:
        nothing = f"Stage {facts.stage} was ordered in vain from {', '.join(vain)}"
        why = nothing if vain else _nothing_left(facts)
        return Decision("seed", (), f"{why}; training goes on from what the job's seed gives the stage.")
    if not found:
        return Decision("none", (), f"{_nothing_left(facts)}.")
    best = min(found, key=lambda decision: facts.failed.get(decision.how, 0) // TRIES)
    passed = [decision.how for decision in found[: found.index(best)]]
    if not passed:
        return best
    return replace(best, reason=f"{best.reason} Tried in vain before: {', '.join(passed)}.")


def _holder(facts: LossFacts) -> Decision | None:
    if not facts.holders:
        return None
    reason = f"Stage {facts.stage} has {len(facts.holders)} live holder(s) in the cell; nothing is lost."
    return Decision("holder", facts.holders, reason)


def _other_cell(facts: LossFacts) -> Decision | None:
    if not facts.other_cells:
        return None
    newest_first = sorted(facts.other_cells, key=lambda other: (-other.iteration, other.node))
    reason = (
        f"No holder of stage {facts.stage} is left in the cell; "
        f"another cell has it at iteration {newest_first[0].iteration}."
    )
    return Decision("other_cell", tuple(other.node for other in newest_first), reason)


def _plus_copy(facts: LossFacts) -> Decision | None:
    if facts.stage != 0 or not facts.plus_copies:
        return None
    reason = f"No holder of the ends is left; {len(facts.plus_copies)} neighbour(s) keep a copy."
    return Decision("plus_copy", facts.plus_copies, reason)


def _checkfree(facts: LossFacts) -> Decision | None:
    near = _nearest_bodies(facts)
    if not near:
        return None
    donors = tuple(dict.fromkeys(node for stage in near for node in facts.live[stage]))
    adjacent = tuple(s for s in (facts.stage - 1, facts.stage + 1) if 1 <= s < facts.stages)
    also_lost = [str(stage) for stage in adjacent if stage not in near]
    beside = f"; stage {' and '.join(also_lost)} beside it is lost too" if also_lost else ""
    if len(near) == 2:
        what = f"rebuilt as the average of stages {near[0]} and {near[1]}"
    else:
        what = f"rebuilt as a copy of stage {near[0]}, the only body stage to one side of it that lives"
    return Decision("checkfree", donors, f"Stage {facts.stage} is {what}{beside}.", near)


def _nearest_bodies(facts: LossFacts) -> tuple[int, ...]:
    """The nearest live body stage below and above; the ends hold no layers to average."""
    if facts.stage == 0:
        return ()
    below = (s for s in range(facts.stage - 1, 0, -1) if facts.live.get(s))
    above = (s for s in range(facts.stage + 1, facts.stages) if facts.live.get(s))
    return tuple(s for s in (next(below, None), next(above, None)) if s is not None)


def _nothing_left(facts: LossFacts) -> str:
    if facts.stage == 0:
        why = "no cell, copy or checkpoint has it, and the ends cannot be averaged from body stages"
    else:
        why = "no cell or checkpoint has it, and no other body stage of the cell is alive"
    return f"Nothing is left of stage {facts.stage}: {why}"


def _checkpoint(facts: LossFacts) -> Decision | None:
    if facts.checkpoint_iteration is None:
        return None
    reason = (
        f"No live node can give or rebuild stage {facts.stage}; "
        f"its last checkpoint is of iteration {facts.checkpoint_iteration}."
    )
    return Decision("checkpoint", (), reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A live node that might take a stage over.

    stages: what it holds in this cell; empty for a standby.
    free_bytes: memory it could still use, None if it never said; then it is asked, and its own
        refusal (`Ready` with ok False) is the answer.
    """

    node: str
    stages: tuple[int, ...] = ()
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Taker:
    """Who takes the stage, which stages it gives up for it, and why. `node` None: nobody can."""

    node: str | None
    gives_up: tuple[int, ...]
    reason: str


def choose_taker(
    stage: int,
    candidates: Sequence[Candidate],
    *,
    stage_bytes: int = 0,
    refused: AbstractSet[str] = frozenset(),
) -> Taker:
    """Who takes a lost stage over: a standby, a holder that can be spared, one with room for more.

    candidates are all live members of the cell and the standbys; stage_bytes is the memory the
    stage's state needs; refused are nodes that were asked and could not.
    """
    fit = sorted((c for c in candidates if c.node not in refused and stage not in c.stages), key=_by_load)
    roomy = [c for c in fit if c.free_bytes is None or c.free_bytes >= stage_bytes]
    for candidate in roomy:
        if not candidate.stages:
            return Taker(candidate.node, (), f"A standby takes stage {stage}.")
    copies = _copies(candidates)
    spare = [c for c in fit if c.stages and all(copies[held] > 1 for held in c.stages)]
    if spare:
        # From the most copied stage first; a data node last, since the batch shrinks with it.
        best = min(spare, key=lambda c: (0 in c.stages, -min(copies[s] for s in c.stages), _by_load(c)))
        gives_up = ", ".join(map(str, best.stages))
        return Taker(best.node, best.stages, f"Stage {gives_up} has another holder, so one takes {stage}.")
    if roomy:
        beside = min(roomy, key=lambda c: (len(c.stages), min(abs(s - stage) for s in c.stages), c.node))
        held = ", ".join(map(str, beside.stages))
        return Taker(beside.node, (), f"Nobody can be spared; the holder of stage {held} takes {stage} too.")
    return Taker(None, (), f"Stage {stage} waits: no live node has the memory to hold it.")


def _by_load(candidate: Candidate) -> tuple[int, str]:
    return (len(candidate.stages), candidate.node)


def _copies(candidates: Iterable[Candidate]) -> dict[int, int]:
    copies: dict[int, int] = {}
    for candidate in candidates:
        for held in candidate.stages:
            copies[held] = copies.get(held, 0) + 1
    return copies
