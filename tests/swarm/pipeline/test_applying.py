"""A decided record takes effect in order, with what it decided on or honestly without."""

from swarm.gossip.view import Facts, Member, MemberRecord, View
from swarm.messages import Averaged, CellRecord, Close, StageSum
from swarm.pipeline.applying import SLOTS_AHEAD, Applying
from swarm.pipeline.averaging import Hold
from swarm.pipeline.follower import Apply, Ignored
from transport.machine import NodeId
from transport.wire import Signed

ME, OTHER, LIAR = NodeId("a" * 64), NodeId("b" * 64), NodeId("c" * 64)


def apply(slot: int, act: str = "step", digest: str = "d1") -> Apply:
    record = CellRecord(
        cell="c0",
        slot=slot,
        term=1,
        act=act,  # type: ignore[arg-type]
        iteration=slot,
        round=0,
        previous="",
        roster=((ME, OTHER),),
        sums=(StageSum(digest=digest, tokens=1),) if act == "step" else (),
        leader=ME,
    )
    return Apply(record, Signed(signer=ME, payload=b"", signature=bytes(64)))


def hold(slot: int, digest: str = "d1") -> Hold:
    return Hold(slot, 0, StageSum(digest=digest, tokens=1), ("tensor",), 0, OTHER, (1, 1))


def averaged(slot: int, *, attempt: int = 1, cell: str = "c0", stage: int = 0) -> Averaged:
    total = StageSum(digest="d1", tokens=1)
    return Averaged(cell=cell, slot=slot, term=1, stage=stage, round_attempt=attempt, total=total)


def close(slot: int, *row: NodeId) -> Close:
    return Close(cell="c0", slot=slot, term=1, act="step", round_attempt=1, roster=(row,))


def takes(applying: Applying, peer: NodeId, body: Averaged, payload: str = "x", slot: int = 0) -> bool:
    """Whether a result from a peer is kept; `slot` is the last decided one."""
    (effect,) = applying.averaged(peer, body, payload, apply(slot).record)
    if isinstance(effect, Hold):
        applying.hold(effect)
    else:
        assert isinstance(effect, Ignored)
    return isinstance(effect, Hold)


def view(iteration: int) -> View:
    record = MemberRecord(
        job="",
        node=OTHER,
        incarnation=0,
        seq=0,
        gossip="",
        work="",
        curve_key="",
        certificate=b"",
        facts=Facts(cell="c0", stages=(0,), iteration=iteration),
    )
    return View().with_member(Member(record, "alive"))


def test_a_record_waits_for_what_it_averaged() -> None:
    applying = Applying(ME)
    applying.decided(apply(1), 0.0)
    assert applying.choose([0], 0.0) is None
    applying.hold(hold(1, "e0"))
    assert applying.choose([0], 0.0) is None
    applying.hold(hold(1))
    assert applying.choose([0], 1.0) == {0: hold(1)}
    assert applying.until is None


def test_a_stage_whose_average_never_comes_is_given_up_where_others_have_it() -> None:
    applying = Applying(ME)
    applying.decided(apply(1), 0.0)
    applying.choose([0], 0.0)
    assert applying.until is not None
    missing = applying.overdue([0], view(iteration=1), applying.until)
    assert missing is not None
    assert (missing.given_up, missing.behind) == ((0,), ())
    assert applying.choose([], 99.0) == {}


def test_holders_that_all_miss_it_stay_alike_without_the_step() -> None:
    applying = Applying(ME)
    applying.decided(apply(1), 0.0)
    applying.choose([0], 0.0)
    missing = applying.overdue([0], view(iteration=0), 99.0)
    assert missing is not None
    assert (missing.given_up, missing.behind) == ((), (0,))
    assert applying.choose([0], 99.0) == {}


def test_a_new_cell_decides_with_what_its_old_one_averaged() -> None:
    applying = Applying(ME)
    applying.hold(hold(1))
    applying.decided(apply(1, "found"), 0.0)
    assert applying.choose([0], 0.0) == {}
    applying.finished(0.0)
    applying.decided(apply(2), 0.0)
    assert applying.choose([0], 0.0) == {0: hold(1)}


def test_what_is_applied_is_all_that_the_record_says_of_it() -> None:
    """Tokens scale the step, contributors say who moves along: a digest alone is not the decision."""
    applying = Applying(ME)
    applying.decided(apply(1), 0.0)
    for total in (StageSum(digest="d1", tokens=9), StageSum(digest="d1", tokens=1, contributors=("c1",))):
        applying.hold(Hold(1, 0, total, ("tensor",), 0, OTHER, (1, 1)))
        assert applying.choose([0], 0.0) is None


def test_results_are_taken_of_the_reducer_that_the_close_named_only() -> None:
    applying = Applying(ME)
    applying.closed(close(1, OTHER, ME))
    assert not takes(applying, LIAR, averaged(1))
    assert not takes(applying, ME, averaged(1))
    assert not takes(applying, OTHER, averaged(1, stage=1))
    assert not takes(applying, OTHER, averaged(1, cell="c1"))
    assert takes(applying, OTHER, averaged(1))
    applying.decided(apply(1), 0.0)
    chosen = applying.choose([0], 0.0)
    assert chosen is not None
    assert chosen[0].reducer == OTHER


def test_before_the_close_each_other_holder_has_one_place_and_then_only_the_reducer() -> None:
    applying = Applying(ME)
    assert not takes(applying, LIAR, averaged(1))
    for attempt in range(20):
        assert takes(applying, OTHER, averaged(1, attempt=attempt), f"attempt {attempt}")
    assert takes(applying, ME, averaged(1))
    applying.closed(close(1, OTHER, ME))
    (kept,) = applying._holds[1, 0].values()
    assert (kept.reducer, kept.tensors) == (OTHER, ("attempt 19",))


def test_after_the_commit_only_the_reducer_of_the_record_still_counts() -> None:
    applying = Applying(OTHER)
    applying.decided(apply(1), 0.0)
    assert not takes(applying, LIAR, averaged(1), slot=1)
    assert takes(applying, ME, averaged(1), slot=1)
    assert applying.choose([0], 0.0) is not None
    applying.finished(0.0)
    assert not takes(applying, ME, averaged(1), slot=1), "what is applied needs nothing more"


def test_results_of_far_slots_are_refused() -> None:
    applying = Applying(ME)
    assert takes(applying, OTHER, averaged(SLOTS_AHEAD))
    assert not takes(applying, OTHER, averaged(SLOTS_AHEAD + 1))
    assert not takes(applying, OTHER, averaged(1 << 52))


def test_a_result_that_was_not_what_it_said_leaves_the_place_to_the_next() -> None:
    applying = Applying(ME)
    applying.decided(apply(1), 0.0)
    applying.hold(hold(1))
    chosen = applying.choose([0], 0.0)
    assert chosen is not None
    applying.discard(list(chosen.values()))
    assert applying.choose([0], 0.0) is None
    applying.hold(hold(1))
    assert applying.choose([0], 0.0) == {0: hold(1)}
