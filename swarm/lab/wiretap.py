"""What crossed the simulated network, held against what was later said of it.

Two things nobody can see in a node's state: whether a data node's report is about exactly the
microbatches that it was given, and whether a round had the members that its result names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from swarm.job import Job
from swarm.meetings import OuterAnchor, OuterDelta, OuterMean
from swarm.messages import CellRecord, Close, Plan, Report, origin_of
from transport.link import Endpoint
from transport.machine import NodeId
from transport.sim_link import SimLink
from transport.sim_network import QueueLimits, SimNetwork
from transport.sim_paths import LinkShape
from transport.wire import Body, Lane, Message, Schema

REPORT_S = 3.0
"""Within which a report is with its leader if nothing hinders either: some times the longest latency."""


@dataclass(slots=True)
class Wiretap:
    """Plans, reports, and what cells sent each other in outer rounds.

    planned: (cell, slot, term, data node) -> how many microbatches; totals: of all of them;
        who plans for itself alone sends its plan to nobody.
    reported: (cell, slot, term) -> data node -> when it sent its report, and of how many tokens.
    closed: (cell, slot, term) -> when the leader first asked to average.
    parts: (cell, stage, iteration) of outer gradients that were sent. anchors: (cell, stage) of outer
        anchors that were.
    means: (stage, a member's origin, its iteration) -> members of the means that an owner told of.
    been: the cells that a node has been in.
    wrong: sentences, what was said on the wire and cannot be. judged: how much could have been.
    """

    job: Job
    planned: dict[tuple[str, int, int, NodeId], int] = field(default_factory=dict)
    totals: dict[tuple[str, int, int], int] = field(default_factory=dict)
    reported: dict[tuple[str, int, int], dict[NodeId, tuple[float, int]]] = field(default_factory=dict)
    closed: dict[tuple[str, int, int], float] = field(default_factory=dict)
    parts: set[tuple[str, int, int]] = field(default_factory=set)
    means: dict[tuple[int, str, int], set[tuple[str, ...]]] = field(default_factory=dict)
    anchors: set[tuple[str, int]] = field(default_factory=set)
    been: dict[NodeId, set[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    judged: int = 0

    def hear(self, sender: NodeId, cell: str, body: Body, now: float) -> None:
        """A node sends something. cell: of the sender."""
        self.been.setdefault(sender, set()).add(cell)
        match body:
            case Plan():
                self._plan(body)
            case Report():
                self._report(sender, body)
                self.reported.setdefault((body.cell, body.slot, body.term), {})[sender] = now, body.tokens
            case Close(act="step"):
                self.closed.setdefault((body.cell, body.slot, body.term), now)
            case OuterDelta():
                self.parts.add((body.cell, body.stage, body.iteration))
            case OuterMean():
                self._mean(sender, body)
            case OuterAnchor():
                self.anchors.add((body.cell, body.stage))

    def _plan(self, plan: Plan) -> None:
        for node in plan.roster[0]:
            mine = sum(microbatch.path[0][0] == node for microbatch in plan.microbatches)
            self.planned[plan.cell, plan.slot, plan.term, NodeId(node)] = mine
        self.totals[plan.cell, plan.slot, plan.term] = len(plan.microbatches)

    def _report(self, sender: NodeId, report: Report) -> None:
        planned = self.planned.get((report.cell, report.slot, report.term, sender))
        if planned is None:
            return  # the plan is the sender's own, or older than its place in the roster
        self.judged += 1
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
        members = tuple(sorted(body.members))
        self.judged += len(members)
        for member, iteration in zip(body.members, body.iterations, strict=False):
            self.means.setdefault((body.stage, origin_of(member), iteration), set()).add(members)
            if member not in self.been[sender] and (member, body.stage, iteration) not in self.parts:
                told = f"a mean of stage {body.stage} over {', '.join(body.members)}"
                self.wrong.append(f"{sender[:12]} tells of {told}, but {member} has sent nothing for it")

    def in_time(self, cell: str, slot: int, term: int) -> dict[NodeId, tuple[float, int]]:
        """Data nodes that sent their reports long before the slot was closed; when, of how many tokens."""
        key = (cell, slot, term)
        closed = self.closed.get(key, 0.0)
        return {
            node: said for node, said in self.reported.get(key, {}).items() if said[0] < closed - REPORT_S
        }

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

    def round_of(self, record: CellRecord) -> Iterator[str]:
        """What a round's record says of its members, and no owner ever told anybody, in sentences.

        Of this very round: a mean that an owner told of has the cell at the iteration of the record.
        """
        where, origin = f"slot {record.slot} of {record.cell}", origin_of(record.cell)
        for stage, total in enumerate(record.sums):
            members = tuple(sorted(total.contributors))
            if len(members) > 1:
                if members not in self.means.get((stage, origin, record.iteration), ()):
                    told = f"says that {', '.join(members)} met in stage {stage} at {record.iteration}"
                    yield f"{where} {told}, and nobody told them so"
            elif members and origin_of(members[0]) != origin and (members[0], stage) not in self.anchors:
                yield f"{where} took the anchor of {members[0]} for stage {stage}, which it has never sent"


def _batch(job: Job) -> int:
    return job.pipeline.microbatch * job.data.sequence


class TappedNetwork(SimNetwork):
    """A network on which somebody hears everything that is sent, with the node that sends it.

    taken: bytes of each lane that links gave it to carry. opened: every link that there ever was:
    what a link has counted is held against it when its node is long gone.
    """

    def __init__(
        self, rng: Random, default: LinkShape, *, queues: QueueLimits, tap: Callable[[NodeId, Body], None]
    ) -> None:
        super().__init__(rng, default, queues=queues)
        self._tap = tap
        self.taken: dict[Lane, int] = {"control": 0, "bulk": 0}
        self.opened: list[SimLink] = []

    def open(self, me: NodeId, *, curve_key: str, schema: Schema, address: str | None = None) -> SimLink:
        """See `SimNetwork`."""
        link = super().open(me, curve_key=curve_key, schema=schema, address=address)
        self.opened.append(link)
        return link

    def carry(self, sender: SimLink, endpoint: Endpoint, message: Message) -> int | None:
        """See `SimNetwork`."""
        self._tap(sender.me, message.body)
        nbytes = super().carry(sender, endpoint, message)
        self.taken[message.body.lane] += nbytes or 0
        return nbytes

    def imbalances(self) -> Iterator[str]:
        """Where the network's account, or that of the links, is not what was given to it, in sentences.

        Of control messages the network itself makes copies, which it counts as sent.
        """
        yield from self.traffic.imbalances()
        for lane, taken in self.taken.items():
            sent = sum(link.stats.bytes_sent[lane] for link in self.opened)
            received = sum(link.stats.bytes_received[lane] for link in self.opened)
            count = self.traffic.count(lane)
            if sent != taken:
                yield f"{lane}: links say that they sent {sent} bytes, and gave {taken} away"
            if count.sent != taken and not (lane == "control" and count.sent > taken):
                yield f"{lane}: the network was given {taken} bytes, and says that it was {count.sent}"
            if received != count.delivered:
                yield f"{lane}: links say that {received} bytes came, of {count.delivered} delivered"
