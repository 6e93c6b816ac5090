"""A finished job as an ordinary Hugging Face directory."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from swarm.pipeline.data import BYTE_VOCAB, END_OF_DOCUMENT
from swarm.pipeline.model import ModelConfig, Parameters, hf_config, parameter_shapes


class ExportError(ValueError):
    """Parameters that are not the whole model. The text says which."""


def export_checkpoint(
    parameters: Parameters, config: ModelConfig, directory: Path, tokenizer: str = "bytes"
) -> None:
    """Write config, weights (model.safetensors, float32) and tokenizer into `directory`.

    `LlamaForCausalLM.from_pretrained(directory)` then computes what the swarm computed.
    tokenizer: the job's `data.tokenizer`; a file is copied, "bytes" becomes an equal one.
    Each file appears whole or not at all. Raises ExportError, and OSError from the disk.
    """
    _check_whole(parameters, config)
    directory.mkdir(parents=True, exist_ok=True)
    # Clones: safetensors refuses tensors that share memory, and a stage's all do.
    weights = {name: parameters[name].detach().cpu().clone() for name in parameter_shapes(config)}
    _place(directory / "model.safetensors", lambda path: save_file(weights, path, {"format": "pt"}))
    _place_json(directory / "config.json", hf_config(config) | _end_token(tokenizer))
    _place_json(directory / "generation_config.json", _end_token(tokenizer) | {"do_sample": True})
    _place_tokenizer(directory, tokenizer)


def _check_whole(parameters: Parameters, config: ModelConfig) -> None:
    shapes = parameter_shapes(config)
    if missing := [name for name in shapes if name not in parameters]:
        raise ExportError(f"the model lacks {len(missing)} parameters, the first is {missing[0]}")
    for name, shape in shapes.items():
        tensor = parameters[name]
        if tuple(tensor.shape) != shape:
            raise ExportError(f"{name} has shape {tuple(tensor.shape)}, not {shape}")
        if not torch.isfinite(tensor).all():
            raise ExportError(f"{name} holds values that are not finite")


def byte_tokenizer() -> Tokenizer:
    """The byte tokens of `swarm.pipeline.data` as a tokenizer: a token's id is its byte."""
    # ByteLevel names each byte by a printable character: itself, or the next one above 255.
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(BYTE_VOCAB) if byte not in shown]
    names = {byte: chr(byte) for byte in shown} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}
    tokenizer = Tokenizer(models.BPE(vocab={name: byte for byte, name in names.items()}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _end_token(tokenizer: str) -> dict[str, Any]:
    return {"eos_token_id": END_OF_DOCUMENT} if tokenizer == "bytes" else {}


def _place_tokenizer(directory: Path, tokenizer: str) -> None:
    if tokenizer != "bytes":
        _place(directory / "tokenizer.json", lambda path: shutil.copyfile(tokenizer, path))
    else:
        _place(directory / "tokenizer.json", lambda path: byte_tokenizer().save(str(path)))
    _place_json(directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})


def _place_json(path: Path, value: dict[str, Any]) -> None:
    _place(path, lambda part: part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8"))


def _place(path: Path, write: Callable[[Path], object]) -> None:
    part = path.with_name(path.name + ".part")
    part.touch()
    mode = part.stat().st_mode
    write(part)
    part.chmod(mode)  # some writers make their own file, for its owner alone
    os.replace(part, path)
