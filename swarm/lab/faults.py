"""The fault script: what happens to whom and when, the same file for both worlds.

    [[fault]]
    at_s = 30.0                 # or at_iteration = 20, or by rate
    kind = "restart"
    node = "holder:2"           # a random holder of stage 2: see `swarm/lab/selectors.py`
    after_s = 10.0

    [[fault]]
    per_hour = 0.1              # with from_s and until_s, if not the whole run
    kind = "crash"
    node = "random"

By rate: `per_hour` is a probability. Whoever could be hit for a whole hour is hit at least once
in it with this probability; in any shorter time t with 1 - (1 - per_hour)^(t / 1 h). With
`node = "random"` that holds for every node by itself; any other selector names one victim, or
one group that is hit together. Hits come independently of each other, at any time.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from swarm.lab.selectors import Selector

Side = Annotated[tuple[Selector, ...], Field(min_length=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Moment = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class FaultError(ValueError):
    """A fault script that cannot be used. The text is one sentence for the person who wrote it."""


class _Fault(BaseModel):
    """When a fault begins: at a time since the start, when an iteration is committed, or by rate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_s: Moment | None = None
    at_iteration: Annotated[int, Field(ge=0)] | None = None
    per_hour: Annotated[float, Field(gt=0, lt=1)] | None = None
    from_s: Moment | None = None
    until_s: Seconds | None = None

    @model_validator(mode="after")
    def _begins_in_one_way(self) -> _Fault:
        ways = (self.at_s, self.at_iteration, self.per_hour)
        if sum(way is not None for way in ways) != 1:
            raise ValueError("give exactly one of at_s, at_iteration and per_hour")
        if self.per_hour is None and (self.from_s, self.until_s) != (None, None):
            raise ValueError("from_s and until_s go with per_hour")
        if self.until_s is not None and self.until_s <= (self.from_s or 0.0):
            raise ValueError("until_s is not after from_s")
        return self

    @property
    def lasts_s(self) -> float | None:
        """Seconds until it is undone, None if it never is."""
        lasts: float | None = getattr(self, "for_s", None)
        return lasts


class Crash(_Fault):
    """The process is killed and does not come back.

    silent: its machine is gone with it, so that nobody hears its connections close.
    """

    kind: Literal["crash"]
    node: Selector
    silent: bool = False


class Restart(_Fault):
    """The process is killed and starts again `after_s` later, with what is on its disk.

    moved: it listens elsewhere then, as where others have taken its ports. silent: see `Crash`.
    """

    kind: Literal["restart"]
    node: Selector
    after_s: Seconds
    moved: bool = False
    silent: bool = False

    @property
    def lasts_s(self) -> float | None:
        """Seconds until the process starts again."""
        return self.after_s


class Pause(_Fault):
    """The process stands still and its connections stay open."""

    kind: Literal["pause"]
    node: Selector
    for_s: Seconds | None = None


def _apart(sides: tuple[Side, ...]) -> tuple[Side, ...]:
    """Nobody can be named on two sides."""
    named = Counter(who for side in sides for who in set(side) if who != "random")
    twice = sorted(who for who, times in named.items() if times > 1)
    if twice:
        raise ValueError(f"{twice[0]} is on two sides")
    return sides


class Cut(_Fault):
    """Nothing passes between two sides. `one_way`: the second side is still heard by the first."""

    kind: Literal["cut"]
    between: Annotated[tuple[Side, Side], AfterValidator(_apart)]
    one_way: bool = False
    for_s: Seconds | None = None


class Partition(_Fault):
    """Nothing passes between groups. Nodes in no group keep all connections."""

    kind: Literal["partition"]
    groups: Annotated[tuple[Side, ...], Field(min_length=2), AfterValidator(_apart)]
    for_s: Seconds | None = None


