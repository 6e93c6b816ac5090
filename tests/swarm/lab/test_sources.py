"""A lost stage that came back from less than was at hand is found; what was not always at hand excuses it."""

from typing import Any, cast

import pytest
from sound_world import NOW, ROSTER, A, B, C, Case, D, Made, Process, Wreck, assert_found

from swarm.lab import checkers
from swarm.lab.checkers import Checker


@pytest.fixture(autouse=True)
def _at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkers, "virtual_now", lambda: NOW)


CASES: list[Case] = []


def case(checker: Checker, what: str, wrong: Wreck, right: Wreck) -> None:
    CASES.append((checker, what, wrong, right))


def lose(world: Made, stage: int, taker: Process, how: str, **facts: Any) -> None:
    """A stage is lost, a second passes, and a node of the cell has it again."""
    look = world.evidence.sources.look
    rosters = {"c0": ROSTER}

    def looks(now: float) -> None:
        nodes, coordinator = cast(Any, world.nodes), cast(Any, world.coordinator)
        assert look(nodes, coordinator, rosters, world.job, now) == []

    looks(NOW - 5)
    looks(NOW - 4)
    lost = world.nodes[stage]
    lost.running, lost.trainer, world.quiet = False, None, 0.0
    looks(NOW - 3)
    if facts.pop("doubted", False):
        for other in (A, B, C):
            world.note("member", taker.node, member=other[:12], status="suspect", reason="")
        world.note("member", taker.node, member=D[:12], status="suspect", reason="")
    looks(NOW - 1)
    assert taker.trainer is not None
    taker.trainer.stages[stage] = None
    world.note("placed", taker.node, cell="c0", stages=[stage], how=how, reason=facts.pop("reason", ""))


def elsewhere(world: Made, how: str, *, cell: str = "c1") -> None:
    """The last node is of another cell, and holds everything."""
    assert world.c.trainer is not None
    world.c.trainer.cell, world.c.trainer.stages = cell, dict.fromkeys(range(3))
    for process in world.processes:
        world.sees(process, world.told(C))
    lose(world, 1, world.a, how)


def copied(world: Made, how: str, **facts: Any) -> None:
    """The first body stage keeps a copy of the ends, and the ends are lost."""
    assert world.b.trainer is not None
    world.b.trainer.ends_copy = object()
    lose(world, 0, world.b, how, **facts)


SOURCES = checkers.stages_come_back_from_the_best_source
case(
    SOURCES,
    "another cell passed over",
    lambda w: elsewhere(w, "checkfree"),
    lambda w: elsewhere(w, "other_cell"),
)
case(
    SOURCES,
    "a copy of the ends passed over",
    lambda w: copied(w, "checkpoint"),
    lambda w: copied(w, "plus_copy"),
)
case(
    SOURCES,
    "a copy passed over that was not tried",
    lambda w: copied(w, "checkpoint", reason="Its last checkpoint is of iteration 5."),
    lambda w: copied(w, "checkpoint", reason="Its last. Tried in vain before: plus_copy."),
)
case(
    SOURCES,
    "body stages beside it passed over",
    lambda w: lose(w, 1, w.a, "checkpoint"),
    lambda w: lose(w, 1, w.a, "checkfree"),
)
case(
    SOURCES,
    "a checkpoint passed over",
    lambda w: lose(w, 0, w.b, "seed"),
    lambda w: lose(w, 0, w.b, "checkpoint"),
)
case(
    SOURCES,
    "the seed, whatever was tried in vain",
    lambda w: copied(w, "seed", reason="Tried in vain before: plus_copy, checkpoint."),
    lambda w: copied(w, "seed", doubted=True),
)


@pytest.mark.parametrize("made", CASES, ids=[what for _, what, _, _ in CASES])
def test_a_checker_finds_what_is_wrong_and_is_silent_on_its_neighbour(made: Case) -> None:
    assert_found(made)
