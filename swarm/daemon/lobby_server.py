"""The lobby's rooms: CURVE servers that let any key in, because nobody is known here yet."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

import zmq
import zmq.asyncio
from zmq.utils import z85

from swarm.daemon.addresses import WILDCARDS
from swarm.daemon.jobdir import JobDir
from swarm.daemon.lobby import FROM_LOBBY, Admitted, Client, KeepLedger, Lobby, Refused, Reply
from swarm.daemon.lobby_door import Door, listen
from swarm.daemon.revoking import RevokedList
from swarm.events import Emit, Event, Noted, wall_time
from transport.identity import curve_public
from transport.machine import Effect
from transport.resolving import resolved
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
    """Answer newcomers until cancelled. Raises UserError, or CannotResolve, if it cannot listen there.

    members: records of the current members, the coordinator's own first.
    admitted: told of every new member before its `Welcome` leaves, so that its CURVE key is
        let in by the time it dials.
    """
    context = zmq.asyncio.Context()
    desk = _Desk(lobby, job, revoked, members, emit, admitted)

    def open_room(address: str, place: str) -> _Room:
        return _Room(_bind(context, job.lobby_curve_secret, place), desk, address)

    try:
        doorman = context.socket(zmq.REP)
        doorman.bind("inproc://zeromq.zap.01")
        listening = listen(host if host in WILDCARDS else await resolved(host), port)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_admit_any_key(doorman))
            tasks.create_task(Door(open_room, desk.dropped).run(listening))
    finally:
        context.destroy(linger=0)


def _bind(context: zmq.asyncio.Context, secret: str, place: str) -> zmq.asyncio.Socket:
    """A socket that listens there. Raises OSError."""
    try:
        socket = context.socket(zmq.ROUTER)
    except zmq.ZMQError as error:
        raise OSError(error.errno, error.strerror) from None
    socket.curve_server = True
    socket.curve_secretkey = secret.encode()
    socket.curve_publickey = curve_public(secret).encode()
    socket.zap_domain = b"lobby"
    socket.linger = 0
    socket.maxmsgsize = FRAME_BYTES_MAX
    socket.rcvhwm = socket.sndhwm = QUEUE_MESSAGES_MAX
    socket.handshake_ivl = HANDSHAKE_MS
    socket.heartbeat_ivl = socket.heartbeat_timeout = HEARTBEAT_MS
    try:
        socket.bind(place)
    except zmq.ZMQError as error:
        socket.close()
        raise OSError(error.errno, error.strerror) from None
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
class _Room:
    """One stranger's connection, which came from an IP address."""

    socket: zmq.asyncio.Socket
    desk: _Desk
    address: str

    async def attend(self) -> None:
        while True:
            route, *frames = await self.socket.recv_multipart(copy=False)
            if len(frames) != 1:
                continue
            client = Client(address=self.address, curve_key=str(frames[0].get("User-Id")))
            for reply in self.desk.answer(client, frames[0].bytes):
                await self.socket.send_multipart([route.bytes, FROM_LOBBY.pack(reply.body)])

    def close(self) -> None:
        self.socket.close(linger=0)


@dataclass(frozen=True, slots=True)
class _Desk:
    """Carries messages to the machine and its effects out, one message at a time."""

    lobby: Lobby
    job: JobDir
    revoked: RevokedList
    members: Callable[[], tuple[Signed, ...]]
    emit: Emit
    admitted: Callable[[Admitted], None]

    def answer(self, client: Client, header: bytes) -> list[Reply]:
        """What to reply, once all that comes before it is done."""
        now = asyncio.get_running_loop().time()
        effects = self.lobby.handle(
            client, header, now, wall_time(), members=self.members(), revoked=self.revoked.names()
        )
        try:
            for effect in effects:
                self._do(effect)
        except OSError as error:
            # The use is not on disk, so nobody is admitted on it; the newcomer comes again.
            self._note(Noted("error", {"reason": f"the ledger cannot be written: {error.strerror}"}))
            return [Reply(Refused(reason="the coordinator's disk fails", again=True))]
        return [effect for effect in effects if isinstance(effect, Reply)]

    def dropped(self, why: str, count: int) -> None:
        """The door has sent away so many by now, the last for this reason."""
        self._note(Noted("dropped", {"what": "lobby", "why": why, "count": count}))

    def _do(self, effect: Effect) -> None:
        match effect:
            case KeepLedger(ledger):
                self.job.keep_ledger(ledger)
            case Admitted():
                self.admitted(effect)
            case Noted():
                self._note(effect)
            case Reply():
                pass
            case _:
                raise AssertionError(effect)

    def _note(self, noted: Noted) -> None:
        self.emit(Event(noted.kind, wall_time(), self.job.identity.node, noted.fields))
