"""The lobby decides who becomes a member: what is said there, and the machine that answers.

A newcomer says `Hello`, gets a `Challenge`, and answers with a `Join` that its identity signed
over that nonce. The answer is a `Welcome` with its certificate, or a `Refused` with a sentence.
A use of the invitation is written down before the `Welcome` leaves, so a crash in between costs
nothing: the same node may come again on the same use.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, ClassVar

from pydantic import Field

from swarm.daemon.admission import Authority, Ledger
from swarm.daemon.buckets import Bucket, Sources
from swarm.events import Noted
from swarm.gossip.view import PeerAddress
from swarm.job import dump_job
from swarm.messages import Reason
from transport.identity import (
    CERTIFICATE_BYTES_MAX,
    Certificate,
    Part,
    PublicKey,
    node_id,
    unpack_payload,
    verify,
)
from transport.invitation import INVITATION_CHARS_MAX, InvitationError, parse_invitation
from transport.machine import Effect, NodeId
from transport.wire import Body, OtherVersion, Schema, Signed, WireError, WireLimits

JOIN_LIMITS = WireLimits(header_bytes_max=16_384, depth_max=4)
MEMBERS_MAX = 64
MEMBERS_BYTES_MAX = 512 << 10
"""Of records in one `Welcome`: half of what a newcomer reads, so that the job has room, too."""
SIGNED_BYTES = 256
"""Of a signed text, beyond its payload: signer, signature, field names."""
NONCE_BYTES = 32

Nonce = Annotated[bytes, Field(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]


class Hello(Body):
    """Newcomer -> lobby: I want to join."""

    kind: ClassVar[str] = "hello"


class Challenge(Body):
    """Lobby -> newcomer: sign this, once, soon."""

    kind: ClassVar[str] = "challenge"

    nonce: Nonce


class JoinRequest(Part):
    """Payload of a `Join`, in domain "join", signed by the newcomer's identity.

    binding: its word on the CURVE key of this connection. gossip, work: where it will listen.
    certificate: one that still holds, to be renewed; then the invitation is not asked for.
    """

    nonce: Nonce
    invitation: Annotated[str, Field(max_length=INVITATION_CHARS_MAX)]
    public_key: PublicKey
    binding: Signed
    gossip: PeerAddress
    work: PeerAddress
    certificate: Annotated[bytes, Field(max_length=CERTIFICATE_BYTES_MAX)] = b""


class Join(Body):
    """Newcomer -> lobby: here are my invitation and who I am."""

    kind: ClassVar[str] = "join"

    request: Signed


class Welcome(Body):
    """Lobby -> newcomer: you are a member.

    members: records to meet the swarm with, the coordinator's first. time: the lobby's clock,
    seconds since the epoch, so that a wrong clock is named at once.
    """

    kind: ClassVar[str] = "welcome"

    certificate: Annotated[bytes, Field(max_length=CERTIFICATE_BYTES_MAX)]
    job_toml: Annotated[str, Field(max_length=65_536)]
    members: Annotated[tuple[Signed, ...], Field(max_length=MEMBERS_MAX)]
    time: Annotated[float, Field(ge=0)]


class Refused(Body):
    """Lobby -> newcomer: no, and why. `again`: a new `Hello` may fare better.

    revoked: nor does an earlier certificate of this node count any more.
    """

    kind: ClassVar[str] = "refused"

    reason: Reason
    again: bool = False
    revoked: bool = False


TO_LOBBY = Schema((Hello, Join), JOIN_LIMITS)
FROM_LOBBY = Schema((Challenge, Welcome, Refused))


@dataclass(frozen=True, slots=True)
class Client:
    """The far end of a connection: its IP address, and the CURVE key it has proved (Z85 text)."""

    address: str
    curve_key: str


@dataclass(frozen=True, slots=True)
class Reply(Effect):
    """Answer the client whose message is being handled."""

    body: Body


@dataclass(frozen=True, slots=True)
class KeepLedger(Effect):
    """Write the ledger down before any later effect is carried out."""

    ledger: Ledger


@dataclass(frozen=True, slots=True)
class Admitted(Effect):
    """A node is a member from now on: whoever runs the lobby lets its CURVE key in."""

    certificate: Certificate
    gossip: str
    work: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LobbyLimits:
    """What strangers may cost.

    nonce_ttl_s: how long a challenge may be answered. Longer bears slower lines.
    nonces_max: challenges open at once; the oldest is forgotten.
    source_rate_per_s, source_burst: messages from one IP address. A join takes two; one machine
        that starts dozens of nodes at once needs the burst.
    rate_per_s, burst: messages from everybody. A join costs about 1 ms of CPU.
    sources_max: addresses remembered; the longest silent is forgotten.
    """

    nonce_ttl_s: float = 30.0
    nonces_max: int = 1024
    source_rate_per_s: float = 5.0
    source_burst: float = 128.0
    rate_per_s: float = 50.0
    burst: float = 512.0
    sources_max: int = 1024


class Lobby:
    """The machine: one message of an authenticated connection in, effects out.

    Strangers have no node id yet, so its `handle` takes a `Client` instead. `now` is monotonic,
    `now_wall` seconds since the epoch. `rng` draws nonces: the system's in the real world.
    """

    def __init__(
        self, authority: Authority, ledger: Ledger, rng: random.Random, limits: LobbyLimits | None = None
    ) -> None:
        self.authority = authority
        self.ledger = ledger
        self._rng = rng
        self._limits = limits or LobbyLimits()
        self._nonces: OrderedDict[bytes, tuple[str, float]] = OrderedDict()
        self._sources = Sources(
            self._limits.source_rate_per_s, self._limits.source_burst, self._limits.sources_max
        )
        self._all = Bucket(self._limits.rate_per_s, self._limits.burst, self._limits.burst, at=0.0)

    def handle(
        self,
        client: Client,
        header: bytes,
        now: float,
        now_wall: float,
        *,
        members: Sequence[Signed] = (),
        revoked: Collection[str] = (),
    ) -> list[Effect]:
        """Answer one message. `members` are records to pass on, `revoked` node ids and invitations."""
        limited = self._limited(client, now)
        if limited is not None:
            return limited
        try:
            body = TO_LOBBY.unpack(header)
        except OtherVersion as error:
            return _refuse(client, f"the newcomer {error}: install what the coordinator runs")
        except WireError as error:
            return _refuse(client, str(error))
        if isinstance(body, Hello):
            return [Reply(self._challenge(client, now))]
        assert isinstance(body, Join)
        return self._join(client, body.request, now, now_wall, members, revoked)

    def _limited(self, client: Client, now: float) -> list[Effect] | None:
        """None if the message may be handled. The first one over a limit is reported, none answered."""
        bucket = self._sources.of(client.address, now)
        for limit, what in ((bucket, client.address), (self._all, "everybody")):
            was_dry = limit.dry
            if not limit.take(now):
                why = f"too many lobby messages from {what}"
                return [] if was_dry else [Noted("dropped", {"what": "lobby", "why": why})]
        return None

    def _challenge(self, client: Client, now: float) -> Challenge:
        nonce = self._rng.randbytes(NONCE_BYTES)
        self._nonces[nonce] = (client.curve_key, now + self._limits.nonce_ttl_s)
        if len(self._nonces) > self._limits.nonces_max:
            self._nonces.popitem(last=False)
        return Challenge(nonce=nonce)

    def _join(
        self,
        client: Client,
        signed: Signed,
        now: float,
        now_wall: float,
        members: Sequence[Signed],
        revoked: Collection[str],
    ) -> list[Effect]:
        try:
            request = unpack_payload(JoinRequest, signed.payload, JOIN_LIMITS)
        except WireError as error:
            return _refuse(client, f"the request cannot be read: {error}")
        # A nonce is gone once it was shown, whatever comes of it.
        if not self._fresh(request.nonce, client, now):
            return _refuse(client, "the challenge is unknown, used or too old", again=True)
        if not verify(signed, "join", request.public_key):
            return _refuse(client, "the request is not signed by the identity it names")
        return self._decide(client, request, now_wall, members, revoked)

    def _fresh(self, nonce: bytes, client: Client, now: float) -> bool:
        curve_key, until = self._nonces.pop(nonce, ("", 0.0))
        return curve_key == client.curve_key and now <= until

    def _decide(
        self,
        client: Client,
        request: JoinRequest,
        now_wall: float,
        members: Sequence[Signed],
        revoked: Collection[str],
    ) -> list[Effect]:
        node = node_id(request.public_key)
        objection, role, after = self._entitled(request, node, revoked, now_wall)
        objection = objection or self.authority.binding_objection(
            request.binding, request.public_key, client.curve_key
        )
        if objection:
            return _refuse(client, objection, peer=node, revoked=node in revoked)
        self.ledger = after
        certificate, data = self.authority.certify(
            request.public_key,
            request.binding,
            role=role,
            serial=self.ledger.serial,
            now_wall=now_wall,
        )
        joined = Noted("joined", {"peer": node[:12], "role": role, "address": client.address})
        return [
            KeepLedger(self.ledger),
            Admitted(certificate, request.gossip, request.work),
            Reply(self._welcome(data, members, now_wall)),
            *([] if request.certificate else [joined]),  # who has one only asks again
        ]

    def _entitled(
        self, request: JoinRequest, node: NodeId, revoked: Collection[str], now_wall: float
    ) -> tuple[str, str, Ledger]:
        """(objection, role, ledger afterwards), by an earlier certificate or by an invitation."""
        if request.certificate:
            objection, role = self.authority.renewal(request.certificate, node, revoked, now_wall)
            return objection, role, self.ledger.renewed()
        try:
            invitation = parse_invitation(request.invitation)
        except InvitationError as error:
            return str(error), "", self.ledger
        objection = self.authority.objection(invitation, node, self.ledger, revoked, now_wall)
        return objection, invitation.role, self.ledger.after(invitation, node)

    def _welcome(self, certificate: bytes, members: Sequence[Signed], now_wall: float) -> Welcome:
        # Gossip brings the rest: a newcomer only needs enough to find somebody alive.
        others = self._rng.sample(members[1:], min(len(members[1:]), MEMBERS_MAX - 1))
        return Welcome(
            certificate=certificate,
            job_toml=dump_job(self.authority.job),
            members=_fitting([*members[:1], *others]),
            time=now_wall,
        )


def _fitting(members: Sequence[Signed]) -> tuple[Signed, ...]:
    """Those from the first on that one `Welcome` has room for, however large they are."""
    sizes = accumulate(len(signed.payload) + SIGNED_BYTES for signed in members)
    return tuple(signed for signed, nbytes in zip(members, sizes, strict=True) if nbytes <= MEMBERS_BYTES_MAX)


def _refuse(
    client: Client, reason: str, *, peer: str = "", again: bool = False, revoked: bool = False
) -> list[Effect]:
    reason = reason[:200]
    fields = {"peer": peer[:12], "reason": reason, "address": client.address}
    return [Reply(Refused(reason=reason, again=again, revoked=revoked)), Noted("refused", fields)]
