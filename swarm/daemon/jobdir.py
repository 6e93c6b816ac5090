"""The directory of a job: its file, its keys, and which invitations are spent.

job.toml       the job; frozen from the moment the directory is made
root.json      the root key; may be moved offline, nothing below needs it
keys.json      run key, its grant, the lobby's address and CURVE key
identity.json  the coordinator's own identity
certificate    its certificate of membership
ledger.json    nodes that spent each invitation
revoked.json   node ids and invitations that are refused, once there are any
"""

from __future__ import annotations

import random
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, Field, RootModel

from swarm.daemon.addresses import check_dialable
from swarm.daemon.admission import Authority, Ledger
from swarm.daemon.joining import MEMBERSHIP_FILE
from swarm.daemon.options import UserError
from swarm.events import wall_time
from swarm.gossip.messages import REVOKED_MAX
from swarm.job import Job, JobError, dump_job, load_job
from transport.files import write_private
from transport.identity import (
    DAY_S,
    Certificate,
    Identity,
    IdentityError,
    Part,
    RunKeyGrant,
    SigningKey,
    curve_public,
    open_grant,
    pack_payload,
    sign_grant,
    unpack_payload,
)
from transport.invitation import INVITATION_PREFIX, Invitation, InvitationError, parse_invitation
from transport.wire import Signed

RUN_KEY_DAYS = 90.0
"""How long the run key may admit nodes before whoever has the root key must say so again."""
GRANT_DAYS_MAX = 366.0
GRANT_WARNING_DAYS = 14.0
NODE_ID_CHARS = 64
SHOWN_CHARS = 12
_NODE_ID = re.compile(r"[0-9a-f]{64}")
KeyText = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RevokedName = Annotated[str, Field(pattern=r"^([0-9a-f]{16}|[0-9a-f]{64})$")]


class _RootFile(Part):
    note: str = "The job's root key. Move this file offline: running the job does not need it."
    ed25519: KeyText


class _KeysFile(Part):
    root_public: KeyText
    run_key: KeyText
    grant: str
    lobby: str
    lobby_curve_secret: str


class _LedgerFile(Part):
    spent: dict[str, list[str]] = Field(default={})
    serial: int = 0


class _RevokedFile(RootModel[list[RevokedName]]):
    pass


