"""Churn: who leaves and who comes back, drawn from distributions. Pure functions, seed to faults.

    --churn 10          10 % an hour: every node that is there for an hour leaves in it with
                        probability 0.1, and is back `AWAY_S` later on average
    --churn spot        a preset: calm, home, spot, storm, flap, site-loss
    --churn checkfree:10    10 % an hour as the CheckFree paper draws it: see below

The unit trap. CheckFree (arXiv 2506.15461) speaks of failures per hour, and its code draws them
per iteration, p = 1 - (1 - h)^(t / 1 h) for iterations of t seconds, in two ways that differ by a
factor of the number of stages: "per_stage" lets every body stage fail with probability p in every
iteration (its convergence script), "one_stage" lets one failure happen with probability p and then
chooses the stage (its throughput script). In both a failure takes every holder of the stage, and
the ends never fail. `--churn checkfree:10` is "per_stage" with the paper's iterations of 91.3 s:
so many failures per iteration, however fast ours are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import exp, gamma, log
from random import Random
from typing import Literal

from swarm.lab.faults import Crash, Fault, FaultError, Restart

HOUR_S = 3600.0
AWAY_S = 300.0
"""Mean time until a node comes back, where a rate says nothing about it."""
PAPER_ITERATION_S = 91.3
"""Of CheckFree's medium model on its emulated network of 7 regions."""
AT_ITERATIONS = "checkfree:"
"""How what fails stages at iterations is asked for, not nodes at times."""
RATES = (0.05, 0.10, 0.16, 0.33)
"""Per hour, of CheckFree's experiments."""
Reading = Literal["per_stage", "one_stage"]
Draw = Callable[[Random], float]


def per_second(per_hour: float) -> float:
    """The hazard rate of whoever leaves within an hour with this probability."""
    return -log(1 - per_hour) / HOUR_S


def per_iteration(per_hour: float, iteration_s: float) -> float:
    """The probability of a failure within one iteration, by CheckFree's formula."""
    return 1 - exp(-per_second(per_hour) * iteration_s)


def renewal(nodes: Sequence[int], hours: float, rng: Random, up_s: Draw, away_s: Draw) -> tuple[Fault, ...]:
    """Every node alternates by itself between being there and being away.

    Each has its own chance, so a longer run begins like a shorter one.
    """
    found: list[Fault] = []
    for node in nodes:
        own = Random(rng.getrandbits(64))
        at_s = up_s(own)
        while at_s < hours * HOUR_S:
            gone_s = max(1.0, away_s(own))
            found.append(_leave(node, at_s, gone_s))
            at_s += gone_s + up_s(own)
    return _in_order(found)


def by_rate(
    nodes: Sequence[int], per_hour: float, hours: float, rng: Random, away_s: float = AWAY_S
) -> tuple[Fault, ...]:
    """Leaves at a constant hazard: probability `per_hour` for a node that is there for an hour.

    away_s: mean of the exponential time until it is back, at least a second.
    """
    hazard = per_second(per_hour)
    up, away = (lambda own: own.expovariate(hazard)), (lambda own: own.expovariate(1 / away_s))
    return renewal(nodes, hours, rng, up, away)


def stage_failures(
    stages: int,
    per_hour: float,
    iterations: int,
    rng: Random,
    *,
    reading: Reading,
    iteration_s: float,
    away_s: float,
) -> tuple[Fault, ...]:
    """CheckFree's failures, at iterations: all holders of a body stage, in either of its two readings."""
    probability = per_iteration(per_hour, iteration_s)
    found: list[Fault] = []
    for iteration in range(1, iterations):
        if reading == "per_stage":
            lost = [stage for stage in range(1, stages) if rng.random() < probability]
        else:
            fails, stage = rng.random() < probability, rng.randrange(1, stages)
            lost = [stage] if fails else []
        fields = {"kind": "restart", "at_iteration": iteration, "after_s": away_s}
        found += [Restart.model_validate(fields | {"node": f"holders:{stage}"}) for stage in lost]
    return tuple(found)


# -- presets ------------------------------------------------------------------------------------------


