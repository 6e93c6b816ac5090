"""The tensors of a node: its stages, what they compute, and in which order.

Decisions come in as effects of the machines; results go back to them through the callbacks.
Everything that costs time is a `Task`; the node's driver runs one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any, cast

import torch
from torch import Tensor

from optim.diloco import outer_gradient
from swarm.job import Job
from swarm.meetings import EndsCopy
from swarm.messages import CellRecord, Roster, StageSum
from swarm.pipeline import anchors
from swarm.pipeline.averaging import Hold, Part, Reduce
from swarm.pipeline.data import Corpus, window
from swarm.pipeline.drops import Drops
from swarm.pipeline.matter import DENSE, Matter, payload_tensors
from swarm.pipeline.model import ModelConfig, parameter_names, parameter_shapes, stage_flops
from swarm.pipeline.stage import Stage, result_digest, tensor_digest
from swarm.pipeline.tasks import COMMIT, Task, TaskQueue
from swarm.pipeline.work import PRIORITY, Average, Key, Settle, ShipAnchor, ShipFlat, Work
from transport.codecs import CodecError
from transport.machine import Effect, NodeId
from transport.patience import Patience
from transport.wire import Message

Settled = Callable[..., Sequence[Effect]]
ENDS_COPY_EVERY = 5
"""Iterations between CheckFree+ copies: a lost end falls back by at most this many."""


def stage_size(config: ModelConfig, stages: int, stage: int) -> int:
    """Parameters of a stage."""
    shapes = parameter_shapes(config)
    return sum(torch.Size(shapes[name]).numel() for name in parameter_names(config, stages, stage))


class Computing:
    """Stages by index, and the queue of tasks on them."""

    def __init__(
        self,
        job: Job,
        config: ModelConfig,
        corpus: Corpus,
        stages: dict[int, Stage],
        matter: Matter = DENSE,
    ) -> None:
        self.job, self.config, self.corpus = job, config, corpus
        self.stages, self.matter = stages, matter
        self.tasks = TaskQueue(1 + len(PRIORITY))
        count = job.pipeline.stages
        self.stage_sizes = tuple(stage_size(config, count, stage) for stage in range(count))
        self.ends_copy: Message | None = None
        self._copied = False
        self._drops = Drops()
        self.dropped, self.blame = self._drops.counts, self._drops.blame
        self.gradient_squares: dict[int, float] = {}
        self._targets: dict[Key, Tensor] = {}
        self._batch_tokens = job.pipeline.microbatch * job.data.sequence
        self._applies = Patience(initial_s=30.0, floor_s=2.0)
        self._applied_at: float | None = None

    # -- microbatches -----------------------------------------------------------------------

    def work(
        self,
        work: Work,
        cell: str,
        iteration: int,
        done: Callable[[Work, Any, float], Sequence[Effect]],
    ) -> None:
        """Queue the forward or backward of a microbatch. `iteration` seeds the window of an embed."""
        stage = self.stages[work.stage]

        def run() -> Any:
            return self._run(work, stage, cell, iteration)

        def finished(output: Any, now: float) -> Sequence[Effect]:
            return done(work, output, now)

        forward, backward = stage_flops(
            self.config, self.job.pipeline.stages, work.stage, self._batch_tokens, self.job.data.sequence
        )
        flops = {"backward": backward, "head": forward, "forward": forward, "embed": 0.0}[work.kind]
        priority = COMMIT + 1 + PRIORITY.index(work.kind)
        self.tasks.put(Task(priority, run, finished, flops, microbatch=True))

    def _run(self, work: Work, stage: Stage, cell: str, iteration: int) -> Any:
        """The output of one piece of work, or None: its microbatch was forgotten, or is no tensor."""
        try:
            return self._output(work, stage, cell, iteration)
        except (KeyError, ValueError, CodecError) as error:
            self._drops.add(f"{work.kind}: {type(error).__name__}")
            return None

    def _output(self, work: Work, stage: Stage, cell: str, iteration: int) -> Any:
        key = work.key
        if work.kind == "embed":
            pipeline = self.job.pipeline
            inputs, self._targets[key] = window(
                self.corpus,
                self.job.seed,
                cell,
                iteration,
                key.microbatch,
                pipeline.microbatch,
                self.job.data.sequence,
            )
            return stage.embed(key, inputs)
        (tensor,) = payload_tensors((work.payload,), self.matter)
        hop = (key, work.position) if work.stage else key
        match work.kind:
            case "forward":
                return stage.forward(hop, tensor)
            case "head":
                return stage.head(key, tensor, self._targets.pop(key))
        if work.stage:
            return stage.backward(hop, tensor, work.target_tokens)
        stage.embed_backward(key, tensor)
        return True

    def forget(self, key: Key, *, only_head: bool = False) -> None:
        """Drop what is kept of a microbatch that starts again or is given up.

        A head begins with taking its targets, so only one of it and this gets them: a head that
        has begun is counted, and one that has not never will be.
        """
        self._targets.pop(key, None)
        if only_head:
            return
        for stage in self.stages.values():
            stage.drop(key)
            for position in range(1, self.job.pipeline.stages):
                stage.drop((key, position))

    def clear(self) -> None:
        """Start a slot."""
        self._targets.clear()
        for stage in self.stages.values():
            stage.clear()

    # -- steps ------------------------------------------------------------------------------

    def gradients(self, mine: Sequence[int], roster: Roster, me: NodeId) -> dict[int, Part]:
        """This node's summed gradients by stage; those that travel are copies."""
        parts: dict[int, Part] = {}
        for index in mine:
            stage = self.stages[index]
            alone = roster[index] == (me,)
            parts[index] = (stage.gradient if alone else stage.gradient.clone(), stage.target_tokens)
        return parts

    def reduce(self, effect: Reduce, done: Callable[..., Sequence[Effect]]) -> None:
        """Queue the sum of a stage's gradients, in the order of the row.

        A part that cannot be read or is not finite is left out, and the sum says so.
        """

        def run() -> tuple[Reduce, Tensor, float, str]:
            good = [(part, tensor.cpu()) for part in effect.parts if (tensor := self._part(part)) is not None]
            kept = Reduce(effect.close, effect.stage, tuple(part for part, _ in good))
            if not good:
                return kept, torch.zeros(0), 0.0, ""
            total = good[0][1]
            for _, other in good[1:]:
                total = total + other
            squares = float(torch.linalg.vector_norm(total)) ** 2
            return kept, total, squares, result_digest((total,)) if isfinite(squares) else ""

        def finished(result: tuple[Reduce, Tensor, float, str], now: float) -> Sequence[Effect]:
            kept, total, squares, digest = result
            return done(kept, total, squares if digest else 0.0, digest, now)

        self.tasks.put(Task(COMMIT, run, finished))

    def _part(self, part: tuple[NodeId, Any, int]) -> Tensor | None:
        """A holder's gradient, or None: unreadable or not finite, counted and attributed."""
        node, payload, _ = part
        tensors = self._readable((payload,), node)
        if tensors is not None and not isfinite(float(torch.linalg.vector_norm(tensors[0]))):
            self._drops.add("gradient that is not finite", node)
            return None
        return tensors[0] if tensors else None

    def _readable(self, payloads: Sequence[Any], sender: str = "") -> tuple[Tensor, ...] | None:
        """Tensors of payloads, or None if they are none; a peer's bytes must not end this node."""
        try:
            return payload_tensors(payloads, self.matter)
        except (CodecError, ValueError) as error:
            self._drops.add(f"unreadable tensors: {type(error).__name__}", sender)
            return None

    def apply(
        self,
        record: CellRecord,
        chosen: dict[int, Hold],
        done: Callable[[CellRecord, Sequence[Hold], float], Sequence[Effect]],
    ) -> None:
        """Queue what a decided record does to the stages: to all of them, or to none if a hold is bad."""

        def run() -> list[Hold]:
            read = {index: self._decided_tensors(record, hold) for index, hold in chosen.items()}
            bad = [chosen[index] for index, tensors in read.items() if tensors is None]
            for index, tensors in read.items() if not bad else ():
                if tensors is not None and index in self.stages:
                    self._apply_one(record, self.stages[index], chosen[index], tensors)
            return bad

        def finished(bad: list[Hold], now: float) -> Sequence[Effect]:
            if record.act == "step" and not bad:
                if self._applied_at is not None:
                    self._applies.add(now - self._applied_at)
                self._applied_at = now
            return done(record, bad, now)

        self.tasks.put(Task(COMMIT, run, finished))

    def _decided_tensors(self, record: CellRecord, hold: Hold) -> tuple[Tensor, ...] | None:
        """The tensors of a result, or None if they are not what the record decided on."""
        tensors = self._readable(hold.tensors)
        came = any(isinstance(payload, Message) for payload in hold.tensors)
        if tensors is None or len(tensors) != (1 if record.act == "step" else 2):
            return None
        decided = record.sums[hold.stage].digest
        return tensors if not came or result_digest(tensors, hold.anchor) == decided else None

    def _apply_one(self, record: CellRecord, stage: Stage, hold: Hold, tensors: tuple[Tensor, ...]) -> None:
        total = record.sums[stage.index]
        if record.act == "step":
            scaled = tensors[0] * (record.clip_scale / max(1, total.tokens))
            self.gradient_squares[stage.index] = float(torch.linalg.vector_norm(scaled)) ** 2
            stage.step(scaled, record.iteration - 1)
        else:
            rebase = record.cell not in total.contributors
            stage.adopt_anchor(tensors[0], tensors[1], hold.anchor, rebase=rebase)

    def drop_stage(self, index: int) -> None:
        """Hold a stage no longer."""
        self.stages.pop(index, None)
        self.gradient_squares.pop(index, None)

    # -- outer rounds -----------------------------------------------------------------------

    def outer_gradient(self, index: int) -> tuple[str, Tensor]:
        """(digest of the anchor, anchor minus weights) of a stage, flat."""
        stage = self.stages[index]
        delta = outer_gradient(stage.anchor, stage.parameters).detach().cpu()
        return tensor_digest(stage.anchor), delta

    def step_s(self) -> float:
        """What lies between two steps of this node's cell, 0 before it was measured."""
        return self._applies.typical_s()

    def average(
        self, effect: Average, done: Callable[[Average, Tensor | None, float], Sequence[Effect]]
    ) -> None:
        """Queue the mean of outer gradients; what cannot be read is left out of the members."""

        def finished(result: tuple[Average, Tensor | None], now: float) -> Sequence[Effect]:
            return done(*result, now)

        self.tasks.put(Task(COMMIT, lambda: anchors.average(effect, self._readable), finished))

    def settle(self, effect: Settle, cell: str, done: Settled) -> None:
        """Queue what a round makes of a stage's anchor; who is behind gets that, or the present one."""

        def run() -> anchors.Moved:
            return anchors.moved(effect, self.stages.get(effect.stage), self._readable, self.job.outer)

        def finished(result: anchors.Moved, _: float) -> Sequence[Effect]:
            tensors, count, reason = result
            ships: list[Effect] = []
            for peer, at in effect.behind:
                ships += self.ship_anchor(ShipAnchor(peer, effect.stage, at), cell, tensors, count)
            total = StageSum()
            if tensors:
                total = StageSum(contributors=effect.members, digest=result_digest(tensors, count))
            return [*ships, *done(effect.stage, total, tensors, anchor=count, reason=reason)]

        self.tasks.put(Task(COMMIT, run, finished))

    def ship_anchor(
        self, to: ShipAnchor, cell: str, made: tuple[Tensor, ...] = (), count: int = 0
    ) -> Sequence[Effect]:
        """An anchor for another delegate, if the stage is still held."""
        stage = self.stages.get(to.stage)
        return [anchors.shipped(to, cell, stage, made, count)] if stage is not None else []

    # -- copies of the ends -----------------------------------------------------------------

    def ends_copies(self, record: CellRecord) -> Sequence[Effect]:
        """CheckFree+: the ends' weights to the holders of the first and last body stage.

        Sent by the first holder of the ends every `ENDS_COPY_EVERY` iterations, and at its first.
        """
        due = not self._copied or record.iteration % ENDS_COPY_EVERY == 0
        if not due or len(record.roster) < 2:
            return []
        self._copied = True
        neighbours = {NodeId(n) for row in (record.roster[1], record.roster[-1]) for n in row}
        body = EndsCopy(cell=record.cell, iteration=record.iteration)
        flat = self.stages[0].parameters.detach().cpu().clone()
        return [ShipFlat(node, body, (flat,)) for node in sorted(neighbours - set(record.roster[0]))]

    def seeded_ends(self) -> Tensor:
        """The ends' weights as the job's seed makes them, flat."""
        return self.matter.stage(self.job, self.config, 0).parameters

    def keep_ends_copy(self, peer: NodeId, message: Message, record: CellRecord) -> None:
        """Keep the newest copy of the ends of this cell, from a holder of the ends only.

        Its holders may be some records ahead of this node, not more than the next copy is: one that
        claimed a far iteration would never be replaced.
        """
        body = cast(EndsCopy, message.body)
        kept = cast(EndsCopy, self.ends_copy.body).iteration if self.ends_copy is not None else 0
        if peer not in record.roster[0] or body.cell != record.cell:
            self._drops.add("copy of the ends of no holder of them here", peer)
        elif not kept <= body.iteration <= record.iteration + ENDS_COPY_EVERY:
            self._drops.add("copy of the ends, of no iteration near", peer)
        else:
            self.ends_copy = message
