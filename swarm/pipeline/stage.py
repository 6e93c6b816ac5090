"""Forward and backward of a microbatch through one stage, and the stage's whole state.

All parameters of a stage are views into one flat tensor, and so are their gradients: what
holders average, clip, hash, step and hand over is always a single tensor, and autograd adds
into the tensor that is sent, without a copy between.

Gradients are of the loss *summed* over target tokens. Microbatches that reach a stage may
differ from those that reach another, so each stage divides by its own `target_tokens`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optim.inner import AdamState, adamw_
from optim.schedules import learning_rate
from swarm.job import Job
from swarm.pipeline.model import (
    ModelConfig,
    embed,
    init_parameter,
    parameter_names,
    run_layers,
    stage_layers,
    summed_loss,
    unflatten,
)

STATE_NAMES = ("parameters", "adam_mean", "adam_square", "anchor", "outer_momentum")
"""Flat float32 tensors [n] of a stage's state."""

SCALAR_NAMES = ("adam_steps", "anchor_count", "lr_factor")
"""One-element tensors of a stage's state: int64, int64, float32."""

LR_FACTOR_MAX = 2.0
"""More than any recovery sets (CheckFree: 1.1), so that a donor cannot make a stage diverge."""

GRADIENT_MAX = 1e20
"""By one value of the residual stream. No loss has such a gradient, and float32 can still add it up."""


class StageStateError(ValueError):
    """A state that does not fit its stage. The stage is unchanged; the text says why."""


class WorkError(ValueError):
    """A tensor that cannot be of this microbatch. Nothing was counted; the text says why."""


@dataclass(slots=True)
class _Kept:
    """What backward needs of one microbatch: the graph hangs on `output`."""

    input: Tensor | None
    output: Tensor


