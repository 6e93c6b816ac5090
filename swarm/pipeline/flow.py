"""Microbatches through one node: what arrives, what is computed of it, and where it goes on.

As hop it serves every data node's microbatches (`hops.py`), as data node it starts and counts
its own (`feeding.py`); this file carries tensors between those two machines, the tasks and the
link.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from swarm.gossip.view import View
from swarm.job import Job
from swarm.messages import Backward, CellRecord, Forward, Lost, Plan, Roster
from swarm.pipeline.computing import Computing
from swarm.pipeline.feeding import Feeding
from swarm.pipeline.hops import Hops
from swarm.pipeline.ledger import tokens_max
from swarm.pipeline.matter import payload_tensors
from swarm.pipeline.room import microbatches_that_fit
from swarm.pipeline.work import FlowEffect, Forget, Ship, ShipFlat, Work
from transport.codecs import CodecError
from transport.machine import Effect, NodeId
from transport.wire import Message


class Flow:
    """The microbatches of one slot after another at one node."""

    def __init__(
        self, me: NodeId, job: Job, computing: Computing, send: Callable[[NodeId, Message], bool]
    ) -> None:
        """send: the link's."""
        self.me = me
        self.cell = ""
        self.iteration = 0
        self.avoid: frozenset[NodeId] = frozenset()
        self.dropped: Counter[str] = Counter()
        self._computing, self._send = computing, send
        self._codec = job.pipeline.hop_codec
        self._job = job
        self._memory: dict[NodeId, int] = {}
        self.hops = Hops(me)
        self.feeding = Feeding(me, in_flight=job.pipeline.in_flight)

    def drop(self, what: str) -> None:
        """Count what comes to nothing."""
        self.dropped[what] += 1

    def observe(self, view: View, avoid: frozenset[NodeId], now: float) -> Sequence[Effect]:
        """The view changed; `avoid` are nodes of the cell that are not alive in it."""
        self._memory = {member.node: member.facts.memory_bytes for member in view.live()}
        self.avoid = avoid
        self.hops.observe(avoid)
        return self.feeding.observe(avoid, now)

    def begin(self, plan: Plan, leader: NodeId, now: float) -> Sequence[Effect]:
        """A slot is planned: start this node's microbatches, take in what came early."""
        self.cell, self.iteration = plan.cell, plan.iteration - 1
        self._computing.tasks.drop_microbatches()
        self._computing.clear()
        early = self.hops.begin(plan, held_max=self._held_max(plan.roster))
        self.feeding.in_flight = min(self._job.pipeline.in_flight, self._room(plan.roster, self._memory))
        return [*self.feeding.begin(plan, leader, now), *early]

    def _room(self, roster: Roster, memory: Mapping[NodeId, int]) -> int:
        config, sizes = self._computing.config, self._computing.stage_sizes
        return microbatches_that_fit(config, self._job, roster, sizes, memory)

    def _held_max(self, roster: Roster) -> int:
        """What every data node may have on its way at once, in every body stage of this node."""
        room = self._room(roster, {self.me: self._memory.get(self.me, 0)})
        return room * len(roster[0]) * sum(self.me in row for row in roster[1:])

    def tokens_max(self, *rosters: Roster) -> int:
        """Target tokens that one stage can see in this slot, with the data nodes of the plan or of these."""
        data_nodes = max(len(roster[0]) for roster in (*rosters, self.hops.roster) if roster)
        return data_nodes * tokens_max(self._job)

    def has_begun(self, slot: int, term: int) -> bool:
        """Whether this node works on the plan of this slot and leadership, or did until it was closed."""
        return self.hops.working_on == (slot, term)

    def close(self) -> None:
        """No new work for this slot."""
        self.hops.close()
        self.feeding.close()
        self._computing.tasks.drop_microbatches()

    def lost(self, peer: NodeId, body: Lost, now: float) -> Sequence[Effect]:
        """A hop says that one of this node's microbatches cannot go on, or a data node that its is over."""
        over = self.hops.given_up(peer, body)
        return (
            over if over or not self.feeding.feeds(body.microbatch) else self.feeding.handle(peer, body, now)
        )

    def arrived(
        self, peer: NodeId, body: Forward | Backward, payload: Any, last: CellRecord | None = None
    ) -> Sequence[Effect]:
        """Activations, or the gradient of what was sent, for one of this node's stages.

        last: the newest decided record; what is of a slot soon after it may wait.
        """
        home = len(body.path) if isinstance(body, Forward) else 0
        if body.position > len(body.path) or (isinstance(body, Backward) and body.position == len(body.path)):
            self.drop(f"{body.kind}: position beyond its path")
            return []
        if body.position != home:
            return self.hops.arrived(peer, body, payload, last)
        return self.feeding.arrived(peer, body, payload) if body.path[0][0] == self.me else []

    def carry_out(self, effect: FlowEffect, now: float) -> Sequence[Effect]:
        """Compute, ship or forget what a machine of this node asked for."""
        match effect:
            case Work():
                return self._work(effect, now)
            case Ship():
                return self._ship(effect, now)
            case ShipFlat():
                self._ship_flat(effect)
            case Forget(key, only_head):
                self._computing.forget(key, only_head=only_head)
        return []

    def _work(self, work: Work, now: float) -> Sequence[Effect]:
        """Queue what a machine wants computed."""
        ends = work.kind in ("embed", "head") or work.position == 0
        done = self.feeding.computed if ends else self.hops.computed
        if work.stage not in self._computing.stages:
            self.drop(f"{work.kind}: stage {work.stage} is not held here")
            return done(work, None, now)
        self._computing.work(work, self.cell, self.iteration, done)
        return []

    def _ship(self, ship: Ship, now: float) -> Sequence[Effect]:
        """Encode a tensor as the job says and send it, or tell the machine that it cannot be sent."""
        if ship.peer == self.me:
            return self.arrived(self.me, ship.body, ship.tensor)
        try:
            message = self._computing.matter.pack(ship.body, {"x": ship.tensor}, self._codec)
        except CodecError as error:
            self.drop(f"{ship.body.kind}: {error}")
            return self._unreachable(ship, now)
        if ship.peer not in self.avoid and self._send(ship.peer, message):
            return []
        return self._unreachable(ship, now)

    def _unreachable(self, ship: Ship, now: float) -> Sequence[Effect]:
        path, position = ship.body.path, ship.body.position
        first = 1 if isinstance(ship.body, Forward) else len(path) - 1
        if path[0][0] == self.me and position == first:
            return self.feeding.unreachable(ship.body, now)
        return self.hops.unreachable(ship.body, ship.tensor)

    def _ship_flat(self, ship: ShipFlat) -> None:
        """Send flat tensors exactly as they are."""
        matter = self._computing.matter
        try:
            tensors = payload_tensors(ship.tensors, matter)
            message = matter.pack(ship.body, {f"t{i}": t for i, t in enumerate(tensors)}, "raw")
        except CodecError as error:
            self.drop(f"{ship.body.kind}: {error}")
            return
        if not self._send(ship.peer, message):
            self.drop(f"{ship.body.kind}: the queue to its receiver is full or gone")
