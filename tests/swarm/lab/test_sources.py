"""A lost stage that came back from less than was at hand is found; what was not always at hand excuses it."""

from collections.abc import Callable
from typing import Any, cast

import pytest
from sound_world import NOW, ROSTER, A, B, C, D, Made, Process, Wreck, assert_found

from swarm.lab import checkers

SOURCES = checkers.stages_come_back_from_the_best_source
CASES: list[tuple[str, Wreck, Wreck]] = []


@pytest.fixture(autouse=True)
def _at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkers, "virtual_now", lambda: NOW)


def case(what: str, wrong: Wreck, right: Wreck) -> None:
    """What is found, a world in which it is so, and a neighbour in which it is not."""
    CASES.append((what, wrong, right))


def looks(world: Made, now: float) -> None:
    nodes, coordinator = cast(Any, world.nodes), cast(Any, world.coordinator)
    assert world.evidence.sources.look(nodes, coordinator, {"c0": ROSTER}, world.job, now) == []


def nothing(_: Made) -> None:
    pass


def lose(
    world: Made,
    stage: int,
    taker: Process,
    how: str,
    reason: str = "",
    then: Callable[[Made], None] = nothing,
) -> None:
    """A stage is lost, some seconds pass in which something may happen, and a node has it again."""
    looks(world, NOW - 5)
    looks(world, NOW - 4)
    lost = world.nodes[stage]
    lost.running, lost.trainer, world.quiet = False, None, 0.0
    looks(world, NOW - 3)
    then(world)
    looks(world, NOW - 1)
    place(world, stage, taker, how, reason)


def place(world: Made, stage: int, taker: Process, how: str, reason: str = "") -> None:
    assert taker.trainer is not None
    taker.trainer.stages[stage] = None
    world.note("placed", taker.node, cell="c0", stages=[stage], how=how, reason=reason)


def doubt(world: Made) -> None:
    """For a moment between two looks the second node believes everybody dead."""
    for other in (A, B, C, D):
        world.note("member", B, member=other[:12], status="suspect", reason="")


def try_in_vain(world: Made) -> None:
    world.note("dropped", C, what="order for stage 0", why="nobody has it")


def move(world: Made) -> None:
    """The last node goes on in another cell, with everything."""
    assert world.c.trainer is not None
    world.c.trainer.cell, world.c.trainer.stages = "c1", dict.fromkeys(range(3))
    for process in world.processes:
        world.sees(process, world.told(C))


def ordered_twice(world: Made, *, early: bool) -> None:
    """A copy of its order comes to a taker that has the stage, before any roster says so."""
    looks(world, NOW - 7)
    if early:
        move(world)
    looks(world, NOW - 6)
    world.b.running, world.b.trainer, world.quiet = False, None, 0.0
    looks(world, NOW - 5)
    assert world.a.trainer is not None
    world.a.trainer.stages[1] = None
    looks(world, NOW - 4)
    move(world)
    looks(world, NOW - 3)
    looks(world, NOW - 1)
    place(world, 1, world.a, "checkfree")


def elsewhere(world: Made, how: str, *, late: bool = False) -> None:
    """The last node is of another cell and holds everything, perhaps not from before the loss."""
    if not late:
        move(world)
    lose(world, 1, world.a, how, then=move if late else nothing)


def copied(world: Made, how: str, **more: Any) -> None:
    """The first body stage keeps a copy of the ends, and the ends are lost."""
    assert world.b.trainer is not None
    world.b.trainer.ends_copy = object()
    lose(world, 0, world.b, how, **more)


def held(world: Made, *, for_s: float) -> None:
    """A stage that its holder has had for so long is rebuilt beside it."""
    looks(world, NOW - for_s)
    looks(world, NOW - 1)
    place(world, 1, world.c, "checkfree")
    world.evidence.sources.idle[C, 1] = NOW - 1


case("a holder passed over", lambda w: held(w, for_s=90.0), lambda w: held(w, for_s=30.0))
case("another cell passed over", lambda w: elsewhere(w, "checkfree"), lambda w: elsewhere(w, "other_cell"))
case(
    "another cell that was always there",
    lambda w: elsewhere(w, "checkfree"),
    lambda w: elsewhere(w, "checkfree", late=True),
)
case(
    "another cell that had it when a stage was first ordered, but not since before its loss",
    lambda w: ordered_twice(w, early=True),
    lambda w: ordered_twice(w, early=False),
)
case("a copy of the ends passed over", lambda w: copied(w, "checkpoint"), lambda w: copied(w, "plus_copy"))
case(
    "a copy passed over that was not said to be tried",
    lambda w: copied(w, "checkpoint", reason="Its last checkpoint is of iteration 5."),
    lambda w: copied(w, "checkpoint", reason="Its last. Tried in vain before: plus_copy."),
)
case(
    "a copy passed over that was not tried",
    lambda w: copied(w, "checkpoint"),
    lambda w: copied(w, "checkpoint", then=try_in_vain),
)
case(
    "a copy of somebody who was always believed alive",
    lambda w: copied(w, "checkpoint"),
    lambda w: copied(w, "checkpoint", then=doubt),
)
case(
    "body stages passed over",
    lambda w: lose(w, 1, w.a, "checkpoint"),
    lambda w: lose(w, 1, w.a, "checkfree"),
)
case("a checkpoint passed over", lambda w: lose(w, 0, w.b, "seed"), lambda w: lose(w, 0, w.b, "checkpoint"))
case(
    "the seed, whatever was tried in vain",
    lambda w: copied(w, "seed", reason="Tried in vain before: plus_copy, checkpoint.", then=try_in_vain),
    lambda w: copied(w, "seed", then=doubt),
)


@pytest.mark.parametrize(("wrong", "right"), [pair for _, *pair in CASES], ids=[what for what, *_ in CASES])
def test_a_worse_source_is_found_and_its_neighbour_is_not(wrong: Wreck, right: Wreck) -> None:
    assert_found((SOURCES, "", wrong, right))


def test_the_policy_of_the_job_says_which_source_is_worse() -> None:
    world = Made()
    recovery = world.job.recovery.model_copy(update={"policy": "checkfree"})
    world.job = world.job.model_copy(update={"recovery": recovery})
    elsewhere(world, "checkfree")
    assert world.broken() == {}
