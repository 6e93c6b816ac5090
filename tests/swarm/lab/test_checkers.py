"""Every checker of the simulated world is silent on a sound world, and finds the one thing that is wrong."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from sound_world import FIRST, NEXT, NOW, A, B, C, Case, Made, Wreck, assert_found, row
from test_counting import CASES as COUNTED
from test_sources import SOURCES

from swarm.gossip.view import Status
from swarm.lab import checkers
from swarm.lab.checkers import CHECKERS, SETTLE_S, Checker
from swarm.lab.world import World
from swarm.messages import CellRecord
from transport.machine import NodeId


@pytest.fixture(autouse=True)
def _at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkers, "virtual_now", lambda: NOW)


def test_a_sound_world_breaks_nothing() -> None:
    assert Made().broken() == {}


CASES: list[Case] = []


def case(checker: Checker, what: str, wrong: Wreck, right: Wreck) -> None:
    CASES.append((checker, what, wrong, right))


# -- what cells decide ------------------------------------------------------------------------------

case(
    checkers.one_record_per_slot,
    "a slot with two records",
    lambda w: w.show(NEXT.model_copy(update={"loss": 2.0}), B),
    lambda w: w.show(NEXT, B),
)
case(
    checkers.one_record_per_slot,
    "an iteration in two slots",
    lambda w: w.show(NEXT.model_copy(update={"slot": 3, "act": "step", "tokens": 0}), A),
    lambda w: w.show(NEXT.model_copy(update={"slot": 3, "act": "roster", "tokens": 0}), A),
)
case(
    checkers.holders_are_identical,
    "two hashes of a stage",
    lambda w: w.evidence.hashes.update({("c0", 2, 0): {A: "x", B: "y"}}),
    lambda w: w.evidence.hashes.update({("c0", 2, 0): {A: "x", B: "x"}}),
)


def survivors(iteration: int, cell: str = "c0~bbbbbbbb.2") -> CellRecord:
    changes = {"cell": cell, "slot": 3, "act": "found", "iteration": iteration, "roster": ((), (B,), (C,))}
    return NEXT.model_copy(update=changes)


case(
    checkers.nothing_committed_is_undone,
    "a cell that goes back",
    lambda w: w.show(FIRST.model_copy(update={"slot": 3}), A),
    lambda w: w.show(NEXT.model_copy(update={"slot": 3, "act": "roster"}), A),
)
case(
    checkers.nothing_committed_is_undone,
    "survivors that go on from before what they had",
    lambda w: w.show(survivors(1), B),
    lambda w: w.show(survivors(2), B),
)


def returned(world: Made, *, alive: bool) -> None:
    """A node enters a cell of survivors that were one iteration behind it."""
    if not alive:
        world.note("started", B, role="worker", incarnation=1)
    world.show(survivors(1), B)


case(
    checkers.nothing_committed_is_undone,
    "a member that goes over with less than it had",
    lambda w: returned(w, alive=True),
    lambda w: returned(w, alive=False),
)


def begin_again(world: Made, *, whole: bool) -> None:
    """The coordinator begins the job again, having seen all of its cell at work for long, or all but one."""
    if not whole:
        world.sees(world.coordinator, world.told(C, "suspect"))
        world.quiet = 0.0
    for now in (NOW - 30, NOW - 1):
        nodes, coordinator = cast(Any, world.nodes), cast(Any, world.coordinator)
        assert world.evidence.beginnings.look(nodes, coordinator, world.job, now) == []
    world.note("cell", world.coordinator.node, old="c0", new="c0.1", reason="nobody trains this job")


case(
    checkers.a_job_at_work_is_not_begun_again,
    "a job begun again while it is at work",
    lambda w: begin_again(w, whole=True),
    lambda w: begin_again(w, whole=False),
)


# -- who is where -----------------------------------------------------------------------------------

case(
    checkers.nobody_dies_of_an_error,
    "an error",
    lambda w: w.evidence.failures.append("a died of KeyError"),
    lambda w: w.note("left", A, reason="its owner wants the machine"),
)
case(
    checkers.only_the_admitted_are_seen,
    "a stranger",
    lambda w: w.sees(w.a, row(NodeId("e" * 64), "dead")),
    lambda w: w.sees(w.a, w.told(B)),
)


def dead_for_it(world: Made, quiet: float) -> None:
    world.quiet = quiet
    world.sees(world.a, world.told(B, "suspect"))


case(
    checkers.views_tell_the_truth,
    "the living suspected",
    lambda w: dead_for_it(w, SETTLE_S + 1),
    lambda w: dead_for_it(w, SETTLE_S - 1),
)


def gone(world: Made, status: Status) -> None:
    world.c.running, world.c.trainer = False, None
    for process in world.processes:
        world.sees(process, row(C, status))


def stands_still(world: Made, *, seen_by: str) -> None:
    """B has stood still for longer than views take to settle, and one of the others does not see it."""
    world.note("fault", B, what="pause")
    world.sees(world.b, world.told(A, "dead"))
    world.sees(world.a, world.told(C if seen_by == "its neighbours" else B, "suspect"))


case(
    checkers.views_tell_the_truth,
    "the living suspected while another stands still",
    lambda w: stands_still(w, seen_by="its neighbours"),
    lambda w: stands_still(w, seen_by="all"),
)
case(checkers.views_tell_the_truth, "the dead alive", lambda w: gone(w, "alive"), lambda w: gone(w, "dead"))


def buried(world: Made, *, paused: bool) -> None:
    world.quiet = 0.0
    world.sees(world.a, world.told(B, "dead"))
    if paused:
        world.note("fault", B, what="pause")


case(
    checkers.nobody_stays_buried,
    "the living buried",
    lambda w: buried(w, paused=False),
    lambda w: buried(w, paused=True),
)


def killed(world: Made, what: str) -> None:
    """A node was killed while a fault without an end hindered it, and lives again for long."""
    world.note("fault", B, what=what)
    world.note("started", B, role="worker", incarnation=2)
    world.evidence.calm_since[B] = 0.0
    buried(world, paused=False)


case(
    checkers.nobody_stays_buried,
    "one buried that stood still in another life",
    lambda w: killed(w, "pause"),
    lambda w: killed(w, "cut"),
)


def forged(world: Made, seq: int) -> None:
    """A shows a record of B of this version with other facts; B's own is of version (1, 1)."""
    for process in world.processes:
        world.sees(process, row(B, seq=1))
    world.sees(world.a, row(B, seq=seq, iteration=9))


