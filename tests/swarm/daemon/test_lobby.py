"""The lobby admits exactly those with an authentic, unspent invitation and proof of who they are."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.daemon.admission import Authority, Ledger
from swarm.daemon.lobby import (
    FROM_LOBBY,
    MEMBERS_MAX,
    TO_LOBBY,
    Admitted,
    Challenge,
    Client,
    Hello,
    Join,
    JoinRequest,
    KeepLedger,
    Lobby,
    LobbyLimits,
    Refused,
    Reply,
    Welcome,
)
from swarm.events import Noted
from swarm.gossip.view import RECORD_BYTES_MAX
from swarm.job import Job, parse_job
from transport.identity import (
    DAY_S,
    Identity,
    RunKeyGrant,
    SigningKey,
    check_certificate,
    pack_payload,
    sign_grant,
)
from transport.machine import Effect
from transport.wire import Body, Signed, WireError

WALL = 1_800_000_000
RNG = random.Random(11)
JOB, OTHER_JOB = Job(name="ours"), Job(name="theirs")
NODE, OTHER, LOBBY_KEYS = (Identity.create(RNG) for _ in range(3))
ADDRESSES = {"gossip": "tcp://127.0.0.1:4000", "work": "tcp://127.0.0.1:4001"}


def authority(job: Job = JOB, seed: int = 1) -> Authority:
    rng = random.Random(seed)
    root, run = SigningKey.create(rng), SigningKey.create(rng)
    granted = RunKeyGrant(
        job=job.digest, job_name=job.name, run_key=run.public_key, not_after=WALL + 40 * 86_400
    )
    return Authority(job=job, root_key=root.public_key, run_key=run, grant=sign_grant(root, granted))


OURS = authority()


def invite(by: Authority = OURS, jti: str = "ab" * 8, uses: int = 1, ends: int = WALL + 1000) -> str:
    lobby = ("tcp://127.0.0.1:5670",)
    return by.invite(
        jti=jti, role="worker", uses=uses, not_after=ends, lobby=lobby, lobby_key=LOBBY_KEYS.curve_public
    ).text


@dataclass
class World:
    """A lobby, and what a newcomer does with it."""

    lobby: Lobby = field(default_factory=lambda: Lobby(OURS, Ledger(), random.Random(2)))
    now: float = 100.0
    wall: float = WALL

    def say(self, client: Client, body: Body, **given: Any) -> list[Effect]:
        return self.lobby.handle(client, TO_LOBBY.pack(body), self.now, self.wall, **given)

    def nonce(self, client: Client) -> bytes:
        challenge = answer(self.say(client, Hello()))
        assert isinstance(challenge, Challenge)
        return challenge.nonce

    def join(self, who: Identity = NODE, text: str | None = None, **given: Any) -> list[Effect]:
        client = client_of(who)
        return self.say(client, request(who, self.nonce(client), text), **given)


def client_of(who: Identity) -> Client:
    return Client(address="192.0.2.7", curve_key=who.curve_public)


def request(who: Identity, nonce: bytes, text: str | None = None, **changes: object) -> Join:
    fields = {
        "nonce": nonce,
        "invitation": invite() if text is None else text,
        "public_key": who.public_key,
        "binding": who.bind_curve(JOB.digest),
        **ADDRESSES,
    }
    payload = pack_payload(JoinRequest.model_validate(fields | changes))
    return Join(request=who.sign("join", payload))


def answer(effects: Sequence[Effect]) -> Body:
    replies = [effect.body for effect in effects if isinstance(effect, Reply)]
    assert len(replies) == 1
    return replies[0]


def assert_refused(world: World, effects: Sequence[Effect], reason: str, before: Ledger) -> None:
    """One refusal with this reason, one event that says the same, and nothing else at all."""
    refused = answer(effects)
    assert isinstance(refused, Refused)
    assert reason in refused.reason
    events = [effect for effect in effects if isinstance(effect, Noted)]
    assert [(event.kind, event.fields["reason"]) for event in events] == [("refused", refused.reason)]
    assert len(effects) == 2
    assert world.lobby.ledger == before


def test_an_invited_node_becomes_a_member() -> None:
    effects = World().join(members=(NODE.sign("member", b"a"),))
    assert [type(effect) for effect in effects] == [KeepLedger, Admitted, Reply, Noted]
    welcome = answer(effects)
    assert isinstance(welcome, Welcome)
    certificate = check_certificate(
        welcome.certificate, job=JOB.digest, root_public=OURS.root_key, now_wall=WALL
    )
    assert (certificate.node, certificate.curve_key) == (NODE.node, NODE.curve_public)
    assert certificate.not_after == WALL + 30 * 86_400
    assert parse_job(welcome.job_toml) == JOB
    assert welcome.members == (NODE.sign("member", b"a"),)


def test_who_was_admitted_is_told_with_its_addresses_and_one_event() -> None:
    effects = World().join()
    admitted = next(effect for effect in effects if isinstance(effect, Admitted))
    assert (admitted.certificate.node, admitted.gossip) == (NODE.node, ADDRESSES["gossip"])
    noted = next(effect for effect in effects if isinstance(effect, Noted))
    assert (noted.kind, noted.fields["peer"]) == ("joined", NODE.node[:12])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no invitation was given"),
        ("please", "this is not an invitation"),
        (invite()[:-9], "cut off or altered"),
        (invite(ends=WALL - 1), "has expired"),
        (invite(authority(OTHER_JOB)), "for another job (theirs), this one is ours"),
        (invite(authority(seed=9)), "not issued under this job's root key"),
    ],
)
def test_each_wrong_invitation_is_refused_with_its_own_sentence(text: str, reason: str) -> None:
    world = World()
    assert_refused(world, world.join(text=text), reason, Ledger())


def test_a_spent_invitation_is_refused() -> None:
    world = World()
    world.join(NODE)
    spent = world.lobby.ledger
    assert_refused(world, world.join(OTHER), "spent: all its uses (1) are taken", spent)


def test_an_invitation_with_two_uses_admits_two_nodes() -> None:
    world, text = World(), invite(uses=2)
    for who in (NODE, OTHER):
        assert isinstance(answer(world.join(who, text)), Welcome)
    assert world.lobby.ledger.spent == {"ab" * 8: (NODE.node, OTHER.node)}


def test_joining_again_takes_no_second_use_and_gives_a_new_serial() -> None:
    world, text = World(), invite(uses=2)
    world.join(NODE, text)
    world.join(NODE, text)
    assert world.lobby.ledger == Ledger({"ab" * 8: (NODE.node,)}, serial=2)
    assert isinstance(answer(world.join(OTHER, text)), Welcome)


def test_spent_uses_survive_a_restart_of_the_lobby() -> None:
    kept = next(effect.ledger for effect in World().join(NODE) if isinstance(effect, KeepLedger))
    reopened = World(Lobby(OURS, kept, random.Random(3)))
    assert_refused(reopened, reopened.join(OTHER), "spent", kept)
    assert isinstance(answer(reopened.join(NODE)), Welcome)


@pytest.mark.parametrize(
    ("revoked", "reason"), [(NODE.node, "this node was revoked"), ("ab" * 8, "invitation was revoked")]
)
def test_the_revoked_are_refused(revoked: str, reason: str) -> None:
    world = World()
    effects = world.join(revoked={revoked})
    assert_refused(world, effects, reason, Ledger())
    said = answer(effects)
    assert isinstance(said, Refused)
    assert said.revoked == (revoked == NODE.node)


def test_a_nonce_counts_once() -> None:
    world, client = World(), client_of(NODE)
    join = request(NODE, world.nonce(client))
    assert isinstance(answer(world.say(client, join)), Welcome)
    spent = world.lobby.ledger
    assert_refused(world, world.say(client, join), "challenge is unknown, used or too old", spent)


def test_a_nonce_does_not_outlive_its_time() -> None:
    world, client = World(), client_of(NODE)
    join = request(NODE, world.nonce(client))
    world.now += LobbyLimits().nonce_ttl_s + 0.1
    effects = world.say(client, join)
    assert_refused(world, effects, "too old", Ledger())
    assert answer(effects) == Refused(reason="the challenge is unknown, used or too old", again=True)


def test_a_nonce_belongs_to_the_connection_that_got_it() -> None:
    world = World()
    join = request(NODE, world.nonce(client_of(OTHER)))
    assert_refused(world, world.say(client_of(NODE), join), "challenge is unknown", Ledger())


def test_a_request_signed_by_another_identity_is_refused() -> None:
    world, client = World(), client_of(NODE)
    honest = request(NODE, world.nonce(client)).request
    forged = Join(request=OTHER.sign("join", honest.payload))
    assert_refused(world, world.say(client, forged), "not signed by the identity it names", Ledger())


SWAPPED = "not the one the node's identity binds"


@pytest.mark.parametrize(
    ("binding", "reason"),
    [
        (OTHER.bind_curve(JOB.digest), "CURVE key is not bound by the node's identity"),
        (NODE.bind_curve(OTHER_JOB.digest), "CURVE key is bound for another job"),
        (Identity(NODE.key, OTHER.curve_secret).bind_curve(JOB.digest), SWAPPED),
    ],
)
def test_a_swapped_curve_key_is_refused(binding: Signed, reason: str) -> None:
    world, client = World(), client_of(NODE)
    join = request(NODE, world.nonce(client), binding=binding)
    assert_refused(world, world.say(client, join), reason, Ledger())


def test_the_request_of_one_node_is_worth_nothing_on_the_connection_of_another() -> None:
    world, thief = World(), client_of(OTHER)
    join = request(NODE, world.nonce(thief))
    assert_refused(world, world.say(thief, join), SWAPPED, Ledger())


def test_a_source_that_floods_is_ignored_and_reported_once_while_others_are_served() -> None:
    world = World(Lobby(OURS, Ledger(), random.Random(2), LobbyLimits(source_burst=3, source_rate_per_s=1)))
    flood = [effect for _ in range(50) for effect in world.say(client_of(OTHER), Hello())]
    assert [type(effect) for effect in flood] == [Reply, Reply, Reply, Noted]
    elsewhere = Client(address="198.51.100.4", curve_key=NODE.curve_public)
    assert isinstance(answer(world.say(elsewhere, Hello())), Challenge)
    world.now += 1.0
    assert isinstance(answer(world.say(client_of(OTHER), Hello())), Challenge)


def test_everybody_together_is_limited_too() -> None:
    world = World(Lobby(OURS, Ledger(), random.Random(2), LobbyLimits(burst=4, rate_per_s=1)))
    clients = [Client(address=f"192.0.2.{host}", curve_key=NODE.curve_public) for host in range(20)]
    effects = [effect for client in clients for effect in world.say(client, Hello())]
    assert [type(effect) for effect in effects] == [Reply] * 4 + [Noted]


def test_what_strangers_make_it_remember_is_bounded() -> None:
    limits = LobbyLimits(nonces_max=5, sources_max=5, burst=1000)
    world = World(Lobby(OURS, Ledger(), random.Random(2), limits))
    first = world.nonce(client_of(NODE))
    for host in range(50):
        world.say(Client(address=f"192.0.2.{host}", curve_key=OTHER.curve_public), Hello())
    assert len(world.lobby._nonces) == len(world.lobby._sources) == 5
    assert isinstance(answer(world.say(client_of(NODE), request(NODE, first))), Refused)


def test_a_welcome_names_the_coordinator_and_a_bounded_sample_of_a_large_swarm() -> None:
    members = tuple(NODE.sign("member", str(index).encode()) for index in range(500))
    welcome = answer(World().join(members=members))
    assert isinstance(welcome, Welcome)
    assert len(set(welcome.members)) == MEMBERS_MAX
    assert welcome.members[0] == members[0]


def test_a_newcomer_can_read_a_welcome_full_of_the_largest_records() -> None:
    records = [NODE.sign("member", bytes([index]) * RECORD_BYTES_MAX) for index in range(MEMBERS_MAX)]
    welcome = answer(World().join(members=records))
    assert isinstance(welcome, Welcome)
    assert FROM_LOBBY.unpack(FROM_LOBBY.pack(welcome)) == welcome
    assert welcome.members[0] == records[0]
    assert set(welcome.members) < set(records)
    assert len(welcome.members) > 16, "it is still enough to find somebody alive"


def test_an_unknown_protocol_version_is_refused_with_a_sentence() -> None:
    world = World()
    header = TO_LOBBY.pack(Hello()).replace(b"\xa1v\x01", b"\xa1v\x63")
    effects = world.lobby.handle(client_of(NODE), header, world.now, world.wall)
    assert_refused(world, effects, "the newcomer speaks version 99; this node speaks 1: install", Ledger())


def test_a_newcomer_that_goes_by_a_name_is_told_to_look_it_up_itself() -> None:
    world = World()
    join = request(NODE, world.nonce(client_of(NODE)))
    named = join.request.payload.replace(b"tcp://127.0.0.1:4001", b"tcp://ahost.org:4001")
    assert named != join.request.payload, "a name as long as the number it replaces"
    effects = world.say(client_of(NODE), Join(request=NODE.sign("join", named)))
    assert_refused(world, effects, "an address is no IP address and port", Ledger())


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_and_change_nothing(data: bytes) -> None:
    world = World()
    effects = world.lobby.handle(client_of(NODE), data, world.now, world.wall)
    assert isinstance(answer(effects), Refused)
    assert world.lobby.ledger == Ledger()
    with pytest.raises(WireError):
        FROM_LOBBY.unpack(data)


@given(st.binary(max_size=300))
def test_arbitrary_signed_requests_are_refused(payload: bytes) -> None:
    world = World()
    effects = world.say(client_of(NODE), Join(request=NODE.sign("join", payload)))
    assert_refused(world, effects, "the request cannot be read", Ledger())


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", "d"]), st.sampled_from([1, 2])), max_size=12))
def test_no_order_of_arrivals_gives_an_invitation_more_nodes_than_uses(
    arrivals: list[tuple[str, int]],
) -> None:
    people = {name: Identity.create(random.Random(name)) for name in "abcd"}
    world = World()
    for name, uses in arrivals:
        world.join(people[name], invite(jti=f"{uses:016x}", uses=uses))
    for jti, nodes in world.lobby.ledger.spent.items():
        assert len(nodes) == len(set(nodes)) <= int(jti)


def certificate_of(world: World, who: Identity = NODE) -> bytes:
    welcome = answer(world.join(who))
    assert isinstance(welcome, Welcome)
    return welcome.certificate


def renew(world: World, who: Identity, held: bytes, **given: Any) -> list[Effect]:
    client = client_of(who)
    return world.say(client, request(who, world.nonce(client), "", certificate=held), **given)


def test_a_certificate_that_holds_is_renewed_without_an_invitation() -> None:
    world = World()
    held = certificate_of(world)
    spent = world.lobby.ledger.spent
    world.wall += 20 * DAY_S
    welcome = answer(renew(world, NODE, held))
    assert isinstance(welcome, Welcome)
    renewed = check_certificate(
        welcome.certificate, job=JOB.digest, root_public=OURS.root_key, now_wall=WALL + 39 * DAY_S
    )
    assert (renewed.node, renewed.role) == (NODE.node, "worker")
    assert world.lobby.ledger.spent == spent
    assert world.lobby.ledger.serial == 2


def test_only_the_holder_of_a_valid_certificate_has_it_renewed() -> None:
    world = World()
    held = certificate_of(world)
    before = world.lobby.ledger
    assert_refused(world, renew(world, OTHER, held), "another node's", before)
    assert_refused(world, renew(world, NODE, held[:-1]), "certificate refused", before)
    assert_refused(world, renew(world, NODE, held, revoked={NODE.node}), "this node was revoked", before)
    world.wall += 31 * DAY_S
    assert_refused(world, renew(world, NODE, held), "it has expired", before)