F = TypeVar("F", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDir:
    """An opened job directory.

    certificate: the coordinator's own, issued afresh at each opening. lobby: the address that
    invitations name.
    """

    directory: Path
    authority: Authority
    identity: Identity
    certificate: bytes
    lobby: str
    lobby_curve_secret: str

    def grant_ends_soon(self, now_wall: float) -> str:
        """A sentence for whoever has the root key, empty while there is time."""
        days = (self.authority.granted.not_after - now_wall) / DAY_S
        if days >= GRANT_WARNING_DAYS:
            return ""
        command = f"farflung coordinator grant {self.directory}"
        return f"the run key admits nodes for {max(0.0, days):.0f} more days: `{command}`"

    @property
    def job(self) -> Job:
        """The job."""
        return self.authority.job

    def certify_itself(self, now_wall: float) -> tuple[Certificate, bytes]:
        """The coordinator's next certificate: nobody else can issue it."""
        return _certify_own(self.authority, self.identity, now_wall)

    @property
    def root_key(self) -> bytes:
        """The root's public key, with which certificates are verified."""
        return self.authority.root_key

    @property
    def lobby_host(self) -> str:
        """What invitations tell newcomers to dial, as `init --host` named it."""
        return self.lobby.removeprefix("tcp://").rpartition(":")[0].strip("[]")

    @property
    def lobby_port(self) -> int:
        """Port of the lobby, fixed when the directory was made."""
        return int(self.lobby.rpartition(":")[2])

    def ledger(self) -> Ledger:
        """Which uses are spent, as last kept. Raises UserError if the file is damaged."""
        kept = _read(_LedgerFile, self.directory / "ledger.json")
        return Ledger({jti: tuple(nodes) for jti, nodes in kept.spent.items()}, kept.serial)

    def keep_ledger(self, ledger: Ledger) -> None:
        """Replace the ledger on disk: whole or not at all, and on disk when this returns."""
        kept = _LedgerFile(
            spent={jti: list(nodes) for jti, nodes in ledger.spent.items()}, serial=ledger.serial
        )
        _write(self.directory / "ledger.json", kept)

    def revoked(self) -> frozenset[str]:
        """Node ids and invitation ids that are refused from now on; read anew at each call.

        Raises UserError if the file is damaged.
        """
        path = self.directory / "revoked.json"
        return frozenset(_read(_RevokedFile, path).root) if path.exists() else frozenset()


def init_job(
    directory: Path, *, job: Job, host: str, lobby_port: int, rng: random.Random | None = None
) -> None:
    """Make a job directory. Raises UserError if there is one already or `host` cannot be dialled.

    host: where newcomers will dial the lobby. lobby_port: 0 chooses a free one, once and for all.
    """
    if any((directory / name).exists() for name in ("job.toml", "keys.json")):
        raise UserError(f"{directory} already holds a job: choose another directory")
    if directory.is_dir() and any(directory.iterdir()):
        raise UserError(f"{directory} is not empty: a job needs a directory of its own")
    check_dialable(host)
    root, run = SigningKey.create(rng), SigningKey.create(rng)
    grant = sign_grant(root, _grant_of(job, run, wall_time() + RUN_KEY_DAYS * DAY_S))
    keys = _KeysFile(
        root_public=root.public_key.hex(),
        run_key=run.secret.hex(),
        grant=pack_payload(grant).hex(),
        lobby=_tcp(host, lobby_port or _free_port()),
        lobby_curve_secret=Identity.create(rng).curve_secret,
    )
    try:
        _write_all(directory, job, root, keys, Identity.create(rng))
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror}") from None


def grant_again(directory: Path, root: Path, *, days: float = RUN_KEY_DAYS) -> float:
    """Let the job's run key admit nodes for so many days from now. Returns until when, wall seconds.

    root: the file with the root key, wherever it is kept. Certificates that are renewed from then
    on carry the new grant. Raises UserError.
    """
    if not 0 < days <= GRANT_DAYS_MAX:
        raise UserError(f"a run key is granted for more than 0 and at most {GRANT_DAYS_MAX:g} days")
    job = open_job(directory).job
    keys = _read(_KeysFile, directory / "keys.json")
    key = SigningKey(bytes.fromhex(_read(_RootFile, root).ed25519))
    if key.public_key.hex() != keys.root_public:
        raise UserError(f"{root} is the root key of another job")
    until = wall_time() + days * DAY_S
    grant = sign_grant(key, _grant_of(job, SigningKey(bytes.fromhex(keys.run_key)), until))
    try:
        _write(directory / "keys.json", keys.model_copy(update={"grant": pack_payload(grant).hex()}))
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror}") from None
    return until


def open_job(directory: Path) -> JobDir:
    """Read a job directory. Raises UserError if there is none, it is damaged, or the job was edited."""
    if (directory / MEMBERSHIP_FILE).exists():
        raise UserError(f"{directory} is a node's: name the directory of the job, beside its coordinator")
    if not (directory / "keys.json").exists():
        raise UserError(f"{directory} holds no job: make one with `farflung coordinator init {directory}`")
    keys = _read(_KeysFile, directory / "keys.json")
    try:
        authority = _authority(load_job(directory / "job.toml"), keys)
        identity = Identity.load(directory)
    except (JobError, IdentityError) as error:
        raise UserError(str(error)) from None
    except ValueError as error:
        raise UserError(f"{directory / 'keys.json'} is damaged: {error}") from None
    if authority.granted.job != authority.job.digest:
        raise UserError(
            f"{directory / 'job.toml'} was changed after the job was made: undo the change, or make a new job"
        )
    _, certificate = _certify_own(authority, identity, wall_time())
    return JobDir(
        directory=directory,
        authority=authority,
        identity=identity,
        certificate=certificate,
        lobby=keys.lobby,
        lobby_curve_secret=keys.lobby_curve_secret,
    )


