"""What fewer worlds of a soak have than have not: other jobs, networks, deaths and neighbours.

It has chances of its own, so that a seed's faults are the same with it as without.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from swarm.job import Job
from swarm.lab.faults import Crash, Fault, Restart
from swarm.lab.regions import load_regions
from swarm.lab.world import WorldOptions

HOMES_BYTES_PER_S = (6e5, 5e6)
"""Uplinks of homes, 5 to 40 Mbit/s."""
SETTINGS = ("geo-distributed", "5-clusters")
LATE_ITERATION = 30


def varied_job(job: Job, rng: Random) -> Job:
    """The same job with other codecs, optimizers and schedules, or with another way to recover."""
    pipeline = {
        "microbatch": rng.choice((1, 1, 1, 2)),
        "hop_codec": rng.choice(("raw", "raw", "bf16", "int8")),
        "stages": rng.choice((job.pipeline.stages,) * 7 + (6,)),
    }
    inner = {
        "schedule": rng.choice(("wsd", "wsd", "cosine", "constant")),
        "clip_norm": rng.choice((1.0, 1.0, 0.05)),
    }
    outer = {"optimizer": rng.choice(("nesterov", "nesterov", "nesterov", "heavy_ball"))}
    recovery = {
        "policy": rng.choice(("auto", "auto", "auto", "auto", "checkfree")),
        "plus_copies": rng.choice((True, True, True, False)),
    }
    changes = {"pipeline": pipeline, "inner": inner, "outer": outer, "recovery": recovery}
    said = job.model_dump()
    return Job.model_validate(said | {name: said[name] | new for name, new in changes.items()})


def varied_world(options: WorldOptions, rng: Random) -> WorldOptions:
    """The same world, but with uplinks of homes, in measured regions, without tensors, or on uneven paths."""
    where = rng.choice(("anywhere", "anywhere", "anywhere", "homes", "regions"))
    if where == "homes":
        options = replace(options, uplink_bytes_per_s=HOMES_BYTES_PER_S)
    elif where == "regions":
        options = replace(options, regions=load_regions().setting(rng.choice(SETTINGS)))
    if rng.random() < 0.15:
        options = replace(options, tensors="none")
    options = replace(options, nodes=options.nodes + rng.choice((0, 0, 0, 0, 2)))
    return replace(options, jitter="log-normal") if rng.random() < 0.25 else options


def varied_fault(fault: Fault, rng: Random) -> Fault:
    """The same fault, but perhaps a death is unheard, or its moment is that of an iteration."""
    unheard, moved = rng.random() < 0.25, rng.random() < 0.15
    changes: dict[str, object] = {}
    if unheard and isinstance(fault, Crash | Restart):
        changes["silent"] = True
    if moved and fault.at_s is not None:
        changes |= {"at_s": None, "at_iteration": rng.randint(1, LATE_ITERATION)}
    return fault.model_copy(update=changes) if changes else fault
