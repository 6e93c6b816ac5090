"""Every order gets an answer, whatever it says and whoever else waits for the same state."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from cell_world import corpus_of, small_job

from recovery.fetch import Fetched, FetchFailed
from recovery.snapshot import Want, describe
from recovery.transfer import Transfer
from swarm.daemon.genesis import solo_founding
from swarm.daemon.restore import Restored, Restoring
from swarm.gossip.view import View
from swarm.messages import Ready, Restore
from swarm.pipeline.computing import stage_size
from swarm.pipeline.model import preset
from swarm.pipeline.stage import Stage
from transport.identity import Identity
from transport.machine import Effect, NodeId, Send

ME, DONOR, LEADER = (NodeId(letter * 64) for letter in "abc")
STAGES = 4


class World:
    """A node that restores, and its transfer."""

    def __init__(self, folder: Path) -> None:
        self.job = small_job(folder, pipeline={"stages": STAGES})
        config = preset("demo", corpus_of(self.job.data.path).vocab)
        self.sizes = [stage_size(config, STAGES, stage) for stage in range(STAGES)]
        self.transfer = Transfer()
        self.build = lambda stage: Stage(self.job, config, stage)
        self.restoring = Restoring(ME, self.job, config, self.sizes, self.transfer, self.build)
        identity = Identity.create(random.Random(1))
        sign = identity.signing_in(self.job.digest)
        self.decided = solo_founding(self.job, ME, sign, iteration=6, rounds=2, cells=(), wall_s=0.0)

    def begin(self, stage: int, **fields: Any) -> list[Effect]:
        order = {
            "cell": "c0",
            "slot": 3,
            "term": 1,
            "stage": stage,
            "how": "checkfree",
            "donors": (DONOR,),
            "same_state": False,
            "decided": self.decided,
            "reason": "",
        }
        body = Restore.model_validate(order | fields)
        return list(self.restoring.begin(LEADER, body, View(), lambda _: None, 0.0))

    def weights(self, stage: int) -> Fetched:
        state = {"parameters": torch.ones(self.sizes[stage]), "squares": torch.ones(1)}
        views = {name: memoryview(tensor.numpy()).cast("B") for name, tensor in state.items()}
        return Fetched(f"weights:{stage}", 3, "", describe(state), views, {}, 1.0, (DONOR,))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def answer(effects: list[Effect]) -> Ready:
    (effect,) = effects
    assert isinstance(effect, Send)
    assert effect.peer == LEADER
    assert isinstance(effect.message.body, Ready)
    return effect.message.body


def test_a_state_serves_every_order_that_waits_for_it(world: World) -> None:
    assert world.begin(1, neighbours=(2,))
    assert world.begin(3, neighbours=(2,)) == []
    effects = world.restoring.ended(world.weights(2))
    assert [e.order.stage for e in effects if isinstance(e, Restored)] == [1, 3]
    assert world.restoring.busy == ()


def test_a_state_that_cannot_be_had_fails_every_order_that_waits_for_it(world: World) -> None:
    world.begin(1, neighbours=(2,))
    world.begin(3, neighbours=(2,))
    effects = world.restoring.ended(FetchFailed("weights:2", "no donor is left"))
    assert [(a.stage, a.ok) for a in (answer([effect]) for effect in effects)] == [(1, False), (3, False)]


def test_what_only_a_replaced_order_waited_for_is_fetched_no_more(world: World) -> None:
    world.begin(2, neighbours=(1, 3))
    world.begin(2, how="holder")
    assert world.transfer.fetching == ("stage:2",)
    world.begin(2, neighbours=(1, 3))
    world.restoring.ended(FetchFailed("weights:1", "no donor is left"))
    assert world.transfer.fetching == ()


@pytest.mark.parametrize(
    ("stage", "fields", "says"),
    [
        (1, {"neighbours": (200,)}, "beyond the 4"),
        (200, {"how": "holder"}, "beyond the 4"),
        (1, {"neighbours": ()}, "no neighbour"),
    ],
)
def test_an_order_that_nobody_could_carry_out_is_answered(
    world: World, stage: int, fields: dict[str, Any], says: str
) -> None:
    told = answer(world.begin(stage, **fields))
    assert not told.ok
    assert says in told.reason


def test_a_record_that_cannot_be_read_is_answered(world: World) -> None:
    unreadable = world.decided.model_copy(update={"payload": b"no record"})
    told = answer(world.begin(1, how="checkpoint", same_state=True, decided=unreadable))
    assert not told.ok
    assert "cannot be read" in told.reason


def test_a_founding_asks_for_the_checkpoint_of_its_iteration_and_round(world: World) -> None:
    (asked,) = world.begin(1, how="checkpoint", same_state=True)
    assert isinstance(asked, Send)
    assert isinstance(asked.message.body, Want)
    assert (asked.message.body.name, asked.message.body.slot) == ("checkpoint:1/2", 6)
