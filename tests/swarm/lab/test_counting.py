"""What is counted in a slot, and said of a round, is held against what was planned and sent."""

from typing import Any

import pytest
from sound_world import BATCH, NEXT, NOW, ROUND, A, B, C, Case, Made, Wreck, assert_found

from swarm.lab import checkers
from swarm.lab.checkers import Checker
from swarm.meetings import OuterAnchor, OuterDelta, OuterMean
from swarm.messages import Close, Plan, PlannedMicrobatch, Report, StageSum


@pytest.fixture(autouse=True)
def _at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkers, "virtual_now", lambda: NOW)


CASES: list[Case] = []


def case(checker: Checker, what: str, wrong: Wreck, right: Wreck) -> None:
    CASES.append((checker, what, wrong, right))


def third(world: Made, tokens: int, said: int = 2, **told: Any) -> None:
    """One more slot of two microbatches, in which so many tokens are counted. said: how many were planned."""
    world.plan(3, 2)
    world.note("planned", A, cell="c0", slot=3, term=1, microbatches=said)
    world.show(NEXT.model_copy(update={"slot": 3, "iteration": 3, "tokens": tokens}), A, B, C)
    world.commit(3, tokens=tokens, **told)


case(
    checkers.tokens_are_counted_once,
    "a part of a microbatch",
    lambda w: w.show(NEXT.model_copy(update={"slot": 3, "iteration": 3, "tokens": BATCH + 1}), A),
    lambda w: w.show(NEXT.model_copy(update={"slot": 3, "iteration": 3, "tokens": BATCH}), A),
)
ACCOUNTED = checkers.every_microbatch_is_accounted_for
case(
    ACCOUNTED,
    "a microbatch neither counted nor lost",
    lambda w: third(w, BATCH),
    lambda w: third(w, BATCH, lost=1),
)
case(
    ACCOUNTED,
    "a microbatch both counted and lost",
    lambda w: third(w, 2 * BATCH, lost=1),
    lambda w: third(w, 2 * BATCH, partial=1),
)
case(
    ACCOUNTED,
    "a leader that planned less than it says",
    lambda w: (
        w.plan(3, 2),
        w.note("planned", A, cell="c0", slot=3, term=1, microbatches=1),
        third(w, BATCH),
    ),
    lambda w: third(w, 0, reasons=["an earlier leader closed this slot, and only it was told why"]),
)
SAID = checkers.what_was_said_is_so


def report(done: int, tokens: int) -> Report:
    return Report(cell="c0", slot=2, term=1, done=done, partial=0, lost=0, tokens=tokens, loss_sum=1.0)


case(
    SAID,
    "a report of fewer microbatches than were given",
    lambda w: w.hear(A, report(1, BATCH)),
    lambda w: w.hear(A, report(2, 2 * BATCH)),
)


def close(
    world: Made, tokens: int, reported_s: float = 10.0, fault: str = "", silent: tuple[str, ...] = ()
) -> None:
    """B reports so long before the close, and has its part in the gradient; what is not counted is lost."""
    about: dict[str, Any] = {"cell": "c0", "slot": 3, "term": 1}
    path = (PlannedMicrobatch(index=i, path=((node, 0), (C, 1))) for i, node in enumerate((A, B)))
    roster = ((A, B), (C,), (C,))
    world.hear(A, Plan(**about, iteration=3, base="", roster=roster, microbatches=tuple(path)))
    world.note("planned", A, **about, iteration=3, microbatches=2, skipped=[])
    said = Report(**about, done=1, partial=0, lost=0, tokens=BATCH, loss_sum=1.0)
    world.hear(B, said, now=NOW - reported_s)
    world.hear(A, Close(**about, act="step", round_attempt=1, roster=roster))
    sums = (StageSum(contributors=(A, B), tokens=2 * BATCH, digest="0"), StageSum(), StageSum())
    changes = {"slot": 3, "iteration": 3, "tokens": tokens, "sums": sums, "roster": roster}
    world.show(NEXT.model_copy(update=changes), A, B, C)
    world.commit(3, tokens=tokens, lost=2 - tokens // BATCH, silent=[node[:12] for node in silent])
    if fault:
        world.note("fault", C, what=fault)


COUNTED = checkers.every_report_is_counted
case(COUNTED, "a report not counted", lambda w: close(w, 0), lambda w: close(w, 2 * BATCH))
case(
    COUNTED,
    "a report said not to be there, while the leader's own microbatches may be lost (seed 598)",
    lambda w: close(w, BATCH, silent=(B,)),
    lambda w: close(w, BATCH, silent=(A,)),
)
case(
    COUNTED,
    "a report sent long before",
    lambda w: close(w, 0),
    lambda w: close(w, 0, reported_s=1.0),
)
case(
    COUNTED,
    "a report in a cell that was left alone",
    lambda w: close(w, 0),
    lambda w: close(w, 0, fault="pause"),
)


def meet(world: Made, iteration: int, *, sent: bool = True) -> None:
    """Cells c0 and c1 meet in stage 0 when c0 is at an iteration; then c0 shows the round of iteration 2."""
    about: dict[str, Any] = {"stage": 0, "anchor": 0, "anchor_digest": ""}
    for node, cell, at in ((A, "c0", iteration), (C, "c1", 7)):
        if sent or cell == "c0":
            world.hear(node, OuterDelta(cell=cell, iteration=at, **about), cell)
    world.hear(A, OuterMean(members=("c0", "c1"), iterations=(iteration, 7), **about))
    world.show(ROUND, A, B)


case(SAID, "a mean with a cell that sent nothing", lambda w: meet(w, 2, sent=False), lambda w: meet(w, 2))
case(SAID, "a round that met another time", lambda w: meet(w, 1), lambda w: meet(w, 2))
case(SAID, "a round of which nobody told", lambda w: w.show(ROUND, A), lambda w: meet(w, 2))


def took_over(world: Made, anchor_of: str) -> None:
    """The round took the anchor of cell c1, which another has sent."""
    world.hear(C, OuterAnchor(cell=anchor_of, stage=0, iteration=0, anchor=1), "c1")
    sums = (StageSum(contributors=("c1",), digest="0"), StageSum(), StageSum())
    world.show(ROUND.model_copy(update={"sums": sums}), A)


case(SAID, "an anchor that was never sent", lambda w: took_over(w, "c2"), lambda w: took_over(w, "c1"))


@pytest.mark.parametrize("made", CASES, ids=[what for _, what, _, _ in CASES])
def test_a_checker_finds_what_is_wrong_and_is_silent_on_its_neighbour(made: Case) -> None:
    assert_found(made)
