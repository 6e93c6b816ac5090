import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from swarm.daemon.options import UserError
from swarm.job import Job
from swarm.lab.processes import RealSwarm
from swarm.lab.spawner import Spawner

NODES = textwrap.dedent(
    """
    import json, os, signal, socket, sys, time
    from pathlib import Path
    from swarm.lab.fork_server import serve

    def play(directory, code):
        directory.mkdir(parents=True, exist_ok=True)
        name = directory.name
        about = {"pid": os.getpid(), "work_pid": os.getpid(), "node": name * 20, "status_port": 1}
        (directory / "node.json").write_text(json.dumps(about))
        with (directory / "events.jsonl").open("a") as file:
            event = {"time": time.time(), "node": (name * 20)[:12], "event": "started"}
            file.write(json.dumps(event) + "\\n")
        signal.sigwait({signal.SIGTERM} if name != "deaf" else {signal.SIGUSR1})
        return code

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    runners = {
        "node": lambda values: play(Path(values["data_dir"]), 0),
        "coordinator": lambda values: play(Path(values["directory"]), 3),
    }
    serve(socket.socket(fileno=int(sys.argv[1])), runners)
    """
)


def swarm(directory: Path) -> RealSwarm:
    return RealSwarm(directory, Job(), Spawner((sys.executable, "-c", NODES)))


def started(name: str) -> Any:
    return lambda event: event["event"] == "started" and event["node"] == (name * 20)[:12]


async def test_what_is_started_is_seen_killed_stopped_and_told(tmp_path: Path) -> None:
    out = tmp_path / "run"
    async with swarm(out) as real:
        await real.start_coordinator()
        await real.until(started("job"), timeout_s=20)
        for name in ("n1", "n2"):
            await real.start_node(name)
            await real.until(started(name), timeout_s=20)
        assert real.alive == ["coordinator", "n1", "n2"]
        assert real.children["n1"].node == "n1n1n1n1n1n1"
        real.kill("n1")
        assert await real.stop() == {"coordinator": 3, "n1": -9, "n2": 0}
        assert real.alive == []
    story = [json.loads(line) for line in (out / "run.jsonl").read_text().splitlines()]
    assert [(event["event"], event.get("name", "")) for event in story].count(("fault", "n1")) == 1
    assert len([event for event in story if event["event"] == "started"]) == 3
    assert story == sorted(story, key=lambda event: event["time"])


async def test_a_node_that_does_not_leave_is_killed(tmp_path: Path) -> None:
    async with swarm(tmp_path / "run") as real:
        await real.start_node("deaf")
        await real.until(started("deaf"), timeout_s=20)
        assert await real.stop(timeout_s=0.2) == {"deaf": -9}
        assert real.killed == []


async def test_a_node_comes_back_under_its_name_as_another_process(tmp_path: Path) -> None:
    async with swarm(tmp_path / "run") as real:
        first = await real.start_node("n1")
        await real.until(started("n1"), timeout_s=20)
        real.kill("n1")
        second = await real.start_node("n1")
        await real.until(started("n1"), timeout_s=20)
        assert second.pid != first.pid
        assert second.info["pid"] == second.pid
        assert real.alive == ["n1"]


async def test_a_directory_in_use_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("do not touch")
    with pytest.raises(UserError, match="is not empty"):
        async with swarm(tmp_path):
            pass
    assert (tmp_path / "precious").exists()
