import os
from typing import Any

import pytest

from swarm.lab.bench import Probe, cpu_seconds, summarize
from swarm.lab.tally import Tally


def committed(time: float, cell: str, iteration: int) -> dict[str, Any]:
    return {"event": "committed", "time": time, "cell": cell, "iteration": iteration, "tokens": 100}


def test_cores_are_counted_between_two_times_only() -> None:
    probe = Probe(samples=[(0.0, 0.0), (1.0, 50.0), (2.0, 52.0), (3.0, 53.0), (4.0, 99.0)])
    assert probe.cores(1.0, 3.5) == pytest.approx(1.5)
    assert probe.cores(1.5, 2.5) == 0.0


def test_ratios_compare_with_the_mean_of_the_yardsticks() -> None:
    tally = Tally()
    tally.add([committed(t, "c0", t) for t in range(12)])
    probe = Probe(samples=[(2.0, 0.0), (11.0, 4.5)])
    yardsticks = [{"tokens_per_s": speed, "tokens_per_cpu_s": 250.0} for speed in (80.0, 120.0)]
    found = summarize(tally, probe, yardsticks)
    assert found["ratio"] == pytest.approx(1 / len(os.sched_getaffinity(0)), abs=1e-3)
    assert (found["swarm_cores_used"], found["swarm_tokens_per_cpu_s"], found["cpu_ratio"]) == (0.5, 200, 0.8)


def test_cpu_time_of_a_process_grows_and_that_of_nobody_is_none() -> None:
    before = cpu_seconds(os.getpid())
    while cpu_seconds(os.getpid()) == before:
        sum(range(10_000))
    assert cpu_seconds(1 << 22) == 0.0
