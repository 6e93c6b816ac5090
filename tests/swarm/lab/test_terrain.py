"""What lies between nodes: their paths, their uplinks, and how long a message waits on top."""

from dataclasses import replace
from random import Random
from statistics import median
from typing import Literal

import pytest

from swarm.job import Job
from swarm.lab.regions import load_regions
from swarm.lab.terrain import access_of, path_between, region_of
from swarm.lab.world import WorldOptions
from transport.sim_paths import Paths

DRAWN = WorldOptions(job=Job(), latency_s=(0.1, 0.1), bandwidth_bytes_per_s=(1e6, 2e6))
MEASURED = replace(DRAWN, regions=load_regions().setting("5-clusters"))


def waits_s(jitter: Literal["uniform", "log-normal"]) -> list[float]:
    """What a thousand messages wait on top of the latency of a path, but for those sent again."""
    shape = replace(path_between(replace(DRAWN, jitter=jitter), "", "", Random(0)), loss=0.0)
    paths = Paths(Random(1), shape)
    return [paths.travel_s(shape) - shape.latency_s for _ in range(1000)]


def test_uniform_jitter_never_exceeds_a_tenth_of_the_latency_and_log_normal_has_it_as_its_median() -> None:
    assert min(waits_s("uniform")) >= 0 and max(waits_s("uniform")) <= 0.0101
    uneven = waits_s("log-normal")
    assert median(uneven) == pytest.approx(0.01, rel=0.15)
    assert max(uneven) > 0.08


def test_nodes_are_dealt_to_regions_in_turn_and_paths_are_those_measured() -> None:
    regions = [region_of(MEASURED, index) for index in range(6)]
    assert regions == [*MEASURED.regions, MEASURED.regions[0]]
    here, there = regions[:2]
    measured = load_regions().shape(here, there)
    path = path_between(MEASURED, here, there, Random(0))
    assert (path.latency_s, path.bandwidth_bytes_per_s) == (
        measured.latency_s,
        measured.bandwidth_bytes_per_s,
    )
    assert region_of(DRAWN, 3) == ""


def test_a_home_has_its_own_uplink_wherever_it_stands() -> None:
    assert access_of(DRAWN, "", Random(0)) is None
    within = access_of(MEASURED, MEASURED.regions[0], Random(0))
    assert within is not None and within[0] == within[1]
    home = replace(MEASURED, uplink_bytes_per_s=(1e6, 1e6))
    assert access_of(home, MEASURED.regions[0], Random(0)) == (1e6, 4e6)