def weibull(shape: float, mean_s: float) -> Draw:
    """Times with this mean; a shape below 1 means that who has stayed will stay."""
    scale = mean_s / gamma(1 + 1 / shape)
    return lambda rng: rng.weibullvariate(scale, shape)


def log_normal(median_s: float, sigma: float = 1.0) -> Draw:
    """Times with this median."""
    return lambda rng: rng.lognormvariate(log(median_s), sigma)


def calm(nodes: Sequence[int], hours: float, rng: Random) -> tuple[Fault, ...]:
    """A day on average until a node leaves, memoryless; minutes until it is back."""
    return renewal(nodes, hours, rng, lambda own: own.expovariate(1 / (24 * HOUR_S)), log_normal(AWAY_S))


def home(nodes: Sequence[int], hours: float, rng: Random) -> tuple[Fault, ...]:
    """Volunteers: 30 % always on (48 h on average), the others in the evening, for 3 h on average.

    Evenings last 4 to 8 hours of 24, at another time of the day for each; times away between them
    are log-normal around 6 h.
    """
    order = list(nodes)
    rng.shuffle(order)
    always = order[: round(0.3 * len(order))]
    evening = order[len(always) :]
    faults = renewal(sorted(always), hours, rng, weibull(0.7, 48 * HOUR_S), log_normal(6 * HOUR_S))
    return _in_order((*faults, *_evenings(sorted(evening), hours, rng)))


def _evenings(nodes: Sequence[int], hours: float, rng: Random) -> tuple[Fault, ...]:
    """Nodes that are on within a window of the day only; the run begins somewhere in it."""
    stay, away = weibull(0.5, 3 * HOUR_S), log_normal(6 * HOUR_S)
    found: list[Fault] = []
    for node in nodes:
        own = Random(rng.getrandbits(64))
        window_s = own.uniform(4, 8) * HOUR_S
        closes_s = own.uniform(0, window_s)
        at_s = 0.0
        while True:
            at_s = min(at_s + stay(own), closes_s)
            if at_s >= hours * HOUR_S:
                break
            back_s = at_s + away(own)
            while back_s >= closes_s:  # the window has closed: back in the next one that it meets
                opens_s = closes_s + 24 * HOUR_S - window_s
                back_s, closes_s = max(back_s, opens_s), closes_s + 24 * HOUR_S
            found.append(_leave(node, at_s, max(1.0, back_s - at_s)))
            at_s = back_s
    return tuple(found)


SPOT_ALONE = 0.45
"""Probability that a spot node is taken alone. A batch has 1 + Geometric(0.45) nodes, 2.2 on average,
so that 80 % of the losses have company: a recorded day of p3 instances shows 77 %."""
SPOT_STAY_S = 1.5 * HOUR_S
SPOT_SHARE = 0.25
"""Of a zone, that a batch takes at most."""
BATCH_S = 20.0
"""Within which the nodes of a batch are taken."""


def spot(nodes: Sequence[int], hours: float, rng: Random) -> tuple[Fault, ...]:
    """Spot instances: 1.5 h on average, taken in batches, back after about 24 minutes.

    All nodes are one zone. What ends a node's stay is its own Weibull time (shape 0.7) or somebody
    else's; its own is longer by as much as a batch is large, so that the mean of both is 1.5 h.
    """
    most = max(1, int(SPOT_SHARE * len(nodes)))
    mean = sum((1 - SPOT_ALONE) ** size for size in range(most))
    stay, away = weibull(0.7, SPOT_STAY_S * mean), log_normal(0.4 * HOUR_S)
    back_s = dict.fromkeys(nodes, 0.0)
    ends_s = {node: stay(rng) for node in nodes}
    found: list[Fault] = []
    while True:
        first = min(ends_s, key=lambda node: (ends_s[node], node))
        at_s = ends_s[first]
        if at_s >= hours * HOUR_S:
            return _in_order(found)
        size = 1
        while size < most and rng.random() >= SPOT_ALONE:
            size += 1
        there = [node for node in nodes if node != first and back_s[node] <= at_s]
        for node in (first, *rng.sample(there, min(size - 1, len(there)))):
            taken_s, gone_s = at_s + (node != first) * rng.uniform(0, BATCH_S), max(60.0, away(rng))
            found.append(_leave(node, taken_s, gone_s))
            back_s[node] = taken_s + gone_s
            ends_s[node] = back_s[node] + stay(rng)


