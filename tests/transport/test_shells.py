"""Buffers of which only the size is there."""

from transport.hollow import content_of, shell
from transport.sim_link import as_sent


def test_a_shell_has_a_size_and_takes_no_memory() -> None:
    buffer = shell(1 << 50, "what is known")
    assert buffer.nbytes == 1 << 50
    assert buffer.readonly
    assert content_of(buffer) == "what is known"
    assert shell(0, "").nbytes == 0


def test_a_part_of_a_shell_has_its_own_size_and_the_content_of_the_whole() -> None:
    part = shell(1000, "all")[900:1100]
    assert part.nbytes == 100
    assert content_of(part) == "all"
    assert as_sent(part) is not None
    assert content_of(as_sent(part)) == "all"


def test_other_buffers_have_no_content() -> None:
    assert content_of(b"abc") is None
    assert content_of(memoryview(bytearray(3))) is None
