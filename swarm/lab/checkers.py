"""What must hold in every simulated world at every moment, whatever was done to it.

A checker looks at a world and says what is broken, in sentences; none means that all is well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf
from typing import TYPE_CHECKING

from swarm.gossip.view import RECORD_BYTES_MAX
from swarm.lab.sim_node import virtual_now
from swarm.pipeline.early import BEFORE_ANY_PLAN
from swarm.pipeline.records import roster_nodes
from swarm.pipeline.room import FLOAT_BYTES, STATE_FLATS

if TYPE_CHECKING:
    from swarm.lab.world import World

SETTLE_S = 60.0
"""From the last disturbance until every view must tell the truth."""
RECORDS_WAITING = 8
"""Of each process, of the largest size, that may wait for one peer."""
SLOTS_WAITING = 3
"""Whose microbatches may wait for one peer: the one at hand, and those before it that it has not taken."""


Checker = Callable[["World"], Iterator[str]]


def _looked(world: World, checker: Checker, count: int = 1) -> None:
    """A checker has looked at so many things that could have been wrong."""
    world.evidence.looked[checker.__name__] += count


def one_record_per_slot(world: World) -> Iterator[str]:
    """No slot of a cell ever has two decided records, and no iteration two slots."""
    _looked(world, one_record_per_slot, len(world.evidence.histories.touched))
    yield from world.evidence.histories.twice
    for cell, slot in world.evidence.histories.touched:
        found = world.evidence.histories.records[cell, slot]
        if len(found) > 1:
            yield f"slot {slot} of cell {cell} has {len(found)} decided records"


def holders_are_identical(world: World) -> Iterator[str]:
    """Holders of a stage that applied the same slot have equal weights, bit for bit."""
    for cell, slot in world.evidence.histories.touched:
        for stage in range(world.job.pipeline.stages):
            found = world.evidence.hashes.get((cell, slot, stage), {})
            _looked(world, holders_are_identical, len(found) > 1)
            if len(set(found.values())) > 1:
                yield f"holders of stage {stage} differ after slot {slot} of cell {cell}"


def nothing_committed_is_undone(world: World) -> Iterator[str]:
    """A later slot of a cell never has an earlier iteration, nor has what its members go on as."""
    _looked(world, nothing_committed_is_undone, len(world.evidence.histories.touched))
    yield from world.evidence.histories.undone


def stages_come_back_from_the_best_source(world: World) -> Iterator[str]:
    """No lost stage is rebuilt from less than what was in reach of its cell all the time."""
    rebuilt = sum(placed.how != "holder" for placed in world.evidence.sources.placed)
    _looked(world, stages_come_back_from_the_best_source, rebuilt)
    rosters = {cell: record.roster for cell, record in world.evidence.histories.newest.items()}
    look = world.evidence.sources.look
    yield from look(world.nodes, world.coordinator, rosters, world.job, virtual_now())


def a_job_at_work_is_not_begun_again(world: World) -> Iterator[str]:
    """No coordinator goes back to its checkpoints while it sees a cell that goes on."""
    beginnings = world.evidence.beginnings
    _looked(world, a_job_at_work_is_not_begun_again, len(beginnings.again(world.coordinator)))
    yield from beginnings.look(world.nodes, world.coordinator, world.job, virtual_now())


def nobody_dies_of_an_error(world: World) -> Iterator[str]:
    """No process ends but by a fault or by its own decision to leave."""
    _looked(world, nobody_dies_of_an_error, len(world.live()))
    yield from world.evidence.failures


def tokens_are_counted_once(world: World) -> Iterator[str]:
    """No record counts more tokens than its plan had, nor a part of a microbatch."""
    job = world.job
    batch = job.pipeline.microbatch * job.data.sequence
    for record in world.evidence.histories.fresh():
        # A newcomer of this very slot may be gone again when it is decided: only the plan names it.
        expected = job.pipeline.microbatches * world.evidence.histories.data_nodes(record)
        foundings = world.evidence.histories.foundings_before(record.cell, record.slot)
        sent = world.wiretap.planned_in(record.cell, record.slot, foundings_before=foundings)
        planned = batch * max(expected, sent)
        _looked(world, tokens_are_counted_once, record.act == "step")
        counts = [record.tokens, *(total.tokens for total in record.sums)]
        if record.act == "step" and any(count > planned or count % batch for count in counts):
            yield f"slot {record.slot} of {record.cell} counts {counts} tokens of {planned} planned"


def every_microbatch_is_accounted_for(world: World) -> Iterator[str]:
    """What a leader has counted in a slot, and what it says is partial or lost, is all that it planned.

    The tokens are of those that are done, and of the partial ones whose loss was there already.
    """
    histories, batch = world.evidence.histories, world.job.pipeline.microbatch * world.job.data.sequence
    for told in histories.counted:
        for record in histories.records.get((told.cell, told.slot), ()):
            _looked(world, every_microbatch_is_accounted_for)
            where, plans = f"slot {told.slot} of {told.cell}", histories.plans_of(record)
            for key in plans:
                if (sent := world.wiretap.totals.get(key, plans[key])) != plans[key]:
                    yield f"{where} has {sent} microbatches by its plan, {plans[key]} by its leader's word"
            counted = {planned - told.lost for planned in plans.values()}
            if not any(batch * (n - told.partial) <= told.tokens <= batch * n for n in counted):
                fate = f"{told.tokens} tokens, {told.partial} partial and {told.lost} lost"
                planned = " or ".join(map(str, plans.values()))
                yield f"{where} has {fate}: not the {planned} microbatches of {batch} tokens planned"


def every_report_is_counted(world: World) -> Iterator[str]:
    """A leader counts the tokens of every data node whose report it must have had before its close.

    It must have had a report that was sent long before, in a cell to which nothing has been done. Its own
    crosses no wire: but what is in the gradient of the ends is counted, or it says that it was lost.
    """
    histories, calm_s, now = world.evidence.histories, world.evidence.calm_s, virtual_now()
    batch = world.job.pipeline.microbatch * world.job.data.sequence
    for told in histories.counted:
        for record in histories.records.get((told.cell, told.slot), ()):
            reports = world.wiretap.in_time(told.cell, told.slot, record.term)
            ends, there = record.sums[0], {node for row in record.roster for node in row} | set(reports)
            sent = min((at for at, _ in reports.values()), default=now)
            calm = reports and min(calm_s(node, now) for node in there) > now - sent
            if not calm or not set(ends.contributors) <= {*reports, record.leader}:
                continue
            _looked(world, every_report_is_counted)
            owed = max(ends.tokens - batch * told.lost, sum(tokens for _, tokens in reports.values()))
            unheard = [node[:12] for node in reports if node[:12] in told.silent]
            if owed > told.tokens or unheard:
                who = " and ".join(unheard or [node[:12] for node in reports])
                where = f"slot {told.slot} of {told.cell}"
                yield f"{where} counts {told.tokens} of {owed} tokens, after reports of {who}"


def only_the_admitted_are_seen(world: World) -> Iterator[str]:
    """Nobody without a certificate of the job is in anybody's view."""
    admitted = {process.node for process in world.processes}
    for process in world.processes:
        _looked(world, only_the_admitted_are_seen, len(process.view.members))
        for stranger in sorted(set(process.view.members) - admitted):
            yield f"{process.node[:12]} has the stranger {stranger[:12]} in its view"


