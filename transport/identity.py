"""Who is who: node keys, the job's root and run keys, and certificates of membership.

A node *is* its Ed25519 key; that key signs a *binding* of the CURVE key its sockets prove. The
root key, which may stay offline, signs a *grant* for the run key; the run key signs certificates
(and invitations, `transport/invitation.py`). They carry the grant, so whoever holds the root's
public key verifies them alone, with nobody to ask. Payloads are signed and checked as the very
bytes they travel as.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, TypeVar

import msgpack
import zmq
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from zmq.utils import z85

from transport.files import write_private
from transport.machine import NodeId
from transport.wire import Signed, WireError, WireLimits, lists_as_tuples, unpack_map

CLOCK_TOLERANCE_S = 120
"""Volunteers' clocks are wrong: what expired less than this ago still counts."""

CERTIFICATE_DAYS = 30.0
CERTIFICATE_BYTES_MAX = 4096
IDENTITY_FILE = "identity.json"
KEY_BYTES = 32
DAY_S = 86_400

_LIMITS = WireLimits(header_bytes_max=CERTIFICATE_BYTES_MAX, depth_max=4)

PublicKey = Annotated[bytes, Field(min_length=KEY_BYTES, max_length=KEY_BYTES)]
CurveKey = Annotated[str, Field(pattern=r"^[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}$")]
JobDigest = Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]
JobName = Annotated[str, Field(max_length=48)]
RoleName = Annotated[str, Field(pattern=r"^[a-z]{1,16}$")]
WallSeconds = Annotated[int, Field(ge=0, lt=1 << 53)]


class IdentityError(ValueError):
    """A key file that cannot be used. The text is one sentence for its owner."""


class CertificateError(ValueError):
    """A certificate that proves nothing. The text is the precise reason."""


class Part(BaseModel):
    """Base of what is signed."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


P = TypeVar("P", bound=BaseModel)


def pack_payload(part: BaseModel) -> bytes:
    """The bytes of a part that is about to be signed."""
    data: bytes = msgpack.packb(part.model_dump())
    return data


def unpack_payload(model: type[P], data: bytes, limits: WireLimits = _LIMITS) -> P:
    """Decode bounded bytes into a validated part. Raises WireError, and nothing else."""
    try:
        return model.model_validate(lists_as_tuples(unpack_map(data, limits)))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise WireError(f"{where}: {first['msg']}") from None


def within(job: str, domain: str) -> str:
    """The domain of what is signed as a member of a job (its digest).

    One data directory may serve several jobs with one identity: what it said in one must not
    be believed in another.
    """
    return f"{domain}:{job}"


def node_id(public_key: bytes) -> NodeId:
    """Hex BLAKE2b-256 of a raw Ed25519 public key."""
    return NodeId(hashlib.blake2b(public_key, digest_size=32).hexdigest())


def _signed_digest(domain: str, payload: bytes) -> bytes:
    tag = domain.encode()
    return hashlib.blake2b(bytes([len(tag)]) + tag + payload).digest()


@lru_cache(maxsize=4096)
def _check_signature(public_key: bytes, signature: bytes, digest: bytes) -> None:
    # Raising is what keeps failures out of the cache: forgeries cannot push records out of it.
    Ed25519PublicKey.from_public_bytes(public_key).verify(signature, digest)


def verify(signed: Signed, domain: str, public_key: bytes) -> bool:
    """Whether `public_key` signed exactly these bytes in this domain, and is the named signer.

    Successes are remembered (a check costs 0.1 ms); what is remembered is digests, so the size
    of payloads does not matter.
    """
    if len(public_key) != KEY_BYTES or signed.signer != node_id(public_key):
        return False
    try:
        _check_signature(public_key, signed.signature, _signed_digest(domain, signed.payload))
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclass(frozen=True)
class SigningKey:
    """An Ed25519 key: a node's, a job's root key or its run key."""

    secret: bytes = field(repr=False)

    @classmethod
    def create(cls, rng: random.Random | None = None) -> SigningKey:
        """A fresh key, from the operating system unless a seeded source is given."""
        return cls((rng or random.SystemRandom()).randbytes(KEY_BYTES))

    @cached_property
    def _private(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.secret)

    @cached_property
    def public_key(self) -> bytes:
        """Raw public key, 32 bytes."""
        return self._private.public_key().public_bytes_raw()

    @cached_property
    def signer(self) -> NodeId:
        """How this key is named in what it signs."""
        return node_id(self.public_key)

    def sign(self, domain: str, payload: bytes) -> Signed:
        """Sign the BLAKE2b-512 digest of the length-prefixed domain tag and the payload."""
        signature = self._private.sign(_signed_digest(domain, payload))
        return Signed(payload=payload, signer=self.signer, signature=signature)


class _KeyFile(Part):
    ed25519: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    curve: CurveKey


@dataclass(frozen=True)
class Identity:
    """A node's two keys: Ed25519 to sign, CURVE (Z85 text) for its sockets."""

    key: SigningKey
    curve_secret: str = field(repr=False)

    @classmethod
    def create(cls, rng: random.Random | None = None) -> Identity:
        """A fresh identity; with a seeded `rng` always the same one."""
        key = SigningKey.create(rng)
        secret = (rng or random.SystemRandom()).randbytes(KEY_BYTES)
        return cls(key, z85.encode(secret).decode())

    @classmethod
    def load(cls, directory: Path) -> Identity:
        """The identity kept in a directory. Raises IdentityError if there is no readable one."""
        path = directory / IDENTITY_FILE
        try:
            kept = _KeyFile.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            raise IdentityError(
                f"{path} does not hold a readable identity: restore it, or remove it to start as a new node"
            ) from None
        return cls(SigningKey(bytes.fromhex(kept.ed25519)), kept.curve)

    @classmethod
    def load_or_create(cls, directory: Path, rng: random.Random | None = None) -> Identity:
        """The identity kept in a directory, made on first use. Raises IdentityError."""
        if (directory / IDENTITY_FILE).exists():
            return cls.load(directory)
        identity = cls.create(rng)
        identity.save(directory)
        return identity

    def save(self, directory: Path) -> None:
        """Write the identity, readable by its owner alone."""
        kept = _KeyFile(ed25519=self.key.secret.hex(), curve=self.curve_secret)
        write_private(directory / IDENTITY_FILE, kept.model_dump_json().encode())

    @property
    def node(self) -> NodeId:
        """Node id."""
        return self.key.signer

    @property
    def public_key(self) -> bytes:
        """Raw Ed25519 public key, 32 bytes."""
        return self.key.public_key

    @cached_property
    def curve_public(self) -> str:
        """CURVE public key, Z85 text."""
        return curve_public(self.curve_secret)

    def sign(self, domain: str, payload: bytes) -> Signed:
        """Sign as this node."""
        return self.key.sign(domain, payload)

    def signing_in(self, job: str) -> Callable[[str, bytes], Signed]:
        """(domain, payload) -> signed by this node as a member of this job (its digest)."""
        return lambda domain, payload: self.sign(within(job, domain), payload)

    def bind_curve(self, job: str) -> Signed:
        """This node's word that within `job` its sockets prove `curve_public`."""
        return self.sign("curve-binding", pack_payload(Binding(job=job, curve_key=self.curve_public)))


