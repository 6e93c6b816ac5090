"""The gossip half keeps the view and tells the training half, over simulated links and over sockets."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from gossip_halves import WALL, WORLDS, Seat, Table, World

from swarm.daemon.bridge import (
    FactsChanged,
    Failed,
    Left,
    MemberChanged,
    NoticeLearned,
    PeerLost,
    Progress,
    Stop,
)
from swarm.daemon.genesis import DOMAIN as GENESIS_DOMAIN
from swarm.daemon.options import UserError
from swarm.daemon.trust import revoke
from swarm.gossip.messages import Notice, Spread
from swarm.gossip.view import Facts, read_member
from transport.wire import Body, Message, Signed, WireError

Scene = Callable[[Table], Awaitable[None]]


@pytest.fixture(params=WORLDS.values(), ids=WORLDS.keys())
def play(request: pytest.FixtureRequest) -> Callable[[Scene], None]:
    world: World = request.param

    def play_scene(scene: Scene) -> None:
        async def whole() -> None:
            async with world.open() as table:
                await scene(table)

        world.run(whole())

    return play_scene


@pytest.fixture
def simulate() -> Callable[[Scene], None]:
    """For scenes whose time is long or whose link does not matter."""

    def play_scene(scene: Scene) -> None:
        async def whole() -> None:
            async with WORLDS["simulated"].open() as table:
                await scene(table)

        WORLDS["simulated"].run(whole())

    return play_scene


def statuses(seat: Seat, kind: str = "member") -> list[tuple[str, str]]:
    return [(e.fields["member"], e.fields["status"]) for e in seat.events if e.kind == kind]


def test_members_meet_and_the_training_half_hears_of_each(play: Callable[[Scene], None]) -> None:
    async def scene(table: Table) -> None:
        seats = await table.meet(3)
        for seat in seats:
            view = seat.half.view
            assert {m.record.role for m in view.members.values()} == {"coordinator", "worker"}
            assert len(view.live()) == 3
            told = {body.record.signer for body in await seat.heard(MemberChanged)}
            assert told >= {other.identity.node for other in seats} - {seat.identity.node}
            assert len([s for s in statuses(seat) if s[1] == "alive"]) >= 3

    play(scene)


def test_facts_of_one_are_seen_by_all(play: Callable[[Scene], None]) -> None:
    async def scene(table: Table) -> None:
        _, first, *others = await table.meet(2)
        first.bridge.send(FactsChanged(facts=Facts(cell="c0", stages=(1,), state="training")))
        for other in others:
            fits = lambda body: read_member(body.record).facts.cell == "c0"  # noqa: E731
            body = await other.hears(MemberChanged, fits)
            assert body.record.signer == first.identity.node

    play(scene)


def test_a_killed_node_is_dead_everywhere_in_two_seconds(play: Callable[[Scene], None]) -> None:
    async def scene(table: Table) -> None:
        *others, victim = await table.meet(4)
        loop = asyncio.get_running_loop()
        await asyncio.sleep(1.5)  # everybody has spoken to everybody by now
        began = loop.time()
        await table.kill(victim)
        for other in others:
            await other.sees(victim, "dead")
        assert loop.time() - began < 2.0

    play(scene)


def test_a_lost_work_connection_alone_buries_nobody(simulate: Callable[[Scene], None]) -> None:
    async def scene(table: Table) -> None:
        _, first, *others = await table.meet(3)
        for _ in range(10):
            for other in others:
                other.bridge.send(PeerLost(peer=first.identity.node))
            await asyncio.sleep(2.0)
        for other in others:
            assert {status for member, status in statuses(other) if member == first.identity.node[:12]} == {
                "alive"
            }

    simulate(scene)


def test_a_planned_leave_is_no_death(play: Callable[[Scene], None]) -> None:
    async def scene(table: Table) -> None:
        *others, leaver = await table.meet(2)
        leaver.half.leave("the owner wants the machine back")
        assert (await leaver.hears(Stop)).reason == "the owner wants the machine back"
        leaver.bridge.send(Left(reason="handed over"))
        assert await leaver.task == 0
        for other in others:
            await other.sees(leaver, "left")

    play(scene)


def test_a_training_half_that_dies_takes_the_node_with_it(simulate: Callable[[Scene], None]) -> None:
    async def scene(table: Table) -> None:
        *others, seat = await table.meet(2)
        seat.bridge.close()
        assert await seat.task == 1
        assert [e.fields["reason"] for e in seat.events if e.kind == "error"] == [
            "the training process ended"
        ]
        for other in others:
            await other.sees(seat, "left", 1.0)

    simulate(scene)


def test_a_persons_mistake_is_passed_up(simulate: Callable[[Scene], None]) -> None:
    async def scene(table: Table) -> None:
        seat = await table.sit()
        seat.bridge.send(Failed(reason="there is no CUDA here: use --device cpu"))
        with pytest.raises(UserError, match="there is no CUDA here"):
            await seat.task

    simulate(scene)


@pytest.mark.parametrize(
    "forge",
    [
        lambda seat: ("genesis", 7, seat.half.setup.sign(GENESIS_DOMAIN, b"a worker's")),
        lambda seat: ("revoked", 1, seat.half.setup.sign("revocation", b"a worker's")),
        lambda seat: ("weather", 1, seat.half.setup.sign("cell-record", b"rain")),
    ],
)
def test_a_forged_notice_is_refused_and_counted(
    simulate: Callable[[Scene], None], forge: Callable[[Seat], tuple[str, int, Signed]]
) -> None:
    async def scene(table: Table) -> None:
        _, liar, other = await table.meet(2)
        topic, version, signed = forge(liar)
        notice = Notice(topic=topic, version=version, notice=signed)
        liar.link.send(other.identity.node, Message(Spread(notices=(notice,))))
        assert not await other.heard(NoticeLearned, within_s=5.0)
        assert other.half.snapshot().dropped == {"a notice that is not to be believed": 1}

    simulate(scene)


def test_genesis_is_believed_of_a_coordinator_only(simulate: Callable[[Scene], None]) -> None:
    async def scene(table: Table) -> None:
        coordinator, *workers = await table.meet(2)
        coordinator.half.publish("genesis", 1, coordinator.half.setup.sign(GENESIS_DOMAIN, b"begin"))
        for worker in workers:
            assert (await worker.hears(NoticeLearned)).notice.payload == b"begin"

    simulate(scene)


def test_the_revoked_are_put_out_by_everyone_and_told_to_go(play: Callable[[Scene], None]) -> None:
    async def scene(table: Table) -> None:
        coordinator, outcast, *others = await table.meet(3)
        authority = table.issuer.authority
        notice = revoke(authority.run_key, table.issuer.job.digest, [outcast.identity.node])
        coordinator.half.publish(notice.topic, notice.version, notice.notice)
        for other in others:
            body = await other.hears(MemberChanged, lambda body: body.status == "left")
            assert (body.record.signer, body.reason) == (outcast.identity.node, "revoked")
            newcomer_sees = {record.signer for record in other.half.records()}
            assert outcast.identity.node not in newcomer_sees

    play(scene)


def test_the_revoked_hear_of_it_from_those_who_put_them_out(play: Callable[[Scene], None]) -> None:
    """They were only cut off, took that for a partition, and trained on alone."""

    async def scene(table: Table) -> None:
        coordinator, outcast, *_ = await table.meet(3)
        notice = revoke(table.issuer.authority.run_key, table.issuer.job.digest, [outcast.identity.node])
        coordinator.half.publish(notice.topic, notice.version, notice.notice)
        assert "revoked" in (await outcast.hears(Stop)).reason

    play(scene)


def test_who_was_revoked_is_told_to_go(simulate: Callable[[Scene], None]) -> None:
    async def scene(table: Table) -> None:
        _, outcast, *_ = await table.meet(2)
        authority = table.issuer.authority
        notice = revoke(authority.run_key, table.issuer.job.digest, [outcast.identity.node])
        outcast.half.publish(notice.topic, notice.version, notice.notice)
        assert "revoked" in (await outcast.hears(Stop)).reason

    simulate(scene)


def test_a_finished_swarm_goes_home(simulate: Callable[[Scene], None]) -> None:
    async def scene(table: Table) -> None:
        coordinator, *workers = await table.meet(3)
        workers[0].bridge.send(FactsChanged(facts=Facts(cell="c1", state="training")))
        for worker in workers[1:]:
            worker.bridge.send(FactsChanged(facts=Facts(cell="c0", state="finished")))
        await asyncio.sleep(30.0)
        assert not [worker for worker in workers if await worker.heard(Stop)]
        workers[0].bridge.send(FactsChanged(facts=Facts(state="finished")))
        for worker in workers:
            assert (await worker.hears(Stop)).reason == "the job is finished"
        assert not await coordinator.heard(Stop, within_s=20.0)

    simulate(scene)


def test_one_that_came_too_late_to_train_keeps_nobody_from_going_home(
    simulate: Callable[[Scene], None],
) -> None:
    async def scene(table: Table) -> None:
        _, *workers = await table.meet(3)
        for worker in workers[1:]:
            worker.bridge.send(FactsChanged(facts=Facts(cell="c0", state="finished")))
        for worker in workers:
            assert (await worker.hears(Stop)).reason == "the job is finished"

    simulate(scene)


def test_standbys_go_home_when_the_last_iteration_is_archived_though_all_who_trained_it_are_gone(
    simulate: Callable[[Scene], None],
) -> None:
    """Nobody told them, and they stood by for ever."""

    async def scene(table: Table) -> None:
        coordinator, *workers = await table.meet(2)
        coordinator.bridge.send(FactsChanged(facts=Facts(iteration=9, state="training")))
        await asyncio.sleep(30.0)
        assert not [worker for worker in workers if await worker.heard(Stop)]
        coordinator.bridge.send(FactsChanged(facts=Facts(iteration=10, state="finished")))
        for worker in workers:
            assert (await worker.hears(Stop)).reason == "the job is finished"
        assert not await coordinator.heard(Stop, within_s=20.0)

    simulate(scene)


def test_who_returns_after_the_others_finished_and_cannot_go_on_alone_goes_home(
    simulate: Callable[[Scene], None],
) -> None:
    """It asked for a majority for ever."""

    async def scene(table: Table) -> None:
        _, returned, other = await table.meet(2)
        returned.bridge.send(FactsChanged(facts=Facts(cell="c0", state="training")))
        returned.bridge.send(Progress(waiting_for="a majority"))
        other.bridge.send(FactsChanged(facts=Facts(state="finished")))
        await asyncio.sleep(30.0)
        assert not await returned.heard(Stop)
        other.bridge.send(Left(reason="the job is finished"))
        assert "the others have finished" in (await returned.hears(Stop)).reason

    simulate(scene)


def test_who_can_go_on_alone_does(simulate: Callable[[Scene], None]) -> None:
    async def scene(table: Table) -> None:
        _, returned, other = await table.meet(2)
        returned.bridge.send(FactsChanged(facts=Facts(cell="c0", state="training")))
        other.bridge.send(FactsChanged(facts=Facts(state="finished")))
        await asyncio.sleep(1.0)
        other.bridge.send(Left(reason="the job is finished"))
        await asyncio.sleep(60.0)
        assert not await returned.heard(Stop)

    simulate(scene)


def test_a_renewed_certificate_reaches_everyone(simulate: Callable[[Scene], None]) -> None:
    async def scene(table: Table) -> None:
        _, renewed, other = await table.meet(2)
        identity, authority = renewed.identity, table.issuer.authority
        binding = identity.bind_curve(table.issuer.job.digest)
        _, certificate = authority.certify(
            identity.public_key, binding, role="worker", serial=99, now_wall=WALL + 60
        )
        renewed.half.recertify(certificate)

        def shows_it(body: MemberChanged) -> bool:
            return body.record.signer == identity.node and certificate in body.record.payload

        await other.hears(MemberChanged, shows_it)
        assert other.half.view.status(identity.node) == "alive"

    simulate(scene)


def test_progress_shows_in_the_snapshot_and_the_events(simulate: Callable[[Scene], None]) -> None:
    async def scene(table: Table) -> None:
        seat, _ = await table.meet(1)
        seat.bridge.send(Progress(iteration=12, loss=3.5, bytes_sent=100))
        await asyncio.sleep(0.1)
        snapshot = seat.half.snapshot()
        assert (snapshot.progress.iteration, snapshot.progress.loss) == (12, 3.5)
        assert snapshot.gossip_sent_bytes > 0 < snapshot.gossip_received_bytes
        [event] = [e for e in seat.events if e.kind == "progress"]
        assert event.fields["bytes_sent"] >= 100 + snapshot.gossip_sent_bytes - 10_000

    simulate(scene)


def test_what_cannot_be_read_off_the_bridge_is_dropped_and_noted_once(
    simulate: Callable[[Scene], None],
) -> None:
    async def scene(table: Table) -> None:
        seat, _ = await table.meet(1)
        bridge = seat.half._bridge
        proper, torn = bridge.recv, [WireError("too many keys"), WireError("too many keys")]

        async def recv() -> Body:
            if torn:
                raise torn.pop()
            return await proper()

        bridge.recv = recv
        seat.bridge.send(Progress(iteration=1))
        seat.bridge.send(Progress(iteration=2))
        await asyncio.sleep(0.1)
        assert not torn
        assert seat.half.snapshot().progress.iteration == 2
        assert [e.fields["why"] for e in seat.events if e.kind == "dropped"] == ["too many keys"]

    simulate(scene)
