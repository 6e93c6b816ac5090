"""Worlds small enough to play in a second or two, and what to ask of how they went."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch

from swarm.events import Event
from swarm.job import Job
from swarm.lab.faults import Fault, parse_faults
from swarm.lab.world import Outcome, World, WorldOptions
from swarm.pipeline.data import load_corpus
from transport.virtual_time import run_virtual

WORDS = 60
"""Of the language that worlds learn: few enough for the loss to fall within some iterations."""


@cache
def text() -> Path:
    """A file of random words, the same in every run."""
    rng = Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 7))) for _ in range(WORDS)]
    path = Path(tempfile.mkdtemp(prefix="farflung-text-")) / "words.txt"
    path.write_text(" ".join(rng.choices(words, k=20_000)), encoding="utf-8")
    return path


def small_job(
    *, nodes: int = 8, cells: int = 2, stages: int = 4, iterations: int = 10, every: int = 5, **recovery: Any
) -> Job:
    return Job.model_validate(
        {
            "data": {"path": str(text()), "sequence": 16},
            "pipeline": {
                "nodes": nodes,
                "cells": cells,
                "stages": stages,
                "microbatch": 2,
                "microbatches": 2,
            },
            "inner": {"iterations": iterations, "warmup": 2},
            "outer": {"every": every},
            "recovery": {"checkpoint_every": 1000} | recovery,
        }
    )


def script(toml: str) -> tuple[Fault, ...]:
    return parse_faults(toml)


def fault(kind: str, node: str, **fields: object) -> tuple[Fault, ...]:
    """A script of one fault."""
    lines = [f"{key} = {value}" for key, value in fields.items()]
    return parse_faults("\n".join(["[[fault]]", f'kind = "{kind}"', f'node = "{node}"', *lines]))


class Played:
    """A world after its end, and what it left."""

    def __init__(self, world: World, outcome: Outcome) -> None:
        self.world, self.outcome = world, outcome
        self.events = outcome.events

    def of(self, kind: str, **fields: object) -> list[Event]:
        """Events of a kind with these fields."""
        return [e for e in self.events if e.kind == kind and fields.items() <= e.fields.items()]

    def commits(self, *, after_s: float = 0.0) -> list[Event]:
        return [event for event in self.of("committed") if event.time >= after_s]

    def reached(self) -> dict[str, int]:
        """Cell -> its last committed iteration."""
        return {event.fields["cell"]: event.fields["iteration"] for event in self.of("committed")}

    def lines(self) -> list[str]:
        return [event.line() for event in self.events]

    def assert_well(self) -> None:
        """It finished, and nothing that must never break broke."""
        assert self.outcome.broken == (), "; ".join(self.outcome.broken)
        assert self.outcome.finished, f"not finished after {self.outcome.seconds} s: {self.reached()}"


def play(
    job: Job,
    faults: tuple[Fault, ...] = (),
    *,
    seed: int = 1,
    until_s: float = 200.0,
    meddle: Callable[[World], Any] | None = None,
    **options: Any,
) -> Played:
    """Play a world to its end. meddle: a coroutine function that runs beside it."""
    torch.set_num_threads(1)
    made = WorldOptions(job=job, faults=faults, seed=seed, until_s=until_s, **options)

    async def run(directory: Path) -> Played:
        world = World(made, load_corpus(job.data), directory)
        if meddle is not None:
            world.beside(meddle(world))
        return Played(world, await world.run())

    with tempfile.TemporaryDirectory(prefix="farflung-world-") as directory:
        return run_virtual(run(Path(directory)))
