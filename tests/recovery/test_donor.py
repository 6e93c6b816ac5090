"""The giving half of a state transfer."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from recovery.donor import DonorLimits, NeedSnapshot
from recovery.snapshot import Chunk, Get, Manifest, NotHere, Queued, Want, describe, take_snapshot
from recovery.transfer import Transfer
from transport.machine import Send
from transport.wire import Message

CHUNK = 1024


def state(seed):
    return {"weights": torch.randn(5000, generator=torch.Generator().manual_seed(seed))}


def want(node, peer="t", name="stage:0", slot=None, now=0.0):
    return node.handle(peer, Message(Want(name=name, slot=slot)), now)


def frozen(slot=1, name="stage:0"):
    return take_snapshot(name, slot, state(slot), {}, CHUNK)


def test_one_snapshot_serves_all_who_wait():
    node = Transfer()
    assert want(node, "t1") == [NeedSnapshot("stage:0", None, "t1")]
    assert want(node, "t2") == []
    sent = node.provide(frozen(), 1.0)
    assert [(s.peer, type(s.message.body)) for s in sent] == [("t1", Manifest), ("t2", Manifest)]
    assert [type(s.message.body) for s in want(node, "t3", now=2.0)] == [Manifest]


def test_a_snapshot_of_another_slot_serves_nobody_who_named_one():
    node = Transfer()
    node.provide(frozen(slot=1), 0.0)
    assert want(node, slot=2) == [NeedSnapshot("stage:0", 2, "t")]


def test_snapshots_held_are_bounded_and_the_least_used_goes_first():
    node = Transfer(DonorLimits(snapshots_max=2))
    one, two, three = (frozen(slot) for slot in (1, 2, 3))
    for now, snapshot in enumerate((one, two)):
        node.provide(snapshot, float(now))
    assert get(node, one, now=2.0) is Chunk
    node.provide(three, 3.0)
    assert [get(node, s, now=4.0) for s in (one, two, three)] == [Chunk, NotHere, Chunk]


def get(node, snapshot, now, peer="t"):
    (sent,) = node.handle(peer, Message(Get(digest=snapshot.digest, first=0, count=1)), now)
    return type(sent.message.body)


def test_an_unused_snapshot_expires_and_a_used_one_stays():
    node = Transfer(DonorLimits(keep_s=10.0, silence_s=5.0))
    node.provide(frozen(), 0.0)
    assert node.deadline() == 10.0
    node.tick(9.0)
    assert get(node, frozen(), now=9.0) is Chunk
    node.tick(18.9)
    assert get(node, frozen(), now=18.9) is Chunk
    node.tick(28.9)
    assert get(node, frozen(), now=28.9) is NotHere
    assert node.deadline() is None


def test_those_who_wait_are_bounded():
    node = Transfer(DonorLimits(waiting_max=2))
    want(node, "t1")
    want(node, "t2")
    (refusal,) = want(node, "t3")
    assert "too many" in refusal.message.body.reason


def test_one_peer_cannot_take_all_the_places():
    node = Transfer(DonorLimits(waiting_max=64, waiting_per_peer_max=2))
    answers = [want(node, "greedy", name=f"weights:{i}") for i in range(4)]
    assert [type(effect) for (effect,) in answers] == [NeedSnapshot, NeedSnapshot, Send, Send]
    assert want(node, "modest") == [NeedSnapshot("stage:0", None, "modest")]


def test_an_old_snapshot_serves_only_those_who_name_its_slot():
    node = Transfer(DonorLimits(keep_s=10.0))
    node.provide(frozen(slot=1), 0.0)
    (kept,) = want(node, slot=1, now=9.0)
    assert isinstance(kept.message.body, Manifest)
    assert want(node, slot=None, now=11.0) == [NeedSnapshot("stage:0", None, "t")]


def test_one_peer_that_repeats_itself_waits_once():
    node = Transfer(DonorLimits(waiting_max=2))
    for _ in range(5):
        want(node, "t1")
    assert len(node.provide(frozen(), 0.0)) == 1


def test_nobody_waits_for_ever():
    node = Transfer(DonorLimits(wait_s=5.0))
    want(node)
    assert node.deadline() == 5.0
    (sent,) = node.tick(5.0)
    assert isinstance(sent.message.body, NotHere)
    assert node.provide(frozen(), 6.0) == []


def test_a_peer_that_died_waits_no_more():
    node = Transfer()
    want(node)
    node.lose("t", 1.0)
    assert node.provide(frozen(), 1.0) == []


def test_a_slot_that_never_comes_is_asked_for_once_and_forgotten_with_its_taker():
    node = Transfer(DonorLimits(wait_s=5.0))
    assert want(node, "t1", slot=9) == [NeedSnapshot("stage:0", 9, "t1")]
    assert want(node, "t2", slot=9) == []
    assert node.is_waited_for("stage:0", 9)
    assert want(node, "t1", slot=10) == [NeedSnapshot("stage:0", 10, "t1")]
    node.lose("t2", 1.0)
    assert not node.is_waited_for("stage:0", 9)
    node.tick(5.0)
    assert not node.is_waited_for("stage:0", 10)


def test_what_is_said_of_one_slot_turns_nobody_away_who_named_another():
    node = Transfer()
    want(node, "honest", slot=5)
    want(node, "liar", slot=999)
    (sent,) = node.decline("stage:0", 999, "it is at slot 4", 0.0)
    assert sent.peer == "liar"
    assert node.is_waited_for("stage:0", 5)


def test_chunks_beyond_the_end_are_not_sent():
    node = Transfer()
    snapshot = frozen()
    node.provide(snapshot, 0.0)
    get = Get(digest=snapshot.digest, first=snapshot.chunks - 1, count=16)
    assert len(node.handle("t", Message(get), 0.0)) == 1
    assert node.handle("t", Message(get.model_copy(update={"first": 1 << 31})), 0.0) == []


def test_equal_states_have_equal_digests_and_any_difference_shows():
    base = frozen()
    assert base.digest == frozen().digest
    changed = state(1)
    changed["weights"][5] += 1e-3
    others = [
        take_snapshot("stage:0", 1, changed, {}, CHUNK),
        take_snapshot("stage:0", 1, state(1), {"round": 1}, CHUNK),
        frozen(slot=2),
        frozen(name="stage:1"),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == 5
    assert replace(base, slot=9).digest == base.digest  # a digest is of what was said, not of the object


@pytest.mark.parametrize(
    "name", ["checkpoint:²", "stage:-1", "stage:", "weights:1234", "stage:1\n", "ends", ""]
)
def test_a_name_that_no_state_has_is_refused_at_the_door(name):
    """A digit that is no number would end whoever parses it."""
    with pytest.raises(ValidationError):
        Want(name=name)


def test_a_snapshot_is_not_taken_from_under_those_who_draw_on_it():
    node = Transfer(DonorLimits(snapshots_max=2, silence_s=10.0))
    for slot, name in enumerate(("stage:0", "stage:1")):
        want(node, f"t{slot}", name=name)
        node.provide(frozen(slot, name), 0.0)
    assert kinds(want(node, "t2", name="stage:2")) == [("t2", Queued)]
    assert get(node, frozen(0, "stage:0"), now=9.0, peer="t0") is Chunk
    assert get(node, frozen(1, "stage:1"), now=9.0, peer="t1") is Chunk
    assert kinds(node.tick(node.deadline())) == [("t2", Queued)]
    assert not any(isinstance(effect, NeedSnapshot) for effect in node.tick(18.9))
    assert NeedSnapshot("stage:2", None, "t2") in node.tick(19.0), "both were silent for ten seconds"


def test_the_next_in_line_has_its_turn_as_soon_as_another_was_sent_everything():
    node = Transfer(DonorLimits(snapshots_max=1))
    want(node, "t0")
    snapshot = frozen()
    node.provide(snapshot, 0.0)
    want(node, "t1", name="stage:1", now=0.1)
    node.handle("t0", Message(Get(digest=snapshot.digest, first=0, count=16)), 0.2)
    *chunks, turn = node.handle("t0", Message(Get(digest=snapshot.digest, first=16, count=16)), 0.3)
    assert {type(sent.message.body) for sent in chunks} == {Chunk}
    assert turn == NeedSnapshot("stage:1", None, "t1")


def test_a_snapshot_that_cannot_be_had_makes_room_for_the_next_in_line():
    node = Transfer(DonorLimits(snapshots_max=1))
    want(node, "t0")
    want(node, "t1", name="stage:1")
    effects = node.decline("stage:0", None, "it is gone", 1.0)
    assert kinds(effects[:1]) == [("t0", NotHere)]
    assert effects[1:] == [NeedSnapshot("stage:1", None, "t1")]


def test_one_peer_cannot_take_all_the_snapshots():
    node = Transfer(DonorLimits(snapshots_max=3, snapshots_per_peer_max=2))
    answers = [want(node, "greedy", name=f"stage:{i}") for i in range(3)]
    assert [type(effect) for (effect,) in answers] == [NeedSnapshot, NeedSnapshot, Send]
    assert want(node, "modest", name="stage:5") == [NeedSnapshot("stage:5", None, "modest")]


def test_who_gave_up_a_state_neither_waits_for_it_nor_keeps_it_from_others():
    """Its next fetch would else stand in line behind its own last one."""
    node, taker = Transfer(DonorLimits(snapshots_max=1)), Transfer()
    snapshot = frozen()
    taker.fetch("stage:0", ["donor"], describe(state(1)), 0.0)
    want(node, "t")
    (manifest,) = node.provide(snapshot, 0.0)
    want(node, "t1", name="stage:1")
    taker.cancel("stage:0")
    (answer,) = taker.handle("donor", manifest.message, 0.1)
    assert node.handle("t", answer.message, 0.2) == [NeedSnapshot("stage:1", None, "t1")]
    (answer,) = taker.handle("donor", Message(Queued(name="stage:1")), 0.3)
    node.handle("t1", answer.message, 0.4)
    assert not node.is_waited_for("stage:1", None)


def kinds(effects):
    return [(effect.peer, type(effect.message.body)) for effect in effects]


def test_who_has_snapshots_enough_and_stands_in_line_keeps_no_donor_awake():
    """A donor with a snapshot that nobody drew on was due again at the moment that had just passed."""
    node = Transfer(DonorLimits(snapshots_per_peer_max=1))
    node.provide(frozen(), 0.0)
    want(node, "greedy", name="stage:1", now=1.0)
    want(node, "greedy", name="stage:2", now=1.0)
    node.tick(2.0)
    assert node.deadline() > 2.0
