"""Whatever a member says, in the cell or not: no node ends, none fills up, and training goes on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from cell_world import CellNode, Cells, run_cells, small_job
from gossip_halves import WORLDS, Seat
from hostile import (
    GROWTH_BYTES,
    HELD_BYTES_MAX,
    Liar,
    Overheard,
    flood,
    grown_bytes,
    held_bytes,
    lie,
    overgrown,
    peak_bytes,
    reraise,
    stranger,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from strategies import Said, Shapes, Words, plainest

from recovery.transfer import TRANSFER_KINDS
from swarm.daemon.archive import ARCHIVE_SCHEMA, ArchiveHalf
from swarm.daemon.bridge import MemberChanged, NoticeLearned
from swarm.daemon.bridges import MemoryBridge
from swarm.daemon.training_setup import WORK_SCHEMA
from swarm.gossip.messages import GOSSIP_KINDS, Claim
from swarm.gossip.view import Facts, MemberRecord
from swarm.job import Job
from swarm.meetings import MEETING_KINDS
from swarm.messages import WORK_KINDS, CellRecord
from transport.identity import Identity, pack_payload, within
from transport.machine import NodeId
from transport.sim_link import SimLink
from transport.sim_network import SimNetwork
from transport.sim_paths import LinkShape
from transport.virtual_time import run_virtual
from transport.wire import Body, Message, Signed

KINDS: tuple[type[Body], ...] = (*WORK_KINDS, *MEETING_KINDS, *TRANSFER_KINDS)
NODES = 4
MESSAGES = 60
FLOOD = 300
FLOOD_LARGE = 30
HELD_STATES_MAX = 3
"""What a node may hold of whatever is said to it, in states of the whole model; an honest run takes 1."""
GROWN_STATES_MAX = 8
"""By how much more the process may grow while four nodes are lied to, and all that is under way."""
LARGE_BYTES = 1 << 16
"""So many messages with tensors of this size or more, because all of them are under way at once."""


def examples(count: int) -> settings:
    """Always the same examples; a failure is shown as it was found."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )


def endless_job(folder: Path) -> Job:
    return small_job(
        folder,
        inner={"iterations": 100_000},
        pipeline={"nodes": NODES, "stages": 2},
        recovery={"checkpoint_every": 5},
    )


# -- the training half --------------------------------------------------------------------


class Outsider(Liar):
    """A member of another cell, which is there for nobody to see."""

    def __init__(self, cells: Cells) -> None:
        identity = Identity.create(random.Random(77))
        link = cells.network.open(identity.node, curve_key=identity.curve_public, schema=WORK_SCHEMA)
        super().__init__(identity, link)
        self.cells = cells
        self.seq = 0
        cells.gossip.nodes[identity.node] = self  # type: ignore[assignment]
        for node in cells.nodes:
            self.know(node.identity.node, node.link.endpoint)
        self.advertise(Facts(cell="elsewhere", state="training"))

    def advertise(self, facts: Facts) -> None:
        """What gossip would let through: a record that this member has signed."""
        self.seq += 1
        changed = MemberChanged(record=member_record(self.cells.job, self, self.seq, facts), status="alive")
        for node in self.cells.alive:
            node.inbox.put_nowait(changed)


def member_record(job: Job, liar: Liar, seq: int, facts: Facts) -> Signed:
    """What a member truly signs about itself."""
    record = MemberRecord(
        job=job.digest,
        node=liar.identity.node,
        incarnation=0,
        seq=seq,
        gossip="",
        work=liar.link.endpoint.address,
        curve_key=liar.identity.curve_public,
        certificate=b"",
        facts=facts,
    )
    return liar.identity.signing_in(job.digest)("member", pack_payload(record))


def words_of(cells: Cells, heard: Overheard, liar: Liar) -> Words:
    trainers = [node.half.trainer for node in cells.alive if node.half.trainer]
    nodes = tuple(node.identity.node for node in cells.nodes)
    records = [t.record for t in trainers]
    sizes = trainers[0].computing.stage_sizes
    shape = (cells.job.pipeline.microbatch, cells.job.data.sequence, trainers[0].computing.config.width)
    return Words(
        numbers=(*heard.numbers(), *(r.slot for r in records), *(t.follower.term for t in trainers)),
        texts=(
            *nodes,
            liar.identity.node,
            *(r.cell for r in records),
            *(t.follower.digest for t in trainers),
        ),
        heard={kind: list(kept) for kind, kept in heard.messages.items()},
        parts=((within(cells.job.digest, "cell-record"), CellRecord, {}),),
        signers=(liar.identity, stranger()),
        sizes=(*((size,) for size in sizes), shape),
    )


