"""Machine: a holder's part of the pipeline: take a microbatch in, run its stage, send it on.

Forward may be retried, backward never: a hop that cannot reach the next one re-routes a
forward on the spot, and only says `lost` when there is no other way. A backward that cannot be
delivered ends there; the stages it reached keep its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from swarm.events import Noted
from swarm.messages import Backward, CellRecord, Forward, Lost, Plan, Roster
from swarm.pipeline.checks import wrong_with_path
from swarm.pipeline.early import Early, Waiting
from swarm.pipeline.work import Forget, Key, Ship, Work
from swarm.planning.paths import reroute
from transport.machine import Effect, NodeId, Send
from transport.wire import Message


class Hops:
    """Everything a node does as hop of other (or its own) data nodes' microbatches."""

    def __init__(self, me: NodeId) -> None:
        self.me = me
        self.held_max = 0
        self.dropped: dict[str, int] = {}
        self._plan: Plan | None = None
        self._open = False
        self._avoid: frozenset[NodeId] = frozenset()
        self._bodies: dict[tuple[Key, int], Forward] = {}
        self._returning: set[tuple[Key, int]] = set()
        self.early = Early()

    @property
    def held(self) -> int:
        """Microbatches of which this node keeps what their backward needs."""
        return len(self._bodies)

    # -- slots ------------------------------------------------------------------------------

    def begin(self, plan: Plan, *, held_max: int) -> Sequence[Effect]:
        """A new slot: forget the last one, then take in what came early.

        held_max: microbatches that this node may hold, counted in each of its stages.
        """
        self._plan, self._open, self.held_max = plan, True, held_max
        self._bodies.clear()
        self._returning.clear()
        came = self.early.take(plan)
        return [effect for e in came for effect in self.arrived(e.peer, e.body, e.payload)]

    def close(self) -> None:
        """No new work for this slot: whatever still comes is late."""
        self._open = False

    def observe(self, avoid: frozenset[NodeId]) -> None:
        """Nodes that are not alive in the view: no path goes there any more."""
        self._avoid = avoid

    @property
    def working_on(self) -> tuple[int, int] | None:
        """Slot and term of the plan at hand."""
        return (self._plan.slot, self._plan.term) if self._plan else None

    @property
    def roster(self) -> Roster:
        """Holders by stage in the current slot."""
        return self._plan.roster if self._plan else ()

    # -- microbatches -----------------------------------------------------------------------

    def arrived(
        self, peer: NodeId, body: Forward | Backward, payload: Any, last: CellRecord | None = None
    ) -> Sequence[Effect]:
        """A forward or backward for a stage of this node (never for the ends).

        last: the newest decided record of the cell, without which nothing waits for a later slot.
        """
        if not self._current(body):
            return self._not_current(peer, body, payload, last)
        wrong = wrong_with_path(peer, body, self.roster)
        if wrong:
            return self._drop(f"{body.kind}: {wrong}")
        node, stage = body.path[body.position]
        if node != self.me:
            return self._drop("misrouted")
        key = self._key(body)
        if isinstance(body, Backward):
            sent = self._bodies.get((key, body.position))
            if sent is None or sent.path[: body.position + 1] != body.path[: body.position + 1]:
                return self._drop("backward of nothing")
            if (key, body.position) in self._returning:
                return self._drop("backward twice")
            self._returning.add((key, body.position))
            return [Work("backward", key, stage, body.position, payload, body.target_tokens)]
        if (key, body.position) in self._bodies:
            return self._drop("forward twice")
        others = [held for held, _ in self._bodies if held[:-1] == key[:-1] and held != key]
        if any(held.attempt > key.attempt for held in others):
            return self._drop("forward of an attempt that is over")
        effects = [effect for held in others for effect in self._free(held)]
        if len(self._bodies) >= self.held_max:
            return [*effects, self._lost(body, "this hop holds all the microbatches it can")]
        self._bodies[key, body.position] = body
        return [*effects, Work("forward", key, stage, body.position, payload)]

    def given_up(self, peer: NodeId, body: Lost) -> Sequence[Effect]:
        """A data node starts a microbatch again, or not: what is kept of this attempt is of no use."""
        return self._free(Key(body.slot, body.term, peer, body.microbatch, body.attempt))

    def _free(self, key: Key) -> Sequence[Effect]:
        """Drop an attempt that can have no backward; one whose backward has begun stays."""
        entries = [entry for entry in self._bodies if entry[0] == key]
        if not entries or any(entry in self._returning for entry in entries):
            return []
        for entry in entries:
            del self._bodies[entry]
        return [Forget(key)]

    def computed(self, work: Work, output: Any, _: float) -> Sequence[Effect]:
        """A forward or backward of this node is done; `output` goes to the next hop.

        None: it could not be computed. A forward can start again elsewhere, a backward ends here.
        """
        body = self._bodies.get((work.key, work.position))
        if body is None or not self._current(body):
            return [*self._drop("finished after it was over"), Forget(work.key)]
        if output is None:
            del self._bodies[work.key, work.position]
            if work.kind == "backward":
                return self._drop("backward could not be computed")
            return [self._lost(body, f"stage {work.stage} could not compute its forward")]
        if work.kind == "forward":
            return self._send_on(body, output)
        del self._bodies[work.key, work.position]
        previous = work.position - 1
        backward = Backward(
            cell=body.cell,
            slot=body.slot,
            term=body.term,
            microbatch=body.microbatch,
            attempt=body.attempt,
            path=body.path,
            position=previous,
            target_tokens=work.target_tokens,
        )
        return [Ship(NodeId(body.path[previous][0]), backward, output)]

    def unreachable(self, body: Forward | Backward, tensor: Any) -> Sequence[Effect]:
        """The link could not take what this hop shipped."""
        if isinstance(body, Backward):
            return self._drop("backward undeliverable")
        sent = self._bodies.get((self._key(body), body.position - 1))
        if sent is None:
            return self._drop("finished after its slot")
        if body.position == len(body.path):
            return self._drop("data node unreachable")
        return self._send_on(sent, tensor, unreachable=NodeId(body.path[body.position][0]))

    def _send_on(self, body: Forward, tensor: Any, unreachable: NodeId | None = None) -> Sequence[Effect]:
        """To the next hop, around dead ones, or back to the data node after the last."""
        effects: list[Effect] = []
        path, onward = body.path, body.position + 1
        avoid = self._avoid | {unreachable} if unreachable else self._avoid
        if onward < len(path) and path[onward][0] in avoid:
            found = reroute(path, body.position, self.roster, avoid)
            if found.path is None:
                return [self._lost(body, found.reason)]
            path = found.path
            fields = {"microbatch": body.microbatch, "attempt": body.attempt, "reason": found.reason}
            effects.append(Noted("rerouted", fields))
            self._bodies[self._key(body), body.position] = body.model_copy(update={"path": path})
        target = path[onward][0] if onward < len(path) else path[0][0]
        forward = body.model_copy(update={"path": path, "position": onward, "tensors": ()})
        return [*effects, Ship(NodeId(target), forward, tensor)]

    # -- what does not fit ------------------------------------------------------------------

    def _current(self, body: Forward | Backward) -> bool:
        plan = self._plan
        return (
            self._open
            and plan is not None
            and (body.cell, body.slot, body.term) == (plan.cell, plan.slot, plan.term)
        )

    def _not_current(
        self, peer: NodeId, body: Forward | Backward, payload: Any, last: CellRecord | None
    ) -> Sequence[Effect]:
        plan = self._plan
        if isinstance(body, Backward) or (plan and (body.slot, body.term) <= (plan.slot, plan.term)):
            return self._drop(f"late {body.kind}")
        wrong = self.early.keep(Waiting(peer, body, payload), last, self.roster, self.held_max)
        return self._drop(f"{body.kind} {wrong}") if wrong else []

    def _drop(self, what: str) -> Sequence[Effect]:
        self.dropped[what] = self.dropped.get(what, 0) + 1
        return []

    def _lost(self, body: Forward, reason: str) -> Effect:
        lost = Lost(
            cell=body.cell,
            slot=body.slot,
            term=body.term,
            microbatch=body.microbatch,
            attempt=body.attempt,
            reason=reason[:200],
        )
        return Send(NodeId(body.path[0][0]), Message(lost))

    @staticmethod
    def _key(body: Forward | Backward) -> Key:
        return Key(body.slot, body.term, NodeId(body.path[0][0]), body.microbatch, body.attempt)
