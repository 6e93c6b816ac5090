"""Who is meant in a fault script, and whom that is at the moment.

"node:3" (the fourth node), "coordinator", "random" (any live node), "holder:K" (a random live
holder of stage K), "holders:K" (all of them), "region:NAME" (every live node of a region).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Annotated

from pydantic import AfterValidator


def _is_selector(text: str) -> str:
    numbered, named = r"(node|holder|holders):[0-9]{1,6}", r"region:[A-Za-z0-9_.-]{1,64}"
    if not re.fullmatch(rf"coordinator|random|{numbered}|{named}", text):
        known = "node:N, coordinator, random, holder:STAGE, holders:STAGE or region:NAME"
        raise ValueError(f"{text!r} is not {known}")
    return text


Selector = Annotated[str, AfterValidator(_is_selector)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Who is there when a fault begins. Names are the world's own: node ids or process names.

    nodes: every node ever started, by index. live: those that can be hit, in a fixed order.
    coordinator: None once it is gone. holders: live holders of each stage, in a fixed order.
    regions: live nodes of each region, none where the world has no regions.
    """

    nodes: Sequence[str]
    live: Sequence[str]
    coordinator: str | None
    holders: Mapping[int, Sequence[str]]
    regions: Mapping[str, Sequence[str]] = field(default_factory=dict)


def may_fit_later(selector: str) -> bool:
    """Whether somebody may come to be meant who is not now: it names a part, not a process."""
    return selector.partition(":")[0] in ("random", "holder", "holders", "region")


def hits_nobody(selector: str, *, nodes: int, stages: int, regions: Collection[str]) -> str:
    """Why a selector can never mean anybody, in a sentence; empty if it may.

    stages: of the job. regions: that a node stands in.
    """
    which, _, name = selector.partition(":")
    if which == "region" and name not in regions:
        known = f"only in {', '.join(sorted(set(regions)))}" if regions else "in no region, without --regions"
        return f"{selector!r} hits nobody: the nodes of this swarm are {known}"
    if which in ("holder", "holders") and int(name) >= stages:
        return f"{selector!r} hits nobody: the job has {stages} stages, the first is 0"
    if which == "node" and int(name) >= nodes:
        return f"{selector!r} names no node: there are {nodes}, node:0 is the first"
    return ""


def select(selector: str, standing: Standing, rng: Random) -> tuple[str, ...]:
    """Whom a selector means now. Empty if nobody fits, such as a stage that nobody holds."""
    which, _, number = selector.partition(":")
    if which == "coordinator":
        return () if standing.coordinator is None else (standing.coordinator,)
    if which == "node":
        return tuple(standing.nodes[int(number) : int(number) + 1])
    if which == "region":
        return tuple(standing.regions.get(number, ()))
    among = standing.live if which == "random" else standing.holders.get(int(number), ())
    if which == "holders":
        return tuple(among)
    return (rng.choice(among),) if among else ()
