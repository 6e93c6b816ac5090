"""The jobs that a demo or a simulation trains when nobody names one."""

from __future__ import annotations

from swarm.job import Job


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
            "outer": {"every": 20},
            "recovery": {"checkpoint_every": 100},
        }
    )
