"""What a person types is read as it is meant, or answered with a sentence."""

import pytest

from swarm.daemon.options import UserError
from swarm.daemon.typed import parse_size


@pytest.mark.parametrize(
    ("text", "size"), [("", 0), ("8G", 8 << 30), ("1.5 KiB", 1536), ("7", 7), ("2mb", 2 << 20)]
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["0", "0.5", "9999999T", "9" * 400, "-1", "much", "8 G G"])
def test_a_size_that_no_memory_has_is_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match=r"is (no|not a) size.*: write it as 8G or 500M"):
        parse_size(text)
