"""From what a person types to what the rest of the house takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from swarm.daemon.options import UserError
from swarm.job import Job, load_job, what_is_wrong

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)
SIZE_MAX = 1 << 50
"""More than a machine has, and messages have room for the number."""
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def job_from_options(file: Path | None, sections: dict[str, Any]) -> Job:
    """The job of a file, or the defaults with these sections. Raises JobError or UserError."""
    if file is not None:
        return load_job(file)
    try:
        return Job.model_validate(sections)
    except ValidationError as error:
        raise UserError(what_is_wrong(error)) from None


def parse_size(text: str) -> int:
    """Bytes of "8G", "500 MiB" or "1048576", in powers of 1024; "" is 0. Raises UserError."""
    if not text:
        return 0
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UserError(f"{text!r} is not a size: write it as 8G or 500M")
    size = float(match[1]) * 1024 ** _POWER[match[2].lower()]
    if not 1 <= size <= SIZE_MAX:
        raise UserError(
            f"{text[:40]!r} is no size of a memory: write it as 8G or 500M, or leave it out for all"
        )
    return int(size)
