"""Frames as a hostile member may send them, to the receiving half of a real link.

The simulated link carries whole messages, so what a mere announcement costs shows only here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from cell_world import corpus_of, small_job
from hostile import Forging, Raw, current_bytes, held_bytes
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from strategies import Said, Shapes, Words, headers, messages

from recovery.transfer import TRANSFER_KINDS
from swarm.daemon.body_sizes import TRANSFER_BYTES_MAX, BodySizes
from swarm.daemon.training_setup import WORK_SCHEMA
from swarm.meetings import MEETING_KINDS
from swarm.messages import WORK_KINDS, Gradient
from swarm.pipeline.computing import stage_size
from swarm.pipeline.model import preset
from transport.link import LinkStats
from transport.reassembly import STALL_SWEEPS, Inlet, Memory
from transport.segments import OPEN, SEGMENT, STREAM_HEAD, WHOLE, LinkLimits
from transport.wire import Message, TensorSpec, WireError

BULK = [kind for kind in (*WORK_KINDS, *MEETING_KINDS, *TRANSFER_KINDS) if kind.lane == "bulk"]
PEERS = 3
STEPS = 40
LIMITS = LinkLimits(segment_bytes=1 << 14, window_bytes=1 << 16)
GROWN_MAX = 64 << 20
"""By which the process may grow over an example: what is drawn takes most of it."""


class Hearing:
    """One node's inlets, and what they may hold by the sizes of its job."""

    def __init__(self, folder: Path) -> None:
        job = small_job(folder, pipeline={"nodes": 2, "stages": 2})
        config = preset(job.model.preset, corpus_of(job.data.path).vocab)
        self.stages = tuple(stage_size(config, 2, stage) for stage in range(2))
        self.width = config.width
        sizes = BodySizes()
        sizes.learn(job, config.width, self.stages)
        self.memory = Memory(LIMITS.held_bytes_max, kept_bytes_max=1 << 20)
        self.stats = LinkStats()
        schema = WORK_SCHEMA.bounded(sizes)
        self.inlets = [Inlet(schema, LIMITS, self.memory, self.stats) for _ in range(PEERS)]
        largest = max(8 * max(self.stages), TRANSFER_BYTES_MAX)
        self.held_max = PEERS * (2 * largest + 4 * LIMITS.window_bytes) + (1 << 20)

    def words(self) -> Words:
        shapes = (
            *((size,) for size in self.stages),
            (1, 16, self.width),
            (1 << 26,),
            (1 << 27,),
            (1 << 14, 1 << 14),
        )
        return Words(numbers=(1, 2), texts=("nobody", "c0", "0" * 64, "0" * 32), sizes=shapes)

    def hear(self, peer: int, frames: Sequence[bytes], *, takes: bool) -> None:
        """Frames of a peer; the application takes what came of them, or leaves it."""
        inlet = self.inlets[peer]
        try:
            message = inlet.take(b"route", [memoryview(frame) for frame in frames])
        except WireError:
            return
        inlet.replies.clear()
        if message is not None and takes and message.body.lane == "bulk" and message.nbytes:
            inlet.taken(message.nbytes)


def frames_of(said: Message, how: str) -> Iterator[tuple[bytes, ...]]:
    """A message as nobody honest sends it: begun and left, begun and dripping, too much, or at once."""
    try:
        header = Forging().pack(said.body)
    except (OverflowError, ValueError, TypeError):
        return  # not even msgpack can write it
    if how == "whole":
        yield (WHOLE["bulk"] + header, *(bytes(buffer) for buffer in said.buffers))
        return
    yield (STREAM_HEAD.pack(OPEN, 1) + header,)
    for length in {"open": (), "drip": (1, 1, 1), "much": (LIMITS.segment_bytes,) * 5}[how]:
        yield (STREAM_HEAD.pack(SEGMENT, 1), bytes(length))


@settings(
    max_examples=12,
    derandomize=True,
    database=None,
    report_multiple_bugs=False,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_what_peers_promise_takes_no_memory(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    hearing = Hearing(tmp_path_factory.getbasetemp())
    shapes = Shapes(hearing.words())
    noise = headers(()).map(lambda header: Said(Raw(header=header)))
    said = st.one_of(noise, *(messages([kind], shapes) for kind in BULK))
    before = current_bytes()
    for _ in range(STEPS):
        peer, takes = data.draw(st.integers(0, PEERS - 1)), data.draw(st.booleans())
        how = data.draw(st.sampled_from(["open", "drip", "much", "whole"]))
        for frames in frames_of(data.draw(said).message, how):
            hearing.hear(peer, frames, takes=takes)
        assert hearing.memory.held_bytes <= hearing.held_max
        assert held_bytes(hearing.inlets) + held_bytes(hearing.memory) <= hearing.held_max
        assert current_bytes() - before < GROWN_MAX
    for inlet in hearing.inlets:
        inlet.discard()
    assert hearing.memory.held_bytes == 0


def test_a_gigabyte_announced_for_a_cell_that_is_nobody_s_is_not_taken(tmp_path: Path) -> None:
    """As a member of the job did: 120 bytes that name a stage, and nothing after them."""
    hearing = Hearing(tmp_path)
    spec = TensorSpec(name="t0", shape=(1 << 28,), dtype="float32", nbytes=1 << 30)
    body = Gradient(cell="nobody", slot=1, term=1, stage=1, round_attempt=0, target_tokens=1, tensors=(spec,))
    for frames in frames_of(Message(body), "open"):
        hearing.hear(0, frames, takes=True)
    assert hearing.memory.held_bytes == 0
    assert held_bytes(hearing.inlets) < 1000


def test_what_honest_bodies_announce_is_held_no_longer_than_it_moves(tmp_path: Path) -> None:
    hearing = Hearing(tmp_path)
    nbytes = 4 * hearing.stages[1]
    spec = TensorSpec(name="t0", shape=(hearing.stages[1],), dtype="float32", nbytes=nbytes)
    body = Gradient(cell="c0", slot=1, term=1, stage=1, round_attempt=0, target_tokens=1, tensors=(spec,))
    for peer in range(PEERS):
        for frames in frames_of(Message(body), "drip"):
            hearing.hear(peer, frames, takes=True)
    assert hearing.memory.held_bytes == PEERS * nbytes
    for _ in range(STALL_SWEEPS + 1):
        for inlet in hearing.inlets:
            inlet.sweep()
    assert (hearing.memory.held_bytes, hearing.stats.dropped_stalled) == (0, PEERS)
