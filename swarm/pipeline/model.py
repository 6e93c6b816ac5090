"""A Llama as mathematics on named tensors, and the cut of its layers into stages.

Parameters carry the names of Hugging Face's `LlamaForCausalLM`, so that a finished job is an
ordinary checkpoint. There are no modules: every function takes a mapping from name to tensor,
and a stage, the whole model and an exported file hold the same names over different storage.

Llama: arXiv 2302.13971; rotary positions: 2104.09864; grouped queries: 2305.13245;
SwiGLU: 2002.05202; RMSNorm: 1910.07467.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import prod, sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Parameters = Mapping[str, Tensor]
"""Tensors by their Hugging Face names."""

EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape of a Llama. The head is not tied to the embedding.

    vocab: token ids are 0..vocab-1.
    width: d, of the residual stream; also what one token of a hop is made of.
    layers: transformer blocks.
    heads: query heads, each of width / heads values, which must be even (rotary pairs).
    kv_heads: key and value heads; divides `heads`. Fewer make generation cheaper.
    hidden: inner width of the SwiGLU.
    positions: longest sequence an exported checkpoint claims; training may use any length.
    rope_theta: base of the rotary wavelengths. norm_eps: added to the mean square in RMSNorm.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    positions: int = 2048
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.width % self.heads or self.head_width % 2:
            raise ValueError(f"width {self.width} does not give {self.heads} heads of even width")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.kv_heads} key heads do not divide {self.heads} query heads")

    @property
    def head_width(self) -> int:
        """Values of one head."""
        return self.width // self.heads

    @property
    def parameters(self) -> int:
        """Number of parameters of the whole model."""
        return sum(prod(shape) for shape in parameter_shapes(self).values())


def demo(vocab: int) -> ModelConfig:
    """About 1.3 M parameters with a byte vocabulary: trains on two cores while one watches."""
    return ModelConfig(vocab=vocab, width=128, layers=6, heads=4, kv_heads=2, hidden=384)


def llama_125m(vocab: int) -> ModelConfig:
    """The smallest size of the DiLoCo and NoLoCo papers, with a SwiGLU of equal cost."""
    return ModelConfig(vocab=vocab, width=768, layers=12, heads=12, kv_heads=12, hidden=2048)


def llama_1b(vocab: int) -> ModelConfig:
    """TinyLlama's shape (arXiv 2401.02385): 1.1 B parameters with 32,000 tokens."""
    return ModelConfig(vocab=vocab, width=2048, layers=22, heads=32, kv_heads=4, hidden=5632)


def llama_7b(vocab: int) -> ModelConfig:
    """Llama 7B (arXiv 2302.13971): 6.7 B parameters with 32,000 tokens."""
    return ModelConfig(vocab=vocab, width=4096, layers=32, heads=32, kv_heads=32, hidden=11_008)


PRESETS: dict[str, Callable[[int], ModelConfig]] = {
    "demo": demo,
    "125m": llama_125m,
    "1b": llama_1b,
    "7b": llama_7b,
}


