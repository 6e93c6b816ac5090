"""Kernel TCP through namespaces of our own, where the machine allows it."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from swarm.daemon.options import UserError
from swarm.lab import wan_namespaces
from swarm.lab.regions import load_regions
from swarm.lab.wan import HOME, WideArea, regional
from swarm.lab.wan_namespaces import inside, name_of, ours, remove, remove_stale, why_not

BECAUSE = why_not()
needs_namespaces = pytest.mark.skipif(bool(BECAUSE), reason=BECAUSE or "never")


def test_an_ordinary_user_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert why_not() == "network namespaces need root"


def test_a_machine_without_iproute2_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(wan_namespaces, "ip_command", lambda: None)
    assert why_not() == "the `ip` command is missing: install iproute2"


def test_regions_are_as_far_apart_and_as_fast_as_in_the_simulated_world() -> None:
    known = load_regions()
    near, far = known.setting("geo-distributed")[:2]
    paths, accesses = regional([near, near, far])
    assert set(paths) == {(a, b) for a in range(3) for b in range(3) if a != b}
    for pair, shape in (((0, 1), known.shape(near, near)), ((1, 2), known.shape(near, far))):
        assert (paths[pair].delay_s, paths[pair].bytes_per_s) == (
            shape.latency_s,
            shape.bandwidth_bytes_per_s,
        )
    assert accesses[2].up_bytes_per_s == known.shape(far, far).bandwidth_bytes_per_s


@needs_namespaces
async def test_tcp_takes_the_delay_hears_nothing_over_a_cut_and_goes_on_after_it() -> None:
    loop = asyncio.get_running_loop()
    async with WideArea(["a", "b"]) as wan:
        assert wan.congestion_control
        here, there = wan.places["a"], wan.places["b"]
        with inside(there.namespace), socket.socket() as listening, inside(here.namespace):
            listening.bind((there.host, 0))
            listening.listen()
            port = listening.getsockname()[1]
            calling = socket.socket()
            calling.setblocking(False)
            listening.setblocking(False)
            async with asyncio.timeout(30):
                began = loop.time()
                await loop.sock_connect(calling, (there.host, port))
                answered, _ = await loop.sock_accept(listening)
                assert loop.time() - began >= 2 * HOME.delay_s
                await wan.cut("x", [["a"], ["b"]])
                await loop.sock_sendall(calling, b"hello")
                with pytest.raises(BlockingIOError):
                    await heard_nothing(wan, answered)
                await wan.heal("x")
                assert await loop.sock_recv(answered, 5) == b"hello"
            calling.close()
            answered.close()
    assert not [name for name in ours() if name in (here.namespace, there.namespace)]


async def heard_nothing(wan: WideArea, answered: socket.socket) -> None:
    """Wait until TCP has sent twice in vain, then read what is there."""
    cut = 0
    while cut < 2:
        cut = (await wan.stats())["cut"]
    answered.recv(5)


@needs_namespaces
async def test_a_killed_forwarder_is_told_in_one_sentence_and_leaves_nothing() -> None:
    async with WideArea(["a", "b"]) as wan:
        names = {place.namespace for place in wan.places.values()}
        os.kill(int(next(iter(names)).split("-")[1]), signal.SIGKILL)
        with pytest.raises(UserError, match="forwarder"):
            await wan.heal("nothing")
    assert not names & set(ours())


@needs_namespaces
def test_nothing_is_left_when_the_command_itself_is_killed() -> None:
    code = """
        import asyncio, os, signal
        from swarm.lab.wan import WideArea

        async def main():
            async with WideArea(["a", "b"]) as wan:
                print(*(place.namespace for place in wan.places.values()), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)

        asyncio.run(main())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    names = done.stdout.split()
    assert done.returncode == -signal.SIGKILL
    assert len(names) == 2
    # The forwarder holds our end of its standard error until it has removed them: `run` waits for that.
    assert not set(names) & set(ours())


@needs_namespaces
def test_what_a_dead_process_left_is_removed_and_what_a_live_one_uses_is_not() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    stale, used = f"{wan_namespaces.PREFIX}-{ended.pid}-0", name_of(249)
    try:
        for name in (stale, used):
            wan_namespaces.make(name, "10.77.0.1/24")
        assert stale in remove_stale()
        assert stale not in ours()
        assert used in ours()
    finally:
        remove(stale)
        remove(used)
    assert not Path("/run/netns", used).exists()
