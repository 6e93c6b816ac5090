"""The jobs that a demo or a simulation trains when nobody names one."""

from __future__ import annotations

from typing import Literal

from swarm.job import Job

ModelName = Literal["demo", "125m", "1b", "7b"]
STAGES: dict[ModelName, int] = {"demo": 4, "125m": 4, "1b": 12, "7b": 17}
"""Of a simulated job: each with a few layers, whose state a volunteer's machine would hold."""


def demo_job(*, nodes: int, iterations: int, name: str = "demo") -> Job:
    """What `farflung demo` trains: two cells where there are nodes for two, four stages.

    A round every 10 iterations and a checkpoint every 20, so that a minute shows some of each.
    """
    return Job.model_validate(
        {
            "name": name,
            "pipeline": {"nodes": nodes, "cells": min(2, nodes), "stages": 4},
            "inner": {"iterations": iterations, "warmup": min(10, iterations // 4)},
            "outer": {"every": 10},
            "recovery": {"checkpoint_every": 20},
        }
    )


def simulated_job(*, nodes: int, iterations: int = 200) -> Job:
    """What `farflung simulate` trains when no job is named: the demo model on the standard library.

    Two cells of four stages where there are nodes for two. Batches are small, so that twenty nodes
    go through all iterations with real gradients within minutes of one core.

    Ten rounds are too few for DiLoCo's outer momentum of 0.9: it carries the first outer gradients,
    the longest, on for as many. Cells that meet so learn less than one alone, and by a few per cent
    more or less for any small cause, such as a batch that a failure cut short.
    """
    cells = 2 if nodes >= 8 else 1
    return Job.model_validate(
        {
            "name": "simulated",
            "data": {"sequence": 64},
            "pipeline": {
                "nodes": nodes,
                "cells": cells,
                "stages": min(4, nodes),
                "microbatch": 2,
                "microbatches": 2,
            },
            "inner": {"iterations": iterations, "warmup": min(20, iterations // 4)},
            "outer": {"every": 20, "momentum": 0.5},
            "recovery": {"checkpoint_every": 100},
        }
    )


def large_job(model: ModelName, *, nodes: int, iterations: int = 200) -> Job:
    """What `farflung simulate --model` trains: a size of the papers, in as many cells as there are nodes for.

    Windows of 1,024 byte tokens, hops in int8, a round every 20 iterations.
    """
    stages = min(STAGES[model], nodes)
    return Job.model_validate(
        {
            "name": "simulated",
            "model": {"preset": model},
            "data": {"sequence": 1024},
            "pipeline": {
                "nodes": nodes,
                "cells": nodes // stages,
                "stages": stages,
                "microbatch": 2,
                "microbatches": 8,
                "hop_codec": "int8",
            },
            "inner": {"iterations": iterations, "warmup": min(20, iterations // 4)},
            "outer": {"every": 20},
            "recovery": {"checkpoint_every": 100},
        }
    )
