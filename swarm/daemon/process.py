"""Small things a process of ours does to itself on Linux; refusals are harmless."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import platform
import re
import resource
import signal
import sys

from swarm.daemon.options import UserError

PR_SET_PDEATHSIG = 1
SYS_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
TRAINING_SLICE_NS = 50_000_000
"""Training computes long stretches: fewer switches while several nodes share the cores."""
GOSSIP_SLICE_NS = 1_000_000
"""Gossip needs little, but soon: who asks for short turns is let in earlier."""
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8


def die_with_parent(parent: int) -> None:
    """Be killed when the process that started this one dies, however it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def keep_heap() -> None:
    """Let malloc keep what it has: tensors of a microbatch come and go many times a second.

    Without this every large tensor is mapped and unmapped, and its pages faulted in again.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(ctypes.util.find_library("c"))
    settings = (
        (M_MMAP_THRESHOLD, 64 << 20),
        (M_TRIM_THRESHOLD, 256 << 20),
        (M_TOP_PAD, 16 << 20),
        (M_ARENA_MAX, 1),
    )
    for option, value in settings:
        libc.mallopt(option, value)


class _SchedAttr(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def choose_slice(slice_ns: int) -> bool:
    """Ask for time slices of this length for this thread; its priority stays ordinary (policy 0).

    Kernels before 6.12 ignore the wish. Whether it was taken.
    """
    number = SYS_SCHED_SETATTR.get(platform.machine())
    if sys.platform != "linux" or number is None:
        return False
    wish = _SchedAttr(size=ctypes.sizeof(_SchedAttr), policy=0, runtime=slice_ns)
    refused: int = ctypes.CDLL(None).syscall(number, 0, ctypes.byref(wish), 0)
    return refused == 0


def memory_total_bytes() -> int:
    """Physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_memory_bytes() -> int:
    """The most resident memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def check_device(device: str) -> None:
    """Raise UserError unless torch can use this device here."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UserError(f"{device!r} is no device: use cpu, cuda or cuda:N")
    if device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise UserError(f"{device} was asked for, but this torch finds no CUDA device: use --device cpu")
    index = int(device.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        raise UserError(
            f"{device} was asked for, but there are only {torch.cuda.device_count()} CUDA devices"
        )