def check(nodes: Sequence[CellNode], before: int) -> None:
    assert not [node.index for node in nodes if node.task.done()]
    assert [what for node in nodes for what in node.half.guard.dropped] == []
    assert [what for node in nodes for what in overgrown(node.half)] == []
    state = sum(nodes[0].half.setup.stage_bytes())
    held = {node.index: held_bytes(node.half) for node in nodes}
    assert not {index: nbytes for index, nbytes in held.items() if nbytes > HELD_STATES_MAX * state}
    assert grown_bytes(before) < GROWN_STATES_MAX * state
    assert all(node.link.conducts.all_heard for node in nodes), "who is cut off tests nothing"


def lied_to(folders: pytest.TempPathFactory, data: st.DataObject, batches: int, *, inside: bool) -> None:
    """One run. Whatever an outsider says the cell trains on; a member of it may cost it its own part."""

    async def scenario(cells: Cells) -> None:
        await cells.until(lambda: cells.nodes[0].iteration >= 1)
        heard = Overheard(cells.network)
        await cells.until(lambda: cells.nodes[0].iteration >= 4)
        member = cells.nodes[-1]
        outsider = Outsider(cells)
        liar = Liar(member.identity, member.link) if inside else outsider
        victims = [NodeId(node.identity.node) for node in cells.nodes[:-1]]
        before = peak_bytes()
        for _ in range(batches):
            words = words_of(cells, heard, liar)
            lie(data, liar, victims, KINDS, words, heard, MESSAGES)
            outsider.advertise(data.draw(Shapes(words).part(Facts)))
            learned = data.draw(Shapes(words).part(NoticeLearned))
            cells.nodes[0].inbox.put_nowait(learned)
            await asyncio.sleep(0.1)
            check(cells.nodes, before)
        if inside:
            return
        reached = max(node.iteration for node in cells.nodes[:-1])
        await cells.until(lambda: max(n.iteration for n in cells.nodes[:-1]) >= reached + 2, 600.0)
        check(cells.nodes, before)

    try:
        run_cells(endless_job(folders.getbasetemp()), folders.mktemp("lied_to"), NODES, scenario)
    except BaseExceptionGroup as group:
        reraise(group)


