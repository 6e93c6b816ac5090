"""Whom members believe: only what this job's keys certified, and only its run key revokes."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from gossip_lives import EPOCH, JOB, OURS, Lives, authority_for, certificate_for, identity_of, play, signed_by

from swarm.daemon.jobdir import init_job, make_invitation, open_job
from swarm.daemon.jobdir import revoke as revoke_on_disk
from swarm.daemon.options import UserError
from swarm.daemon.revoking import RevokedList, tell_revocations
from swarm.daemon.trust import Trust, revoke
from swarm.events import Event
from swarm.gossip.messages import Claim, Notice
from swarm.gossip.records import Untrusted, pack, pack_claim
from swarm.gossip.view import MemberRecord
from swarm.job import Job
from transport.identity import Identity
from transport.wire import Signed

STRANGER, OTHER = identity_of(50), identity_of(51)
HONEST = MemberRecord(
    job=JOB.digest,
    node=STRANGER.node,
    incarnation=1,
    seq=0,
    gossip="sim://1",
    work="sim://2",
    curve_key=STRANGER.curve_public,
    certificate=certificate_for(STRANGER),
)
GOOD = STRANGER.signing_in(JOB.digest)("member", pack(HONEST))
MONTH_S = 31 * 24 * 3600.0


def trust() -> Trust:
    return Trust(JOB.digest, OURS.root_key, lambda: EPOCH)


def wrong_records() -> dict[str, Signed]:
    """Records of who is not a member, by what is wrong with them."""
    elsewhere = authority_for(Job(name="another"), seed=2)
    impostor = authority_for(JOB, seed=3)
    changed: dict[str, tuple[dict[str, Any], Identity]] = {
        "no certificate": ({"certificate": b""}, STRANGER),
        "expired": ({"certificate": certificate_for(STRANGER, issued=EPOCH - MONTH_S)}, STRANGER),
        "not yet valid": ({"certificate": certificate_for(STRANGER, issued=EPOCH + MONTH_S)}, STRANGER),
        "another job's": ({"certificate": certificate_for(STRANGER, by=elsewhere)}, STRANGER),
        "another root's": ({"certificate": certificate_for(STRANGER, by=impostor)}, STRANGER),
        "names another job": ({"job": elsewhere.job.digest}, STRANGER),
        "swapped CURVE key": ({"curve_key": OTHER.curve_public}, STRANGER),
        "another's certificate": ({"certificate": certificate_for(OTHER)}, STRANGER),
        "a role it was not given": ({"role": "coordinator"}, STRANGER),
        "signed by another": ({}, OTHER),
    }
    return {
        **{
            name: signer.signing_in(JOB.digest)("member", pack(HONEST.model_copy(update=changes)))
            for name, (changes, signer) in changed.items()
        },
        "not signed": GOOD.model_copy(update={"signature": bytes(64)}),
        "signed as a claim": STRANGER.signing_in(JOB.digest)("claim", GOOD.payload),
        "signed in another job": STRANGER.signing_in(elsewhere.job.digest)("member", pack(HONEST)),
        "garbage": STRANGER.signing_in(JOB.digest)("member", b"\xc1"),
    }


WRONG = wrong_records()


def test_an_honest_record_is_believed() -> None:
    assert trust().record(GOOD) == HONEST


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_record_is_not_believed(wrong: str) -> None:
    with pytest.raises(Untrusted):
        trust().record(WRONG[wrong])


def test_what_a_member_claimed_in_another_job_is_not_believed() -> None:
    claim = Claim(node=OTHER.node, incarnation=1, by=STRANGER.node)
    here, there = (STRANGER.signing_in(job)("claim", pack_claim(claim)) for job in (JOB.digest, "ab" * 16))
    assert trust().claim(here, HONEST) == claim
    with pytest.raises(Untrusted):
        trust().claim(there, HONEST)


def test_wrong_records_change_no_view_and_each_reason_is_reported_once() -> None:
    async def scene(lives: Lives) -> None:
        met = await lives.settled(2)
        before = set(met[0].half.view.members)
        for _ in range(3):
            met[0].half.seed(WRONG.values())
        await asyncio.sleep(2.0)
        assert set(met[0].half.view.members) == set(met[1].half.view.members) == before
        counts = [count for why, count in met[0].half.snapshot().dropped.items() if why != "unauthorised"]
        assert sum(counts) == 3 * len(WRONG)
        assert len(met[0].noted("dropped")) == len(counts)

    play(scene)


def revoked_by(lives: Lives, *who: int) -> Notice:
    return revoke(OURS.run_key, JOB.digest, [lives.node(index) for index in who])


def tell(lives: Lives, index: int, notice: Notice) -> None:
    lives.lives[index].half.publish(notice.topic, notice.version, notice.notice)


def test_the_revoked_are_out_everywhere_and_do_not_come_back() -> None:
    async def scene(lives: Lives) -> None:
        met = await lives.settled(6)
        tell(lives, 0, revoked_by(lives, 3))
        others = [life for index, life in enumerate(met) if index != 3]
        out = ("left", "revoked")
        await lives.until(lambda: all(out in life.told_of(lives.node(3)) for life in others), 5.0)
        lives.kill(3)
        again = lives.start(3, incarnation=7, through=77)
        again.half.seed(met[0].half.records())
        await asyncio.sleep(40.0)
        for life in others:
            assert life.told_of(lives.node(3))[-1] == out
            assert life.half.view.status(lives.node(3)) == "left"
            assert life.link.stats.dropped_unauthorised
        assert not again.link.stats.messages_received

    play(scene)


def test_a_newcomer_learns_who_was_revoked_and_a_longer_list_replaces_a_shorter() -> None:
    async def scene(lives: Lives) -> None:
        await lives.settled(6)
        tell(lives, 0, revoked_by(lives, 3))
        await asyncio.sleep(3.0)
        late = lives.start(8)
        await asyncio.sleep(3.0)
        assert late.half.view.status(lives.node(3)) in (None, "left")
        tell(lives, 0, revoked_by(lives, 3, 4))
        await lives.until(lambda: lives.sees(4, "left", {0, 1, 2, 5, 8}), 5.0)

    play(scene)


@pytest.mark.parametrize("wrong", ["a member", "another run key", "version", "job"])
def test_only_the_jobs_run_key_revokes(wrong: str) -> None:
    node = identity_of(1).node
    notice = revoke(OURS.run_key, JOB.digest, [node])
    believed = trust().revoked(notice, certificate_for(OTHER))
    forged = {
        "a member": notice.model_copy(update={"notice": signed_by(2, "revocation", notice.notice.payload)}),
        "another run key": revoke(authority_for(JOB, seed=2).run_key, JOB.digest, [node]),
        "version": notice.model_copy(update={"version": 1000}),  # would keep longer lists out
        "job": revoke(OURS.run_key, Job(name="another").digest, [node]),
    }
    assert believed == (node,)
    with pytest.raises(Untrusted):
        trust().revoked(forged[wrong], certificate_for(OTHER))


async def test_a_coordinator_tells_of_every_node_that_its_directory_revokes(tmp_path: Path) -> None:
    init_job(tmp_path, job=JOB, host="127.0.0.1", lobby_port=0)
    jobdir = open_job(tmp_path)
    nodes = [identity_of(index).node for index in (1, 2)]
    told: asyncio.Queue[Notice] = asyncio.Queue()

    class Half:
        def publish(self, topic: str, version: int, notice: Signed) -> None:
            told.put_nowait(Notice(topic=topic, version=version, notice=notice))

    believe = Trust(JOB.digest, jobdir.root_key, lambda: EPOCH)
    revoke_on_disk(tmp_path, make_invitation(tmp_path).text)  # an invitation: the lobby's business alone
    async with asyncio.TaskGroup() as tasks:
        telling = tasks.create_task(tell_revocations(Half(), jobdir, RevokedList(jobdir, [].append)))  # type: ignore[arg-type]
        for count in (1, 2):
            revoke_on_disk(tmp_path, nodes[count - 1])
            notice = await asyncio.wait_for(told.get(), 5.0)
            assert believe.revoked(notice, jobdir.certificate) == tuple(sorted(nodes[:count]))
        telling.cancel()
    assert told.empty()


def test_a_slip_in_the_list_of_the_revoked_ends_no_coordinator_and_lets_nobody_in(tmp_path: Path) -> None:
    init_job(tmp_path, job=JOB, host="127.0.0.1", lobby_port=0)
    jobdir, node = open_job(tmp_path), identity_of(1).node
    revoke_on_disk(tmp_path, node)
    events: list[Event] = []
    revoked = RevokedList(jobdir, events.append)
    whole = (tmp_path / "revoked.json").read_bytes()
    (tmp_path / "revoked.json").write_bytes(whole[:-3])
    for _ in range(2):
        assert revoked.names() == revoked.nodes() == {node}
    assert [(event.kind, event.fields["what"]) for event in events] == [("dropped", "revoked.json")]
    with pytest.raises(UserError, match=r"revoked\.json cannot be read"):
        RevokedList(jobdir, events.append)
    (tmp_path / "revoked.json").write_bytes(whole)
    revoke_on_disk(tmp_path, identity_of(2).node)
    assert revoked.nodes() == {node, identity_of(2).node}
    assert len(events) == 1