def curve_public(secret: str) -> str:
    """The CURVE public key of a secret key, both Z85 text."""
    return zmq.curve_public(secret.encode()).decode()


class Binding(Part):
    """Payload in domain "curve-binding", signed by a node: the CURVE key it uses in a job."""

    job: JobDigest
    curve_key: CurveKey


class RunKeyGrant(Part):
    """Payload in domain "run-grant", signed by the root key: who admits nodes, until when."""

    job: JobDigest
    job_name: JobName
    run_key: PublicKey
    not_after: WallSeconds


def sign_grant(root: SigningKey, grant: RunKeyGrant) -> Signed:
    """Empower a run key."""
    return root.sign("run-grant", pack_payload(grant))


def open_grant(grant: Signed, root_key: bytes) -> RunKeyGrant:
    """The grant, if this root key signed it. Raises WireError."""
    if not verify(grant, "run-grant", root_key):
        raise WireError("its run key is not granted by the job's root key")
    return unpack_payload(RunKeyGrant, grant.payload)


class Certificate(Part):
    """Payload in domain "certificate", signed by the run key: this node is a member.

    binding: the node's own signature on `curve_key`, so that not even the run key can swap it.
    """

    job: JobDigest
    node: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    public_key: PublicKey
    curve_key: CurveKey
    binding: Signed
    role: RoleName
    serial: Annotated[int, Field(ge=0, lt=1 << 53)]
    not_before: WallSeconds
    not_after: WallSeconds


class _Sealed(Part):
    certificate: Signed
    grant: Signed


def seal_certificate(run: SigningKey, grant: Signed, certificate: Certificate) -> bytes:
    """Sign a certificate: the bytes that travel in a member's record, at most 4096."""
    signed = run.sign("certificate", pack_payload(certificate))
    data = pack_payload(_Sealed(certificate=signed, grant=grant))
    assert len(data) <= CERTIFICATE_BYTES_MAX
    return data


def open_binding(binding: Signed, public_key: bytes) -> Binding:
    """The binding, if this node key signed it. Raises WireError."""
    if not verify(binding, "curve-binding", public_key):
        raise WireError("the CURVE key is not bound by the node's identity")
    return unpack_payload(Binding, binding.payload)


def check_certificate(data: bytes, *, job: str, root_public: bytes, now_wall: float) -> Certificate:
    """The certificate, verified alone from the root's public key. Raises CertificateError.

    `now_wall` is seconds since the epoch. Whoever presents the certificate must still prove its
    node key (by a signature) or its `curve_key` (by a connection).
    """
    try:
        sealed = unpack_payload(_Sealed, data)
        grant = open_grant(sealed.grant, root_public)
        if not verify(sealed.certificate, "certificate", grant.run_key):
            raise WireError("it is not signed by the job's run key")
        certificate = unpack_payload(Certificate, sealed.certificate.payload)
        binding = open_binding(certificate.binding, certificate.public_key)
    except WireError as error:
        raise CertificateError(f"certificate refused: {error}") from None
    reason = _fault(certificate, binding, grant, job, now_wall)
    if reason:
        raise CertificateError(f"certificate refused: {reason}")
    return certificate


def granted_run_key(data: bytes, root_public: bytes) -> bytes:
    """The run key that issued a certificate, if the root key grants it. Raises WireError."""
    return open_grant(unpack_payload(_Sealed, data).grant, root_public).run_key


def _fault(certificate: Certificate, binding: Binding, grant: RunKeyGrant, job: str, now: float) -> str:
    if not certificate.job == binding.job == grant.job == job:
        return "it is for another job"
    if certificate.node != node_id(certificate.public_key):
        return "its node id is not the hash of its key"
    if certificate.curve_key != binding.curve_key:
        return "its CURVE key is not the one the node's identity binds"
    if now < certificate.not_before - CLOCK_TOLERANCE_S:
        return "it is not yet valid: is a clock wrong?"
    if now > certificate.not_after + CLOCK_TOLERANCE_S:
        return "it has expired"
    if now > grant.not_after + CLOCK_TOLERANCE_S:
        return "the grant of its run key has expired"
    return ""