def preset(name: str, vocab: int) -> ModelConfig:
    """The config a job's `model.preset` names. KeyError for a name that a job cannot hold."""
    return PRESETS[name](vocab)


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` with which transformers builds the same model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "max_position_embeddings": config.positions,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


# --- names and shapes ------------------------------------------------------------------------


def _layer(index: int) -> str:
    return f"model.layers.{index}."


def _layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    d, kv, hidden = config.width, config.kv_heads * config.head_width, config.hidden
    return {
        "input_layernorm.weight": (d,),
        "self_attn.q_proj.weight": (d, d),
        "self_attn.k_proj.weight": (kv, d),
        "self_attn.v_proj.weight": (kv, d),
        "self_attn.o_proj.weight": (d, d),
        "post_attention_layernorm.weight": (d,),
        "mlp.gate_proj.weight": (hidden, d),
        "mlp.up_proj.weight": (hidden, d),
        "mlp.down_proj.weight": (d, hidden),
    }


@lru_cache(maxsize=32)
def parameter_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Shape of every parameter, in the order of the forward pass."""
    layer = _layer_shapes(config)
    body = {_layer(i) + name: shape for i in range(config.layers) for name, shape in layer.items()}
    table = (config.vocab, config.width)
    return {EMBEDDING: table, **body, FINAL_NORM: (config.width,), HEAD: table}


def stage_layers(layers: int, stages: int) -> tuple[range, ...]:
    """Which layers each stage holds: stage 0 (the ends) none, the body an even share each.

    With one stage, stage 0 holds all. ValueError if a body stage would be empty.
    """
    if stages == 1:
        return (range(layers),)
    if not 1 <= stages - 1 <= layers:
        raise ValueError(f"{layers} layers cannot be cut into {stages - 1} body stages")
    cuts = [layers * body // (stages - 1) for body in range(stages)]
    return (range(0), *(range(a, b) for a, b in pairwise(cuts)))


def parameter_names(config: ModelConfig, stages: int, stage: int) -> tuple[str, ...]:
    """Names of a stage's parameters in the order of its flat tensor."""
    layers = stage_layers(config.layers, stages)[stage]
    body = tuple(_layer(i) + name for i in layers for name in _layer_shapes(config))
    return (EMBEDDING, *body, FINAL_NORM, HEAD) if stage == 0 else body


def unflatten(config: ModelConfig, stages: int, stage: int, flat: Tensor) -> dict[str, Tensor]:
    """Views into a stage's flat tensor [n], by name. ValueError if n is not the stage's size."""
    shapes = parameter_shapes(config)
    names = parameter_names(config, stages, stage)
    sizes = [prod(shapes[name]) for name in names]
    if flat.shape != (sum(sizes),):
        raise ValueError(f"stage {stage} has {sum(sizes)} parameters, not {tuple(flat.shape)}")
    return {name: part.view(shapes[name]) for name, part in zip(names, torch.split(flat, sizes), strict=True)}


def init_parameter(config: ModelConfig, name: str, seed: int) -> Tensor:
    """One parameter at the start of a job: a function of (seed, name), whatever the stages.

    Norms are ones, matrices normal with std 0.02, and those that write to the residual stream
    smaller by sqrt(2 layers), so that its variance does not grow with depth (GPT-2).
    """
    shape = parameter_shapes(config)[name]
    if len(shape) == 1:
        return torch.ones(shape)
    source = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(source, "little") >> 1)
    writes_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
    std = 0.02 / sqrt(2 * config.layers) if writes_residual else 0.02
    return torch.empty(shape).normal_(0.0, std, generator=generator)


def init_parameters(config: ModelConfig, seed: int) -> dict[str, Tensor]:
    """Every parameter of the whole model at the start of a job."""
    return {name: init_parameter(config, name, seed) for name in parameter_shapes(config)}


def stage_flops(
    config: ModelConfig, stages: int, stage: int, tokens: int, sequence: int
) -> tuple[float, float]:
    """Floating point operations of one stage for `tokens` tokens: (forward, backward).

    Two per weight and token, plus causal attention over half of `sequence` on average;
    backward is twice forward. Looking up an embedding costs nothing.
    """
    layers = len(stage_layers(config.layers, stages)[stage])
    weights = layers * sum(prod(shape) for shape in _layer_shapes(config).values())
    attention = layers * 2 * sequence * config.width
    head = config.vocab * config.width if stage == 0 else 0
    forward_flops = float(tokens * (2 * (weights + head) + attention))
    return forward_flops, 2.0 * forward_flops


# --- the forward pass ------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _rotary(config: ModelConfig, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines [length, head_width] of the rotary angles, halves repeated."""
    exponents = torch.arange(0, config.head_width, 2, dtype=torch.float32) / config.head_width
    angles = torch.outer(torch.arange(length, dtype=torch.float32), config.rope_theta**-exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(device), angles.sin().to(device)


def _rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-second, first), dim=-1) * sines


def _attention(config: ModelConfig, p: Parameters, layer: str, x: Tensor) -> Tensor:
    sequences, tokens, _ = x.shape
    rotary = _rotary(config, tokens, x.device)

    def heads(name: str, count: int) -> Tensor:  # [sequences, count, tokens, head_width]
        y = F.linear(x, p[f"{layer}self_attn.{name}.weight"])
        return y.view(sequences, tokens, count, config.head_width).transpose(1, 2)

    q = _rotate(heads("q_proj", config.heads), *rotary)
    k = _rotate(heads("k_proj", config.kv_heads), *rotary)
    v = heads("v_proj", config.kv_heads)
    grouped = config.kv_heads != config.heads
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    y = y.transpose(1, 2).reshape(sequences, tokens, config.width)
    return F.linear(y, p[f"{layer}self_attn.o_proj.weight"])


def _swiglu(p: Parameters, layer: str, x: Tensor) -> Tensor:
    gate = F.silu(F.linear(x, p[f"{layer}mlp.gate_proj.weight"]))
    return F.linear(gate * F.linear(x, p[f"{layer}mlp.up_proj.weight"]), p[f"{layer}mlp.down_proj.weight"])


def run_layers(config: ModelConfig, p: Parameters, layers: range, x: Tensor) -> Tensor:
    """Residual stream [sequences, tokens, width] through consecutive layers."""
    shape = (config.width,)
    for index in layers:
        layer = _layer(index)
        normed = F.rms_norm(x, shape, p[f"{layer}input_layernorm.weight"], config.norm_eps)
        x = x + _attention(config, p, layer, normed)
        normed = F.rms_norm(x, shape, p[f"{layer}post_attention_layernorm.weight"], config.norm_eps)
        x = x + _swiglu(p, layer, normed)
    return x


def embed(p: Parameters, inputs: Tensor) -> Tensor:
    """Token ids [sequences, tokens] to [sequences, tokens, width]."""
    return F.embedding(inputs, p[EMBEDDING])


def logits(config: ModelConfig, p: Parameters, x: Tensor) -> Tensor:
    """[sequences, tokens, width] to unnormalised log probabilities [sequences, tokens, vocab]."""
    return F.linear(F.rms_norm(x, (config.width,), p[FINAL_NORM], config.norm_eps), p[HEAD])


def summed_loss(config: ModelConfig, p: Parameters, x: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy in nats, summed over all target tokens [sequences, tokens]."""
    return F.cross_entropy(logits(config, p, x).flatten(0, 1), targets.flatten(), reduction="sum")


def forward(config: ModelConfig, p: Parameters, inputs: Tensor) -> Tensor:
    """The whole model: token ids [sequences, tokens] to logits [sequences, tokens, vocab]."""
    return logits(config, p, run_layers(config, p, range(config.layers), embed(p, inputs)))
