"""Training with the tensors left out: messages and states of their true sizes, with nothing inside.

In place of its parameters a stage keeps `MARKS` numbers for each of its layers. They are a chain of
hashes: of the numbers before, and of all that was applied to them. So two holders agree only if they
applied the same contributions to the same state in the same order, as with real weights; and they
say nothing of a loss. What the machines do with gradients and outer gradients (sums, means, the outer
optimizer) works on these numbers as it would on all, for it treats every parameter by itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from hashlib import blake2b, shake_128

import numpy as np
import torch
from torch import Tensor

from optim.inner import AdamState
from recovery.fetch import Fetched, FetchOptions
from recovery.snapshot import CHUNK_BYTES, HASH_BYTES, Snapshot, describe, layout, state_digest
from swarm.daemon.donating import stage_of
from swarm.daemon.restore import weights_like
from swarm.events import Event
from swarm.job import Job
from swarm.messages import Backward, Forward
from swarm.pipeline.computing import stage_size
from swarm.pipeline.model import ModelConfig, stage_layers
from swarm.pipeline.stage import Stage, state_like
from transport.codecs import DTYPES, CodecError, encoded_bytes
from transport.hollow import content_of, shell
from transport.wire import Body, Message, TensorSpec

MARKS = 4
"""Numbers that stand for a layer: 24 bits each, so that different histories do not meet by chance."""
VALUES = ("loss", "clip_scale")
"""Fields of events that nobody can know without tensors."""


def without_values(event: Event) -> Event:
    """An event that says of what was left out that it is not known."""
    unknown = dict.fromkeys(name for name in VALUES if name in event.fields)
    return replace(event, fields={**event.fields, **unknown})


def marks(what: str, *made_of: Tensor, count: int = MARKS) -> Tensor:
    """So many float32 in [-1, 1), a hash of tensors and of what became of them."""
    hashed = shake_128(what.encode())
    for tensor in made_of:
        hashed.update(tensor.detach().numpy().tobytes())
    drawn = np.frombuffer(hashed.digest(4 * count), dtype="<u4") >> 8
    return torch.from_numpy(drawn.astype(np.float32) / np.float32(1 << 23) - np.float32(1))


class HollowStage(Stage):
    """A stage whose mathematics is a hash: any other input, order or weights give other numbers."""

    def _initial(self, job: Job) -> Tensor:
        layers = len(stage_layers(self.config.layers, job.pipeline.stages)[self.index])
        return marks(f"{job.seed}/{self.index}", count=MARKS * max(1, layers))

    def _as_leaves(self) -> dict[str, Tensor]:
        return {}

    def embed(self, key: Hashable, inputs: Tensor) -> Tensor:
        """See `Stage`."""
        return self._keep(key, None, marks("embed", self.parameters, inputs))

    def forward(self, key: Hashable, x: Tensor) -> Tensor:
        """See `Stage`."""
        return self._keep(key, x, marks("forward", self.parameters, x))

    def head(self, key: Hashable, x: Tensor, targets: Tensor) -> tuple[float, int, Tensor]:
        """See `Stage`. The loss is not known, which is said by 0."""
        embedded = self._kept[key].output
        self.gradient += marks("head", embedded, x, targets, count=self.gradient.numel())
        self.target_tokens += targets.numel()
        return 0.0, targets.numel(), marks("loss", embedded, x, targets)

    def backward(self, key: Hashable, grad: Tensor, target_tokens: int) -> Tensor:
        """See `Stage`."""
        output = self._kept[key].output
        self.embed_backward(key, grad)
        self.target_tokens += target_tokens
        return marks("backward", output, grad)

    def embed_backward(self, key: Hashable, grad: Tensor) -> None:
        """See `Stage`."""
        output = self._kept.pop(key).output
        self.gradient += marks("gradient", output, grad, count=self.gradient.numel())

    @torch.no_grad()
    def step(self, mean_gradient: Tensor, iteration: int) -> None:
        """See `Stage`. The weights are the anchor, and a hash of all that came since."""
        factor = torch.tensor([self.lr_factor])
        count = self.parameters.numel()
        moved = marks(f"step {iteration}", self.parameters, mean_gradient, factor, count=count)
        self.parameters.copy_(self.anchor + moved)
        self._adam = AdamState(mean_gradient, mean_gradient.square(), self._adam.steps + 1)


class HollowBlock:
    """A state on its way here: every chunk knows what all of it has for content."""

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self._content: dict[int, bytes] = {}

    def put(self, start: int, chunk: memoryview) -> None:
        """See `Block`."""
        assert start + chunk.nbytes <= self._nbytes
        self._content = content_of(chunk)

    def part(self, start: int, nbytes: int) -> memoryview:
        """See `Block`."""
        return shell(nbytes, self._content[start])


def chunk_hash(chunk: memoryview) -> bytes:
    """BLAKE2b-128 of what a chunk has for content, and of its size."""
    hashed = blake2b(str(chunk.nbytes).encode(), digest_size=HASH_BYTES)
    content = content_of(chunk)
    for start, part in (content if isinstance(content, dict) else {}).items():
        hashed.update(str(start).encode() + part)
    return hashed.digest()


class Hollow:
    """Tensors that are left out: see `Matter`."""

    fetching = FetchOptions(block=HollowBlock, chunk_hash=chunk_hash)

    def __init__(self, job: Job, config: ModelConfig) -> None:
        stages = job.pipeline.stages
        self._hop = (job.pipeline.microbatch, job.data.sequence, config.width)
        self._sizes = tuple(stage_size(config, stages, stage) for stage in range(stages))

    def stage(self, job: Job, config: ModelConfig, index: int, device: str = "cpu") -> Stage:
        """See `Matter`."""
        return HollowStage(job, config, index, device)

    def pack(self, body: Body, named: Mapping[str, Tensor], codec: str) -> Message:
        """See `Matter`."""
        hop = isinstance(body, Forward | Backward)
        shape = self._hop if hop else (self._sizes[getattr(body, "stage", 0)],)
        nbytes = encoded_bytes(shape, "float32", codec)
        specs = (
            TensorSpec(name=name, shape=shape, dtype="float32", codec=codec, nbytes=nbytes) for name in named
        )
        declared = body.model_copy(update={"tensors": tuple(specs)})
        return Message(declared, tuple(shell(nbytes, _bytes(tensor)) for tensor in named.values()))

    def unpack(self, message: Message) -> tuple[Tensor, ...]:
        """See `Matter`."""
        contents = [content_of(buffer) for buffer in message.buffers]
        if not all(isinstance(content, bytes) for content in contents):
            raise CodecError(f"{message.body.kind}: bytes where tensors are left out")
        return tuple(torch.frombuffer(content, dtype=torch.float32) for content in contents)

    def snapshot(
        self,
        name: str,
        slot: int,
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, int | float | str] | None = None,
    ) -> Snapshot:
        """See `Matter`."""
        holds = self._holds(name, tensors)
        starts, nbytes = layout(holds)
        content = {start: _bytes(tensors[spec.name]) for spec, start in zip(holds, starts, strict=True)}
        block, known = shell(nbytes, content), dict(facts or {})
        chunks = (block[at : at + CHUNK_BYTES] for at in range(0, nbytes, CHUNK_BYTES))
        hashes = b"".join(chunk_hash(chunk) for chunk in chunks)
        digest = state_digest(name, slot, holds, known, CHUNK_BYTES, hashes)
        return Snapshot(name, slot, holds, known, CHUNK_BYTES, block, hashes, digest)

    def _holds(self, name: str, tensors: Mapping[str, Tensor]) -> tuple[TensorSpec, ...]:
        """What a state of this name would be made of."""
        size = self._sizes[max(0, stage_of(name))]
        like = (weights_like if name.startswith("weights:") else state_like)(size)
        return describe({each: like[each] for each in tensors})

    def restored(self, fetched: Fetched) -> dict[str, Tensor]:
        """See `Matter`."""
        contents = {spec.name: content_of(fetched.tensors[spec.name]) for spec in fetched.holds}
        return {
            spec.name: torch.frombuffer(contents[spec.name], dtype=DTYPES[spec.dtype])
            for spec in fetched.holds
        }


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().numpy().tobytes()
