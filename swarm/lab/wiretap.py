"""What crossed the simulated network, held against what was later said of it.

Two things nobody can see in a node's state: whether a data node's report is about exactly the
microbatches that it was given, and whether a round had the members that its result names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from swarm.job import Job
from swarm.meetings import OuterDelta, OuterMean
from swarm.messages import CellRecord, Plan, Report, origin_of
from transport.link import Endpoint
from transport.machine import NodeId
from transport.sim_link import SimLink
from transport.sim_network import QueueLimits, SimNetwork
from transport.sim_paths import LinkShape
from transport.wire import Body, Message


@dataclass(slots=True)
class Wiretap:
    """Plans, reports, and what cells sent each other in outer rounds.

    planned: (cell, slot, term, data node) -> how many microbatches. parts: (cell, stage, iteration)
    of outer gradients that were sent. means: (stage, members) of rounds that an owner told of.
    been: the cells that a node has been in.
    wrong: sentences, what was said on the wire and cannot be.
    """

    job: Job
    planned: dict[tuple[str, int, int, NodeId], int] = field(default_factory=dict)
    parts: set[tuple[str, int, int]] = field(default_factory=set)
    means: set[tuple[int, tuple[str, ...]]] = field(default_factory=set)
    been: dict[NodeId, set[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def hear(self, sender: NodeId, cell: str, body: Body) -> None:
        """A node sends something. cell: of the sender."""
        self.been.setdefault(sender, set()).add(cell)
        match body:
            case Plan():
                self._plan(body)
            case Report():
                self._report(sender, body)
            case OuterDelta():
                self.parts.add((body.cell, body.stage, body.iteration))
            case OuterMean():
                self._mean(sender, body)

    def _plan(self, plan: Plan) -> None:
        for node in plan.roster[0]:
            mine = sum(microbatch.path[0][0] == node for microbatch in plan.microbatches)
            self.planned[plan.cell, plan.slot, plan.term, NodeId(node)] = mine

    def _report(self, sender: NodeId, report: Report) -> None:
        planned = self.planned.get((report.cell, report.slot, report.term, sender))
        if planned is None:
            return  # the plan is the sender's own, or older than its place in the roster
        said, batch = report.done + report.partial + report.lost, _batch(self.job)
        counted = range(report.done * batch, (report.done + report.partial) * batch + 1, batch)
        if said != planned or report.tokens not in counted:
            fate = (
                f"{report.done} done, {report.partial} partial and {report.lost} lost, {report.tokens} tokens"
            )
            where = f"slot {report.slot} of {report.cell}"
            self.wrong.append(f"{sender[:12]} reports {fate} of {planned} microbatches in {where}")

    def _mean(self, sender: NodeId, body: OuterMean) -> None:
        """An owner sends its own part to nobody, and may have given it when its cell had another name."""
        self.means.add((body.stage, tuple(sorted(body.members))))
        for member, iteration in zip(body.members, body.iterations, strict=False):
            if member not in self.been[sender] and (member, body.stage, iteration) not in self.parts:
                told = f"a mean of stage {body.stage} over {', '.join(body.members)}"
                self.wrong.append(f"{sender[:12]} tells of {told}, but {member} has sent nothing for it")

    def planned_in(self, cell: str, slot: int, *, foundings_before: int = 0) -> int:
        """Microbatches of the largest plan that was sent for a slot.

        foundings_before: in so many slots before, survivors founded the cell, and others the one that
        it comes from. They may finish what was open when the first of them began.
        """
        plans: dict[tuple[str, int, int], int] = {}
        for (of, at, term, _), count in self.planned.items():
            open_then = slot - foundings_before <= at < slot and origin_of(of) == origin_of(cell)
            if (of, at) == (cell, slot) or open_then:
                plans[of, at, term] = plans.get((of, at, term), 0) + count
        return max(plans.values(), default=0)

    def round_of(self, record: CellRecord) -> list[str]:
        """What a round's record says of its members, and no owner ever told anybody, in sentences."""
        where = f"slot {record.slot} of {record.cell}"
        return [
            f"{where} says that {', '.join(total.contributors)} met in stage {stage}, and nobody told them so"
            for stage, total in enumerate(record.sums)
            if len(total.contributors) > 1 and (stage, tuple(sorted(total.contributors))) not in self.means
        ]


def _batch(job: Job) -> int:
    return job.pipeline.microbatch * job.data.sequence


class TappedNetwork(SimNetwork):
    """A network on which somebody hears everything that is sent, with the node that sends it."""

    def __init__(
        self, rng: Random, default: LinkShape, *, queues: QueueLimits, tap: Callable[[NodeId, Body], None]
    ) -> None:
        super().__init__(rng, default, queues=queues)
        self._tap = tap

    def carry(self, sender: SimLink, endpoint: Endpoint, message: Message) -> int | None:
        """See `SimNetwork`."""
        self._tap(sender.me, message.body)
        return super().carry(sender, endpoint, message)
