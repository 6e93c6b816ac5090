"""The half of a node that trains: link, bridge and compute around the trainer.

Async code here only waits and hands over: to the trainer (the cell), to the transfer machine
(states that come and go), to `founding.py` and to `standing.py` (a node's place in a cell, or in none).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NoReturn

from recovery.donor import NeedSnapshot
from recovery.fetch import DonorDropped, Fetched, FetchFailed
from recovery.transfer import TRANSFER_KINDS, Transfer
from swarm.daemon.bridge import (
    Bridge,
    FactsChanged,
    Failed,
    Left,
    MemberChanged,
    MemberGone,
    NoticeLearned,
    PeerLost,
    Stop,
)
from swarm.daemon.compute import Compute
from swarm.daemon.donating import snapshot_for, write_stages
from swarm.daemon.founding import Founding
from swarm.daemon.guarding import Guard
from swarm.daemon.heartbeat import Heartbeat
from swarm.daemon.leaving import Leaving
from swarm.daemon.reporting import facts_of
from swarm.daemon.restore import Restored
from swarm.daemon.standing import Standing
from swarm.daemon.training_setup import TrainingSetup
from swarm.events import Event, EventKind, Noted
from swarm.gossip.view import Facts, Member, View, read_member
from swarm.messages import Absent, Close, Plan, Propose, Query, Ready, Restore
from swarm.pipeline.computing import Computing
from swarm.pipeline.office import Dissolve
from swarm.pipeline.records import is_finished
from swarm.pipeline.stage import Stage
from swarm.pipeline.trainer import Trainer
from swarm.pipeline.work import Applied, Dropped, Ordered
from swarm.planning.orders import Orders
from transport.link import Closed, Endpoint, Link, LinkClosed, LinkEvent, Malformed, Received
from transport.machine import Effect, NodeId, Send
from transport.wire import Body, Message, Signed, WireError


class TrainingHalf:
    """One node's training, from standby to its last iteration."""

    def __init__(self, setup: TrainingSetup, link: Link, bridge: Bridge, compute: Compute) -> None:
        self.setup = setup
        self.view = View()
        self.trainer: Trainer | None = None
        self.transfer = Transfer(options=setup.matter.fetching)
        self._link, self._bridge, self._compute = link, bridge, compute
        self._place = Orders(setup.job, setup.stage_bytes())
        self.restoring = setup.restoring(self.transfer)
        self.founding = Founding(self)
        self.standing = Standing(self)
        self.leaving = Leaving(self)
        self.guard = Guard(self.note)
        self._needs: list[NeedSnapshot] = []
        self._wake_compute, self._wake_timer = asyncio.Event(), asyncio.Event()
        self._heartbeat = Heartbeat(bridge)
        self.facts = setup.standby_facts()

    # -- the tasks --------------------------------------------------------------------------

    async def run(self) -> None:
        """Train until told to stop, or until the other half is gone."""
        self.say(self.facts)
        try:
            async with asyncio.TaskGroup() as tasks:
                for work in (self._listen, self._hear, self._calculate, self._keep_time, self._report):
                    tasks.create_task(work())
        except* (EOFError, LinkClosed, _Stopped):
            self.transfer = Transfer()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    async def _listen(self) -> None:
        while True:
            event: LinkEvent | None = await self._link.recv()
            for _ in range(256):
                if event is None:
                    break
                self._on_link(event)
                event = self._link.poll()
            self._after()

    async def _hear(self) -> None:
        while True:
            self._on_bridge(await self._bridge.recv())
            self._after()

    async def _calculate(self) -> None:
        while True:
            trainer = self.trainer
            task = trainer.tasks.get() if trainer else None
            if trainer is None or task is None:
                self._wake_compute.clear()
                await self._wake_compute.wait()
                continue
            result = await self._compute.run(task.run, task.flops)
            if trainer is self.trainer:  # else the cell was left meanwhile, perhaps for another one
                trainer.act(task.done(result, self._now()), self._now())
            self._after()

    async def _keep_time(self) -> None:
        while True:
            self._wake_timer.clear()
            machines = [m for m in (self.trainer, self.transfer) if m is not None]
            due = min((d for m in machines if (d := m.deadline()) is not None), default=None)
            try:
                async with asyncio.timeout_at(due):
                    await self._wake_timer.wait()
            except TimeoutError:
                now = self._now()
                if self.trainer is not None:
                    self.trainer.tick(now)
                self.perform_all(self.transfer.tick(now))
                self._after()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self.standing.look(self._now())
            self.leaving.remind(self._now())
            self._beat()
            self._after()

    def _after(self) -> None:
        """Whatever happened may have made work, moved a deadline, or reached a slot."""
        if self._needs:
            self._provide()
        if self.leaving.over(self._now()):
            self._go()
        self._wake_compute.set()
        self._wake_timer.set()

    # -- what comes in ----------------------------------------------------------------------

    def _on_link(self, event: LinkEvent) -> None:
        match event:
            case Closed(peer):
                self._bridge.send(PeerLost(peer=peer))
            case Malformed(peer, reason):
                self.note("dropped", what="malformed message", peer=peer[:12], why=reason)
            case Received(peer, message):
                with self.guard.against(peer, message.body.kind):
                    self._on_message(peer, message)

    def _on_message(self, peer: NodeId, message: Message) -> None:
        now, body = self._now(), message.body
        if type(body) in TRANSFER_KINDS:
            self.perform_all(self.transfer.handle(peer, message, now))
        elif isinstance(body, Restore):
            self.standing.ordered(peer, body, now)
        elif self.trainer is not None:
            self.trainer.deliver(peer, message, now)
        elif isinstance(body, Ready) and peer == self.setup.me:
            self.founding.failed(body, now)
        elif self.founding.may_enter(body):
            self.founding.keep(peer, message)  # it may be in that cell a moment later
        elif isinstance(body, Plan | Close | Propose | Query):
            absent = Absent(cell=body.cell, slot=body.slot, term=body.term, reason="in no cell")
            self._link.send(peer, Message(absent))

    def _on_bridge(self, body: Body) -> None:
        now = self._now()
        match body:
            case MemberChanged():
                with self.guard.against(body.record.signer, body.kind):
                    self._on_member(body, now)
            case MemberGone(node=node):
                self.view = self.view.without(NodeId(node))
            case NoticeLearned():
                with self.guard.against(body.notice.signer, body.topic):
                    self.founding.learn(body, now)
            case Stop(reason=reason):
                self.leaving.begin(reason, now)

    def _on_member(self, body: MemberChanged, now: float) -> None:
        try:
            record = read_member(body.record)
        except WireError as error:
            self.note("dropped", what="member record", why=str(error))
            return
        member = Member(record, body.status, body.reason)
        if member.node != self.setup.me:
            if record.facts.state == "stuck" and member.live:
                # Its gossip half answers; at work it is as good as dead until it says otherwise.
                member = Member(record, "dead", "its training half hangs")
            if member.status in ("alive", "suspect"):
                self._link.know(member.node, Endpoint(record.work, record.curve_key))
            else:
                self._link.forget(member.node)
                self.perform_all(self.transfer.lose(member.node, now))
        self.view = self.view.with_member(member)
        if self.trainer is not None:
            self.trainer.observe(self.view, now)
            self.standing.compare_hashes(member, now)
        self.standing.look(now)

    # -- effects ----------------------------------------------------------------------------

    def perform_all(self, effects: Sequence[Effect]) -> None:
        """Carry out effects of machines other than the trainer's."""
        for effect in effects:
            self.perform(effect)

    def perform(self, effect: Effect) -> None:
        """Carry out one effect that is not the trainer's own."""
        match effect:
            case Send(peer, message):
                self._deliver(peer, message)
            case Noted(kind, fields):
                self._heartbeat.count(kind, fields)
                self.note(kind, **fields)
            case Applied():
                self._applied(effect)
            case Dropped(stage):
                self.note("placed", stage=stage, holds=False, reason="the roster gives it to others")
            case Fetched() | FetchFailed():
                self.perform_all(self.restoring.ended(effect))
            case NeedSnapshot():
                self._needs.append(effect)
            case DonorDropped(name, peer, reason, _):
                self.note("dropped", what=f"donor of {name}", peer=peer[:12], why=reason)
            case Ordered(order):
                self.standing.ordered(self.setup.me, order, self._now())
            case Dissolve(reason):
                self.standing.give_up_cell(reason)
            case Restored():
                self.standing.restored(effect, self._now())

    def _deliver(self, peer: NodeId, message: Message) -> None:
        if peer != self.setup.me:
            self._link.send(peer, message)
        elif self.trainer is not None:
            self.trainer.act([Send(peer, message)], self._now())
        else:
            self._on_message(peer, message)

    def note(self, kind: EventKind, **fields: object) -> None:
        """Record a fact."""
        self.setup.emit(Event(kind, self.setup.wall(), self.setup.me, fields))

    def _provide(self) -> None:
        needs, self._needs = self._needs, []
        for need in (n for n in needs if self.transfer.is_waited_for(n.name, n.slot)):
            directory, job = self.setup.data_dir / "checkpoints", self.setup.job.digest
            answer = snapshot_for(need, self.trainer, directory, job, self.setup.matter)
            if answer is None:
                self._needs.append(need)
            elif isinstance(answer, str):
                self.perform_all(self.transfer.decline(need.name, need.slot, answer, self._now()))
            else:
                self.perform_all(self.transfer.provide(answer, self._now()))

    # -- the cell ---------------------------------------------------------------------------

    def enter(
        self, decided: Signed, stages: dict[int, Stage], now: float, *, newcomer: bool = False
    ) -> Trainer:
        """Become a member of the cell of a record, holding these stages."""
        setup = self.setup
        self.trainer = Trainer(
            me=setup.me,
            job=setup.job,
            computing=Computing(setup.job, setup.config, setup.corpus, stages, setup.matter),
            decided=decided,
            sign=setup.sign,
            check=lambda signed: setup.vouches(self.view, signed),
            place=self._place,
            send=self._link.send,
            perform=self.perform,
            newcomer=newcomer,
        )
        self.trainer.observe(self.view, now)
        self.advertise()
        return self.trainer

    def leave_cell(self) -> None:
        """Belong to no cell: standby again, unless on the way out."""
        self.trainer = None
        if not self.leaving.begun:
            self.say(self.setup.standby_facts())

    def _applied(self, effect: Applied) -> None:
        record, trainer = effect.record, self.trainer
        assert trainer is not None
        self.standing.applied(record)
        finished = is_finished(record, self.setup.job)
        due = record.act == "step" and record.iteration % self.setup.job.recovery.checkpoint_every == 0
        if self.setup.checkpoints and (due or finished):
            self._write_checkpoints(trainer)
        self.advertise()
        if finished:
            self.note("finished", cell=record.cell, iteration=record.iteration, loss=round(record.loss, 5))

    def _write_checkpoints(self, trainer: Trainer) -> None:
        for fields in write_stages(trainer, self.setup.data_dir / "checkpoints", self.setup.job.digest):
            self.note("checkpoint", **fields)

    def advertise(self) -> None:
        """Tell the others what this node holds now, with proof."""
        if self.trainer is not None:
            facts = facts_of(self.trainer, self.setup.me, self.setup.job, self.facts)
            self.standing.likeness.ours(facts)
            self.say(facts)

    def say(self, facts: Facts) -> None:
        """Advertise these facts from now on."""
        self.facts = facts
        self._bridge.send(FactsChanged(facts=facts))

    def _go(self) -> None:
        if self.trainer is not None and self.trainer.applied and self.setup.checkpoints:
            self._write_checkpoints(self.trainer)
        self.note("left", reason=self.leaving.reason)
        self._bridge.send(Left(reason=self.leaving.reason))
        raise _Stopped

    def fail(self, reason: str) -> NoReturn:
        """End this node over what its person has to put right. One sentence."""
        self._bridge.send(Failed(reason=reason))
        raise _Stopped

    def _beat(self) -> None:
        self._heartbeat.beat(
            self.trainer,
            self.transfer,
            self.guard,
            self._link.stats,
            memory_bytes=self.setup.resident_bytes(),
            waiting_for=self.standing.waiting_for(),
            now=self._now(),
        )


class _Stopped(Exception):
    """A planned leave."""
