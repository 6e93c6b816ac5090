"""What is counted stays countable, whatever peers write into their messages."""

from swarm.daemon.bridge import BRIDGE_SCHEMA, Progress
from swarm.daemon.reporting import DROPPED_MAX, capped


def test_many_reasons_become_few_and_no_count_is_lost() -> None:
    dropped = {f"reason {index}": 1 for index in range(5000)} | {"often": 9}
    told = capped(dropped)
    assert len(told) == DROPPED_MAX + 1
    assert told["often"] == 9
    assert sum(told.values()) == 5009
    assert BRIDGE_SCHEMA.unpack(BRIDGE_SCHEMA.pack(Progress(dropped=told))).kind == "progress"


def test_few_reasons_are_told_as_they_are() -> None:
    assert capped({"b": 2, "a": 1}) == {"a": 1, "b": 2}
