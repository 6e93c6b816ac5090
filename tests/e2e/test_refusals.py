"""Whoever may not join, or asks for what cannot be, hears one sentence and ends with code 2."""

import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from real_world import of_kind, small_job

from swarm.daemon.jobdir import init_job, make_invitation, open_job, revoke
from swarm.lab.processes import RealSwarm
from transport.invitation import Invitation

pytestmark = pytest.mark.e2e


@pytest_asyncio.fixture
async def swarm(tmp_path: Path) -> AsyncIterator[RealSwarm]:
    """A coordinator that waits for more nodes than ever come."""
    async with RealSwarm(tmp_path / "run", small_job(nodes=3)) as real:
        await real.start_coordinator()
        await real.until(of_kind("started"), timeout_s=30)
        yield real


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on loopback that somebody listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


async def sentence(swarm: RealSwarm, name: str, **choices: Any) -> str:
    """Start a node that must not run; what it says on stderr."""
    await swarm.start_node(name, **choices)
    return await last_words(swarm, name)


async def last_words(swarm: RealSwarm, name: str) -> str:
    code = await swarm.ended(name, timeout_s=30)
    words = swarm.log(name).splitlines()
    said = [line for line in words if not line.startswith(("waiting for ", "job ", "node "))]
    assert (code, len(said)) == (2, 1), words
    assert said[0].startswith("error: ")
    return said[0]


async def refused(swarm: RealSwarm) -> str:
    """Why the coordinator turned somebody away."""
    coordinator = swarm.children["coordinator"].node
    event = await swarm.until(of_kind("refused", node=coordinator), timeout_s=10)
    return str(event["reason"])


def altered(invitation: Invitation) -> str:
    text = invitation.text
    middle = len(text) // 2
    return text[:middle] + ("A" if text[middle] != "A" else "B") + text[middle + 1 :]


def expired(directory: Path) -> str:
    job = open_job(directory)
    terms = make_invitation(directory)
    return job.authority.invite(
        jti=terms.jti,
        role="worker",
        uses=1,
        not_after=1_600_000_000,
        lobby=terms.lobby,
        lobby_key=terms.lobby_key,
    ).text


async def test_no_invitation(swarm: RealSwarm) -> None:
    assert "give --join an invitation" in await sentence(swarm, "nobody", invitation="")


async def test_an_altered_invitation(swarm: RealSwarm) -> None:
    words = await sentence(swarm, "forger", invitation=altered(make_invitation(swarm.job_directory)))
    assert "altered" in words


async def test_an_expired_invitation(swarm: RealSwarm) -> None:
    words = await sentence(swarm, "late", invitation=expired(swarm.job_directory))
    assert "expired" in words
    assert "expired" in await refused(swarm)


async def test_a_spent_invitation(swarm: RealSwarm) -> None:
    once = make_invitation(swarm.job_directory, uses=1).text
    await swarm.start_node("first", invitation=once)
    await swarm.until(of_kind("joined"), timeout_s=30)
    assert "spent" in await sentence(swarm, "second", invitation=once)
    assert "spent" in await refused(swarm)
    assert "first" in swarm.alive


async def test_an_invitation_to_another_job(swarm: RealSwarm, tmp_path: Path) -> None:
    """It names our lobby, but another root signed it."""
    other = tmp_path / "other"
    init_job(other, job=small_job(nodes=7), host="127.0.0.1", lobby_port=0)
    here, there = open_job(swarm.job_directory), make_invitation(other)
    ours = make_invitation(swarm.job_directory)
    text = (
        open_job(other)
        .authority.invite(
            jti=there.jti,
            role="worker",
            uses=1,
            not_after=there.not_after,
            lobby=(here.lobby,),
            lobby_key=ours.lobby_key,
        )
        .text
    )
    assert "another job" in await sentence(swarm, "stranger", invitation=text)
    assert "another job" in await refused(swarm)


@pytest.mark.parametrize("port", ["status_port", "gossip_port", "work_port"])
async def test_a_port_in_use(swarm: RealSwarm, taken: int, port: str) -> None:
    words = await sentence(swarm, "squeezed", **{port: taken})
    assert str(taken) in words


async def test_a_device_that_is_not_there(swarm: RealSwarm) -> None:
    words = await sentence(swarm, "proud", device="cuda")
    assert "CUDA" in words


async def test_a_second_coordinator_of_the_same_job(swarm: RealSwarm) -> None:
    await swarm.until_true(lambda: bool(swarm.children["coordinator"].info), timeout_s=10)
    await swarm.start_coordinator()
    assert "is in use by process" in await last_words(swarm, "coordinator")


async def test_a_revoked_node_is_told_ends_and_does_not_come_back(swarm: RealSwarm) -> None:
    for name in ("outcast", "other"):
        await swarm.start_node(name)
        await swarm.until(of_kind("started", role="worker"), timeout_s=30)
    outcast = swarm.children["outcast"].node
    revoke(swarm.job_directory, outcast)
    assert "membership was revoked" in await last_words(swarm, "outcast")
    gone = of_kind("member", member=outcast, status="left", reason="revoked")
    where = {swarm.children[name].node for name in ("coordinator", "other")}
    await swarm.until_true(
        lambda: where <= {event["node"] for event in swarm.story if gone(event)}, timeout_s=30
    )
    await swarm.start_node("outcast")
    assert await swarm.ended("outcast", timeout_s=30) == 2
    assert swarm.log("outcast").splitlines()[-1] == "error: this node was revoked and may not join this job"


async def test_text_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.txt"
    async with RealSwarm(tmp_path / "run", small_job(data={"path": str(missing)})) as swarm:
        await swarm.start_coordinator()
        assert str(missing) in await last_words(swarm, "coordinator")