class Stage:
    """One stage of a job on one device. Not thread safe: one thread computes.

    `key` names a microbatch's attempt; the caller never uses one twice between `clear`s.
    `parameters`, `gradient`, `anchor` and `outer_momentum` are flat float32 tensors [n].
    """

    def __init__(self, job: Job, config: ModelConfig, stage: int, device: str = "cpu") -> None:
        stages = job.pipeline.stages
        self.index = stage
        self.config = config
        self.device = torch.device(device)
        self.parameters = self._initial(job).to(self.device)
        self.gradient = torch.zeros_like(self.parameters)
        self.target_tokens = 0
        self.anchor = self.parameters.clone()
        self.outer_momentum = torch.zeros_like(self.parameters)
        self.anchor_count = 0
        self._lr_factor = 1.0
        self._inner = job.inner
        self._adam = AdamState.fresh(self.parameters)
        self._stages = stages
        self._layers = stage_layers(config.layers, stages)[stage]
        self._leaves = self._as_leaves()
        self._kept: dict[Hashable, _Kept] = {}

    def _initial(self, job: Job) -> Tensor:
        """The parameters as the job's seed makes them, flat."""
        names = parameter_names(self.config, job.pipeline.stages, self.index)
        return torch.cat([init_parameter(self.config, name, job.seed).view(-1) for name in names])

    def _as_leaves(self) -> dict[str, Tensor]:
        """Autograd leaves by name: their data and their gradients are views of the flat ones."""
        leaves = unflatten(self.config, self._stages, self.index, self.parameters)
        gradients = unflatten(self.config, self._stages, self.index, self.gradient)
        for name, leaf in leaves.items():
            leaf.requires_grad_()
            leaf.grad = gradients[name]
        return leaves

    def named(self) -> dict[str, Tensor]:
        """Views of the parameters by their Hugging Face names, without gradients."""
        return unflatten(self.config, self._stages, self.index, self.parameters)

    # --- body stages ---------------------------------------------------------------------

    def forward(self, key: Hashable, x: Tensor) -> Tensor:
        """Activations [sequences, tokens, width] through the layers; keeps what backward needs.

        `x` may be a view of a received buffer: it is read, never written. Raises WorkError.
        """
        leaf = self._activations(x)
        output = run_layers(self.config, self._leaves, self._layers, leaf)
        return self._keep(key, leaf, output)

    def backward(self, key: Hashable, grad: Tensor, target_tokens: int) -> Tensor:
        """Gradient of the summed loss by the output, to that by the input; both like `x`.

        Adds to `gradient` and `target_tokens` and frees `key`. KeyError if it is not held,
        WorkError if `grad` is not like the output, or would poison what others added to the slot.
        """
        kept = self._kept[key]
        self._propagate(key, grad)
        self.target_tokens += target_tokens
        assert kept.input is not None
        assert kept.input.grad is not None
        return kept.input.grad

    # --- the ends ------------------------------------------------------------------------

    def embed(self, key: Hashable, inputs: Tensor) -> Tensor:
        """Token ids [sequences, tokens] to activations; with one stage, through all layers too."""
        x = embed(self._leaves, inputs.to(self.device))
        return self._keep(key, None, run_layers(self.config, self._leaves, self._layers, x))

    def head(self, key: Hashable, x: Tensor, targets: Tensor) -> tuple[float, int, Tensor]:
        """Loss of activations that came back: (nats summed over tokens, tokens, gradient by x).

        Adds the head's gradient and the tokens at once: from here on the microbatch counts.
        KeyError if `key` was not embedded here, WorkError if `x` is not like what was, or if
        anything that would be added is not finite: one bad hop must not poison the whole slot.
        """
        leaf = self._activations(x)
        if leaf.shape != self._kept[key].output.shape:
            raise WorkError(f"activations {tuple(x.shape)} came back for {tuple(targets.shape)} targets")
        loss = summed_loss(self.config, self._leaves, leaf, targets.to(self.device))
        leaves = list(self._leaves.values())
        by_x, *by_leaves = torch.autograd.grad(loss, [leaf, *leaves], allow_unused=True)
        parts = [(at, part) for at, part in zip(leaves, by_leaves, strict=True) if part is not None]
        if not all(bool(torch.isfinite(t).all()) for t in (loss, by_x, *(part for _, part in parts))):
            raise WorkError("the loss or its gradient is not finite")
        for at, part in parts:
            assert at.grad is not None
            at.grad += part
        self.target_tokens += targets.numel()
        return float(loss.detach()), targets.numel(), by_x

    def embed_backward(self, key: Hashable, grad: Tensor) -> None:
        """The end of a microbatch's way: gradient by the embedded activations. Frees `key`.

        KeyError if it is not held, WorkError if `grad` is not like the output.
        """
        self._propagate(key, grad)

    # --- activations ---------------------------------------------------------------------

    def _activations(self, x: Tensor) -> Tensor:
        """A leaf over received activations, sharing their memory where the device allows."""
        if x.dim() != 3 or x.shape[-1] != self.config.width or x.dtype != torch.float32:
            raise WorkError(f"activations are {x.dtype} {tuple(x.shape)}, width is {self.config.width}")
        return x.detach().to(self.device).requires_grad_()

    def _propagate(self, key: Hashable, grad: Tensor) -> None:
        """Run autograd from a kept output, and forget it."""
        output = self._kept[key].output
        if grad.shape != output.shape or grad.dtype != output.dtype:
            raise WorkError(f"gradient is {grad.dtype} {tuple(grad.shape)}, not {tuple(output.shape)}")
        if not bool(grad.abs().max() <= GRADIENT_MAX):  # nor is anything compared to NaN
            raise WorkError("a gradient that no loss has")
        del self._kept[key]
        torch.autograd.backward(output, grad.to(self.device))

    def _keep(self, key: Hashable, leaf: Tensor | None, output: Tensor) -> Tensor:
        if key in self._kept:
            raise WorkError(f"{key} is in flight already")  # a peer's doing, not ours
        self._kept[key] = _Kept(leaf, output)
        return output.detach()

    def drop(self, key: Hashable) -> None:
        """Forget a microbatch that will not come back. Unknown keys are fine."""
        self._kept.pop(key, None)

    def held(self) -> int:
        """Microbatches whose activations are kept."""
        return len(self._kept)

    def clear(self) -> None:
        """Start a slot: no activations, zero gradient, no tokens."""
        self._kept.clear()
        self.gradient.zero_()
        self.target_tokens = 0

    # --- steps ---------------------------------------------------------------------------

    @property
    def lr_factor(self) -> float:
        """Multiplies the schedule: 1.0, or what CheckFree set. Held as float32, as it travels."""
        return self._lr_factor

    @lr_factor.setter
    def lr_factor(self, value: float) -> None:
        self._lr_factor = torch.tensor(value, dtype=torch.float32).item()

    @torch.no_grad()
    def step(self, mean_gradient: Tensor, iteration: int) -> None:
        """Inner optimizer at `iteration` (0 is the first). `mean_gradient` [n] is clipped already."""
        inner = self._inner
        rate = learning_rate(
            peak=inner.lr,
            schedule=inner.schedule,
            warmup=inner.warmup,
            iterations=inner.iterations,
            iteration=iteration,
        )
        adamw_(
            self.parameters,
            mean_gradient.to(self.device),
            self._adam,
            lr=rate * self._lr_factor,
            betas=inner.betas,
            weight_decay=inner.weight_decay,
        )

    @torch.no_grad()
    def adopt_anchor(self, anchor: Tensor, momentum: Tensor, count: int, *, rebase: bool) -> None:
        """Apply an outer round: anchor and outer momentum [n], made by `count` rounds.

        Weights go on from the anchor; with `rebase`, for a cell whose outer gradient was not in
        the round, they move by the difference of the anchors, so that its progress is kept.
        Inner moments are untouched, as DiLoCo wants them.
        """
        if rebase:
            self.parameters += anchor.to(self.device) - self.anchor
        else:
            self.parameters.copy_(anchor)
        self.anchor = anchor.to(self.device, copy=True)
        self.outer_momentum = momentum.to(self.device, copy=True)
        self.anchor_count = count

    @torch.no_grad()
    def load_parameters(self, flat: Tensor) -> None:
        """Go on from rebuilt weights [n]: fresh moments, and the weights are the anchor.

        `anchor_count` stays: who rebuilt the stage knows which rounds it has missed.
        Raises StageStateError.
        """
        _check_flat("parameters", flat, self.parameters)
        self.parameters.copy_(flat)
        self.anchor = self.parameters.clone()
        self.outer_momentum = torch.zeros_like(self.parameters)
        self._adam = AdamState.fresh(self.parameters)

    # --- the whole state -----------------------------------------------------------------

    def digest(self) -> str:
        """Hex BLAKE2b-128 of the parameters' bytes: equal digests mean equal weights."""
        return tensor_digest(self.parameters)

    def state(self) -> dict[str, Tensor]:
        """Everything another holder needs to be this one. CPU copies that later steps leave alone."""
        tensors = (self.parameters, self._adam.mean, self._adam.square, self.anchor, self.outer_momentum)
        flat = {name: t.to("cpu", copy=True) for name, t in zip(STATE_NAMES, tensors, strict=True)}
        return flat | {
            "adam_steps": torch.tensor([self._adam.steps]),
            "anchor_count": torch.tensor([self.anchor_count]),
            "lr_factor": torch.tensor([self._lr_factor], dtype=torch.float32),
        }

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Become the holder that `state` came from. Raises StageStateError and changes nothing."""
        _check_state(state, self.parameters)
        self.parameters.copy_(state["parameters"])
        mean, square, anchor, momentum = (state[n].to(self.device, copy=True) for n in STATE_NAMES[1:])
        self._adam = AdamState(mean, square, int(state["adam_steps"].item()))
        self.anchor, self.outer_momentum = anchor, momentum
        self.anchor_count = int(state["anchor_count"].item())
        self.lr_factor = float(state["lr_factor"].item())


def state_like(size: int) -> dict[str, Tensor]:
    """What `Stage.state` of a stage with `size` parameters looks like, without its values."""
    flat = {name: torch.empty(size, device="meta") for name in STATE_NAMES}
    counts = {name: torch.empty(1, dtype=torch.int64, device="meta") for name in SCALAR_NAMES}
    return flat | counts | {"lr_factor": torch.empty(1, device="meta")}


def tensor_digest(tensor: Tensor) -> str:
    """Hex BLAKE2b-128 of a tensor's bytes, wherever it lives."""
    return hashlib.blake2b(_tensor_bytes(tensor), digest_size=16).hexdigest()


