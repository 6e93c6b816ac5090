"""From what a person types to what the rest of the house takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from swarm.daemon.options import UserError
from swarm.job import Job, load_job

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def job_from_options(file: Path | None, sections: dict[str, Any]) -> Job:
    """The job of a file, or the defaults with these sections. Raises JobError or UserError."""
    if file is not None:
        return load_job(file)
    try:
        return Job.model_validate(sections)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the job"
        raise UserError(f"{field}: {first['msg'].removeprefix('Value error, ')}") from None


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


def parse_size(text: str) -> int:
    """Bytes of "8G", "500 MiB" or "1048576", in powers of 1024; "" is 0. Raises UserError."""
    if not text:
        return 0
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UserError(f"{text!r} is not a size: write it as 8G or 500M")
    return int(float(match[1]) * 1024 ** _POWER[match[2].lower()])
