"""Buffers of which only the size is there: what a simulation sends that leaves the tensors out.

A shell says how many bytes it has, is cut like any buffer, and takes the memory of one byte; what
its sender wants known of the tensor that is not there goes along as its content.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from transport.wire import Buffer


class Shell(np.ndarray[Any, np.dtype[np.uint8]]):
    """One byte that is repeated as often as is asked for. content: never written to."""

    content: Any


def shell(nbytes: int, content: Any) -> memoryview:
    """A read-only buffer of so many bytes. Slices of it have the same content."""
    made = Shell((nbytes,), dtype=np.uint8, buffer=b"\0", strides=(0,))
    made.content = content
    return made.data


def content_of(buffer: Buffer) -> Any:
    """What a shell, or a part of one, has for content; None for any other buffer."""
    made = memoryview(buffer).obj
    return made.content if isinstance(made, Shell) else None
