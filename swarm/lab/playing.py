"""Plays a simulated world from beginning to end, also one that an error ends before."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from swarm.lab.evidence import what_ended
from swarm.lab.world import Outcome, World, WorldOptions
from swarm.pipeline.data import Corpus, load_corpus
from transport.virtual_time import run_virtual

Beside = Callable[[World], Coroutine[Any, Any, None]]


def run_world(
    options: WorldOptions, *, corpus: Corpus | None = None, beside: Beside | None = None
) -> Outcome:
    """Make a world and let it run to its end, in virtual time. Raises DataError.

    corpus: what is trained on instead of the job's data. beside: what runs beside the world.
    An error that no process is the cause of, a livelock say, ends the world and is what broke.
    """
    text = corpus or load_corpus(options.job.data)
    made: list[World] = []

    async def live(directory: Path) -> Outcome:
        world = World(options, text, directory)
        made.append(world)
        if beside is not None:
            world.beside(beside(world))
        return await world.run()

    with _one_thread(), tempfile.TemporaryDirectory(prefix="farflung-") as directory:
        try:
            return run_virtual(live(Path(directory)))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told with what came before it
            events = tuple(made[0].events) if made else ()
            at_s = events[-1].time if events else 0.0
            broken = f"an error ended the whole world: {what_ended(error)} (after {at_s:.1f} s)"
            return Outcome(events=events, seconds=at_s, finished=False, broken=(broken,))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums of several threads would depend on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
