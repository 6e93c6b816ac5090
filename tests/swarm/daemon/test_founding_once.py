"""A job is founded once, whenever its coordinator is killed."""

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from swarm.daemon.archive import Resumable, inline
from swarm.daemon.genesis import read_genesis, solo_founding
from swarm.daemon.gossip_half import GossipHalf
from swarm.daemon.job_founding import JobFounding, find_checkpoint
from swarm.daemon.options import UserError
from swarm.gossip.view import Facts, Member, MemberRecord, View
from swarm.job import Job
from swarm.pipeline.records import read_record
from transport.identity import Identity
from transport.machine import NodeId
from transport.virtual_time import run_virtual
from transport.wire import Signed

JOB = Job.model_validate({"pipeline": {"nodes": 1}})
COORDINATOR = Identity.create(random.Random(1))


class Killed(Exception):
    """The process is gone."""


class Half:
    """A gossip half with one worker in its view. dies: killed as it is told to publish."""

    def __init__(self, *, dies: bool = False) -> None:
        node = Identity.create(random.Random(2)).node
        record = MemberRecord.model_construct(node=node, incarnation=1, seq=1, facts=Facts())
        self.view = View({NodeId(node): Member(record, "alive")})
        self.dies = dies
        self.published: list[tuple[int, Signed]] = []

    def publish(self, topic: str, version: int, notice: Signed) -> None:
        if self.dies:
            raise Killed
        assert topic == "genesis"
        self.published.append((version, notice))


class Training(Half):
    """A gossip half that hears all at once, soon after its start, that its worker trains."""

    @property
    def view(self) -> View:
        soon = asyncio.get_running_loop().time() < 0.3
        return (
            View() if soon else View({node: replace(m, record=trains(m)) for node, m in self._known.items()})
        )

    @view.setter
    def view(self, known: View) -> None:
        self._known = known.members


def trains(member: Member) -> MemberRecord:
    return member.record.model_copy(update={"facts": Facts(cell="c0", stages=(0,), state="training")})


def test_a_resume_of_a_job_that_lives_founds_nothing_though_all_speak_at_the_same_moment(
    tmp_path: Path,
) -> None:
    """Nobody trained when it looked, and enough were there half a second later: chaos found it."""
    half = Training()
    assert start(tmp_path, half=half, resumed=40) == []


def start(
    directory: Path,
    *,
    half: Half | None = None,
    dies: bool = False,
    resumed: int | None = None,
    rounds: int = 0,
    wall: float = 100.0,
) -> Any:
    half = half or Half(dies=dies)
    founding = JobFounding(
        half=cast("GossipHalf", half),
        job=JOB,
        identity=COORDINATOR,
        directory=directory,
        corpus="ab",
        sizes=(1,) * JOB.pipeline.stages,
        wall=lambda: wall,
        in_background=inline,
        collecting=lambda: False,
    )
    run_virtual(founding.found_once(None if resumed is None else Resumable(resumed, "c0", rounds)))
    return half.published


def test_a_coordinator_killed_as_it_publishes_publishes_the_same_at_its_next_start(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        start(tmp_path, dies=True)
    (first,) = start(tmp_path, wall=200.0)
    assert first[0] == 100
    assert start(tmp_path, wall=300.0) == [first]


def test_a_damaged_founding_is_told_of_instead_of_waiting_for_ever(tmp_path: Path) -> None:
    start(tmp_path)
    (tmp_path / "founded").write_bytes(b"\x00")
    with pytest.raises(UserError, match=r"founded cannot be read.* restore it from a copy"):
        start(tmp_path)


def test_a_resume_founds_anew_under_a_later_version_though_the_clock_was_set_back(tmp_path: Path) -> None:
    (first,) = start(tmp_path)
    (again,) = start(tmp_path, resumed=40, wall=50.0)
    assert again[0] == first[0] + 1
    assert start(tmp_path, wall=60.0) == [again]


def test_a_resume_with_nothing_archived_begins_anew(tmp_path: Path) -> None:
    """Its nodes were killed before the first checkpoint: they would wait for ever for one."""
    (first,) = start(tmp_path)
    (again,) = start(tmp_path, resumed=0)
    assert again[0] > first[0]
    assert read_genesis(again[1]).resumed == 0


def test_a_resume_with_damaged_checkpoints_only_does_not_bury_them(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path, JOB).iteration == 0
    (tmp_path / "checkpoints" / "stage-0" / "iter-000020-round-0").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no whole checkpoint .* to begin anew"):
        find_checkpoint(tmp_path, JOB)


def test_a_resumed_cell_begins_at_the_round_of_its_checkpoints(tmp_path: Path) -> None:
    ((_, notice),) = start(tmp_path, resumed=40, rounds=3)
    assert {(r.iteration, r.round) for r in map(read_record, read_genesis(notice).foundings)} == {(40, 3)}


def test_a_job_that_is_founded_again_takes_names_that_no_cell_had(tmp_path: Path) -> None:
    """Members of the first cells may still be somewhere, and come back."""
    names = []
    for resumed in (None, 40, 0, 80):
        ((_, notice),) = start(tmp_path, resumed=resumed)
        names += [read_record(founding).cell for founding in read_genesis(notice).foundings]
    assert len(set(names)) == len(names)


def test_a_cell_of_one_founded_again_has_a_name_that_was_never_used() -> None:
    """The first one is gone and nobody names it any more; its records are still signed."""

    def name(wall_s: float, *cells: str) -> str:
        someone = Identity.create(random.Random(3))
        about = {"iteration": 4, "rounds": 1, "cells": cells, "wall_s": wall_s}
        return read_record(solo_founding(Job(), someone.node, someone.sign, **about)).cell

    first, later = name(1.8e9), name(1.8e9 + 3.0)
    assert len({first, later, name(1.8e9, first), name(1.8e9, first, first + "-")}) == 4
