"""The yardstick: the job's model trained in a plain PyTorch loop, one process, no swarm.

It draws the windows a cell called `CELL` would draw, adds up the same microbatches, clips
and steps as the job says, so that its losses are what a swarm of one cell must reproduce
and its speed is what a swarm is divided by.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from math import sqrt
from pathlib import Path

import torch

from optim.schedules import learning_rate
from swarm.job import Job, load_job
from swarm.lab.tally import WARM_UP
from swarm.pipeline.data import Corpus, load_corpus, window
from swarm.pipeline.model import ModelConfig, forward, init_parameters, parameter_names, preset

CELL = "c0"


def plain_losses(job: Job, cell: str = CELL, corpus: Corpus | None = None) -> Iterator[float]:
    """Train; after each iteration yield its mean training loss in nats per token."""
    return (loss for loss, _ in plain_steps(job, cell, corpus))


def plain_steps(
    job: Job, cell: str = CELL, corpus: Corpus | None = None
) -> Iterator[tuple[float, dict[str, torch.Tensor]]]:
    """Train; after each iteration yield its mean loss and the parameters, which may be moved."""
    corpus = corpus or load_corpus(job.data)
    config = preset(job.model.preset, corpus.vocab)
    parameters = {name: each.requires_grad_() for name, each in init_parameters(config, job.seed).items()}
    inner = job.inner
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=inner.lr, betas=inner.betas, weight_decay=inner.weight_decay
    )
    for iteration in range(inner.iterations):
        optimizer.param_groups[0]["lr"] = learning_rate(
            peak=inner.lr,
            schedule=inner.schedule,
            warmup=inner.warmup,
            iterations=inner.iterations,
            iteration=iteration,
        )
        optimizer.zero_grad(set_to_none=False)
        loss = accumulate(job, config, parameters, corpus, cell, iteration)
        clip(config, job.pipeline.stages, parameters, inner.clip_norm)
        optimizer.step()
        yield loss, parameters


def accumulate(
    job: Job,
    config: ModelConfig,
    parameters: dict[str, torch.Tensor],
    corpus: Corpus,
    cell: str,
    iteration: int,
) -> float:
    """Add the gradients of one iteration's microbatches to `parameters`; the mean loss."""
    pipeline, length = job.pipeline, job.data.sequence
    total = 0.0
    for microbatch in range(pipeline.microbatches):
        inputs, targets = window(
            corpus, job.seed, cell, iteration, microbatch, sequences=pipeline.microbatch, length=length
        )
        logits = forward(config, parameters, inputs)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        (loss / pipeline.microbatches).backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total / pipeline.microbatches


def clip(config: ModelConfig, stages: int, parameters: dict[str, torch.Tensor], limit: float) -> None:
    """Scale gradients by min(1, limit / (norm + 1e-6)), as torch's clip_grad_norm_ does.

    The norm is added up as a swarm does it: a float32 norm for each stage, their squares as
    Python floats. torch's own sum differs in the last bits, which Adam would amplify.
    """
    squares = 0.0
    for stage in range(stages):
        names = parameter_names(config, stages, stage)
        flat = torch.cat([gradient_of(parameters[name]).flatten() for name in names])
        squares += float(torch.linalg.vector_norm(flat)) ** 2
    scale = min(1.0, limit / (sqrt(squares) + 1e-6))
    for parameter in parameters.values():
        gradient_of(parameter).mul_(scale)


def gradient_of(parameter: torch.Tensor) -> torch.Tensor:
    """The gradient of a parameter that has one."""
    assert parameter.grad is not None
    return parameter.grad


def measure(job: Job, iterations: int) -> dict[str, float]:
    """Tokens per second, and per second of CPU time, of one thread over `iterations`, warmed up."""
    torch.set_num_threads(1)
    losses = plain_losses(job)
    for _ in range(WARM_UP):
        next(losses)
    started, cpu_started = time.perf_counter(), time.process_time()
    for _ in range(iterations):
        next(losses)
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    tokens = iterations * job.pipeline.microbatch * job.pipeline.microbatches * job.data.sequence
    return {"tokens_per_s": tokens / seconds, "tokens_per_cpu_s": tokens / cpu_s}


def main() -> None:
    """`python -m swarm.lab.plain_loop JOB.toml ITERATIONS`: print the speed as JSON."""
    job, iterations = load_job(Path(sys.argv[1])), int(sys.argv[2])
    job = job.model_copy(update={"inner": job.inner.model_copy(update={"iterations": iterations + WARM_UP})})
    print(json.dumps(measure(job, iterations)))  # noqa: T201 - its only output


if __name__ == "__main__":
    main()
