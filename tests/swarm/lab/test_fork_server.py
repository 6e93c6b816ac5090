import asyncio
import os
import select
import signal
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from swarm.lab.spawner import Spawner, SpawnError

SERVER = textwrap.dedent(
    """
    import os, signal, socket, sys
    from swarm.lab.fork_server import serve

    def code(values):
        return values["code"]

    def halves(values):
        other = os.fork()
        if other:
            with open(values["data_dir"], "w") as file:
                file.write(str(other))
        signal.pause()

    def fail(values):
        raise ValueError("this is why")

    def report(values):
        print(os.getpgrp() == os.getpid(), sorted(os.listdir("/proc/self/fd")))
        return 0

    runners = {"code": code, "halves": halves, "fail": fail, "report": report}
    serve(socket.socket(fileno=int(sys.argv[1])), runners)
    """
)
COMMAND = (sys.executable, "-c", SERVER)

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pidfd and prctl are Linux")


@dataclass(frozen=True, kw_only=True)
class Options:
    code: int = 0
    data_dir: Path = Path("unused")


@pytest.fixture
def note(tmp_path: Path) -> Path:
    """A pipe in which a child names its other half; reading waits for it."""
    os.mkfifo(tmp_path / "note")
    return tmp_path / "note"


async def read(note: Path) -> int:
    async with asyncio.timeout(20):
        return int(await asyncio.to_thread(note.read_text))


async def gone(pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    readable = await asyncio.to_thread(select.select, [pidfd], [], [], 20)
    os.close(pidfd)
    assert readable[0], f"{pid} is still there"


async def test_a_child_gets_its_options_and_its_exit_code_comes_back(tmp_path: Path) -> None:
    async with Spawner(COMMAND) as spawner:
        pids = [await spawner.spawn("code", Options(code=code), tmp_path / "log") for code in (0, 7)]
        assert [await spawner.wait(pid) for pid in pids] == [0, 7]
        assert spawner.children == []


async def test_one_kill_takes_both_halves_of_a_node(tmp_path: Path, note: Path) -> None:
    async with Spawner(COMMAND) as spawner:
        pid = await spawner.spawn("halves", Options(data_dir=note), tmp_path / "log")
        other = await read(note)
        os.killpg(pid, signal.SIGKILL)
        assert await spawner.wait(pid) == -signal.SIGKILL
        await gone(other)


async def test_no_process_is_left_when_the_owner_leaves(tmp_path: Path, note: Path) -> None:
    async with Spawner(COMMAND) as spawner:
        pid = await spawner.spawn("halves", Options(data_dir=note), tmp_path / "log")
        other = await read(note)
    await gone(pid)
    await gone(other)


async def test_children_die_with_a_killed_server(tmp_path: Path, note: Path) -> None:
    async with Spawner(COMMAND) as spawner:
        pid = await spawner.spawn("halves", Options(data_dir=note), tmp_path / "log")
        await read(note)
        os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
        assert await spawner.wait(pid) == -signal.SIGKILL
        with pytest.raises(SpawnError):
            await spawner.spawn("code", Options(), tmp_path / "log")
    await gone(pid)


async def test_a_failing_child_leaves_its_reason_in_its_log(tmp_path: Path) -> None:
    log = tmp_path / "deep" / "log"
    async with Spawner(COMMAND) as spawner:
        pid = await spawner.spawn("fail", Options(), log)
        assert await spawner.wait(pid) == 1
    assert "ValueError: this is why" in log.read_text()


async def test_a_child_leads_its_group_and_shares_no_descriptor(tmp_path: Path, note: Path) -> None:
    async with Spawner(COMMAND) as spawner:
        first = await spawner.spawn("halves", Options(data_dir=note), tmp_path / "log")
        assert first in spawner.children
        await read(note)
        pid = await spawner.spawn("report", Options(), tmp_path / "report")
        await spawner.wait(pid)
    # 0, 1, 2 and the listing of the directory itself.
    assert (tmp_path / "report").read_text().strip() == "True ['0', '1', '2', '3']"


async def test_a_server_that_cannot_start_is_one_sentence() -> None:
    with pytest.raises(SpawnError, match="fork server ended"):
        async with Spawner((sys.executable, "-c", "raise SystemExit(3)")):
            pass
