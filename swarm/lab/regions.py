"""Where simulated nodes stand: regions of the world, and what lies between them, as published.

The figures and their source are in `data/regions.toml`. They say nothing of a node's own access,
so it is that of two machines in one region; nor of jitter and loss, which are the world's to add.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from swarm.daemon.options import UserError
from transport.sim_paths import LinkShape

GIB = 1 << 30


class Figures(BaseModel):
    """One way between two machines: latency and the bandwidth of one transfer."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    latency_ms: Annotated[float, Field(ge=0)]
    bandwidth_GiBps: Annotated[float, Field(gt=0)]

    @property
    def shape(self) -> LinkShape:
        """As a path of the simulated network."""
        return LinkShape(latency_s=self.latency_ms / 1000, bandwidth_bytes_per_s=self.bandwidth_GiBps * GIB)


class Regions(BaseModel):
    """The file of regions. links: by two names and a hyphen, either way round; every pair is there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    same_region: Figures
    settings: Mapping[str, Annotated[tuple[str, ...], Field(min_length=1)]]
    links: Mapping[str, Figures]

    @model_validator(mode="after")
    def _every_pair_is_known(self) -> Regions:
        for setting, regions in self.settings.items():
            for one in regions:
                for other in regions:
                    if self._figures(one, other) is None:
                        raise ValueError(f"{setting}: nothing is known between {one} and {other}")
        return self

    def _figures(self, one: str, other: str) -> Figures | None:
        if one == other:
            return self.same_region
        return self.links.get(f"{one}-{other}") or self.links.get(f"{other}-{one}")

    def shape(self, one: str, other: str) -> LinkShape:
        """The path from a machine in one region to one in another, or to another in the same."""
        figures = self._figures(one, other)
        assert figures is not None, f"nothing is known between {one} and {other}"
        return figures.shape

    def setting(self, name: str) -> tuple[str, ...]:
        """The regions of a setting, which nodes are dealt to in turn. Raises UserError."""
        if name not in self.settings:
            known = ", ".join(self.settings)
            raise UserError(f"there is no setting {name!r} of regions: it is one of {known}")
        return self.settings[name]


@cache
def load_regions() -> Regions:
    """The regions that come with the project."""
    text = files("swarm.lab").joinpath("data/regions.toml").read_text(encoding="utf-8")
    return Regions.model_validate(tomllib.loads(text))
