"""Learning rate as a function of the iteration."""

from __future__ import annotations

from math import cos, pi

DECAY_SHARE = 0.2
"""Share of the run over which "wsd" decays (arXiv 2405.18392 finds 10-20 % enough)."""

COSINE_FLOOR = 0.1
"""Where "cosine" ends, as a share of the peak."""


def learning_rate(*, peak: float, schedule: str, warmup: int, iterations: int, iteration: int) -> float:
    """Learning rate of `iteration`, the first being 0; after the last it stays what it was then.

    schedule: "constant"; "wsd" holds, then falls linearly over the last fifth; "cosine" falls
    to a tenth. All rise linearly over the first `warmup` iterations, and none is ever zero.
    """
    done = min(iteration, iterations - 1)
    rise = min(1.0, (done + 1) / warmup) if warmup else 1.0
    return peak * rise * _fall(schedule, done, warmup, iterations)


def _fall(schedule: str, done: int, warmup: int, iterations: int) -> float:
    if schedule == "constant":
        return 1.0
    if schedule == "wsd":
        decay = max(1, round(iterations * DECAY_SHARE))
        return min(1.0, (iterations - done) / decay)
    if schedule == "cosine":
        progress = max(0, done - warmup) / max(1, iterations - warmup)
        return COSINE_FLOOR + (1 - COSINE_FLOOR) * (1 + cos(pi * progress)) / 2
    raise ValueError(f"there is no learning rate schedule called {schedule!r}")
