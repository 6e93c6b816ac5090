"""Invitations: one line of text that a person is given, and the lobby accepts so many times.

Signed by the job's run key, they tell a newcomer where the lobby is, which key it proves, and
which root key to verify everybody with from then on.
"""

from __future__ import annotations

import base64
from typing import Annotated

from pydantic import Field

from transport.identity import (
    CurveKey,
    JobDigest,
    JobName,
    Part,
    PublicKey,
    RoleName,
    SigningKey,
    WallSeconds,
    open_grant,
    pack_payload,
    unpack_payload,
    verify,
)
from transport.wire import Signed

INVITATION_PREFIX = "farflung1:"
INVITATION_CHARS_MAX = 8192

TcpAddress = Annotated[str, Field(max_length=128, pattern=r"^tcp://[^\s/]+:[0-9]{1,5}$")]


class InvitationError(ValueError):
    """Text that is no usable invitation. The text is one sentence for whoever pasted it."""


class InvitationTerms(Part):
    """Payload in domain "invitation", signed by the run key.

    jti: names the invitation; its uses are counted under it. lobby: addresses, any will do.
    lobby_key: CURVE key the lobby proves. root_key: what the newcomer will verify everybody with.
    """

    job: JobDigest
    job_name: JobName
    jti: Annotated[str, Field(pattern=r"^[0-9a-f]{16,32}$")]
    role: RoleName
    uses: Annotated[int, Field(ge=1, le=1 << 20)]
    not_after: WallSeconds
    lobby: Annotated[tuple[TcpAddress, ...], Field(min_length=1, max_length=8)]
    lobby_key: CurveKey
    root_key: PublicKey
    grant: Signed


class Invitation(InvitationTerms):
    """Verified terms and the signed bytes they came in."""

    signed: Signed

    @property
    def text(self) -> str:
        """One URL-safe line to hand to a person."""
        return INVITATION_PREFIX + base64.urlsafe_b64encode(pack_payload(self.signed)).decode().rstrip("=")


def sign_invitation(run: SigningKey, terms: InvitationTerms) -> Invitation:
    """Invite on these terms."""
    return Invitation(**dict(terms), signed=run.sign("invitation", pack_payload(terms)))


def parse_invitation(text: str) -> Invitation:
    """Read an invitation and check that its run key signed it. Raises InvitationError.

    That the root key inside is the right one is for the lobby to say; the invited person has
    nothing to compare it with. Expiry too is judged by the lobby's clock.
    """
    text = text.strip()
    if not text:
        raise InvitationError("no invitation was given: ask the job's coordinator for one")
    if not text.startswith(INVITATION_PREFIX):
        raise InvitationError(f"this is not an invitation: one starts with {INVITATION_PREFIX}")
    try:
        signed = unpack_payload(Signed, _unbase64(text.removeprefix(INVITATION_PREFIX)))
        terms = unpack_payload(InvitationTerms, signed.payload)
        grant = open_grant(terms.grant, terms.root_key)
    except ValueError:
        raise InvitationError("the invitation is cut off or altered: copy the whole line again") from None
    if grant.job != terms.job or not verify(signed, "invitation", grant.run_key):
        raise InvitationError("the invitation is altered: its signature does not fit, ask for a new one")
    return Invitation(**dict(terms), signed=signed)


def _unbase64(text: str) -> bytes:
    if len(text) > INVITATION_CHARS_MAX:
        raise ValueError("too long")
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if base64.urlsafe_b64encode(data).decode().rstrip("=") != text:
        raise ValueError("not canonical")
    return data
