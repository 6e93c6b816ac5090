"""The fault script: what happens to whom and when, the same file for both worlds.

    [[fault]]
    at_s = 30.0                 # or at_iteration = 20
    kind = "restart"
    node = "holder:2"           # a random holder of stage 2
    after_s = 10.0

Who is meant is said by selectors: "node:3" (the fourth node), "coordinator", "random" (any
live node), "holder:K" (a random live holder of stage K), "holders:K" (all of them). A world
asks a `FaultSchedule` what is due, resolves the selectors, and does it.
"""

from __future__ import annotations

import heapq
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator


def _is_selector(text: str) -> str:
    if not re.fullmatch(r"coordinator|random|(node|holder|holders):[0-9]{1,6}", text):
        raise ValueError(f"{text!r} is not node:N, coordinator, random, holder:STAGE or holders:STAGE")
    return text


Selector = Annotated[str, AfterValidator(_is_selector)]
Side = Annotated[tuple[Selector, ...], Field(min_length=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class FaultError(ValueError):
    """A fault script that cannot be used. The text is one sentence for the person who wrote it."""


class _Fault(BaseModel):
    """When a fault begins: at a time since the start, or when an iteration is committed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    at_iteration: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _begins_once(self) -> _Fault:
        if (self.at_s is None) == (self.at_iteration is None):
            raise ValueError("give exactly one of at_s and at_iteration")
        return self

    @property
    def lasts_s(self) -> float | None:
        """Seconds until it is undone, None if it never is."""
        lasts: float | None = getattr(self, "for_s", None)
        return lasts


class Crash(_Fault):
    """The process is killed and does not come back."""

    kind: Literal["crash"]
    node: Selector


class Restart(_Fault):
    """The process is killed and starts again `after_s` later, with what is on its disk."""

    kind: Literal["restart"]
    node: Selector
    after_s: Seconds

    @property
    def lasts_s(self) -> float | None:
        """Seconds until the process starts again."""
        return self.after_s


class Pause(_Fault):
    """The process stands still and its connections stay open."""

    kind: Literal["pause"]
    node: Selector
    for_s: Seconds | None = None


class Cut(_Fault):
    """Nothing passes between two sides. `one_way`: the second side is still heard by the first."""

    kind: Literal["cut"]
    between: tuple[Side, Side]
    one_way: bool = False
    for_s: Seconds | None = None


class Partition(_Fault):
    """Nothing passes between groups. Nodes in no group keep all connections."""

    kind: Literal["partition"]
    groups: Annotated[tuple[Side, ...], Field(min_length=2)]
    for_s: Seconds | None = None


class SlowLink(_Fault):
    """The node has `factor` times the latency and 1/`factor` of the bandwidth."""

    kind: Literal["slow_link"]
    node: Selector
    factor: Annotated[float, Field(gt=1, allow_inf_nan=False)]
    for_s: Seconds | None = None


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


Fault = Crash | Restart | Pause | Cut | Partition | SlowLink | SlowCompute | Corrupt


class _Script(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    fault: tuple[Annotated[Fault, Field(discriminator="kind")], ...] = ()


def parse_faults(text: str, where: str = "faults.toml") -> tuple[Fault, ...]:
    """Parse the text of a fault script. Raises FaultError with one sentence."""
    try:
        return _Script.model_validate(tomllib.loads(text)).fault
    except tomllib.TOMLDecodeError as error:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Who is there when a fault begins. Names are the world's own: node ids or process names.

    nodes: every node ever started, by index. live: those that can be hit, in a fixed order.
    coordinator: None once it is gone. holders: live holders of each stage, in a fixed order.
    """

    nodes: Sequence[str]
    live: Sequence[str]
    coordinator: str | None
    holders: Mapping[int, Sequence[str]]


def select(selector: str, standing: Standing, rng: Random) -> tuple[str, ...]:
    """Whom a selector means now. Empty if nobody fits, such as a stage that nobody holds."""
    which, _, number = selector.partition(":")
    if which == "coordinator":
        return () if standing.coordinator is None else (standing.coordinator,)
    if which == "node":
        return tuple(standing.nodes[int(number) : int(number) + 1])
    among = standing.live if which == "random" else standing.holders.get(int(number), ())
    if which == "holders":
        return tuple(among)
    return (rng.choice(among),) if among else ()


@dataclass(frozen=True, slots=True)
class Firing:
    """Something to do now: begin a fault, or undo it for whom it was begun.

    index: of the fault in its script; a fault is begun once and undone at most once.
    """

    index: int
    fault: Fault
    undo: bool = False


@dataclass(slots=True)
class FaultSchedule:
    """Which faults are due. `faults` are begun in order of time, then of the script."""

    faults: Sequence[Fault]
    _waiting: list[int] = field(init=False)
    _undo: list[tuple[float, int]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._waiting = sorted(range(len(self.faults)), key=lambda index: self.faults[index].at_s or 0.0)

    def due(self, now_s: float, iteration: int) -> tuple[Firing, ...]:
        """What to do at `now_s` since the start, with `iteration` committed. Undoing comes first.

        A fault lasts from the call that began it, so it is never undone in the same call.
        """
        undone = []
        while self._undo and self._undo[0][0] <= now_s:
            index = heapq.heappop(self._undo)[1]
            undone.append(Firing(index, self.faults[index], undo=True))
        begun = [index for index in self._waiting if _begins(self.faults[index], now_s, iteration)]
        self._waiting = [index for index in self._waiting if index not in begun]
        for index in begun:
            lasts_s = self.faults[index].lasts_s
            if lasts_s is not None:
                heapq.heappush(self._undo, (now_s + lasts_s, index))
        return (*undone, *(Firing(index, self.faults[index]) for index in begun))

    def next_s(self) -> float | None:
        """When `due` next has something to do, as far as time alone decides."""
        times = [at_s for index in self._waiting if (at_s := self.faults[index].at_s) is not None]
        return min([*times, *(when for when, _ in self._undo)], default=None)


def _begins(fault: Fault, now_s: float, iteration: int) -> bool:
    if fault.at_s is not None:
        return fault.at_s <= now_s
    return fault.at_iteration is not None and fault.at_iteration <= iteration
