"""Worlds drawn from a seed: nodes, faults, network and job, every class of fault on or off.

Which classes are on is drawn, too ("swarm testing", Groce et al. 2012): what only happens when
some fault is absent is found as well as what needs two of them together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from swarm.job import Job
from swarm.lab.checkers import SETTLE_S
from swarm.lab.faults import Fault
from swarm.lab.liar import lie
from swarm.lab.playing import run_world
from swarm.lab.variety import varied_fault, varied_job, varied_world
from swarm.lab.world import Outcome, WorldOptions
from swarm.pipeline.data import Corpus
from swarm.pipeline.model import ModelConfig

FIRST_S, LAST_S = 1.5, 25.0
"""Between these moments faults begin: after the founding of the job, and while it trains."""
LONGEST_S = 40.0
LONGER_S = (SETTLE_S + 10.0, 2 * SETTLE_S)
"""How long one in ten of the faults that end lasts instead: longer than views take to settle."""
PATIENCE_S = 600.0
"""From the last disturbance, the end of a fault say, until the job must be finished."""
LOOKS_S = 5.0
"""For which views that had the time to settle are looked at."""
WORDS = 60
FAULT: TypeAdapter[Fault] = TypeAdapter(Fault)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One world of a soak: what it is made from, which classes of faults are on, and who lies.

    cut_off: its end is earlier than drawn, so it need not have finished.
    """

    classes: tuple[str, ...]
    options: WorldOptions
    liar: bool = False
    cut_off: bool = False


def draw(seed: int, allowed: Sequence[str] = ()) -> Scenario:
    """The scenario of a seed. allowed: classes that may be on; none given means all."""
    rng, variety = Random(f"soak {seed}"), Random(f"variety {seed}")
    nodes = rng.choice((1, 2, 3, 3, 4, 4, 5, 6, 8))
    job = varied_job(_job(rng, nodes), variety)
    classes = tuple(name for name in CLASSES if rng.random() < 0.3 and name in (allowed or CLASSES))
    # Each class has its own chance, so that leaving one out changes nothing about the others.
    chances, varied = ({name: Random(each.getrandbits(64)) for name in CLASSES} for each in (rng, variety))
    longer = {name: Random(f"long {seed} {name}") for name in classes}
    faults: list[Fault] = []
    for name in classes:
        for fields in CLASSES[name](chances[name], job):
            said = {"at_s": round(chances[name].uniform(FIRST_S, LAST_S), 2)} | fields
            fault = FAULT.validate_python({k: v for k, v in said.items() if v is not None})
            faults.append(_lasting(varied_fault(fault, varied[name]), longer[name]))
    liar = variety.random() < 0.1 and (not allowed or "liar" in allowed)
    options = WorldOptions(
        job=job,
        faults=tuple(faults),
        seed=seed,
        nodes=nodes + rng.choice((0, 0, 1)),
        until_s=PATIENCE_S,
        patience_s=PATIENCE_S,
        flops_per_s=rng.choice((1e6, 3e6, 1e7)),
        latency_s=rng.choice(((0.001, 0.01), (0.005, 0.05), (0.05, 0.2))),
        bandwidth_bytes_per_s=rng.choice(((1e6, 1e7), (1e7, 1e8))),
        model=TINY,
        settle_s=SETTLE_S + LOOKS_S,
    )
    classes += ("liar",) if liar else ()
    return Scenario(classes=classes, options=varied_world(options, variety), liar=liar)


