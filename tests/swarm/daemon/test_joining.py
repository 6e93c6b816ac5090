"""A newcomer and the lobby, over real sockets: admitted with an invitation, else told why not."""

import asyncio
import contextlib
import random
import resource
import socket
import stat
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import zmq
import zmq.asyncio

from swarm.daemon.admission import Ledger
from swarm.daemon.jobdir import JobDir, init_job, make_invitation, open_job, revoke
from swarm.daemon.joining import JoinRefused, LobbyUnreachable, Welcomed, join, load_welcomed
from swarm.daemon.lobby import FROM_LOBBY, TO_LOBBY, Admitted, Challenge, Hello, Refused
from swarm.daemon.lobby_server import open_lobby, serve_lobby
from swarm.daemon.options import UserError
from swarm.daemon.renewing import due_at, keep_certified
from swarm.daemon.revoking import RevokedList
from swarm.events import Event, wall_time
from swarm.job import Job, dump_job
from transport.identity import DAY_S, Identity, check_certificate, curve_public
from transport.invitation import Invitation
from transport.wire import Signed

if TYPE_CHECKING:
    from swarm.daemon.gossip_half import GossipHalf
    from transport.identity import Certificate

RNG = random.Random(21)
NODE, OTHER = Identity.create(RNG), Identity.create(RNG)
MEMBER = OTHER.sign("member", b"a record")


@dataclass
class House:
    """A job directory with its lobby open on a free port."""

    job: JobDir
    events: list[Event] = field(default_factory=list)
    admitted: list[Admitted] = field(default_factory=list)

    async def serve(self, members: tuple[Signed, ...] = (MEMBER,)) -> None:
        await serve_lobby(
            open_lobby(self.job),
            self.job,
            RevokedList(self.job, self.events.append),
            "127.0.0.1",
            self.job.lobby_port,
            lambda: members,
            self.events.append,
            self.admitted.append,
        )

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


@contextlib.asynccontextmanager
async def open_house(directory: Path, name: str = "ours") -> AsyncIterator[House]:
    if not (directory / "keys.json").exists():
        init_job(directory, job=Job(name=name), host="127.0.0.1", lobby_port=0)
    house = House(open_job(directory))
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(house.serve())
        yield house
        serving.cancel()


async def enter(invitation: Invitation, who: Identity = NODE, timeout_s: float = 20.0) -> Welcomed:
    return await join(
        invitation, who, gossip="tcp://127.0.0.1:4000", work="tcp://127.0.0.1:4001", timeout_s=timeout_s
    )


