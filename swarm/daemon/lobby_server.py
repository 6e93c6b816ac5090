"""The lobby's socket: a CURVE server that lets any key in, because nobody is known here yet."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

import zmq
import zmq.asyncio
from zmq.utils import z85

from swarm.daemon.jobdir import JobDir
from swarm.daemon.lobby import FROM_LOBBY, Admitted, Client, KeepLedger, Lobby, Refused, Reply
from swarm.daemon.options import UserError
from swarm.daemon.revoking import RevokedList
from swarm.events import Emit, Event, Noted, wall_time
from transport.identity import curve_public
from transport.machine import Effect
from transport.wire import Signed

FRAME_BYTES_MAX = 65_536
HANDSHAKE_MS = 3_000
HEARTBEAT_MS = 5_000
QUEUE_MESSAGES_MAX = 256


def open_lobby(job: JobDir, rng: random.Random | None = None) -> Lobby:
    """The lobby machine of a job directory, with the uses that are already spent."""
    return Lobby(job.authority, job.ledger(), rng or random.SystemRandom())


async def serve_lobby(
    lobby: Lobby,
    job: JobDir,
    revoked: RevokedList,
    host: str,
    port: int,
    members: Callable[[], tuple[Signed, ...]],
    emit: Emit,
    admitted: Callable[[Admitted], None] = lambda _: None,
) -> None:
    """Answer newcomers until cancelled. Raises UserError if the address cannot be listened on.

    members: records of the current members, the coordinator's own first.
    admitted: told of every new member before its `Welcome` leaves, so that its CURVE key is
        let in by the time it dials.
    """
    context = zmq.asyncio.Context()
    try:
        doorman = context.socket(zmq.REP)
        doorman.bind("inproc://zeromq.zap.01")
        socket = _listen(context, job.lobby_curve_secret, host, port)
        desk = _Desk(socket, lobby, job, revoked, members, emit, admitted)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_admit_any_key(doorman))
            tasks.create_task(desk.run())
    finally:
        context.destroy(linger=0)


def _listen(context: zmq.asyncio.Context, secret: str, host: str, port: int) -> zmq.asyncio.Socket:
    socket = context.socket(zmq.ROUTER)
    socket.curve_server = True
    socket.curve_secretkey = secret.encode()
    socket.curve_publickey = curve_public(secret).encode()
    socket.zap_domain = b"lobby"
    socket.ipv6 = True
    socket.linger = 0
    socket.maxmsgsize = FRAME_BYTES_MAX
    socket.rcvhwm = socket.sndhwm = QUEUE_MESSAGES_MAX
    socket.handshake_ivl = HANDSHAKE_MS
    socket.heartbeat_ivl = socket.heartbeat_timeout = HEARTBEAT_MS
    try:
        socket.bind(f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}")
    except zmq.ZMQError as error:
        raise UserError(
            f"the lobby cannot listen on {host}:{port}, as invitations say "
            f"({zmq.strerror(error.errno or 0)}): is this job already running?"
        ) from None
    return socket


async def _admit_any_key(doorman: zmq.asyncio.Socket) -> None:
    """Answer ZAP (rfc.zeromq.org/spec/27): yes, and the user id is the key that was proved."""
    while True:
        frames = await doorman.recv_multipart()
        version, request, *_, mechanism, key = frames[0], frames[1], *frames[2:]
        known = mechanism == b"CURVE" and len(key) == 32
        status = (b"200", b"OK", z85.encode(key)) if known else (b"400", b"CURVE only", b"")
        await doorman.send_multipart([version, request, *status, b""])


@dataclass(frozen=True, slots=True)
class _Desk:
    """Carries messages to the machine and its effects out, one newcomer at a time."""

    socket: zmq.asyncio.Socket
    lobby: Lobby
    job: JobDir
    revoked: RevokedList
    members: Callable[[], tuple[Signed, ...]]
    emit: Emit
    admitted: Callable[[Admitted], None]

    async def run(self) -> None:
        while True:
            route, *frames = await self.socket.recv_multipart(copy=False)
            if len(frames) == 1:
                await self._serve(route.bytes, frames[0])

    async def _serve(self, route: bytes, frame: zmq.Frame) -> None:
        client = Client(address=str(frame.get("Peer-Address")), curve_key=str(frame.get("User-Id")))
        now = asyncio.get_running_loop().time()
        effects = self.lobby.handle(
            client, frame.bytes, now, wall_time(), members=self.members(), revoked=self.revoked.names()
        )
        try:
            for effect in effects:
                await self._do(effect, route)
        except OSError as error:
            # The use is not on disk, so nobody is admitted on it; the newcomer comes again.
            self._note(Noted("error", {"reason": f"the ledger cannot be written: {error.strerror}"}))
            await self._do(Reply(Refused(reason="the coordinator's disk fails", again=True)), route)

    async def _do(self, effect: Effect, route: bytes) -> None:
        match effect:
            case Reply(body):
                await self.socket.send_multipart([route, FROM_LOBBY.pack(body)])
            case KeepLedger(ledger):
                self.job.keep_ledger(ledger)
            case Admitted():
                self.admitted(effect)
            case Noted():
                self._note(effect)
            case _:
                raise AssertionError(effect)

    def _note(self, noted: Noted) -> None:
        self.emit(Event(noted.kind, wall_time(), self.job.identity.node, noted.fields))
