"""Regions: the figures that come with the project, and nodes that stand in them."""

from itertools import combinations

import pytest
from pydantic import ValidationError

from swarm.daemon.options import UserError
from swarm.lab.regions import GIB, Regions, load_regions


def test_every_pair_of_the_twelve_regions_has_its_measured_path() -> None:
    regions = load_regions()
    names = regions.setting("geo-distributed")
    assert len(set(names)) == 12
    assert len(regions.links) == 66
    for one, other in combinations(names, 2):
        assert regions.shape(one, other) == regions.shape(other, one)
        assert 0.003 <= regions.shape(one, other).latency_s <= 0.132


def test_figures_are_one_way_seconds_and_bytes_per_second() -> None:
    shape = load_regions().shape("LA", "Oregon")
    assert shape.latency_s == pytest.approx(0.0124)
    assert shape.bandwidth_bytes_per_s == pytest.approx(0.1185302734375 * GIB)
    assert load_regions().shape("LA", "LA").bandwidth_bytes_per_s == 2 * GIB


def test_the_suspicious_path_is_as_published_not_corrected() -> None:
    bandwidth = load_regions().shape("NL", "London").bandwidth_bytes_per_s
    assert bandwidth == pytest.approx(254_280, rel=0.001)


def test_settings_are_those_of_the_source_and_another_is_one_sentence() -> None:
    assert set(load_regions().settings) == {"geo-distributed", "5-clusters", "single-cluster"}
    with pytest.raises(UserError, match=r"no setting 'moon'.*geo-distributed"):
        load_regions().setting("moon")


def test_a_setting_with_a_pair_that_was_never_measured_is_refused() -> None:
    figures = {"latency_ms": 1, "bandwidth_GiBps": 1}
    with pytest.raises(ValidationError, match="nothing is known between A and B"):
        Regions.model_validate({"same_region": figures, "settings": {"two": ["A", "B"]}, "links": {}})


@pytest.mark.parametrize("wrong", [0, -1, float("inf")])
def test_a_bandwidth_that_no_path_can_have_is_refused(wrong: float) -> None:
    figures = {"latency_ms": 1, "bandwidth_GiBps": wrong}
    with pytest.raises(ValidationError, match="bandwidth_GiBps"):
        Regions.model_validate({"same_region": figures, "settings": {}, "links": {}})
