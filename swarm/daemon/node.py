"""Composition root of a node: two processes, joined by a bridge, that live and die together.

The gossip process (this one) joins the job, keeps the view and serves status; it never
computes. The training process is forked first of all, before any socket or thread exists.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from swarm.daemon.bridge import Begin, Failed, Listening
from swarm.daemon.bridges import SocketBridge
from swarm.daemon.gossip_half import GossipHalf
from swarm.daemon.gossip_setup import GossipSetup
from swarm.daemon.joining import JoinRefused, MembershipRevoked, Welcomed, join, load_welcomed
from swarm.daemon.links import open_link
from swarm.daemon.lock import lock_directory
from swarm.daemon.members import read_members, remember_members
from swarm.daemon.options import NodeOptions, UserError
from swarm.daemon.process import GOSSIP_SLICE_NS, choose_slice, memory_total_bytes
from swarm.daemon.rejoining import keep_in_touch
from swarm.daemon.renewing import ASK_S, keep_certified
from swarm.daemon.status import StatusServer, serve_status
from swarm.daemon.waiting import keep_telling
from swarm.events import Emit, Event, EventFile, wall_time
from swarm.gossip.config import volunteer_wan
from swarm.gossip.messages import GOSSIP_KINDS
from transport.files import write_private
from transport.identity import Identity
from transport.invitation import Invitation, parse_invitation
from transport.wire import Schema, Signed

GOSSIP_SCHEMA = Schema(GOSSIP_KINDS)
JOIN_S = 24 * 3600.0
"""How long a node knocks at a silent lobby; it says what it waits for."""
LEAVE_S = 15.0
REFUTATIONS = 1 << 16
"""Incarnations between two lives: every refutation takes one."""
INVITATION = "invitation"
"""A file in the data directory: what this node joined with."""


def run_node(options: NodeOptions) -> int:
    """Run a node until its job is finished or it is told to leave. Returns the exit code.

    Raises UserError (and ValueErrors of one sentence) for a person's mistakes.
    """
    lock_directory(options.data_dir)
    identity = Identity.load_or_create(options.data_dir)
    invitation = parse_invitation(options.invitation) if options.invitation else None
    welcomed = kept_membership(options.data_dir, identity, invitation)
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        ours.close()
        os._exit(_train_in_child(options, identity, theirs, parent))
    theirs.close()
    node = Node(options, identity, child)
    try:
        knock_with = invitation or kept_invitation(options.data_dir)
        return asyncio.run(node.run(ours, knock_with, welcomed))
    finally:
        _reap(child)


def kept_membership(directory: Path, identity: Identity, invitation: Invitation | None) -> Welcomed | None:
    """What an earlier start was given, None if the invitation is to be spent instead.

    With an invitation a membership of another job, or one that has expired, counts for nothing.
    Raises UserError if there is neither.
    """
    try:
        welcomed = load_welcomed(directory, identity, wall_time())
    except JoinRefused:
        if invitation is None:
            raise
        return None
    if welcomed is None and invitation is None:
        raise UserError(f"{directory} has joined no job: give --join an invitation")
    if welcomed is not None and invitation is not None and invitation.job != welcomed.job.digest:
        return None
    return welcomed


def kept_invitation(directory: Path) -> Invitation | None:
    """The invitation of an earlier start: the lobby tells whoever has spent it where all are now."""
    try:
        return parse_invitation((directory / INVITATION).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _train_in_child(options: NodeOptions, identity: Identity, end: socket.socket, parent: int) -> int:
    from swarm.daemon.training_process import run_training  # torch, which the parent never needs

    return run_training(options, identity, end, parent)


def _reap(child: int) -> None:
    """Make sure that the training process is gone."""
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):
        return


@dataclass(slots=True)
class Node:
    """The gossip process of a node."""

    options: NodeOptions
    identity: Identity
    child: int

    async def run(self, end: socket.socket, invitation: Invitation | None, known: Welcomed | None) -> int:
        """Open the link, be admitted, gossip until the end."""
        options, identity = self.options, self.identity
        emit = EventFile(options.data_dir / "events.jsonl")
        bridge = await SocketBridge.open(end)
        link = await open_link(
            identity,
            GOSSIP_SCHEMA,
            what="gossip",
            directory=options.data_dir,
            emit=emit,
            host=options.host,
            advertise=options.advertise,
            port=options.gossip_port,
        )
        try:
            work = await self._work_address(bridge)
            welcomed = await self._admitted(invitation, known, link.endpoint.address, work, emit)
            bridge.send(Begin(job_toml=welcomed.job_toml, root_key=welcomed.root_key))
            setup = GossipSetup.for_member(
                identity,
                welcomed.certificate,
                role="worker",
                job=welcomed.job,
                root_key=welcomed.root_key,
                gossip=link.endpoint.address,
                work=work,
                incarnation=next_incarnation(options.data_dir),
                config=volunteer_wan(),
                rng=random.Random(),
                wall=wall_time,
                emit=emit,
                memory_bytes=options.memory_bytes or memory_total_bytes(),
            )
            half = GossipHalf(setup, link, bridge)
            half.seed((*welcomed.members, *read_members(options.data_dir)))
            return await self._serve(half, emit, welcomed, invitation)
        finally:
            await link.close()
            bridge.close()
            emit.close()

    @staticmethod
    async def _work_address(bridge: SocketBridge) -> str:
        try:
            first = await bridge.recv()
        except EOFError:
            raise UserError("the training process ended before it began: see stderr above") from None
        if isinstance(first, Failed):
            raise UserError(first.reason)
        assert isinstance(first, Listening)
        return first.address

    async def _admitted(
        self, invitation: Invitation | None, known: Welcomed | None, gossip: str, work: str, emit: Emit
    ) -> Welcomed:
        """Membership: spent from the invitation, or what an earlier start was given."""
        if invitation is None:
            assert known is not None
            return known
        said: set[str] = set()

        def waiting(what: str) -> None:
            if what not in said:
                said.add(what)
                say(f"waiting for {what}")

        limit = 5.0 if known else JOIN_S
        try:
            welcomed = await join(
                invitation, self.identity, gossip=gossip, work=work, timeout_s=limit, waiting=waiting
            )
        except UserError as error:
            emit(Event("refused", wall_time(), self.identity.node, {"reason": str(error)}))
            if known is None or isinstance(error, MembershipRevoked):
                raise
            return known  # admitted before, and the lobby is gone or the invitation is used up
        welcomed.save(self.options.data_dir)
        write_private(self.options.data_dir / INVITATION, invitation.text.encode("ascii"))
        write_private(self.options.data_dir / "job.toml", welcomed.job_toml.encode())
        emit(Event("joined", wall_time(), self.identity.node, {"job": welcomed.job.digest}))
        return welcomed

    async def _serve(
        self, half: GossipHalf, emit: Emit, welcomed: Welcomed, invitation: Invitation | None
    ) -> int:
        port = self.options.status_port
        server = await serve_status(half.snapshot, port=port) if port is not None else None
        info: dict[str, object] = {
            "pid": os.getpid(),
            "work_pid": self.child,
            "status_port": server.port if server else None,
        }
        write_info(self.options.data_dir / "node.json", info | {"node": self.identity.node})
        emit(Event("started", wall_time(), self.identity.node, {"role": "worker", **info}))
        say(f"node {self.identity.node[:12]} takes part in job {half.setup.job.name}", server)
        code = 0
        try:
            async with asyncio.TaskGroup() as tasks:
                directory = self.options.data_dir
                others = [tasks.create_task(remember_members(half, directory))]
                others.append(tasks.create_task(keep_telling(half.snapshot, say)))
                if invitation is not None:
                    renewing = keep_certified(half, self.identity, invitation, welcomed, directory, wall_time)
                    others.append(tasks.create_task(renewing))
                    ask = partial(self._ask_lobby, half, invitation, welcomed)
                    others.append(tasks.create_task(keep_in_touch(half, ask, random.Random())))
                code = await run_until_told(half, LEAVE_S)
                for task in others:
                    task.cancel()
        except* UserError as group:
            raise group.exceptions[0] from None
        finally:
            if server is not None:
                await server.close()
        return code

    async def _ask_lobby(
        self, half: GossipHalf, invitation: Invitation, welcomed: Welcomed
    ) -> tuple[Signed, ...]:
        """Who is here, as the lobby sees it; nobody if it does not answer."""
        record = half.setup.record
        try:
            found = await join(
                invitation,
                self.identity,
                gossip=record.gossip,
                work=record.work,
                timeout_s=ASK_S,
                certificate=welcomed.certificate,
            )
        except UserError:
            return ()
        return found.members


def say(what: str, server: StatusServer | None = None) -> None:
    """Tell the person who started this process what it does, and where to look."""
    where = f"; status: http://127.0.0.1:{server.port}/status" if server else ""
    print(what + where, flush=True)  # noqa: T201 - a person is watching


async def run_until_told(half: GossipHalf, leave_s: float) -> int:
    """Run a gossip half; SIGTERM and SIGINT make it leave, at the latest after `leave_s`.

    Whoever asks twice means at once.
    """
    choose_slice(GOSSIP_SLICE_NS)
    loop = asyncio.get_running_loop()
    running = asyncio.ensure_future(half.run())  # noqa: TID251 - awaited below, in this function
    asked = asyncio.Event()

    def leave(reason: str) -> Callable[[], None]:
        def on_signal() -> None:
            if asked.is_set():
                running.cancel()
                return
            asked.set()
            say(f"{reason}: leaving, within {leave_s:g} s")
            half.leave(reason)
            loop.call_later(leave_s, running.cancel)

        return on_signal

    loop.add_signal_handler(signal.SIGTERM, leave("asked to stop"))
    loop.add_signal_handler(signal.SIGINT, leave("interrupted"))
    try:
        return await running
    except asyncio.CancelledError:
        return 0


def write_info(path: Path, info: dict[str, object]) -> None:
    """Write a small JSON file in one step, so that nobody reads half of it."""
    write_private(path, json.dumps(info).encode())


def next_incarnation(directory: Path) -> int:
    """A number larger than any that an earlier life from this directory had, or came to by refuting.

    Else its records would be old news to whoever heard the last refutation.
    """
    path = directory / "incarnation"
    try:
        last = int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        last = 0
    write_private(path, str(last + REFUTATIONS).encode("ascii"))
    return last + REFUTATIONS
