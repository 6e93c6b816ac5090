"""Stages and states that are left out: what still tells one from another, and what does not."""

import pytest
import torch
from torch import Tensor

from recovery.donor import NeedSnapshot
from recovery.fetch import Fetched
from recovery.snapshot import Want
from recovery.transfer import Transfer
from swarm.job import Job
from swarm.lab.hollow import Hollow, HollowStage
from swarm.meetings import OuterAnchor
from swarm.messages import Forward
from swarm.pipeline.matter import DENSE, Matter
from swarm.pipeline.model import llama_7b
from swarm.pipeline.stage import Stage, state_like
from transport.codecs import CodecError
from transport.machine import NodeId, Send
from transport.wire import Message

JOB = Job.model_validate({"model": {"preset": "7b"}, "pipeline": {"stages": 33, "hop_codec": "int8"}})
CONFIG = llama_7b(256)
HOLLOW: Matter = Hollow(JOB, CONFIG)
A, B = NodeId("a" * 64), NodeId("b" * 64)
X, GRADIENT = torch.arange(4.0), torch.arange(4.0) / 4


def stage(index: int = 1) -> Stage:
    return HOLLOW.stage(JOB, CONFIG, index)


def trained(order: tuple[str, ...] = ("one", "two"), steps: int = 1) -> Stage:
    made = stage()
    for at in range(steps):
        made.clear()
        for key in order:
            made.forward((key, at), X)
            made.backward((key, at), GRADIENT * (1 + len(key)), 8)
        made.step(made.gradient.clone(), at)
    return made


def test_stages_that_went_the_same_way_are_the_same_and_no_others() -> None:
    assert stage().digest() == stage().digest() != stage(2).digest()
    assert trained().digest() == trained().digest()
    ways = [trained(), trained(("one",)), trained(("one", "three")), trained(steps=2), stage()]
    assert len({way.digest() for way in ways}) == len(ways)


def test_a_gradient_that_is_counted_twice_leads_elsewhere_from_the_first_step_on() -> None:
    once, twice = stage(), stage()
    gradient = torch.full_like(once.parameters, 0.5)
    once.step(gradient, 0)
    twice.step(2 * gradient, 0)
    assert once.digest() != twice.digest()


def test_a_round_is_part_of_the_history_and_the_anchor_where_it_ends() -> None:
    one, other = trained(), trained(("other",))
    for each in (one, other):
        each.adopt_anchor(X.mean().expand(4), GRADIENT, 1, rebase=False)
    assert one.digest() == other.digest()
    one.step(GRADIENT, 1)
    other.step(GRADIENT, 2)
    assert one.digest() != other.digest()


def test_messages_declare_the_sizes_of_the_model_and_carry_what_the_other_side_reads() -> None:
    forward = Forward(cell="c0", slot=1, term=1, microbatch=0, attempt=0, path=((A, 0),), position=0)
    sent = HOLLOW.pack(forward, {"x": X}, "int8")
    (spec,) = sent.body.tensors
    assert spec.shape == (4, 256, 4096)
    assert sent.nbytes == sent.buffers[0].nbytes == 4 * 256 * 4096 * 33 // 32  # type: ignore[union-attr]
    anchors = HOLLOW.pack(
        OuterAnchor(cell="c0", stage=1, iteration=0, anchor=1), {"t0": X, "t1": GRADIENT}, "raw"
    )
    assert anchors.nbytes == 2 * 4 * 202_383_360
    assert [t.tolist() for t in HOLLOW.unpack(anchors)] == [X.tolist(), GRADIENT.tolist()]


def test_bytes_where_tensors_are_left_out_are_refused() -> None:
    forward = Forward(cell="c0", slot=1, term=1, microbatch=0, attempt=0, path=((A, 0),), position=0)
    with pytest.raises(CodecError, match="left out"):
        HOLLOW.unpack(DENSE.pack(forward, {"x": X}, "raw"))


def test_a_state_of_gigabytes_is_fetched_chunk_by_chunk_and_is_the_donors() -> None:
    donor, taker = Transfer(options=HOLLOW.fetching), Transfer(options=HOLLOW.fetching)
    given = trained().state()
    snapshot = HOLLOW.snapshot("stage:1", 7, given)
    assert snapshot.block.nbytes > 4_000_000_000
    queue = [(A, e) for e in taker.fetch("stage:1", [A], snapshot.holds, 0.0)]
    chunks, fetched = 0, None
    while queue:
        to, effect = queue.pop(0)
        if isinstance(effect, Fetched):
            fetched = effect
        elif isinstance(effect, NeedSnapshot):
            queue += [(B, e) for e in donor.provide(snapshot, 0.0)]
        elif isinstance(effect, Send):
            chunks += effect.message.body.kind == "chunk"
            machine, other, peer = (donor, B, B) if to == A else (taker, A, A)
            queue += [(other, e) for e in machine.handle(peer, effect.message, 0.0)]
    assert fetched is not None
    assert chunks == snapshot.chunks > 3800
    restored = stage()
    restored.load_state(HOLLOW.restored(fetched))
    assert_equal(restored.state(), given)


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["checkpoint:1", "checkpoint:1/7"])
def test_a_checkpoint_is_as_large_as_the_state_of_its_stage(name: str) -> None:
    """Asked for by its rounds it took its node down: the number behind the stage was read as part of it."""
    state = trained().state()
    found, held = HOLLOW.snapshot(name, 7, state), HOLLOW.snapshot("stage:1", 7, state)
    assert (found.holds, found.block.nbytes) == (held.holds, held.block.nbytes)


def test_another_state_has_another_digest_and_its_chunks_are_refused() -> None:
    ours, theirs = (HOLLOW.snapshot("stage:1", 7, trained(steps=n).state()) for n in (1, 2))
    assert ours.digest != theirs.digest
    taker = Transfer(options=HOLLOW.fetching)
    taker.fetch("stage:1", [A], ours.holds, 0.0)
    donor = Transfer(options=HOLLOW.fetching)
    (need,) = donor.handle(B, Message(Want(name="stage:1")), 0.0)
    assert isinstance(need, NeedSnapshot)
    (manifest,) = donor.provide(ours, 0.0)
    assert isinstance(manifest, Send)
    (get,) = taker.handle(A, manifest.message, 0.0)
    assert isinstance(get, Send)
    first = donor.handle(B, get.message, 0.0)[0]
    assert isinstance(first, Send)
    forged = Message(first.message.body, (theirs.chunk(0),))
    dropped, failed = taker.handle(A, forged, 0.0)
    assert "wrong hash" in str(dropped)
    assert "No donor is left" in str(failed)


def test_a_state_is_made_of_what_the_real_one_is_made_of() -> None:
    snapshot = HOLLOW.snapshot("stage:0", 0, stage(0).state())
    assert {spec.name for spec in snapshot.holds} == set(state_like(1))
    assert isinstance(stage(0), HollowStage)
