"""Churn: pure functions from a seed to faults, with the rates that they state."""

from collections.abc import Callable, Sequence
from random import Random

import pytest

from swarm.lab.churn import (
    HOUR_S,
    PRESETS,
    RATES,
    by_rate,
    churn,
    flap,
    per_iteration,
    per_second,
    site_loss,
    sped_up,
    spot,
    stage_failures,
)
from swarm.lab.faults import Crash, Fault, FaultError, Restart, selectors_of
from swarm.lab.trace import in_company

Preset = Callable[[Sequence[int], float, Random], tuple[Fault, ...]]


def at(fault: Fault) -> float:
    assert fault.at_s is not None
    return fault.at_s


def asked(
    text: str, *, nodes: int = 20, hours: float = 5.0, seed: int = 1, stages: int = 4
) -> tuple[Fault, ...]:
    return churn(text, nodes=nodes, stages=stages, iterations=1000, hours=hours, rng=Random(seed))


@pytest.mark.parametrize("per_hour", RATES)
def test_in_an_hour_a_node_leaves_with_the_probability_that_was_asked_for(per_hour: float) -> None:
    left = sum(len({f.node for f in by_rate(range(500), per_hour, 1, Random(s))}) for s in range(8))  # type: ignore[union-attr]
    assert left / 4000 == pytest.approx(per_hour, rel=0.15)


def test_who_left_comes_back_after_the_time_that_was_given_on_average() -> None:
    faults = by_rate(range(500), 0.33, 10, Random(1), away_s=120)
    away = [fault.after_s for fault in faults if isinstance(fault, Restart)]
    assert len(away) == len(faults)
    assert sum(away) / len(away) == pytest.approx(120, rel=0.1)


def test_a_rate_per_hour_and_its_probability_per_iteration_are_the_same_hazard() -> None:
    """The paper's own numbers at 91.3 s (the constants in its configurations are rounded otherwise)."""
    expected = dict(zip(RATES, (0.00130, 0.00267, 0.00441, 0.01011), strict=True))
    for per_hour, probability in expected.items():
        assert per_iteration(per_hour, 91.3) == pytest.approx(probability, abs=5e-6)
        assert per_iteration(per_hour, 3600) == pytest.approx(per_hour)
        assert 1 - (1 - per_iteration(per_hour, 1)) ** 3600 == pytest.approx(per_hour)
        assert per_second(per_hour) * 3600 > per_hour


def test_the_two_readings_of_checkfree_differ_by_the_number_of_body_stages_and_spare_the_ends() -> None:
    counts = {}
    for reading in ("per_stage", "one_stage"):
        faults = stage_failures(
            7,
            0.16,
            40_000,
            Random(5),
            reading=reading,
            iteration_s=91.3,
            away_s=10.0,  # type: ignore[arg-type]
        )
        stages = {fault.node for fault in faults if isinstance(fault, Restart)}
        assert stages == {f"holders:{stage}" for stage in range(1, 7)}
        counts[reading] = len(faults)
    assert counts["one_stage"] == pytest.approx(0.00441 * 40_000, rel=0.2)
    assert counts["per_stage"] / counts["one_stage"] == pytest.approx(6, rel=0.2)


def test_spot_nodes_are_lost_in_batches_as_in_a_recorded_day() -> None:
    """There 77 % of the losses have another in the same minute, and 61 % of the pool go in an hour."""
    company, losses = [], 0
    for seed in range(20):
        faults = spot(range(24), 24, Random(seed))
        company.append(in_company((at(fault), selectors_of(fault)[0]) for fault in faults))
        losses += len(faults)
    assert sum(company) / 20 == pytest.approx(0.79, abs=0.06)
    assert losses / (20 * 24 * 24) == pytest.approx(0.61, abs=0.08)


def test_a_batch_takes_a_quarter_of_a_zone_at_most() -> None:
    batches = [fault for seed in range(5) for fault in spot(range(8), 24, Random(seed))]
    alone = by_rate(range(8), 0.5, 24, Random(1))
    batched, lone = (in_company((at(f), selectors_of(f)[0]) for f in each) for each in (batches, alone))
    assert batched > 2 * lone


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_the_same_seed_gives_the_same_churn_and_a_longer_run_begins_like_a_shorter_one(
    preset: Preset,
) -> None:
    short, long = (preset(range(20), hours, Random(4)) for hours in (3.0, 30.0))
    assert preset(range(20), 3.0, Random(4)) == short
    assert [fault for fault in long if at(fault) < 3 * HOUR_S] == list(short)
    assert [at(fault) for fault in long] == sorted(at(fault) for fault in long)


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "site-loss"])
def test_nobody_leaves_again_before_it_is_back(name: str) -> None:
    back: dict[str, float] = {}
    for fault in asked(name, hours=100):
        assert isinstance(fault, Restart)
        assert at(fault) >= back.get(fault.node, 0.0) - 1e-6
        back[fault.node] = at(fault) + fault.after_s


def test_presets_are_as_harsh_as_their_names() -> None:
    losses = {name: len(asked(name, nodes=40, hours=24)) / 40 / 24 for name in PRESETS}
    assert losses["calm"] == pytest.approx(1 / 24, rel=0.3)
    assert losses["calm"] < losses["storm"] < losses["spot"] < losses["flap"]


def test_a_lost_site_takes_half_of_the_nodes_within_a_second_and_for_ever() -> None:
    faults = site_loss(range(20), 1, Random(3))
    assert len({fault.node for fault in faults if isinstance(fault, Crash)}) == 10
    assert at(faults[-1]) - at(faults[0]) < 1


def test_a_tenth_of_the_nodes_flaps_every_minute() -> None:
    faults = flap(range(20), 0.5, Random(3))
    assert len({fault.node for fault in faults if isinstance(fault, Restart)}) == 2
    assert len(faults) == pytest.approx(60, abs=4)


def test_a_speed_up_shortens_times_and_leaves_iterations() -> None:
    slow = (
        Restart(kind="restart", node="node:1", at_s=600, after_s=60),
        Restart(kind="restart", node="holders:1", at_iteration=30, after_s=60),
    )
    assert sped_up(slow, 60) == (
        Restart(kind="restart", node="node:1", at_s=10, after_s=1),
        Restart(kind="restart", node="holders:1", at_iteration=30, after_s=1),
    )


@pytest.mark.parametrize("text", ["", "0", "100", "-3", "nan", "gale", "checkfree:", "checkfree:200"])
def test_what_is_no_churn_is_one_sentence(text: str) -> None:
    with pytest.raises(FaultError, match="percentage of nodes an hour") as caught:
        asked(text)
    assert "\n" not in str(caught.value)


def test_checkfree_fails_body_stages_and_says_so_where_there_are_none() -> None:
    nodes = {fault.node for fault in asked("checkfree:33") if isinstance(fault, Restart)}
    assert nodes == {"holders:1", "holders:2", "holders:3"}
    with pytest.raises(FaultError, match="this job has none"):
        asked("checkfree:10", stages=1)