@examples(3)
@given(data=st.data())
def test_training_goes_on_whatever_an_outsider_says(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    lied_to(tmp_path_factory, data, batches=1, inside=False)


@examples(3)
@given(data=st.data())
def test_nobody_ends_whatever_a_member_of_the_cell_says(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    lied_to(tmp_path_factory, data, batches=1, inside=True)


@pytest.mark.slow
@pytest.mark.parametrize("inside", [False, True])
def test_nobody_ends_whatever_is_said_for_long(
    tmp_path_factory: pytest.TempPathFactory, inside: bool
) -> None:
    @examples(24)
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        lied_to(tmp_path_factory, data, batches=3, inside=inside)

    run()


def heard_of_all_kinds(heard: Overheard, shapes: Shapes) -> list[Message]:
    """A message of every kind: as it was said here, or the simplest that its schema allows."""
    found = []
    for kind in KINDS:
        if heard.messages[kind.kind]:
            found.append(heard.messages[kind.kind][-1])
        else:
            found.append(Said(plainest(kind, shapes)).message)
    return found


def test_no_flood_fills_a_training_half(tmp_path: Path) -> None:
    """Hundreds of messages of each kind that differ in every number and text, from a member of the cell."""

    async def scenario(cells: Cells) -> None:
        heard = Overheard(cells.network)
        await cells.until(lambda: cells.nodes[0].iteration >= 1)
        liar = Liar(cells.nodes[-1].identity, cells.nodes[-1].link)
        before = peak_bytes()
        victim = cells.nodes[0]
        for message in heard_of_all_kinds(heard, Shapes(words_of(cells, heard, liar))):
            for said in flood(message, FLOOD if message.nbytes < LARGE_BYTES else FLOOD_LARGE):
                liar.say(NodeId(victim.identity.node), said)
            await asyncio.sleep(0.02)
            check([victim], before)
        reached = max(node.iteration for node in cells.nodes)
        await cells.until(lambda: max(n.iteration for n in cells.nodes) >= reached + 2, 600.0)

    run_cells(endless_job(tmp_path), tmp_path, NODES, scenario)


# -- the archive --------------------------------------------------------------------------


def collected(folder: Path, data: st.DataObject, count: int) -> None:
    """An archive that a donor of everything lies to, while it seeks and while it gives."""
    job = small_job(folder, pipeline={"nodes": 2, "stages": 2}, recovery={"checkpoint_every": 2})

    async def main() -> None:
        network = SimNetwork(random.Random(1), LinkShape(latency_s=0.01, bandwidth_bytes_per_s=1e9))
        me, donor = Identity.create(random.Random(5)), Identity.create(random.Random(6))
        links = [
            network.open(who.node, curve_key=who.curve_public, schema=schema)
            for who, schema in ((me, ARCHIVE_SCHEMA), (donor, WORK_SCHEMA))
        ]
        ours, theirs = MemoryBridge.pair()
        archive = ArchiveHalf(
            me=me.node,
            job=job,
            sizes=(64, 64),
            directory=folder / "nothing here yet",
            link=links[0],
            bridge=ours,
            wall=lambda: 0.0,
            emit=lambda _: None,
        )
        liar = Liar(donor, links[1])
        liar.know(me.node, links[0].endpoint)
        heard = Overheard(network)
        before = peak_bytes()
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(archive.run())
            for seq in range(count):
                words = Words(
                    numbers=(*heard.numbers(), job.inner.iterations),
                    texts=heard.texts(),
                    heard={kind: list(kept) for kind, kept in heard.messages.items()},
                    sizes=((64,), (1, 16)),
                )
                facts = Facts(cell="c0", stages=(0, 1), iteration=2 * seq + 2, state="training")
                if seq % 2:
                    facts = data.draw(Shapes(words).part(Facts))
                record = member_record(job, liar, seq, facts)
                theirs.send(MemberChanged(record=record, status="alive"))
                lie(data, liar, [me.node], TRANSFER_KINDS, words, heard, MESSAGES)
                await asyncio.sleep(1.0)
                assert not task.done()
                assert archive._guard.dropped == {}
                assert overgrown(archive) == []
                assert held_bytes(archive) < HELD_BYTES_MAX
            assert grown_bytes(before) < GROWTH_BYTES
            task.cancel()

    try:
        run_virtual(main())
    except BaseExceptionGroup as group:
        reraise(group)


@examples(10)
@given(data=st.data())
def test_an_archive_collects_on_whatever_a_donor_says(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    collected(tmp_path_factory.getbasetemp(), data, count=4)


# -- gossip -------------------------------------------------------------------------------


def gossiped(data: st.DataObject, batches: int) -> None:
    """Three halves that an admitted fourth lies to; they must keep seeing each other."""
    world = WORLDS["simulated"]

    async def main() -> None:
        async with world.open() as table:
            seats = await table.meet(workers=3)
            last = seats[-1]
            assert isinstance(last.link, SimLink)
            liar = Liar(last.identity, last.link)
            heard = Overheard(last.link._network)  # type: ignore[arg-type]
            await asyncio.sleep(3.0)
            before = peak_bytes()
            for _ in range(batches):
                words = gossip_words(seats, heard, liar, table.issuer.job)
                lie(data, liar, [s.identity.node for s in seats[:-1]], GOSSIP_KINDS, words, heard, 16)
                await asyncio.sleep(1.0)
                assert not [seat for seat in seats if seat.task.done()]
                assert [what for seat in seats for what in overgrown(seat.half._membership)] == []
                assert max(held_bytes(seat.half) for seat in seats) < HELD_BYTES_MAX
            await asyncio.sleep(60.0)
            assert not [seat for seat in seats if seat.task.done()]
            for seat in seats[:-1]:
                for other in seats[:-1]:
                    assert seat is other or seat.half.view.status(other.identity.node) == "alive"
            assert grown_bytes(before) < GROWTH_BYTES

    world.run(main())


def gossip_words(seats: Sequence[Seat], heard: Overheard, liar: Liar, job: Job) -> Words:
    """What the liar may truly sign: its own records and claims, and records of cells."""
    own = seats[-1].half._membership.own.record
    fixed = {name: getattr(own, name) for name in type(own).model_fields}
    for name in ("incarnation", "seq", "facts"):
        del fixed[name]
    return Words(
        numbers=(*heard.numbers(), own.incarnation, own.seq),
        texts=(*(seat.identity.node for seat in seats), job.digest, "c0"),
        heard={kind: list(kept) for kind, kept in heard.messages.items()},
        parts=(
            (within(job.digest, "member"), MemberRecord, fixed),
            (within(job.digest, "claim"), Claim, {"by": liar.identity.node}),
            (within(job.digest, "cell-record"), CellRecord, {}),
        ),
        signers=(liar.identity, stranger()),
    )


@examples(6)
@given(data=st.data())
def test_members_keep_seeing_each_other_whatever_one_says(data: st.DataObject) -> None:
    gossiped(data, batches=2)


@pytest.mark.slow
@examples(60)
@given(data=st.data())
def test_members_keep_seeing_each_other_whatever_one_says_for_long(data: st.DataObject) -> None:
    gossiped(data, batches=4)
