"""What lies between the nodes of a world, and what each of them sends: measured in regions, or drawn."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from swarm.lab.regions import load_regions
from transport.sim_paths import LinkShape

if TYPE_CHECKING:
    from swarm.lab.world import WorldOptions

DOWNLINK = 4.0
"""What a node at home receives, in what it sends."""
JITTER = 0.1
"""Of a path's latency, on top of it: at most, or in the median if the law is log-normal."""
LOSS = 1e-4
"""Of every path: messages sent again, late."""


def region_of(options: WorldOptions, index: int) -> str:
    """Where the node of this index stands: regions are dealt in turn; "" if the world has none."""
    return options.regions[index % len(options.regions)] if options.regions else ""


def access_of(options: WorldOptions, region: str, rng: Random) -> tuple[float, float] | None:
    """Bytes per second that a node sends and receives at most; None: as much as its paths carry."""
    if options.uplink_bytes_per_s is not None:
        up = rng.uniform(*options.uplink_bytes_per_s)
        return up, DOWNLINK * up
    if not region:
        return None
    within = load_regions().shape(region, region).bandwidth_bytes_per_s
    return within, within


def path_between(options: WorldOptions, here: str, there: str, rng: Random) -> LinkShape:
    """The path between two nodes, in these regions if they are in any."""
    if here:
        shape = load_regions().shape(here, there)
    else:
        latency_s = rng.uniform(*options.latency_s)
        bandwidth = rng.uniform(*options.bandwidth_bytes_per_s)
        shape = LinkShape(latency_s=latency_s, bandwidth_bytes_per_s=bandwidth)
    return replace(shape, jitter_s=JITTER * shape.latency_s, jitter_law=options.jitter, loss=LOSS)
