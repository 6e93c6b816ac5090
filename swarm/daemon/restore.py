"""Carries one recovery decision out: get or rebuild the state of a stage, then say `Ready`.

The decision came from the leader (`Restore`); here are only the ways to obey it: fetch a
holder's state, take a copy of the ends, average neighbouring stages, or read a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import sqrt

from torch import Tensor

from recovery.checkfree import LR_FACTOR, fit_layers, gradient_weight, neighbour_average
from recovery.fetch import Fetched, FetchFailed
from recovery.snapshot import describe
from recovery.transfer import Transfer
from swarm.daemon.donating import checkpoint_name
from swarm.gossip.view import View
from swarm.job import Job
from swarm.messages import Ready, Restore
from swarm.pipeline.matter import DENSE, Matter
from swarm.pipeline.model import ModelConfig, stage_layers
from swarm.pipeline.records import read_record
from swarm.pipeline.stage import Stage, StageStateError, state_like
from transport.machine import Effect, NodeId, Send
from transport.wire import Message, Signed, TensorSpec, WireError


@dataclass(frozen=True, slots=True)
class Restored(Effect):
    """The stage of this order is here, in `stage`."""

    leader: NodeId
    order: Restore
    stage: Stage


@dataclass(slots=True)
class Order:
    """An order being carried out. `waiting` are names of states on their way."""

    leader: NodeId
    body: Restore
    waiting: set[str]
    got: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def weights_like(size: int) -> dict[str, Tensor]:
    """What the state "weights:K" looks like: parameters and the square of the last gradient."""
    like = state_like(size)
    return {"parameters": like["parameters"], "squares": like["lr_factor"]}


class Restoring:
    """Orders to this node, one per stage."""

    def __init__(
        self,
        me: NodeId,
        job: Job,
        config: ModelConfig,
        sizes: Sequence[int],
        transfer: Transfer,
        build: Callable[[int], Stage],
        matter: Matter = DENSE,
    ) -> None:
        """sizes: parameters per stage. build: a fresh stage on this node's device."""
        self._me = me
        self._job, self._config, self._sizes = job, config, tuple(sizes)
        self._transfer = transfer
        self._build, self._matter = build, matter
        self._orders: dict[int, Order] = {}

    @property
    def busy(self) -> tuple[int, ...]:
        """Stages on their way here."""
        return tuple(sorted(self._orders))

    def begin(
        self,
        leader: NodeId,
        body: Restore,
        view: View,
        local: Callable[[str], dict[str, Tensor] | None],
        now: float,
    ) -> Sequence[Effect]:
        """Carry an order out. `local` gives the states that this node has itself."""
        body = body.model_copy(update={"donors": tuple(d for d in body.donors if d != self._me)})
        wrong = self._wrong_with(body)
        if wrong:
            return [self._answer(leader, body, wrong)]
        wanted = self._wanted(body, view)
        at_hand = {name: state for name in wanted if (state := local(name)) is not None}
        order = Order(leader, body, set(wanted) - set(at_hand), at_hand)
        self._replace(order)
        effects: list[Effect] = []
        for name in sorted(order.waiting - self._awaited(but=order)):
            donors, expected, slot = wanted[name]
            effects += self._transfer.fetch(name, donors, expected, now, slot)
        return effects if order.waiting else self._finish(order)

    def _wrong_with(self, body: Restore) -> str:
        """Why an order cannot be carried out by anybody, or an empty text."""
        if max(body.stage, *body.neighbours, 0) >= len(self._sizes):
            return f"the order names a stage beyond the {len(self._sizes)} of this job"
        if body.how == "checkfree" and not body.neighbours:
            return f"cannot restore by {body.how} from no neighbour"
        try:
            read_record(body.decided)
        except WireError as error:
            return f"the record of the order cannot be read: {error}"
        return ""

    def _replace(self, order: Order) -> None:
        """One order per stage: what only an older one waited for need not come any more."""
        older = self._orders.get(order.body.stage)
        self._orders[order.body.stage] = order
        for name in sorted((older.waiting if older else set()) - self._awaited()):
            self._transfer.cancel(name)

    def cancel(self, decided: Signed) -> None:
        """Drop the orders that follow from this record, and what only they waited for."""
        dropped = [order for order in self._orders.values() if order.body.decided == decided]
        for order in dropped:
            del self._orders[order.body.stage]
        for name in sorted({name for order in dropped for name in order.waiting} - self._awaited()):
            self._transfer.cancel(name)

    def _awaited(self, but: Order | None = None) -> set[str]:
        """Names of the states on their way to orders, other than `but`."""
        return {name for order in self._orders.values() if order is not but for name in order.waiting}

    def _wanted(
        self, body: Restore, view: View
    ) -> dict[str, tuple[tuple[NodeId, ...], tuple[TensorSpec, ...], int | None]]:
        """States by name: whom to ask, what they are made of, at which slot."""
        donors = tuple(NodeId(donor) for donor in body.donors)
        state = describe(state_like(self._sizes[body.stage]))
        match body.how:
            case "holder" | "other_cell":
                return {f"stage:{body.stage}": (donors, state, body.slot if body.same_state else None)}
            case "checkpoint":
                # A founding begins at one place everywhere; for a lost stage the newest will do.
                if not body.same_state:
                    return {checkpoint_name(body.stage): (donors, state, None)}
                record = read_record(body.decided)
                return {checkpoint_name(body.stage, record.round): (donors, state, record.iteration)}
            case "seed":
                return {}
            case "plus_copy":
                ends = describe({"parameters": state_like(self._sizes[0])["parameters"]})
                return {"ends-copy": (donors, ends, None)}
        wanted: dict[str, tuple[tuple[NodeId, ...], tuple[TensorSpec, ...], int | None]] = {}
        for neighbour in body.neighbours:
            holders = {m.node for m in view.holders(body.cell, neighbour)}
            asked = tuple(d for d in donors if d in holders) or donors
            wanted[f"weights:{neighbour}"] = (asked, describe(weights_like(self._sizes[neighbour])), None)
        return wanted

    def ended(self, effect: Fetched | FetchFailed) -> Sequence[Effect]:
        """A state arrived, or no donor could give it."""
        return self._fetched(effect) if isinstance(effect, Fetched) else self._failed(effect)

    def _fetched(self, effect: Fetched) -> Sequence[Effect]:
        effects: list[Effect] = []
        for order in self._waiting_for(effect.name):
            order.waiting.discard(effect.name)
            order.got[effect.name] = self._matter.restored(effect)
            effects += [] if order.waiting else self._finish(order)
        return effects

    def _failed(self, effect: FetchFailed) -> Sequence[Effect]:
        failed = self._waiting_for(effect.name)
        for order in failed:
            del self._orders[order.body.stage]
        for name in sorted({name for order in failed for name in order.waiting} - self._awaited()):
            self._transfer.cancel(name)
        return [self._answer(order.leader, order.body, effect.reason) for order in failed]

    def _waiting_for(self, name: str) -> list[Order]:
        """Several orders may need the same neighbour's weights."""
        return [order for order in self._orders.values() if name in order.waiting]

    def _finish(self, order: Order) -> Sequence[Effect]:
        body = order.body
        self._orders.pop(body.stage, None)
        if body.rehearsal:
            return [Send(order.leader, Message(ready(body, ok=True)))]
        stage = self._build(body.stage)
        try:
            self._load(stage, body, order.got)
        except (StageStateError, ValueError) as error:
            return [self._answer(order.leader, body, str(error))]
        return [Restored(order.leader, body, stage)]

    def _load(self, stage: Stage, body: Restore, got: dict[str, dict[str, Tensor]]) -> None:
        if body.how == "plus_copy":
            stage.load_parameters(got["ends-copy"]["parameters"])
        elif body.how == "checkfree":
            stage.load_parameters(self._rebuilt(body, got))
            stage.lr_factor = LR_FACTOR
        elif body.how != "seed":
            (state,) = got.values()
            stage.load_state(state)

    def _rebuilt(self, body: Restore, got: dict[str, dict[str, Tensor]]) -> Tensor:
        """The weighted average of the neighbours, or a copy of the only one."""
        layers = [len(part) for part in stage_layers(self._config.layers, self._job.pipeline.stages)]
        fitted = [
            fit_layers(got[f"weights:{k}"]["parameters"], layers[k], layers[body.stage])
            for k in body.neighbours
        ]
        if len(fitted) == 1:
            return fitted[0]
        squares = [float(got[f"weights:{k}"]["squares"].item()) for k in body.neighbours]
        below, above = (gradient_weight(sqrt(max(0.0, square))) for square in squares)
        return neighbour_average(fitted[0], fitted[1], below, above)

    @staticmethod
    def _answer(leader: NodeId, body: Restore, reason: str) -> Effect:
        return Send(leader, Message(ready(body, ok=False, reason=reason)))


def ready(body: Restore, *, ok: bool, reason: str = "") -> Ready:
    """The answer to an order."""
    return Ready(cell=body.cell, slot=body.slot, term=body.term, stage=body.stage, ok=ok, reason=reason[:200])
