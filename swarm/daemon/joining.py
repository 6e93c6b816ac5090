"""The newcomer's side of the lobby: knock until someone answers, then check what was handed over."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Annotated

import zmq
import zmq.asyncio
from pydantic import Field

from swarm.daemon.lobby import (
    FROM_LOBBY,
    MEMBERS_MAX,
    TO_LOBBY,
    Challenge,
    Hello,
    Join,
    JoinRequest,
    Refused,
    Welcome,
)
from swarm.daemon.options import UserError
from swarm.events import wall_time
from swarm.job import Job, JobError, parse_job
from transport.addresses import host_and_port, tcp_address
from transport.backoff import Backoff
from transport.files import write_private
from transport.identity import (
    CERTIFICATE_BYTES_MAX,
    CLOCK_TOLERANCE_S,
    Certificate,
    CertificateError,
    Identity,
    Part,
    PublicKey,
    check_certificate,
    pack_payload,
    unpack_payload,
)
from transport.invitation import Invitation
from transport.resolving import CannotResolve, resolved
from transport.wire import Body, Signed, WireError, WireLimits

ANSWER_S = 5.0
"""How long one knock waits: several round trips of a slow line, and a handshake."""

WAIT_S_MIN = 0.25
WAIT_S_MAX = 15.0
MEMBERSHIP_FILE = "membership"


class JoinRefused(UserError):
    """The lobby said no, or what it handed over proves nothing. The text is the sentence why."""


class MembershipRevoked(JoinRefused):
    """This node was put out of the job. What it was once given counts for nothing."""


class LobbyUnreachable(UserError):
    """Nobody answered in the time there was."""


class Welcomed(Part):
    """Membership: all a node needs to meet the swarm, now and after a restart."""

    certificate: Annotated[bytes, Field(max_length=CERTIFICATE_BYTES_MAX)]
    root_key: PublicKey
    job_toml: str
    members: Annotated[tuple[Signed, ...], Field(max_length=MEMBERS_MAX)]

    @cached_property
    def job(self) -> Job:
        """The job. Raises JobError if the text is none."""
        return parse_job(self.job_toml, "the job of the lobby")

    def save(self, directory: Path) -> None:
        """Keep it for the next start."""
        write_private(directory / MEMBERSHIP_FILE, pack_payload(self))

    def check(self, identity: Identity, job: str, now_wall: float) -> Certificate:
        """The certificate, if it makes this identity a member of `job`. Raises JoinRefused."""
        try:
            certificate = check_certificate(
                self.certificate, job=job, root_public=self.root_key, now_wall=now_wall
            )
            text_is_the_job = self.job.digest == job
        except (CertificateError, JobError) as error:
            raise JoinRefused(str(error)) from None
        if not text_is_the_job:
            raise JoinRefused("the lobby's job is not the one its invitation names")
        if (certificate.public_key, certificate.curve_key) != (identity.public_key, identity.curve_public):
            raise JoinRefused("the certificate is for another node")
        return certificate


def load_welcomed(directory: Path, identity: Identity, now_wall: float) -> Welcomed | None:
    """The membership kept in a directory, None if there is none.

    Raises JoinRefused if it no longer holds, UserError if the file is damaged.
    """
    path = directory / MEMBERSHIP_FILE
    if not path.exists():
        return None
    try:
        welcomed = unpack_payload(Welcomed, path.read_bytes(), WireLimits())
        job = welcomed.job.digest
    except (OSError, WireError, JobError):
        raise UserError(f"{path} is damaged: remove it and join with an invitation") from None
    welcomed.check(identity, job, now_wall)
    return welcomed


async def join(
    invitation: Invitation,
    identity: Identity,
    *,
    gossip: str,
    work: str,
    timeout_s: float,
    waiting: Callable[[str], None] = lambda _: None,
    answer_s: float = ANSWER_S,
    rng: random.Random | None = None,
    certificate: bytes = b"",
) -> Welcomed:
    """Spend an invitation: retry until the lobby answers, verify what it hands over.

    certificate: one to be renewed; the invitation then only says where the lobby is.

    gossip, work: "tcp://host:port" that the others will dial. waiting: told, before each pause,
    what is being waited for. answer_s: how long one knock waits. Raises JoinRefused, or
    LobbyUnreachable after `timeout_s`.
    """
    newcomer = _Newcomer(invitation, identity, gossip, work, answer_s, certificate)
    context = zmq.asyncio.Context()
    try:
        async with asyncio.timeout(timeout_s):
            welcome = await newcomer.knock(context, waiting, rng or random.SystemRandom())
    except TimeoutError:
        where = " or ".join(invitation.lobby)
        raise LobbyUnreachable(
            f"no lobby answered at {where} within {timeout_s:g} s: is the coordinator running?"
        ) from None
    finally:
        context.destroy(linger=0)
    return newcomer.accept(welcome, wall_time())


@dataclass(frozen=True, slots=True)
class _Newcomer:
    invitation: Invitation
    identity: Identity
    gossip: str
    work: str
    answer_s: float
    certificate: bytes

    async def knock(
        self, context: zmq.asyncio.Context, waiting: Callable[[str], None], rng: random.Random
    ) -> Welcome:
        """Try the addresses in turn, with jittered pauses that double up to 15 s."""
        backoff = Backoff(WAIT_S_MIN, WAIT_S_MAX, rng)
        for attempt in count():
            address = self.invitation.lobby[attempt % len(self.invitation.lobby)]
            answer = await self._attempt(context, address)
            if isinstance(answer, Welcome):
                return answer
            if isinstance(answer, Refused) and not answer.again:
                refused = MembershipRevoked if answer.revoked else JoinRefused
                raise refused(_printable(answer.reason))
            why = _printable(answer.reason) if isinstance(answer, Refused) else "no answer yet"
            waiting(f"the lobby at {address}: {why}")
            await asyncio.sleep(backoff.pause_s())
        raise AssertionError("unreachable")

    async def _attempt(self, context: zmq.asyncio.Context, address: str) -> Body | None:
        socket = context.socket(zmq.DEALER)
        socket.curve_serverkey = self.invitation.lobby_key.encode()
        socket.curve_publickey = self.identity.curve_public.encode()
        socket.curve_secretkey = self.identity.curve_secret.encode()
        socket.maxmsgsize = FROM_LOBBY.limits.header_bytes_max
        try:
            async with asyncio.timeout(self.answer_s):
                await _dial(socket, address)
                answer = await _ask(socket, Hello())
                if isinstance(answer, Challenge):
                    answer = await _ask(socket, self._request(answer.nonce))
            return answer
        except CannotResolve as error:
            return Refused(reason=str(error)[:200], again=True)
        except (TimeoutError, WireError):
            return None
        finally:
            socket.close(linger=0)

    def _request(self, nonce: bytes) -> Join:
        request = JoinRequest(
            nonce=nonce,
            invitation=self.invitation.text,
            public_key=self.identity.public_key,
            binding=self.identity.bind_curve(self.invitation.job),
            gossip=self.gossip,
            work=self.work,
            certificate=self.certificate,
        )
        return Join(request=self.identity.sign("join", pack_payload(request)))

    def accept(self, welcome: Welcome, now_wall: float) -> Welcomed:
        """What to keep of a welcome, verified under the root key of the invitation."""
        ahead_s = now_wall - welcome.time
        if abs(ahead_s) > CLOCK_TOLERANCE_S:
            side = "ahead of" if ahead_s > 0 else "behind"
            raise JoinRefused(
                f"this machine's clock is {abs(ahead_s):.0f} s {side} the coordinator's: set it"
            )
        welcomed = Welcomed(
            certificate=welcome.certificate,
            root_key=self.invitation.root_key,
            job_toml=welcome.job_toml,
            members=welcome.members,
        )
        welcomed.check(self.identity, self.invitation.job, now_wall)
        return welcomed


async def _dial(socket: zmq.asyncio.Socket, address: str) -> None:
    """Connect to tcp://HOST:PORT. Raises JoinRefused, or CannotResolve."""
    try:
        host, port = host_and_port(address)
        # libzmq would look a name up while all sockets of this process wait.
        ip = await resolved(host)
        socket.ipv6 = ":" in ip
        socket.connect(tcp_address(ip, port))
    except (zmq.ZMQError, ValueError):
        raise JoinRefused(f"the invitation names an address that cannot be dialled: {address}") from None


async def _ask(socket: zmq.asyncio.Socket, body: Body) -> Body:
    await socket.send(TO_LOBBY.pack(body))
    frames = await socket.recv_multipart()
    if len(frames) != 1:
        raise WireError(f"an answer of {len(frames)} frames")
    return FROM_LOBBY.unpack(frames[0])


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
