"""A certificate that expires ends neither the training nor the way back in."""

import asyncio
import random
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from gossip_lives import EPOCH, authority_for, certificate_for, identity_of

from swarm.daemon import node as node_module
from swarm.daemon import training_process
from swarm.daemon.admission import Authority
from swarm.daemon.bridge import Begin
from swarm.daemon.gossip_half import GossipHalf
from swarm.daemon.jobdir import init_job, open_job
from swarm.daemon.joining import JoinRefused, Welcomed
from swarm.daemon.node import kept_membership
from swarm.daemon.options import NodeOptions
from swarm.daemon.renewing import keep_itself_certified
from swarm.events import wall_time
from swarm.gossip.view import Member, MemberRecord, View
from swarm.job import DataSection, Job, dump_job
from swarm.pipeline.records import DOMAIN
from transport.identity import Identity, check_certificate
from transport.invitation import Invitation, parse_invitation
from transport.machine import NodeId
from transport.virtual_time import run_virtual

MONTH_S = 31 * 86_400.0
ME, LEADER = identity_of(1), identity_of(2)


def job_with_text(folder: Path) -> Job:
    (folder / "text.txt").write_text("one two three " * 2000, encoding="utf-8")
    return Job(data=DataSection(path=str(folder / "text.txt")))


def view_of(job: Job, by: Authority) -> View:
    record = MemberRecord(
        job=job.digest,
        node=LEADER.node,
        incarnation=0,
        seq=0,
        gossip="",
        work="",
        curve_key=LEADER.curve_public,
        certificate=certificate_for(LEADER, by=by),
    )
    return View({NodeId(LEADER.node): Member(record, "alive")})


def test_a_leader_is_believed_after_its_certificate_expired_but_not_met_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall = [EPOCH]
    monkeypatch.setattr(training_process, "wall_time", lambda: wall[0])
    job = job_with_text(tmp_path)
    authority = authority_for(job)
    begin = Begin(job_toml=dump_job(job), root_key=authority.root_key)
    options = NodeOptions(data_dir=tmp_path)
    view, signed = view_of(job, authority), LEADER.signing_in(job.digest)(DOMAIN, b"a record")
    before = training_process._setup(options, ME, begin, [].append)
    assert before.vouches(view, signed)
    wall[0] += MONTH_S
    assert before.vouches(view, signed)
    assert not training_process._setup(options, ME, begin, [].append).vouches(view, signed)


def test_a_cell_record_of_another_job_is_not_vouched_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_process, "wall_time", lambda: EPOCH)
    job = job_with_text(tmp_path)
    authority = authority_for(job)
    begin = Begin(job_toml=dump_job(job), root_key=authority.root_key)
    setup = training_process._setup(NodeOptions(data_dir=tmp_path), ME, begin, [].append)
    here, there = (LEADER.signing_in(name)(DOMAIN, b"a record") for name in (job.digest, "ab" * 16))
    assert setup.vouches(view_of(job, authority), here)
    assert not setup.vouches(view_of(job, authority), there)


def invitation_to(authority: Authority) -> Invitation:
    key = Identity.create(random.Random(9)).curve_public
    return parse_invitation(
        authority.invite(
            jti="ab" * 8,
            role="worker",
            uses=1,
            not_after=int(EPOCH + 2 * MONTH_S),
            lobby=("tcp://127.0.0.1:1",),
            lobby_key=key,
        ).text
    )


def test_an_expired_membership_gives_way_to_an_invitation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_with_text(tmp_path)
    authority = authority_for(job)
    kept = Welcomed(
        certificate=certificate_for(ME, by=authority),
        root_key=authority.root_key,
        job_toml=dump_job(job),
        members=(),
    )
    kept.save(tmp_path)
    wall = [EPOCH]
    monkeypatch.setattr(node_module, "wall_time", lambda: wall[0])
    assert kept_membership(tmp_path, ME, invitation_to(authority)) == kept
    wall[0] += MONTH_S
    assert kept_membership(tmp_path, ME, invitation_to(authority)) is None
    with pytest.raises(JoinRefused, match="has expired"):
        kept_membership(tmp_path, ME, None)


def test_a_coordinators_own_certificate_never_expires_while_its_run_key_lasts(tmp_path: Path) -> None:
    job = Job()
    init_job(tmp_path, job=job, host="127.0.0.1", lobby_port=0)
    jobdir, begun = open_job(tmp_path), wall_time()
    shown, events = [(begun, jobdir.certificate)], []

    async def scenario() -> float:
        clock = asyncio.get_running_loop().time

        def wall() -> float:
            return begun + clock()

        setup = SimpleNamespace(emit=events.append)
        half = SimpleNamespace(setup=setup, recertify=lambda data: shown.append((wall(), data)))
        await keep_itself_certified(cast("GossipHalf", half), jobdir, wall)
        return wall()

    ended = run_virtual(scenario())
    assert len(shown) > 3
    for (_, data), (until, _) in zip(shown, [*shown[1:], (ended, b"")], strict=True):
        check_certificate(data, job=job.digest, root_public=jobdir.root_key, now_wall=until)
    assert len(events) == len(shown) - 1
    assert ended > jobdir.authority.granted.not_after - MONTH_S
