"""A tensor message is read only if this job can have made it."""

import pytest
import torch

from swarm.job import Job
from swarm.meetings import OuterAnchor
from swarm.messages import Averaged, Backward, CellRecord, Forward, Restore, StageSum
from swarm.pipeline.checks import wrong_with_place, wrong_with_tensors
from transport.codecs import encode
from transport.machine import NodeId
from transport.wire import Body, Signed

JOB = Job.model_validate({"pipeline": {"microbatch": 2, "hop_codec": "bf16"}, "data": {"sequence": 8}})
NODES = ("a" * 64, "b" * 64)
HOP = {"cell": "c0", "slot": 1, "term": 1, "microbatch": 0, "attempt": 0, "position": 1}
PATH = ((NODES[0], 0), (NODES[1], 1))


def wrong(body: Body, *, tensors: int = 1, shape: tuple[int, ...] = (6,), codec: str = "raw") -> str:
    specs = tuple(encode(f"t{i}", torch.zeros(shape), codec)[0] for i in range(tensors))
    return wrong_with_tensors(body.model_copy(update={"tensors": specs}), JOB, 4, (6, 6))


@pytest.mark.parametrize(("codec", "sentence"), [("bf16", ""), ("raw", "codec"), ("int8", "codec")])
def test_a_hop_takes_the_codec_of_its_job_only(codec: str, sentence: str) -> None:
    said = wrong(Forward(**HOP, path=PATH), shape=(2, 8, 4), codec=codec)
    assert said.startswith(sentence) and bool(said) == bool(sentence)


@pytest.mark.parametrize("tokens", [0, 15, 17, 2**53 - 1])
def test_a_backward_has_the_target_tokens_of_its_microbatch(tokens: int) -> None:
    backward = Backward(**HOP, path=PATH, target_tokens=tokens)
    assert "target tokens" in wrong(backward, shape=(2, 8, 4), codec="bf16")
    right = backward.model_copy(update={"target_tokens": 16})
    assert wrong(right, shape=(2, 8, 4), codec="bf16") == ""


def test_an_anchor_of_countless_rounds_leaves_no_room_for_one_more() -> None:
    averaged = Averaged(
        cell="c0", slot=1, term=1, stage=1, round_attempt=1, total=StageSum(), anchor=2**53 - 1
    )
    anchor = OuterAnchor(cell="c1", stage=1, iteration=0, anchor=2**53 - 1)
    for body in (averaged, anchor):
        assert "rounds" in wrong(body, tensors=2)
        assert wrong(body.model_copy(update={"anchor": 3}), tensors=2) == ""


def order(**fields: object) -> Restore:
    asked = {"cell": "c0", "slot": 1, "term": 1, "stage": 1, "how": "checkfree", "donors": (NODES[0],)}
    signed = Signed(signer=NODES[0], payload=b"", signature=bytes(64))
    return Restore.model_validate(
        {**asked, "same_state": False, "decided": signed, "reason": "lost", **fields}, from_attributes=True
    )


@pytest.mark.parametrize(
    ("asked", "held", "sentence"),
    [
        (order(), (1,), "named for stage 1 and holds it"),
        (order(), (), ""),  # it gave its state up: it needs one
        (order(stage=0), (0, 1), ""),  # held, and no record names it yet
        (order(rehearsal=True), (1,), ""),  # nothing is kept of it
        (order(cell="c1"), (), "in cell c0"),
    ],
)
def test_an_order_that_comes_late_replaces_nothing_that_its_cell_goes_on_with(
    asked: Restore, held: tuple[int, ...], sentence: str
) -> None:
    record = CellRecord(
        cell="c0",
        slot=9,
        term=1,
        act="step",
        iteration=9,
        round=0,
        previous="",
        roster=((NODES[0],), (NODES[1],)),
        leader=NODES[0],
    )
    said = wrong_with_place(asked, record, NodeId(NODES[1]), held)
    assert sentence in said and bool(said) == bool(sentence)