class SlowLink(_Fault):
    """The node has `factor` times the latency and 1/`factor` of the bandwidth, growing over `over_s`."""

    kind: Literal["slow_link"]
    node: Selector
    factor: Annotated[float, Field(gt=1, allow_inf_nan=False)]
    over_s: Moment = 0.0
    for_s: Seconds | None = None


class Noise(_Fault):
    """Of the node's messages, both ways, these shares are lost and sent again, doubled, or overtaken.

    A lost message costs a delay; only control messages are doubled or overtaken.
    """

    kind: Literal["noise"]
    node: Selector
    loss: Annotated[float, Field(ge=0, lt=1)] = 0.0
    duplication: Annotated[float, Field(ge=0, lt=1)] = 0.0
    reordering: Annotated[float, Field(ge=0, lt=1)] = 0.0
    for_s: Seconds | None = None

    @model_validator(mode="after")
    def _is_some(self) -> Noise:
        if not (self.loss or self.duplication or self.reordering):
            raise ValueError("give at least one of loss, duplication and reordering")
        return self


class SlowCompute(_Fault):
    """The node's computations take `factor` times as long."""

    kind: Literal["slow_compute"]
    node: Selector
    factor: Annotated[float, Field(gt=1, allow_inf_nan=False)]
    for_s: Seconds | None = None


class Corrupt(_Fault):
    """The headers of the next `messages` that the node sends are damaged."""

    kind: Literal["corrupt"]
    node: Selector
    messages: Annotated[int, Field(ge=1)] = 1


class DiskFull(_Fault):
    """Nothing more can be written to the node's disk; what is there can be read."""

    kind: Literal["disk_full"]
    node: Selector
    for_s: Seconds | None = None


class ClockSkew(_Fault):
    """The node's wall clock jumps by `by_s` seconds, and back at the end."""

    kind: Literal["clock_skew"]
    node: Selector
    by_s: Annotated[float, Field(ge=-1e9, le=1e9)]
    for_s: Seconds | None = None


Fault = (
    Crash
    | Restart
    | Pause
    | Cut
    | Partition
    | SlowLink
    | SlowCompute
    | Corrupt
    | DiskFull
    | ClockSkew
    | Noise
)


def selectors_of(fault: Fault) -> tuple[str, ...]:
    """Everybody that a fault names."""
    if isinstance(fault, Cut):
        return tuple(who for side in fault.between for who in side)
    if isinstance(fault, Partition):
        return tuple(who for side in fault.groups for who in side)
    return (fault.node,)


def hit_nobody(fault: Fault) -> str:
    """What is said of a fault that never happened."""
    return f"{fault.kind} of {', '.join(selectors_of(fault))} met nobody alive"


def never_due(fault: Fault) -> str:
    """What is said of a fault whose moment did not come."""
    when = f"at iteration {fault.at_iteration}" if fault.at_s is None else f"at {fault.at_s:g} s"
    return f"{fault.kind} of {', '.join(selectors_of(fault))} was to be {when}, and the run ended before"


def never_drawn(fault: Fault, drawn: int) -> str:
    """What is said of a fault by rate of whose hits, of which so many were drawn, none came in the run."""
    late = f"was to be {drawn} times, and the run ended before" if drawn else "drew no hit in the run"
    return f"{fault.kind} of {', '.join(selectors_of(fault))} with per_hour = {fault.per_hour:g} {late}"


class _Script(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    fault: tuple[Annotated[Fault, Field(discriminator="kind")], ...] = ()


def parse_faults(text: str, where: str = "faults.toml") -> tuple[Fault, ...]:
    """Parse the text of a fault script. Raises FaultError with one sentence."""
    try:
        return _Script.model_validate(tomllib.loads(text)).fault
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise FaultError(f"{where} is not valid TOML: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise FaultError(f"{where}: {place}: {first['msg']}") from None


def load_faults(path: Path) -> tuple[Fault, ...]:
    """Read and parse a fault script. Raises FaultError with one sentence."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise FaultError(f"cannot read {path}: {reason}") from None
    return parse_faults(text, str(path))
