"""Who is kept on disk across restarts, and for how long."""

from pathlib import Path

from swarm.daemon import members
from swarm.daemon.job_founding import SURE_S, Rollcall
from swarm.daemon.members import KEEP_DEAD_S, KEPT_DEAD_MAX, Dead, KeptMembers, read_members
from transport.files import write_private
from transport.identity import pack_payload
from transport.wire import Signed


def signed(name: str, payload: bytes = b"record") -> Signed:
    return Signed(signer=name * 64, payload=payload, signature=b"s" * 64)


def test_the_dead_are_kept_for_half_a_day_however_often_a_node_restarts() -> None:
    first = Dead(()).note([signed("a")], 1000.0)
    assert first == ((signed("a"), 1000.0),)
    again = Dead(first).note([signed("a")], 1000.0 + KEEP_DEAD_S - 1)
    assert again == first
    assert Dead(again).note([signed("a")], 1000.0 + KEEP_DEAD_S) == ()


def test_who_signed_something_since_died_anew() -> None:
    kept = Dead(()).note([signed("a")], 1000.0)
    assert Dead(kept).note([signed("a", b"later")], 9000.0) == ((signed("a", b"later"), 9000.0),)


def test_of_many_dead_the_last_are_kept() -> None:
    dead = Dead(())
    dead.note([signed("a")], 1.0)
    crowd = [Signed(signer=f"{n:064x}", payload=b"r", signature=b"s" * 64) for n in range(KEPT_DEAD_MAX)]
    kept = dead.note([signed("a"), *crowd], 2.0)
    assert len(kept) == KEPT_DEAD_MAX
    assert signed("a") not in {record for record, _ in kept}


def test_the_living_are_read_before_the_dead_and_a_damaged_file_names_nobody(tmp_path: Path) -> None:
    kept = KeptMembers(records=(signed("b"),), dead=((signed("a"), 5.0),))
    write_private(tmp_path / members.MEMBERS_FILE, pack_payload(kept))
    assert read_members(tmp_path) == (signed("b"), signed("a"))
    (tmp_path / members.MEMBERS_FILE).write_bytes(b"\x00 damaged")
    assert read_members(tmp_path) == ()


def test_a_coordinator_that_remembers_nobody_is_sure_soonest(tmp_path: Path) -> None:
    assert Rollcall.of(tmp_path, 10.0).sure_at == 10.0 + SURE_S
