"""What a person types is read as it is meant, or answered with a sentence."""

import pytest

from swarm.daemon.typed import parse_size


@pytest.mark.parametrize(
    ("text", "size"), [("", 0), ("8G", 8 << 30), ("1.5 KiB", 1536), ("7", 7), ("2mb", 2 << 20)]
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size
