"""How often strangers may ask: token buckets, one for everybody and one for each that asks."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(slots=True)
class Bucket:
    """A token bucket: `rate_per_s` on average, `burst` at once."""

    rate_per_s: float
    burst: float
    level: float
    at: float
    dry: bool = False

    def take(self, now: float) -> bool:
        """Take one token if there is one. `dry` tells whether the last call found none."""
        self.level = min(self.burst, self.level + max(0.0, now - self.at) * self.rate_per_s)
        self.at = now
        self.dry = self.level < 1
        if not self.dry:
            self.level -= 1
        return not self.dry


class Sources:
    """A bucket for each source, of which `most` are remembered; the longest silent is forgotten."""

    def __init__(self, rate_per_s: float, burst: float, most: int) -> None:
        self._rate_per_s, self._burst, self._most = rate_per_s, burst, most
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def of(self, source: str, now: float) -> Bucket:
        """The bucket of a source, full if it was silent for long."""
        bucket = self._buckets.pop(source, None)
        bucket = bucket or Bucket(self._rate_per_s, self._burst, self._burst, now)
        self._buckets[source] = bucket
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return bucket