case(
    checkers.views_show_what_was_signed,
    "a record that was never signed",
    lambda w: forged(w, 1),
    lambda w: forged(w, 0),
)


def signed_before(world: Made, seq: int) -> None:
    """Seed 304 of the soak: a node came back with an incarnation that it had used, up to this version."""
    world.b.signed_before = (1, seq)
    forged(world, 1)


case(
    checkers.views_show_what_was_signed,
    "a record that neither this life signed nor the one before",
    lambda w: signed_before(w, 0),
    lambda w: signed_before(w, 1),
)


def forgotten(world: Made, seq: int) -> None:
    world.sees(world.a, row(B, seq=1))
    world.sees(world.b, row(B, seq=1))
    assert list(checkers.news_is_never_forgotten(cast(World, world))) == []
    world.sees(world.a, row(B, seq=seq))


case(checkers.news_is_never_forgotten, "older news", lambda w: forgotten(w, 0), lambda w: forgotten(w, 1))


# -- what is kept -----------------------------------------------------------------------------------


def queue(world: Made, lane: str, kept_bytes: int) -> None:
    stream = SimpleNamespace(kept_bytes=kept_bytes, lane=lane, receiver=SimpleNamespace(me=B))
    world.a.links = (SimpleNamespace(streams={1: stream}),)


STATES_BYTES = 6 * 4 * 300
QUEUES = checkers.queues_are_bounded
case(
    QUEUES,
    "more bulk than the job has",
    lambda w: queue(w, "bulk", 3 * STATES_BYTES),
    lambda w: queue(w, "bulk", 2 * STATES_BYTES),
)
case(
    QUEUES,
    "more control than anybody says",
    lambda w: queue(w, "control", 1 << 20),
    lambda w: queue(w, "control", 1 << 19),
)


def hold(world: Made, held: int) -> None:
    assert world.b.trainer is not None
    world.b.trainer.held = held


case(checkers.memory_is_bounded, "too many microbatches", lambda w: hold(w, 19), lambda w: hold(w, 18))
case(
    checkers.no_byte_is_lost_unseen,
    "a lost byte",
    lambda w: w.imbalances.append("1 byte"),
    lambda w: w.imbalances.clear(),
)


@pytest.mark.parametrize("made", CASES, ids=[what for _, what, _, _ in CASES])
def test_a_checker_finds_what_is_wrong_and_is_silent_on_its_neighbour(made: Case) -> None:
    assert_found(made)


def test_every_checker_has_such_a_case() -> None:
    assert {checker for checker, *_ in (*CASES, *COUNTED)} | {SOURCES} == set(CHECKERS)
