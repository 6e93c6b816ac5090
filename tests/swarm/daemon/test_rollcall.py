"""Whom a coordinator counts that comes back to a view of those who were here before."""

from swarm.daemon.job_founding import Rollcall
from swarm.gossip.view import Facts, Member, MemberRecord, View

SURE_AT = 100.0


def member(name: str, *, seq: int, cell: str = "") -> Member:
    record = MemberRecord.model_construct(
        node=name, incarnation=1, seq=seq, role="worker", facts=Facts(cell=cell)
    )
    return Member(record, "alive", "")


def present(now: float, *members: Member) -> list[str]:
    rollcall = Rollcall({"old": (1, 5)}, SURE_AT)
    return [m.node for m in rollcall.present(View({m.node: m for m in members}), now).live()]


def test_who_was_here_before_counts_once_it_has_spoken() -> None:
    assert present(0.0, member("old", seq=5), member("new", seq=0)) == ["new"]
    assert present(0.0, member("old", seq=6), member("new", seq=0)) == ["new", "old"]


def test_who_is_still_believed_alive_when_the_dead_would_be_buried_counts() -> None:
    assert present(SURE_AT, member("old", seq=5)) == ["old"]


def test_a_cell_that_nobody_spoke_of_since_is_no_cell() -> None:
    rollcall = Rollcall({"old": (1, 5)}, SURE_AT)
    for seq, cells in ((5, ()), (6, ("c0",))):
        view = View({member("old", seq=seq).node: member("old", seq=seq, cell="c0")})
        assert rollcall.present(view, 0.0).cells() == cells