def result_digest(tensors: Sequence[Tensor], anchor: int = 0) -> str:
    """Hex BLAKE2b-128 of all that a slot applies to a stage: tensors in order, and an anchor's count."""
    hashed = hashlib.blake2b(f"{anchor} {[t.numel() for t in tensors]}".encode(), digest_size=16)
    for tensor in tensors:
        hashed.update(_tensor_bytes(tensor))
    return hashed.hexdigest()


def _tensor_bytes(tensor: Tensor) -> memoryview:
    data: memoryview = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
    return data


def _check_flat(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.dtype != torch.float32 or tensor.shape != like.shape:
        raise StageStateError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {tuple(like.shape)}")
    if not torch.isfinite(tensor).all():
        raise StageStateError(f"{name} holds values that are not finite")


def _check_state(state: Mapping[str, Tensor], like: Tensor) -> None:
    expected = {*STATE_NAMES, *SCALAR_NAMES}
    if set(state) != expected:
        odd = sorted(expected.symmetric_difference(state))
        raise StageStateError(f"missing or unknown in the state: {', '.join(odd)[:200]}")
    for name in STATE_NAMES:
        _check_flat(name, state[name], like)
    for name in SCALAR_NAMES:
        dtype = torch.float32 if name == "lr_factor" else torch.int64
        if state[name].shape != (1,) or state[name].dtype != dtype:
            raise StageStateError(f"{name} is {state[name].dtype} {tuple(state[name].shape)}")
        limit = LR_FACTOR_MAX if name == "lr_factor" else 2**53
        if not 0 <= state[name].item() <= limit:
            raise StageStateError(f"{name} is {state[name].item()}")
    if state["adam_square"].min() < 0:
        raise StageStateError("adam_square holds negative values")
