"""How many bytes of tensors a message may announce, by what the job makes such a message carry.

Asked before the first byte of a tensor comes, so that the word of one peer costs no more memory than
an honest message of its kind.
"""

from __future__ import annotations

from collections.abc import Sequence

from recovery.snapshot import Chunk, Manifest
from swarm.job import Job
from swarm.meetings import EndsCopy, OuterAnchor, OuterDelta, OuterMean
from swarm.messages import Averaged, Backward, Forward, Gradient
from swarm.pipeline.room import FLOAT_BYTES
from transport.wire import Body

TRANSFER_BYTES_MAX = 8 << 20
"""The largest chunk that may be asked for; as a manifest, the hashes of half a million chunks."""
FLATS_MAX = 2
"""An anchor and its momentum are the most that travels of a stage at once."""


class BodySizes:
    """What each body may announce; nothing before the job is known."""

    def __init__(self) -> None:
        self._flats: tuple[int, ...] = ()
        self._hop_bytes = 0

    def learn(self, job: Job, width: int, stage_sizes: Sequence[int]) -> None:
        """From now on it is this job, its model so wide and its stages with so many parameters."""
        tokens = job.pipeline.microbatch * (job.data.sequence + 1)
        # Activations of float32; no codec makes them larger. Token ids take 8 bytes each.
        self._hop_bytes = tokens * max(8, FLOAT_BYTES * width)
        self._flats = tuple(FLATS_MAX * FLOAT_BYTES * size for size in stage_sizes)

    def __call__(self, body: Body) -> int:
        """How many bytes all tensors of this body together may have."""
        match body:
            case Forward() | Backward():
                return self._hop_bytes
            case Gradient() | Averaged() | OuterDelta() | OuterMean() | OuterAnchor():
                return self._flats[body.stage] if body.stage < len(self._flats) else 0
            case EndsCopy():
                return self._flats[0] if self._flats else 0
            case Manifest() | Chunk():
                return TRANSFER_BYTES_MAX if self._flats else 0
            case _:
                return 0