def storm(nodes: Sequence[int], hours: float, rng: Random) -> tuple[Fault, ...]:
    """33 % of the nodes an hour, the harshest rate of CheckFree's experiments."""
    return by_rate(nodes, 0.33, hours, rng)


def flap(nodes: Sequence[int], hours: float, rng: Random) -> tuple[Fault, ...]:
    """A tenth of the nodes, one at least, is there for 30 s and away for 30 s, all the time."""
    some = rng.sample(list(nodes), max(1, round(0.1 * len(nodes))))
    begins_s = {node: rng.uniform(5, 65) for node in some}
    beats = int(hours * 60) + 1
    times = [(node, begins_s[node] + 60 * beat) for node in some for beat in range(beats)]
    return _in_order(_leave(node, at_s, 30.0) for node, at_s in times if at_s < hours * HOUR_S)


def site_loss(nodes: Sequence[int], hours: float, rng: Random) -> tuple[Fault, ...]:
    """Half of the nodes within one second, for ever and unheard, as when a site loses its power, at some
    moment of the run's first half hour."""
    at_s = rng.uniform(0.1, 0.5) * HOUR_S
    lost = rng.sample(list(nodes), len(nodes) // 2)
    moments = {node: at_s + rng.uniform(0, 1) for node in lost}
    crashes = [Crash(kind="crash", node=f"node:{n}", at_s=when, silent=True) for n, when in moments.items()]
    return _in_order(crash for crash in crashes if (crash.at_s or 0.0) < hours * HOUR_S)


PRESETS: Mapping[str, Callable[[Sequence[int], float, Random], tuple[Fault, ...]]] = {
    "calm": calm,
    "home": home,
    "spot": spot,
    "storm": storm,
    "flap": flap,
    "site-loss": site_loss,
}


def churn(
    text: str, *, nodes: int, stages: int, iterations: int, hours: float, rng: Random
) -> tuple[Fault, ...]:
    """What a person asked for: a percentage, a preset, or checkfree:PERCENT. Raises FaultError."""
    preset = PRESETS.get(text)
    if preset is not None:
        return preset(range(nodes), hours, rng)
    paper = text.startswith(AT_ITERATIONS)
    percent = _percent(text.removeprefix(AT_ITERATIONS), text)
    if not paper:
        return by_rate(range(nodes), percent / 100, hours, rng)
    if stages < 2:
        raise FaultError(f"--churn {text} fails body stages, and this job has none")
    return stage_failures(
        stages,
        percent / 100,
        iterations,
        rng,
        reading="per_stage",
        iteration_s=PAPER_ITERATION_S,
        away_s=10.0,
    )


def _percent(number: str, text: str) -> float:
    try:
        percent = float(number)
    except ValueError:
        percent = 0.0
    if not 0 < percent < 100:
        presets = ", ".join(PRESETS)
        known = f"a percentage of nodes an hour between 0 and 100, checkfree:PERCENT, or one of {presets}"
        raise FaultError(f"--churn {text} is not {known}")
    return percent


def sped_up(faults: Sequence[Fault], factor: float) -> tuple[Fault, ...]:
    """The same faults `factor` times as fast: begin and length. Those at iterations keep their iteration."""
    if factor == 1.0:
        return tuple(faults)
    return tuple(
        fault.model_copy(
            update={
                name: value / factor
                for name in ("at_s", "after_s", "for_s")
                if (value := getattr(fault, name, None)) is not None
            }
        )
        for fault in faults
    )


def _leave(node: int, at_s: float, away_s: float) -> Fault:
    return Restart(kind="restart", node=f"node:{node}", at_s=at_s, after_s=away_s)


def _in_order(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    return tuple(sorted(faults, key=lambda fault: (fault.at_s or 0.0, str(getattr(fault, "node", "")))))