def queues_are_bounded(world: World) -> Iterator[str]:
    """What any link keeps for one peer is no more than so many processes of such a job have to say."""
    most = {"control": _control_bytes_max(world), "bulk": _bulk_bytes_max(world)}
    for process in world.processes:
        for link in process.links:
            for stream in link.streams.values():
                _looked(world, queues_are_bounded, stream.kept_bytes > 0)
                if stream.kept_bytes > most[stream.lane]:
                    kept = f"keeps {stream.kept_bytes} bytes of {stream.lane} for {stream.receiver.me[:12]}"
                    yield f"{process.node[:12]} {kept}, of {most[stream.lane]} that it may need"


def _control_bytes_max(world: World) -> int:
    """Some of the largest record of everybody: a peer may stand still for most of a minute."""
    return RECORDS_WAITING * RECORD_BYTES_MAX * len(world.processes)


def _bulk_bytes_max(world: World) -> float:
    """All states twice, on their way to a taker, and of some slots the microbatches, there and back, and the
    outer gradients and means of their rounds.

    Before and after there are cells there is nothing to measure it by.
    """
    job = world.job.pipeline
    computing = next((node.trainer.computing for node in world.nodes if node.trainer), None)
    if computing is None:
        return inf
    states = STATE_FLATS * sum(computing.stage_sizes)
    values = job.microbatches * job.microbatch * world.job.data.sequence * computing.config.width
    rounds = -(-SLOTS_WAITING // world.job.outer.every) * 2 * sum(computing.stage_sizes)
    return FLOAT_BYTES * (2 * states + rounds + 2 * SLOTS_WAITING * values * len(world.nodes))


def views_tell_the_truth(world: World) -> Iterator[str]:
    """Long enough after the last disturbance everybody knows who is there and who is not.

    But for who stands still: it knows nothing new, and it looks as if it were gone.
    """
    if world.quiet_s() < SETTLE_S:
        return
    still = [process for process in world.live() if world.evidence.hinders(process.node)]
    for process in world.live():
        for other in world.processes:
            if process in still or other in still:
                continue
            _looked(world, views_tell_the_truth)
            status = process.view.status(other.node)
            if other.running and status != "alive":
                yield f"{process.node[:12]} sees {other.node[:12]} as {status}, but it lives"
            if not other.running and status not in ("dead", "left", None):
                yield f"{process.node[:12]} sees {other.node[:12]} as {status}, but it is gone"


def nobody_stays_buried(world: World) -> Iterator[str]:
    """Who lives and was left alone for long is believed to live by everybody of whom the same is true."""
    now = virtual_now()
    calm = [p for p in world.live() if world.evidence.calm_s(p.node, now) > SETTLE_S]
    for process in calm:
        for other in calm:
            _looked(world, nobody_stays_buried, other is not process)
            if process.view.status(other.node) in ("dead", "left"):
                yield f"{process.node[:12]} has buried {other.node[:12]}, that lives and was left alone"


def views_show_what_was_signed(world: World) -> Iterator[str]:
    """Nobody shows a record that is newer than its owner's own, or another one of the same version.

    Unless an earlier life of the owner signed it, which the present one will outdo.
    """
    own = {p.node: p.view.members.get(p.node) for p in world.processes if p.running}
    before = {p.node: p.signed_before for p in world.processes}
    for process in world.live():
        for node, member in process.view.members.items():
            mine = own.get(node)
            version = member.record.version
            if mine is None or version < mine.record.version or version <= before[node]:
                continue
            _looked(world, views_show_what_was_signed)
            if member.record != mine.record:
                yield f"{process.node[:12]} shows a record of {node[:12]} that it never signed"


def news_is_never_forgotten(world: World) -> Iterator[str]:
    """While a process lives, what it shows of another is never replaced by something older."""
    for process in world.live():
        life = world.evidence.lives.get(process.node, 0)
        for node, member in process.view.members.items():
            newest = world.evidence.versions.get((process.node, life, node), (0, 0))
            version = (member.record.incarnation, member.record.seq)
            _looked(world, news_is_never_forgotten, newest > (0, 0))
            if version < newest:
                yield f"{process.node[:12]} showed {newest} of {node[:12]}, and shows {version} now"
            world.evidence.versions[process.node, life, node] = max(version, newest)


def what_was_said_is_so(world: World) -> Iterator[str]:
    """Every microbatch is reported once, and a round has the members that it names."""
    _looked(world, what_was_said_is_so, world.wiretap.judged)
    world.wiretap.judged = 0
    yield from world.wiretap.wrong
    for record in world.evidence.histories.fresh():
        if record.act == "round":
            _looked(world, what_was_said_is_so)
            yield from world.wiretap.round_of(record)


def memory_is_bounded(world: World) -> Iterator[str]:
    """What a node keeps of tensors on their way is no more than its job, not the node, says it can need."""
    pipeline = world.job.pipeline
    for node in world.nodes:
        if (trainer := node.trainer) is None:
            continue
        hops, held = trainer.flow.hops, len(trainer.computing.stages)
        members = len(roster_nodes(trainer.record.roster + hops.roster))
        cells = {member.facts.cell for member in trainer.outer.view.live()} - {""}
        slot = pipeline.microbatches * members * pipeline.stages
        for what, kept, most in (
            ("microbatches", hops.held, slot),
            ("microbatches of later slots", len(hops.early), max(slot, BEFORE_ANY_PLAN)),
            ("gradients of later slots", trainer.averaging.early, held * members),
            ("outer gradients of later rounds", trainer.outer.early, held * (len(cells) + 1)),
        ):
            _looked(world, memory_is_bounded, kept > 0)
            if kept > most:
                yield f"{node.node[:12]} holds {kept} {what}, {most} at most are allowed"


def no_byte_is_lost_unseen(world: World) -> Iterator[str]:
    """What was sent is delivered, under way, or dropped for a counted reason; and the links say so, too."""
    _looked(world, no_byte_is_lost_unseen, len(world.live()))
    yield from world.network.imbalances()


CHECKERS: tuple[Checker, ...] = (
    one_record_per_slot,
    holders_are_identical,
    nothing_committed_is_undone,
    stages_come_back_from_the_best_source,
    a_job_at_work_is_not_begun_again,
    nobody_dies_of_an_error,
    tokens_are_counted_once,
    every_microbatch_is_accounted_for,
    every_report_is_counted,
    only_the_admitted_are_seen,
    queues_are_bounded,
    views_tell_the_truth,
    nobody_stays_buried,
    views_show_what_was_signed,
    news_is_never_forgotten,
    what_was_said_is_so,
    memory_is_bounded,
    no_byte_is_lost_unseen,
)