def make_invitation(
    directory: Path,
    *,
    days: float = 7.0,
    uses: int = 1,
    rng: random.Random | None = None,
) -> Invitation:
    """Sign one more invitation for workers; a running coordinator will honour it. Raises UserError."""
    if not 0 < days <= 3650:
        raise UserError("an invitation lasts more than 0 and at most 3650 days")
    if not 1 <= uses <= 1 << 20:
        raise UserError("an invitation has at least 1 and at most 1048576 uses")
    job = open_job(directory)
    return job.authority.invite(
        jti=(rng or random.SystemRandom()).randbytes(8).hex(),
        role="worker",
        uses=uses,
        not_after=int(wall_time() + days * DAY_S),
        lobby=(job.lobby,),
        lobby_key=curve_public(job.lobby_curve_secret),
    )


def revoke(directory: Path, name: str) -> str:
    """Refuse a node or an invitation from now on; a running coordinator tells the members.

    name: the id of a node, or how it begins if it has joined this job; or an invitation, the
    whole line. Returns the whole id. Raises UserError.
    """
    job = open_job(directory)
    name = _whole_id(name, job)
    if name == job.identity.node:
        raise UserError("that is this job's coordinator: stop it instead")
    revoked = job.revoked() | {name}
    if len(revoked) > REVOKED_MAX:
        raise UserError(f"{REVOKED_MAX} names are revoked and no more can be: make a new job")
    _write(directory / "revoked.json", _RevokedFile(sorted(revoked)))
    return name


def _whole_id(name: str, job: JobDir) -> str:
    """The id that a person means. Raises UserError if it is none, or may be several."""
    if name.startswith(INVITATION_PREFIX):
        try:
            return parse_invitation(name).jti
        except InvitationError as error:
            raise UserError(str(error)) from None
    joined = {node for nodes in job.ledger().spent.values() for node in nodes} | {job.identity.node}
    found = sorted(node for node in joined if name and node.startswith(name))
    if len(found) == 1:
        return found[0]
    if found:
        some = ", ".join(node[:SHOWN_CHARS] for node in found[:4])
        raise UserError(f"{name!r} begins {len(found)} ids ({some}): give more of it")
    if _NODE_ID.fullmatch(name):
        return name  # it joined before the ledger was restored from a copy, or has yet to join
    raise UserError(f"no node of this job has an id that begins with {name!r}: copy it from `status`")


def _certify_own(authority: Authority, identity: Identity, now_wall: float) -> tuple[Certificate, bytes]:
    binding = identity.bind_curve(authority.job.digest)
    return authority.certify(identity.public_key, binding, role="coordinator", serial=0, now_wall=now_wall)


def _grant_of(job: Job, run: SigningKey, until: float) -> RunKeyGrant:
    return RunKeyGrant(job=job.digest, job_name=job.name, run_key=run.public_key, not_after=int(until))


def _write_all(directory: Path, job: Job, root: SigningKey, keys: _KeysFile, own: Identity) -> None:
    own.save(directory)
    _write(directory / "root.json", _RootFile(ed25519=root.secret.hex()))
    _write(directory / "ledger.json", _LedgerFile())
    write_private(directory / "job.toml", dump_job(job).encode())
    # Last, because its presence is what makes the directory a job.
    _write(directory / "keys.json", keys)


def _authority(job: Job, keys: _KeysFile) -> Authority:
    root_key = bytes.fromhex(keys.root_public)
    grant = unpack_payload(Signed, bytes.fromhex(keys.grant))
    open_grant(grant, root_key)
    return Authority(job=job, root_key=root_key, run_key=SigningKey(bytes.fromhex(keys.run_key)), grant=grant)


def _tcp(host: str, port: int) -> str:
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
    return port


def _read(model: type[F], path: Path) -> F:
    try:
        return model.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        raise UserError(f"{path} cannot be read: restore it from a copy") from None


def _write(path: Path, content: BaseModel) -> None:
    write_private(path, content.model_dump_json(indent=1).encode() + b"\n")
