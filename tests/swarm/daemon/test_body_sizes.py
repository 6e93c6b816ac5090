"""What a message may announce follows from the job: enough for every honest one, and little more."""

from __future__ import annotations

from pathlib import Path

import pytest
from cell_world import Cells, run_cells, small_job

from recovery.snapshot import Chunk
from swarm.daemon.body_sizes import TRANSFER_BYTES_MAX, BodySizes
from swarm.daemon.training_setup import WORK_SCHEMA
from swarm.messages import Gradient
from transport.wire import Message, TensorSpec, WireError


def gradient(stage: int, nbytes: int) -> Gradient:
    spec = TensorSpec(name="t0", shape=(nbytes,), dtype="uint8", nbytes=nbytes)
    return Gradient(
        cell="nobody", slot=1, term=1, stage=stage, round_attempt=0, target_tokens=1, tensors=(spec,)
    )


def test_every_message_of_a_cell_that_trains_may_announce_what_it_carries(tmp_path: Path) -> None:
    """Hops, gradients, averages and copies of a real run pass a schema bounded by its job."""

    async def scenario(cells: Cells) -> None:
        await cells.until(lambda: cells.nodes[0].iteration >= 1)
        setup, carry, sizes = cells.nodes[0].half.setup, cells.network.carry, BodySizes()
        sizes.learn(setup.job, setup.config.width, setup.stage_sizes())
        bounded, seen = WORK_SCHEMA.bounded(sizes), set[str]()

        def checked(sender: object, endpoint: object, message: Message) -> int | None:
            if message.nbytes:
                bounded.unpack(WORK_SCHEMA.pack(message.body))
                seen.add(message.body.kind)
            return carry(sender, endpoint, message)  # type: ignore[arg-type]

        cells.network.carry = checked  # type: ignore[method-assign, assignment]
        await cells.until(lambda: cells.nodes[0].iteration >= 5)
        assert {"forward", "backward", "gradient", "averaged"} <= seen

    job = small_job(tmp_path, inner={"iterations": 100}, pipeline={"nodes": 4, "stages": 2})
    run_cells(job, tmp_path, 4, scenario)


def small_sizes(folder: Path) -> BodySizes:
    sizes = BodySizes()
    sizes.learn(small_job(folder), 16, (1000, 500, 500))
    return sizes


def test_a_tensor_larger_than_its_stage_is_refused(tmp_path: Path) -> None:
    bounded = WORK_SCHEMA.bounded(small_sizes(tmp_path))
    assert bounded.unpack(WORK_SCHEMA.pack(gradient(1, 4000)))
    for stage, nbytes in ((1, 4001), (0, 1 << 30), (3, 1), (255, 1)):
        with pytest.raises(WireError, match="declares more"):
            bounded.unpack(WORK_SCHEMA.pack(gradient(stage, nbytes)))


def test_before_the_job_is_known_nothing_may_come() -> None:
    with pytest.raises(WireError, match="declares more"):
        WORK_SCHEMA.bounded(BodySizes()).unpack(WORK_SCHEMA.pack(gradient(0, 1)))


def test_every_kind_that_comes_in_segments_has_a_size(tmp_path: Path) -> None:
    sizes = small_sizes(tmp_path)
    bulk = [kind for kind in WORK_SCHEMA._kinds.values() if kind.lane == "bulk"]
    assert len(bulk) >= 10
    for kind in bulk:
        body = kind.model_construct(stage=0)  # type: ignore[call-arg]
        assert sizes(body) > 0, f"{kind.kind} may carry nothing"
    assert sizes(Chunk.model_construct()) == TRANSFER_BYTES_MAX
