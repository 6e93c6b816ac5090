"""What a training half is built from, and what its link speaks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from recovery.checkpoint import newest_common
from recovery.transfer import TRANSFER_KINDS, Transfer
from swarm.daemon.process import peak_memory_bytes
from swarm.daemon.restore import Restoring
from swarm.events import Emit
from swarm.gossip.records import Untrusted
from swarm.gossip.view import Facts, MemberRecord, View
from swarm.job import Job
from swarm.meetings import MEETING_KINDS
from swarm.messages import WORK_KINDS, Restore
from swarm.pipeline.computing import stage_size
from swarm.pipeline.data import Corpus
from swarm.pipeline.matter import DENSE, Matter
from swarm.pipeline.model import ModelConfig
from swarm.pipeline.records import DOMAIN, Sign, read_record, roster_nodes
from swarm.pipeline.room import FLOAT_BYTES, STATE_FLATS
from swarm.pipeline.stage import Stage
from transport.identity import verify, within
from transport.machine import NodeId
from transport.wire import Schema, Signed, WireError

WORK_SCHEMA = Schema((*WORK_KINDS, *MEETING_KINDS, *TRANSFER_KINDS))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSetup:
    """What a training half is built from, besides its seams.

    public_key: the Ed25519 key that a verified member record's certificate names. Raises
    Untrusted, for a certificate that has expired before this process first saw it.
    memory_bytes: what this node may hold, 0 if it does not know.
    resident_bytes: what its process takes; not the same twice, so a simulation has its own.
    matter: what tensors are made of; a simulation may leave them out.
    """

    me: NodeId
    sign: Sign
    public_key: Callable[[MemberRecord], bytes]
    job: Job
    config: ModelConfig
    corpus: Corpus
    data_dir: Path
    device: str
    platform: str
    memory_bytes: int
    checkpoints: bool
    wall: Callable[[], float]
    emit: Emit
    resident_bytes: Callable[[], int] = peak_memory_bytes
    matter: Matter = DENSE

    def standby_facts(self) -> Facts:
        """What this node says of itself while it is in no cell: how far what is on its disk had come."""
        root, stages = self.data_dir / "checkpoints", range(self.job.pipeline.stages)
        kept = [at for stage in stages if (at := newest_common(root, [stage], self.job.digest)) is not None]
        iteration = max((at[0] for at in kept), default=0)
        return Facts(platform=self.platform, memory_bytes=self.memory_bytes, iteration=iteration)

    def stage_sizes(self) -> tuple[int, ...]:
        """Parameters of each stage."""
        count = self.job.pipeline.stages
        return tuple(stage_size(self.config, count, stage) for stage in range(count))

    def stage_bytes(self) -> tuple[int, ...]:
        """Memory that the state of each stage needs while it is held."""
        return tuple(FLOAT_BYTES * STATE_FLATS * size for size in self.stage_sizes())

    def restoring(self, transfer: Transfer) -> Restoring:
        """What carries out orders to hold a stage, fetching through `transfer`."""
        sizes = self.stage_sizes()
        return Restoring(self.me, self.job, self.config, sizes, transfer, self.build_stage, self.matter)

    def build_stage(self, stage: int) -> Stage:
        """A fresh stage on this node's device, from the job's seed."""
        return self.matter.stage(self.job, self.config, stage, self.device)

    def build_stages(self, indexes: Sequence[int]) -> dict[int, Stage]:
        """Fresh stages by index."""
        return {index: self.build_stage(index) for index in indexes}

    def vouches(self, view: View, signed: Signed) -> bool:
        """Whether a cell record is signed by a member that this node knows."""
        member = view.members.get(NodeId(signed.signer))
        try:
            domain = within(self.job.digest, DOMAIN)
            return member is not None and verify(signed, domain, self.public_key(member.record))
        except Untrusted:
            return False

    def wrong_with_corpus(self, digest: str) -> str:
        """Why this node's text cannot be trained on in a job whose tokens have this digest, or empty."""
        ours = self.corpus.digest
        if ours == digest:
            return ""
        return (
            f"the text at {self.job.data.path} is not the job's (digest {ours[:8]}, not {digest[:8]}): "
            "copy the coordinator's files there, or for stdlib run its version of Python"
        )

    def wrong_with_order(self, view: View, leader: NodeId, order: Restore) -> str:
        """Why an order to hold a stage is not obeyed, empty if it is from who may give it.

        A taker believes `decided` and starts from it, so it is checked as any record is; and
        only who is in its roster, or wrote it, leads that cell.
        """
        try:
            record = read_record(order.decided)
        except WireError as error:
            return str(error)
        stages = self.job.pipeline.stages
        if (record.cell, record.slot) != (order.cell, order.slot):
            return "its record is of another cell or slot"
        if len(record.roster) != stages or record.iteration > self.job.inner.iterations:
            return "its record is not of this job"
        if any(stage >= stages for stage in (order.stage, *order.neighbours)):
            return "it names a stage that this job has not"
        if leader not in (*roster_nodes(record.roster), record.leader):
            return "its sender is not of that cell"
        return "" if self.vouches(view, order.decided) else "its record is not signed by a known member"
