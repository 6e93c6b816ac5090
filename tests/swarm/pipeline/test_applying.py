"""A decided record takes effect in order, with what it decided on or honestly without."""

from swarm.gossip.view import Facts, Member, MemberRecord, View
from swarm.messages import CellRecord, StageSum
from swarm.pipeline.applying import HOLDS_MAX, Applying
from swarm.pipeline.averaging import Hold
from swarm.pipeline.follower import Apply
from transport.machine import NodeId
from transport.wire import Signed

ME, OTHER = NodeId("a" * 64), NodeId("b" * 64)


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
    return Hold(slot, 0, StageSum(digest=digest, tokens=1), ("tensor",))


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
    applying.hold(hold(1, "e0"), 1)
    assert applying.choose([0], 0.0) is None
    applying.hold(hold(1), 1)
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
    applying.hold(hold(1), 0)
    applying.decided(apply(1, "found"), 0.0)
    assert applying.choose([0], 0.0) == {}
    applying.finished(0.0)
    applying.decided(apply(2), 0.0)
    assert applying.choose([0], 0.0) == {0: hold(1)}


def test_results_of_no_slot_at_hand_are_counted_and_no_slot_keeps_many() -> None:
    applying = Applying(ME)
    applying.hold(hold(400), 1)
    assert sum(applying.dropped.values()) == 1
    for number in range(3 * HOLDS_MAX):
        applying.hold(hold(1, f"{number:x}"), 1)
    assert len(applying._holds[1, 0]) == HOLDS_MAX