async def test_an_invitation_makes_a_node_a_member(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        welcomed = await enter(make_invitation(tmp_path))
    certificate = check_certificate(
        welcomed.certificate, job=house.job.job.digest, root_public=house.job.root_key, now_wall=wall_time()
    )
    assert (certificate.node, certificate.role) == (NODE.node, "worker")
    assert (welcomed.job, welcomed.members) == (house.job.job, (MEMBER,))
    assert [entry.certificate for entry in house.admitted] == [certificate]
    assert house.kinds() == ["joined"]
    assert house.events[0].node == house.job.identity.node


async def test_the_lobby_may_go_by_a_name(tmp_path: Path) -> None:
    init_job(tmp_path, job=Job(), host="localhost", lobby_port=0)
    async with open_house(tmp_path) as house:
        invitation = make_invitation(tmp_path)
        assert invitation.lobby == (f"tcp://localhost:{house.job.lobby_port}",)
        assert (await enter(invitation)).members == (MEMBER,)


async def test_a_newcomer_waits_for_the_lobbys_name_to_be_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    look_up, told = loop.getaddrinfo, list[str]()

    async def unknown_at_first(host: str, *args: Any, **kwargs: Any) -> Any:
        if not told:
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        return await look_up(host, *args, **kwargs)

    init_job(tmp_path, job=Job(), host="localhost", lobby_port=0)
    async with open_house(tmp_path):
        monkeypatch.setattr(loop, "getaddrinfo", unknown_at_first)
        invitation = make_invitation(tmp_path)
        address = invitation.lobby[0]
        where = {"gossip": "tcp://127.0.0.1:4000", "work": "tcp://127.0.0.1:4001"}
        await join(invitation, NODE, **where, timeout_s=20.0, waiting=told.append)
    why = "'localhost' stands for no address: Temporary failure in name resolution"
    assert told == [f"the lobby at {address}: {why}"]


async def test_many_nodes_join_at_once_on_one_invitation(tmp_path: Path) -> None:
    people = [Identity.create(RNG) for _ in range(8)]
    async with open_house(tmp_path) as house:
        invitation = make_invitation(tmp_path, uses=8)
        async with asyncio.TaskGroup() as tasks:
            for who in people:
                tasks.create_task(enter(invitation, who))
        with pytest.raises(JoinRefused, match="spent"):
            await enter(invitation)
    assert house.kinds() == ["joined"] * 8 + ["refused"]
    assert {entry.certificate.node for entry in house.admitted} == {who.node for who in people}


async def test_each_wrong_invitation_gets_its_sentence_and_one_event(tmp_path: Path) -> None:
    init_job(tmp_path / "theirs", job=Job(name="theirs"), host="127.0.0.1", lobby_port=0)
    theirs = make_invitation(tmp_path / "theirs")
    async with open_house(tmp_path / "ours") as house:
        ours = make_invitation(tmp_path / "ours")
        authority = house.job.authority
        key = ours.lobby_key
        expired = authority.invite(
            jti="ee" * 8, role="worker", uses=1, not_after=1000, lobby=ours.lobby, lobby_key=key
        )
        # Somebody else's invitation, sent to our lobby by hand.
        misdirected = theirs.model_copy(update={"lobby": ours.lobby, "lobby_key": key})
        revoked = make_invitation(tmp_path / "ours")
        revoke(tmp_path / "ours", revoked.text)
        tampered = ours.model_copy(update={"signed": ours.signed.model_copy(update={"signature": bytes(64)})})
        wrong = [
            (expired, "has expired"),
            (misdirected, "for another job"),
            (revoked, "was revoked"),
            (tampered, "is altered"),
        ]
        for invitation, reason in wrong:
            with pytest.raises(JoinRefused, match=reason):
                await enter(invitation)
    assert house.kinds() == ["refused"] * len(wrong)
    assert house.job.ledger() == Ledger()
    assert house.admitted == []


async def test_a_swapped_curve_key_is_refused(tmp_path: Path) -> None:
    class Swapper(Identity):
        def bind_curve(self, job: str) -> Signed:
            return Identity(self.key, OTHER.curve_secret).bind_curve(job)

    async with open_house(tmp_path) as house:
        with pytest.raises(JoinRefused, match="CURVE key of the connection is not the one"):
            await enter(make_invitation(tmp_path), Swapper(NODE.key, NODE.curve_secret))
    assert house.kinds() == ["refused"]


async def test_spent_uses_survive_a_restart_and_the_same_node_may_come_again(tmp_path: Path) -> None:
    async with open_house(tmp_path):
        invitation = make_invitation(tmp_path)
        first = await enter(invitation)
    async with open_house(tmp_path) as house:
        again = await enter(invitation)
        with pytest.raises(JoinRefused, match="spent"):
            await enter(invitation, OTHER)
    assert again.certificate != first.certificate
    assert house.job.ledger() == Ledger({invitation.jti: (NODE.node,)}, serial=2)


async def test_a_newcomer_waits_for_a_lobby_that_opens_later(tmp_path: Path) -> None:
    init_job(tmp_path, job=Job(), host="127.0.0.1", lobby_port=0)
    invitation = make_invitation(tmp_path)
    opened = asyncio.Event()

    async def serve_once_waited_for() -> None:
        await opened.wait()
        await House(open_job(tmp_path)).serve()

    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(serve_once_waited_for())
        said: list[str] = []

        def waiting(why: str) -> None:
            said.append(why)
            opened.set()

        await join(
            invitation,
            NODE,
            gossip="tcp://127.0.0.1:4000",
            work="tcp://127.0.0.1:4001",
            timeout_s=30,
            waiting=waiting,
            answer_s=0.3,
        )
        serving.cancel()
    assert said[0] == f"the lobby at {invitation.lobby[0]}: no answer yet"


async def test_a_lobby_that_never_answers_is_named(tmp_path: Path) -> None:
    init_job(tmp_path, job=Job(), host="127.0.0.1", lobby_port=0)
    with pytest.raises(LobbyUnreachable, match=r"no lobby answered at tcp://127\.0\.0\.1:\d+ within 0\.2 s"):
        await enter(make_invitation(tmp_path), timeout_s=0.2)


async def test_a_lobby_that_cannot_prove_its_key_learns_nothing(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        stranger = curve_public(OTHER.curve_secret)
        invitation = make_invitation(tmp_path).model_copy(update={"lobby_key": stranger})
        with pytest.raises(LobbyUnreachable):
            await enter(invitation, timeout_s=0.5)
    assert house.events == []


async def test_a_second_lobby_on_the_same_port_is_one_sentence(tmp_path: Path) -> None:
    init_job(tmp_path, job=Job(), host="127.0.0.1", lobby_port=0)
    job = open_job(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", job.lobby_port))
        taken.listen()
        with pytest.raises(UserError, match=r"cannot listen on .* is this job already running"):
            await House(job).serve()


async def test_a_full_disk_admits_nobody_and_the_newcomer_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, failures = JobDir.keep_ledger, [OSError(28, "No space left on device")]

    def failing_once(job: JobDir, ledger: Ledger) -> None:
        if failures:
            raise failures.pop()
        keep(job, ledger)

    monkeypatch.setattr(JobDir, "keep_ledger", failing_once)
    async with open_house(tmp_path) as house:
        await enter(make_invitation(tmp_path))
    assert house.kinds() == ["error", "joined"]
    assert len(house.admitted) == 1


async def raw_dealer(context: zmq.asyncio.Context, invitation: Invitation) -> zmq.asyncio.Socket:
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.curve_serverkey = invitation.lobby_key.encode()
    dealer.curve_publickey = NODE.curve_public.encode()
    dealer.curve_secretkey = NODE.curve_secret.encode()
    dealer.connect(invitation.lobby[0])
    return dealer


async def test_garbage_is_answered_counted_and_does_not_stop_the_lobby(tmp_path: Path) -> None:
    context = zmq.asyncio.Context()
    try:
        async with open_house(tmp_path) as house, asyncio.timeout(20):
            invitation = make_invitation(tmp_path)
            dealer = await raw_dealer(context, invitation)
            await dealer.send_multipart([b"\xff" * 100])
            refused = FROM_LOBBY.unpack(await dealer.recv())
            await dealer.send_multipart([b"a", b"b", b"c"])
            await dealer.send(TO_LOBBY.pack(Hello()))
            challenge = FROM_LOBBY.unpack(await dealer.recv())
            await dealer.send(bytes(1 << 20))
            await enter(invitation)
    finally:
        context.destroy(linger=0)
    assert isinstance(refused, Refused)
    assert isinstance(challenge, Challenge)
    assert [kind for kind in house.kinds() if kind != "dropped"] == ["refused", "joined"]


async def test_without_encryption_nobody_is_heard(tmp_path: Path) -> None:
    context = zmq.asyncio.Context()
    try:
        async with open_house(tmp_path) as house:
            dealer = context.socket(zmq.DEALER)
            dealer.linger = 0
            dealer.connect(house.job.lobby)
            await dealer.send(TO_LOBBY.pack(Hello()))
            await enter(make_invitation(tmp_path))
            assert not await dealer.poll(timeout=50)
    finally:
        context.destroy(linger=0)
    assert house.kinds() == ["joined"]


async def test_membership_is_kept_for_the_next_start(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with open_house(tmp_path / "job"):
        welcomed = await enter(make_invitation(tmp_path / "job"))
    assert load_welcomed(home, NODE, wall_time()) is None
    welcomed.save(home)
    assert load_welcomed(home, NODE, wall_time()) == welcomed
    assert stat.S_IMODE((home / "membership").stat().st_mode) == 0o600
    with pytest.raises(JoinRefused, match="has expired"):
        load_welcomed(home, NODE, wall_time() + 31 * 86_400)
    with pytest.raises(JoinRefused, match="for another node"):
        load_welcomed(home, OTHER, wall_time())
    (home / "membership").write_bytes(b"torn")
    with pytest.raises(UserError, match="is damaged"):
        load_welcomed(home, NODE, wall_time())


async def test_a_lobby_that_hands_over_another_job_is_not_believed(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        honest = await enter(make_invitation(tmp_path))
    for text, reason in [
        (dump_job(Job(name="other")), "not the one its invitation names"),
        ("model = 3", "model"),
        ("]", "not valid TOML"),
    ]:
        lying = Welcomed(
            certificate=honest.certificate, root_key=honest.root_key, job_toml=text, members=honest.members
        )
        with pytest.raises(JoinRefused, match=reason):
            lying.check(NODE, house.job.job.digest, wall_time())


@pytest.mark.parametrize(("ahead_s", "side"), [(3600, "behind"), (-3600, "ahead of")])
async def test_a_wrong_clock_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: float, side: str
) -> None:
    monkeypatch.setattr("swarm.daemon.lobby_server.wall_time", lambda: wall_time() + ahead_s)
    async with open_house(tmp_path):
        with pytest.raises(JoinRefused, match=rf"clock is 3600 s {side} the coordinator's: set it"):
            await enter(make_invitation(tmp_path))


async def test_a_certificate_is_renewed_in_time_though_its_invitation_is_spent(tmp_path: Path) -> None:
    events: list[Event] = []
    shown: asyncio.Queue[bytes] = asyncio.Queue()
    kept = tmp_path / "node"

    async with open_house(tmp_path / "job") as house:
        once = make_invitation(tmp_path / "job", uses=1)
        first = await enter(once)
        setup = SimpleNamespace(
            record=SimpleNamespace(gossip="tcp://127.0.0.1:4000", work="tcp://127.0.0.1:4001"),
            emit=events.append,
        )
        half = cast("GossipHalf", SimpleNamespace(setup=setup, recertify=shown.put_nowait))
        later = wall_time() + 25 * DAY_S
        async with asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(keep_certified(half, NODE, once, first, kept, lambda: later))
            renewed = await shown.get()
            keeping.cancel()
        assert house.kinds() == ["joined"], "who renews has joined long ago"
    assert renewed != first.certificate
    again = load_welcomed(kept, NODE, wall_time())
    assert again is not None
    assert again.certificate == renewed
    assert [event.kind for event in events][:1] == ["joined"]


def test_a_certificate_is_due_while_a_third_of_its_life_is_left() -> None:
    life = SimpleNamespace(not_before=1000, not_after=4000)
    assert due_at(cast("Certificate", life)) == 3000


STRANGER = """
import sys, zmq
lobby, key, parts = sys.argv[1:]
socket = zmq.Context().socket(zmq.DEALER)
socket.curve_serverkey = key.encode()
socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
socket.sndhwm = 1
socket.connect(lobby)
while True:
    for _ in range(int(parts)):
        socket.send(bytes(60_000), zmq.SNDMORE)
    socket.send(b"the end")
"""


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def test_a_message_of_parts_without_end_takes_no_memory_and_nobody_elses_turn(tmp_path: Path) -> None:
    parts = 2_000
    async with open_house(tmp_path) as house:
        invitation = make_invitation(tmp_path)
        before = resident_bytes()
        stranger = await asyncio.create_subprocess_exec(
            sys.executable, "-c", STRANGER, invitation.lobby[0], invitation.lobby_key, str(parts)
        )
        try:
            async with asyncio.timeout(30):
                while len(house.events) < 3:
                    assert resident_bytes() - before < (64 << 20), "libzmq keeps what nobody reads"
                    await asyncio.sleep(0.01)
            await enter(invitation)
        finally:
            stranger.kill()
            await stranger.wait()
        assert resident_bytes() - before < (32 << 20)
    told = [event for event in house.events if event.kind == "dropped"]
    assert [event.fields["count"] for event in told[:3]] == [1, 2, 4]
    assert {event.fields["why"] for event in told} == {"more than 131072 bytes for the lobby from 127.0.0.1"}
    assert house.kinds().count("joined") == 1