def _job(rng: Random, nodes: int) -> Job:
    stages = rng.choice((1, 2, 3, 4))
    return Job.model_validate(
        {
            "name": "soak",
            "data": {"path": "words", "sequence": 8},
            "pipeline": {
                "nodes": nodes,
                "cells": rng.randint(1, max(1, min(3, nodes // 2))),
                "stages": stages,
                "microbatch": 1,
                "microbatches": rng.choice((1, 2, 4)),
                "in_flight": rng.choice((1, 4)),
            },
            "inner": {"iterations": rng.randint(10, 40), "warmup": 2},
            "outer": {
                "every": rng.choice((1, 2, 5, 100)),
                "method": rng.choice(("diloco", "diloco", "none")),
            },
            "recovery": {"checkpoint_every": rng.choice((2, 5, 1000))},
        }
    )


def _lasting(fault: Fault, rng: Random) -> Fault:
    """The same fault, but perhaps a long one."""
    longer, for_s = rng.random() < 0.1, round(rng.uniform(*LONGER_S), 2)
    ends = getattr(fault, "for_s", None) is not None
    return fault.model_copy(update={"for_s": for_s}) if longer and ends else fault


# -- classes of faults: what each puts into a script, without its moment ----------------------------

Fields = Iterator[dict[str, Any]]


def _who(rng: Random, job: Job) -> str:
    stage = rng.randrange(job.pipeline.stages)
    node = rng.randrange(job.pipeline.nodes)
    return rng.choice((f"node:{node}", "random", "random", "coordinator", f"holder:{stage}"))


def _some(rng: Random, job: Job, **fields: Any) -> Fields:
    """One to three faults of a kind, each for a time."""
    for _ in range(rng.randint(1, 3)):
        drawn = {key: value(rng) if callable(value) else value for key, value in fields.items()}
        yield {"node": _who(rng, job), "for_s": round(rng.uniform(0.5, LONGEST_S), 2)} | drawn


def _crash(rng: Random, job: Job) -> Fields:
    """For ever: fewer than half of the nodes, so that there is somebody to go on."""
    for node in rng.sample(range(job.pipeline.nodes), rng.randint(0, (job.pipeline.nodes - 1) // 2)):
        yield {"kind": "crash", "node": f"node:{node}"}
    if rng.random() < 0.3:
        yield {"kind": "crash", "node": "coordinator"}


def _restart(rng: Random, job: Job) -> Fields:
    """One of them may come back elsewhere; two that did while apart could only meet through a third."""
    found: list[dict[str, Any]] = [
        {"kind": "restart", "node": _who(rng, job), "after_s": round(rng.uniform(0.2, LONGEST_S), 2)}
        for _ in range(rng.randint(1, 3))
    ]
    if rng.random() < 0.5:
        rng.choice(found)["moved"] = True
    yield from found


def _stage_lost(rng: Random, job: Job) -> Fields:
    if job.pipeline.stages > 1:
        stage = rng.randrange(1, job.pipeline.stages)
        yield {"kind": "restart", "node": f"holders:{stage}", "after_s": round(rng.uniform(2, LONGEST_S), 2)}


def _sides(rng: Random, job: Job) -> tuple[list[str], list[str]]:
    everyone = ["coordinator", *(f"node:{node}" for node in range(job.pipeline.nodes))]
    rng.shuffle(everyone)
    cut = rng.randint(1, len(everyone) - 1)
    return everyone[:cut], everyone[cut:]


def _cut(rng: Random, job: Job) -> Fields:
    one_way = rng.random() < 0.5
    for_s = round(rng.uniform(0.5, LONGEST_S), 2)
    one, other = _sides(rng, job)
    yield {"kind": "cut", "between": [one[:1], other], "one_way": one_way, "for_s": for_s}


def _partition(rng: Random, job: Job) -> Fields:
    yield {"kind": "partition", "groups": _sides(rng, job), "for_s": round(rng.uniform(1, LONGEST_S), 2)}


def _by_rate(rng: Random, _: Job) -> Fields:
    """Every node restarts about once in two minutes."""
    fields = {"at_s": None, "per_hour": 1 - 1e-13, "from_s": FIRST_S, "until_s": LAST_S}
    yield fields | {"kind": "restart", "node": "random", "after_s": round(rng.uniform(1, 10), 2)}


CLASSES: Mapping[str, Callable[[Random, Job], Fields]] = {
    "crash": _crash,
    "restart": _restart,
    "stage_lost": _stage_lost,
    "by_rate": _by_rate,
    "pause": lambda rng, job: _some(rng, job, kind="pause"),
    "cut": _cut,
    "partition": _partition,
    "slow_link": lambda rng, job: _some(
        rng, job, kind="slow_link", factor=lambda r: r.choice((3, 20)), over_s=lambda r: r.choice((0, 5))
    ),
    "noise": lambda rng, job: _some(
        rng,
        job,
        kind="noise",
        loss=lambda r: r.choice((0.0, 0.1, 0.25)),
        duplication=lambda r: r.choice((0.01, 0.1)),
        reordering=lambda r: r.choice((0.0, 0.1)),
    ),
    "slow_compute": lambda rng, job: _some(rng, job, kind="slow_compute", factor=lambda r: r.choice((5, 50))),
    "corrupt": lambda rng, job: _some(
        rng, job, kind="corrupt", messages=lambda r: r.randint(1, 30), for_s=None
    ),
    "disk_full": lambda rng, job: _some(rng, job, kind="disk_full"),
    "clock_skew": lambda rng, job: _some(
        rng, job, kind="clock_skew", by_s=lambda r: r.choice((-43_200, -3600, -2, 2, 3600, 43_200))
    ),
}


# -- playing one ------------------------------------------------------------------------------------

TINY = ModelConfig(vocab=256, width=16, layers=6, heads=2, kv_heads=1, hidden=32)
"""As many layers as the demo model and hardly any arithmetic: a soak looks for lost messages."""


@cache
def words() -> Corpus:
    """Text of random words, the same in every world."""
    rng = Random("words")
    known = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 7))) for _ in range(WORDS)]
    tokens = np.frombuffer(" ".join(rng.choices(known, k=4000)).encode(), dtype=np.uint8)
    digest = hashlib.blake2b(tokens.tobytes(), digest_size=16).hexdigest()
    return Corpus(train=tokens[:-1000], validation=tokens[-1000:], vocab=256, digest=digest)


def play(scenario: Scenario) -> Outcome:
    """The scenario's world from beginning to end. Not finishing in time is broken, too."""
    chance = Random(f"liar {scenario.options.seed}")
    beside = (lambda world: lie(world, chance)) if scenario.liar else None
    # Where it is cut off it ends, however lately something was done to it.
    options = replace(scenario.options, patience_s=0.0) if scenario.cut_off else scenario.options
    outcome = run_world(options, corpus=words(), beside=beside)
    if outcome.broken or outcome.finished or scenario.cut_off or outcome.hopeless:
        return outcome
    late = f"not finished after {outcome.seconds:.0f} s, {options.patience_s:.0f} s of them undisturbed"
    return replace(outcome, broken=(late, *outcome.stuck))
