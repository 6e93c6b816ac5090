"""Network namespaces of Linux: made under names of their own, entered, and removed even after a crash

Needs root, the `ip` command (iproute2) and /dev/net/tun. A name says which process made it, so
that whoever comes next can tell what a killed process left behind from what is in use.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

NAMED = Path("/run/netns")
TUN = Path("/dev/net/tun")
DEVICE = "tun0"
MTU_BYTES = 1400
"""What is left of 1500 under the tunnels of many home connections."""
PREFIX = "farflung"
_NAME = re.compile(rf"{PREFIX}-(\d+)-(\d+)")
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


class NamespaceError(OSError):
    """A namespace could not be made or entered. The text is one sentence."""


def why_not() -> str:
    """Why this machine cannot have namespaces with devices of ours; empty if it can."""
    if sys.platform != "linux":
        return "network namespaces are a thing of Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if ip_command() is None:
        return "the `ip` command is missing: install iproute2"
    if not TUN.exists():
        return f"{TUN} is missing: the kernel has no TUN devices"
    name = f"{PREFIX}-{os.getpid()}-0"
    try:
        make(name, "127.77.0.1/32")
        os.close(open_tun(name))
    except OSError as error:
        return f"a network namespace could not be made: {error}"
    finally:
        remove(name)
    return ""


def ip_command() -> str | None:
    """Where iproute2 is."""
    return shutil.which("ip") or shutil.which("ip", path="/usr/sbin:/sbin")


def name_of(node: int) -> str:
    """The name of this process's namespace for a node."""
    return f"{PREFIX}-{os.getpid()}-{node}"


def make(name: str, address: str) -> None:
    """Make a namespace with a working loopback. Its TUN device comes with `open_tun`.

    address: with prefix length, for the device. Raises NamespaceError.
    """
    _ip("netns", "add", name)
    _ip("-n", name, "link", "set", "lo", "up")
    _ip("-n", name, "tuntap", "add", "dev", DEVICE, "mode", "tun")
    _ip("-n", name, "addr", "add", address, "dev", DEVICE)
    _ip("-n", name, "link", "set", DEVICE, "mtu", str(MTU_BYTES), "txqueuelen", "2000", "up")


def remove(name: str) -> None:
    """Remove a namespace and its devices. Processes inside keep it until they end."""
    if (NAMED / name).exists():
        with contextlib.suppress(NamespaceError):  # a second process may have been quicker
            _ip("netns", "del", name)


def remove_stale() -> list[str]:
    """Remove what processes that have ended left behind. Returns the names."""
    stale = [name for name in ours() if not _is_running(int(_NAME.fullmatch(name)[1]))]  # type: ignore[index]
    for name in stale:
        remove(name)
    return stale


def ours() -> list[str]:
    """Namespaces that any process of this project made and nobody removed."""
    if not NAMED.is_dir():
        return []
    return sorted(path.name for path in NAMED.iterdir() if _NAME.fullmatch(path.name))


def enter(name: str) -> None:
    """Put the calling thread into a namespace, for ever. Raises NamespaceError."""
    there = _open(NAMED / name)
    try:
        _setns(there)
    finally:
        os.close(there)


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """The calling thread is in a namespace meanwhile: sockets and devices it opens stay there."""
    home = _open(Path("/proc/thread-self/ns/net"))
    try:
        enter(name)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def open_tun(name: str) -> int:
    """A descriptor of the namespace's TUN device: reading gives what is sent there, one packet a read."""
    with inside(name):
        device = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            request = struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI)
            fcntl.ioctl(device, _TUNSETIFF, request)
        except OSError:
            os.close(device)
            raise
    return device


def congestion_control(name: str) -> str:
    """Which algorithm TCP uses in a namespace: it decides what a lossy path carries."""
    with inside(name):
        return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text(encoding="ascii").strip()


def _ip(*words: str) -> None:
    command = ip_command()
    if command is None:
        raise NamespaceError("the `ip` command is missing: install iproute2")
    done = subprocess.run([command, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NamespaceError(f"`ip {' '.join(words)}` said: {done.stderr.strip()}")


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NamespaceError(f"there is no namespace {path.name}: {error.strerror}") from None


def _setns(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
        raise NamespaceError(f"a namespace could not be entered: {os.strerror(ctypes.get_errno())}")


def _is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
