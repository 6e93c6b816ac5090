"""A coordinator is where its invitations say, and says on the terminal what it waits for."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from swarm.daemon.coordinator import Coordinator, run_coordinator
from swarm.daemon.jobdir import init_job, make_invitation, open_job
from swarm.daemon.joining import Welcomed, join
from swarm.daemon.options import CoordinatorOptions, UserError
from swarm.gossip.view import read_member
from swarm.job import Job
from transport.identity import Identity

NODE = Identity.create(random.Random(4))


def made(directory: Path, host: str) -> Path:
    """A job's directory, whose text is small."""
    directory.mkdir(parents=True, exist_ok=True)
    text = directory / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 200)
    job = Job.model_validate({"data": {"path": str(text), "sequence": 64}, "pipeline": {"nodes": 3}})
    init_job(directory / "job", job=job, host=host, lobby_port=0)
    return directory / "job"


@contextlib.asynccontextmanager
async def running(directory: Path, host: str = "") -> AsyncIterator[None]:
    """Its coordinator, in this process."""
    options = CoordinatorOptions(directory=directory, host=host, status_port=None)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(Coordinator(options, open_job(directory), None).run())
        yield
        task.cancel()


async def enter(directory: Path) -> Welcomed:
    address = "tcp://127.0.0.1:4000"
    return await join(make_invitation(directory), NODE, gossip=address, work=address, timeout_s=30)


@pytest.mark.parametrize("host", ["", "0.0.0.0"])
async def test_a_coordinator_listens_where_its_invitations_say(tmp_path: Path, host: str) -> None:
    directory = made(tmp_path, "127.0.0.2")
    async with running(directory, host):
        welcomed = await enter(directory)
    addresses = {record.gossip.rpartition(":")[0] for record in map(read_member, welcomed.members)}
    assert addresses == {"tcp://127.0.0.2"}


def test_an_address_that_is_not_of_this_machine_is_one_sentence(tmp_path: Path) -> None:
    directory = made(tmp_path, "192.0.2.1")
    with pytest.raises(UserError, match=r"192\.0\.2\.1 is no address of this machine: .* --host 0\.0\.0\.0"):
        run_coordinator(CoordinatorOptions(directory=directory))
