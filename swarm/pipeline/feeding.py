"""Machine: a data node's part of the pipeline: start microbatches, count each of them once.

A microbatch is waiting, then forward, then at its head, then (its loss exists) backward, then
resolved as done, partial or lost. Until its loss exists it has touched no gradient and may start
again on another path; once backward has begun it is never redone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from swarm.events import Noted
from swarm.messages import Backward, Forward, Hop, Lost, Plan, Report
from swarm.pipeline.checks import wrong_with_path
from swarm.pipeline.work import Forget, Key, Ship, Work
from swarm.planning.paths import start_again
from transport.machine import Effect, NodeId, Send
from transport.patience import Patience
from transport.wire import Message

ATTEMPTS_MAX = 6
"""A microbatch that failed this often is reported lost; the iteration goes on without it."""
Phase = Literal["waiting", "forward", "head", "backward", "done", "partial", "lost"]
RESOLVED: frozenset[Phase] = frozenset(("done", "partial", "lost"))


@dataclass(slots=True)
class Flight:
    """One microbatch of this data node in this slot."""

    index: int
    path: tuple[Hop, ...]
    phase: Phase = "waiting"
    attempt: int = 0
    since: float = 0.0
    until: float = 0.0
    returned: bool = False
    """Whether the gradient of its embedding has arrived."""
    withdrawn: str = ""
    """Why its head is not wanted any more, unless it has begun."""


class Feeding:
    """Starts this node's microbatches of a plan and reports when all are resolved."""

    def __init__(self, me: NodeId, *, in_flight: int) -> None:
        self.me = me
        self.in_flight = in_flight
        self.dropped: dict[str, int] = {}
        self._plan: Plan | None = None
        self._leader: NodeId = me
        self._flights: dict[int, Flight] = {}
        self._avoid: frozenset[NodeId] = frozenset()
        self._durations = Patience(initial_s=60.0, floor_s=5.0)
        self._loss_sum, self._tokens = 0.0, 0

    # -- slots ------------------------------------------------------------------------------

    def begin(self, plan: Plan, leader: NodeId, now: float) -> Sequence[Effect]:
        """Start the microbatches of a plan that begin here."""
        self._plan, self._leader = plan, leader
        self._loss_sum, self._tokens = 0.0, 0
        mine = [m for m in plan.microbatches if m.path[0][0] == self.me]
        self._flights = {m.index: Flight(m.index, m.path) for m in mine}
        return self._start(now)

    def close(self) -> None:
        """The leader closed the slot: what is not resolved stays unresolved."""
        self._plan = None

    def observe(self, avoid: frozenset[NodeId], now: float) -> Sequence[Effect]:
        """Restart or give up what was on its way through nodes that are gone."""
        self._avoid = avoid
        effects: list[Effect] = []
        for flight in self._flights.values():
            if any(node in avoid for node, _ in flight.path):
                effects += self._trouble(flight, "a hop of its path is gone", now)
        return effects

    # -- one microbatch ---------------------------------------------------------------------

    def handle(self, peer: NodeId, body: Lost, now: float) -> Sequence[Effect]:
        """A hop says that an attempt cannot go on: only a forward can end like that."""
        flight = self._flight(body.slot, body.term, body.microbatch, body.attempt)
        plan = self._plan
        if flight is None or plan is None or flight.phase != "forward":
            return self._drop(f"late {body.kind}")
        if not any(peer in row for row in plan.roster):
            return self._drop("lost: of no hop")
        return self._trouble(flight, body.reason, now)

    def feeds(self, microbatch: int) -> bool:
        """Whether this node started a microbatch of the plan."""
        return microbatch in self._flights

    def arrived(self, peer: NodeId, body: Forward | Backward, payload: Any) -> Sequence[Effect]:
        """Activations came back to their data node, or the gradient of the embedding did."""
        flight = self._flight(body.slot, body.term, body.microbatch, body.attempt)
        expected: Phase = "forward" if isinstance(body, Forward) else "backward"
        if self._plan is None or flight is None or flight.phase != expected or flight.returned:
            return self._drop(f"late {body.kind}")
        wrong = wrong_with_path(peer, body, self._plan.roster)
        if wrong or body.path[:2] != flight.path[:2]:
            return self._drop(f"{body.kind}: {wrong or 'another path than it was sent on'}")
        key = self._key(flight)
        if isinstance(body, Forward):
            flight.path, flight.phase = body.path, "head"
            return [Work("head", key, 0, len(body.path), payload)]
        flight.returned = True
        return [Work("backward", key, 0, 0, payload, body.target_tokens)]

    def computed(self, work: Work, output: Any, now: float) -> Sequence[Effect]:
        """An embed, head or embedding backward of this node is done; None if it could not be."""
        plan = self._plan
        flight = self._flights.get(work.key.microbatch)
        if plan is None or flight is None or flight.phase in RESOLVED:
            return self._drop("finished after its slot")
        if work.key != self._key(flight):
            return [*self._drop("finished after it started again"), Forget(work.key)]
        if output is None:
            # Without a loss nothing was counted, so this attempt may still start again.
            flight.phase = "backward" if work.kind == "backward" else "forward"
            reason = flight.withdrawn or f"its {work.kind} could not be computed"
            return self._trouble(flight, reason, now)
        if work.kind == "embed":
            return self._ship_forward(flight, plan, output)
        if work.kind == "head":
            loss_sum, tokens, gradient = output
            self._loss_sum += loss_sum
            self._tokens += tokens
            flight.phase, flight.until = "backward", max(flight.until, now + self._durations.limit_s() / 2)
            return self._ship_backward(flight, plan, gradient, tokens)
        self._durations.add(now - flight.since)
        return self._resolve(flight, "done", now)

    def unreachable(self, body: Forward | Backward, now: float) -> Sequence[Effect]:
        """The link could not take what this data node shipped."""
        flight = self._flight(body.slot, body.term, body.microbatch, body.attempt)
        if flight is None:
            return []
        hop = flight.path[min(body.position, len(flight.path) - 1)][0]
        self._avoid |= {NodeId(hop)}
        return self._trouble(flight, "the link to the next hop is full or gone", now)

    def _ship_forward(self, flight: Flight, plan: Plan, tensor: Any) -> Sequence[Effect]:
        flight.phase = "forward"
        if len(flight.path) == 1:
            flight.phase = "head"
            return [Work("head", self._key(flight), 0, 1, tensor)]
        body = Forward(**self._fields(flight, plan), position=1)
        return [Ship(NodeId(flight.path[1][0]), body, tensor)]

    def _ship_backward(self, flight: Flight, plan: Plan, tensor: Any, tokens: int) -> Sequence[Effect]:
        last = len(flight.path) - 1
        if last == 0:
            return [Work("backward", self._key(flight), 0, 0, tensor, tokens)]
        body = Backward(**self._fields(flight, plan), position=last, target_tokens=tokens)
        return [Ship(NodeId(flight.path[last][0]), body, tensor)]

    @staticmethod
    def _fields(flight: Flight, plan: Plan) -> dict[str, Any]:
        return {
            "cell": plan.cell,
            "slot": plan.slot,
            "term": plan.term,
            "microbatch": flight.index,
            "attempt": flight.attempt,
            "path": flight.path,
        }

    # -- trouble and time -------------------------------------------------------------------

    def tick(self, now: float) -> Sequence[Effect]:
        """Microbatches that took too long; how long they took at least counts as measured.

        Else a limit that is too short for every one of them would never learn of it.
        """
        late = [f for f in self._flights.values() if self._is_timed(f) and now >= f.until]
        for flight in late:
            self._durations.add(now - flight.since)
        return [effect for flight in late for effect in self._trouble(flight, "too slow", now)]

    def deadline(self) -> float | None:
        """When the next microbatch is too late."""
        if self._plan is None:
            return None
        return min((f.until for f in self._flights.values() if self._is_timed(f)), default=None)

    def _trouble(self, flight: Flight, reason: str, now: float) -> Sequence[Effect]:
        plan = self._plan
        if plan is None or flight.phase in RESOLVED or flight.phase == "waiting":
            return []
        if flight.phase == "head":
            # It counts if it has begun. If not, it will not be computed, and then starts again.
            flight.withdrawn = reason
            return [Forget(self._key(flight), only_head=True)]
        fields = {"microbatch": flight.index, "attempt": flight.attempt, "reason": reason}
        effects: list[Effect] = [Noted("lost", fields), Forget(self._key(flight))]
        if flight.phase == "backward":
            return [*effects, *self._resolve(flight, "partial", now)]
        effects += self._tell_hops(flight, plan, reason)
        flight.attempt += 1
        flight.phase = "waiting"
        again = start_again(flight.path, plan.roster, self._avoid)
        if again.path is None or flight.attempt >= ATTEMPTS_MAX:
            effects.append(Noted("lost", fields | {"reason": again.reason, "given_up": True}))
            return [*effects, *self._resolve(flight, "lost", now)]
        flight.path = again.path
        return [*effects, *self._start(now)]

    def _tell_hops(self, flight: Flight, plan: Plan, reason: str) -> list[Effect]:
        """The hops of an attempt need not keep anything of it: nothing of it will come back."""
        lost = Lost(
            cell=plan.cell,
            slot=plan.slot,
            term=plan.term,
            microbatch=flight.index,
            attempt=flight.attempt,
            reason=reason[:200],
        )
        hops = {NodeId(node) for node, _ in flight.path[1:]} - self._avoid
        return [Send(node, Message(lost)) for node in sorted(hops)]

    def _start(self, now: float) -> list[Effect]:
        """Fill the places that are free; a path planned through a gone node is mended first."""
        assert self._plan is not None
        effects: list[Effect] = []
        busy = sum(self._on_its_way(flight) for flight in self._flights.values())
        for flight in self._flights.values():
            if busy >= self.in_flight:
                break
            if flight.phase != "waiting":
                continue
            if any(node in self._avoid for node, _ in flight.path):
                flight.path = start_again(flight.path, self._plan.roster, self._avoid).path or flight.path
            flight.phase, flight.since, flight.returned = "forward", now, False
            flight.withdrawn = ""
            flight.until = now + self._durations.limit_s()
            effects.append(Work("embed", self._key(flight), 0, 0))
            busy += 1
        return effects or self._report()

    def _resolve(self, flight: Flight, phase: Phase, now: float) -> list[Effect]:
        flight.phase = phase
        return self._start(now)

    def _report(self) -> list[Effect]:
        plan = self._plan
        phases = [flight.phase for flight in self._flights.values()]
        if plan is None or self.me not in plan.roster[0] or not RESOLVED.issuperset(phases):
            return []
        report = Report(
            cell=plan.cell,
            slot=plan.slot,
            term=plan.term,
            done=phases.count("done"),
            partial=phases.count("partial"),
            lost=phases.count("lost"),
            tokens=self._tokens,
            loss_sum=self._loss_sum,
        )
        return [Send(self._leader, Message(report))]

    @staticmethod
    def _on_its_way(flight: Flight) -> bool:
        return flight.phase in ("forward", "head", "backward")

    @staticmethod
    def _is_timed(flight: Flight) -> bool:
        """At its head it waits for this node alone: to start again would only make that worse."""
        return flight.phase in ("forward", "backward")

    def _key(self, flight: Flight) -> Key:
        assert self._plan is not None
        return Key(self._plan.slot, self._plan.term, self.me, flight.index, flight.attempt)

    def _flight(self, slot: int, term: int, microbatch: int, attempt: int) -> Flight | None:
        plan, flight = self._plan, self._flights.get(microbatch)
        if plan is None or flight is None or (slot, term) != (plan.slot, plan.term):
            return None
        return flight if flight.attempt == attempt else None

    def _drop(self, what: str) -> Sequence[Effect]:
        self.dropped[what] = self.dropped.get(what, 0) + 1
        return []
