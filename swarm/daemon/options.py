"""What the person at a machine chooses alone. Nothing here has to agree across the swarm."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class UserError(Exception):
    """A person's mistake. The text is one sentence: what is wrong and what to do. Exit code 2."""


def explain(error: BaseException) -> str | None:
    """The sentence for the person, None if the error is ours to mend and deserves its traceback.

    An error type that the project defines carries a text for people (JobError, DataError,
    InvitationError, UserError...); the system's errors do where they name a file.
    """
    if type(error).__module__.partition(".")[0] in ("swarm", "optim", "recovery", "transport"):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename is not None:
        return f"cannot use {error.filename}: {error.strerror}"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """How one node runs.

    invitation: the text that `farflung invite` printed; may be empty when `data_dir` already
        holds a certificate.
    data_dir: identity, certificate, events and checkpoints; created, private to the user.
    host: address to listen on, and to advertise unless `advertise` says otherwise.
    advertise: address others dial, where it differs from `host` (a router forwards to it).
    gossip_port, work_port: 0 takes that of the last start from `data_dir` if it is free, else any.
    status_port: of GET /status and /metrics, on loopback; 0 takes a free one, None serves none.
    device: "cpu" or a CUDA device ("cuda", "cuda:1").
    threads: torch threads. One per process is best when several nodes share a machine.
    memory_bytes: what the node may hold; 0 means what the machine has.
    checkpoints: whether to write the stages it holds to disk.
    """

    invitation: str = ""
    data_dir: Path
    host: str = "127.0.0.1"
    advertise: str = ""
    gossip_port: int = 0
    work_port: int = 0
    status_port: int | None = 0
    device: str = "cpu"
    threads: int = 1
    memory_bytes: int = 0
    checkpoints: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorOptions:
    """How the coordinator of a job directory runs.

    directory: made by `farflung coordinator init`.
    host: address to listen on; empty takes the one that invitations name. The others are told to
        dial the latter in any case: 0.0.0.0 is for a machine behind a router that forwards to it.
    lobby_port: where invitations are spent. It is fixed at init, because invitations name it;
        0 keeps that one.
    resume: if nobody trains it, found the job from the newest whole checkpoint in `directory`, or anew.
    """

    directory: Path
    host: str = ""
    lobby_port: int = 0
    gossip_port: int = 0
    work_port: int = 0
    status_port: int | None = 0
    resume: bool = False
