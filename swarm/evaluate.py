"""How good a whole model is on text it has never seen."""

from __future__ import annotations

import torch

from swarm.pipeline.data import Corpus, validation_windows
from swarm.pipeline.model import ModelConfig, Parameters, embed, run_layers, summed_loss


@torch.no_grad()
def validation_loss(
    config: ModelConfig,
    parameters: Parameters,
    corpus: Corpus,
    *,
    windows: int = 32,
    length: int = 256,
    batch: int = 8,
) -> float:
    """Mean cross entropy in nats per token over `windows` held-out windows of `length` tokens.

    The windows are always the same, so two numbers of one job compare. `batch` windows are in
    memory at a time and do not change the result beyond rounding.
    """
    inputs, targets = validation_windows(corpus, windows, length)
    total = 0.0
    for x, y in zip(torch.split(inputs, batch), torch.split(targets, batch), strict=True):
        x = run_layers(config, parameters, range(config.layers), embed(parameters, x))
        total += float(summed_loss(config, parameters, x, y))
    return total / targets.numel()
