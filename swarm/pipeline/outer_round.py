"""Machine: the delegates of a stage in all cells meet for an outer round.

Every stage has its own round. The owner, a delegate that follows from the stage and the cells,
collects outer gradients of the same anchor, and gives their mean and its members to every member.
Only the owner decides who is left out: a member waits for its word, so that members agree on what
the round was, and soon after its death for that of who speaks for its cell next. Who came and could
not be averaged, with an older anchor or to one that is not the owner, takes the anchor that the round
makes, so that it is in the next one. A round that averaged nobody is never called averaged.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import replace
from typing import Any

from swarm.gossip.view import Member, View
from swarm.meetings import OuterAnchor, OuterDelta, OuterMean
from swarm.pipeline.meeting import Begun, Came, Meeting, member_wait_s, owner_wait_s
from swarm.pipeline.work import Average, Settle, ShipAnchor, ShipFlat
from swarm.planning.cells import usual
from transport.machine import Effect, NodeId

LAST_WORD_S = 2.0
"""How long the mean of an owner that is gone, or has finished, may still be on its way."""


class OuterRound:
    """All rounds this node is delegate of, by stage."""

    def __init__(self, me: NodeId, held: Container[int]) -> None:
        """held: the stages that this node holds, as they change."""
        self.me = me
        self._held = held
        self._cell = ""
        self.view = View()
        self._meetings: dict[int, Meeting] = {}
        self._early: dict[tuple[int, NodeId], tuple[OuterDelta, Any]] = {}
        self._begun: dict[int, Begun] = {}

    @property
    def early(self) -> int:
        """Outer gradients kept for rounds that have not begun here."""
        return len(self._early)

    def observe(self, view: View, now: float) -> Sequence[Effect]:
        """The view changed: an owner does not wait for cells that are gone, nor a member for it."""
        self.view = view
        early = self._early.items()
        self._early = {key: kept for key, kept in early if self._still_waits(key[1], kept[0].iteration)}
        effects: list[Effect] = []
        for stage, meeting in list(self._meetings.items()):
            effects += self._admit_early(stage)
            if meeting.owner == self.me:
                meeting.expected &= frozenset(self._present(stage))
                effects += self._average_if_complete(stage, meeting)
            elif successor := self._successor(stage, meeting):
                meeting.succeed(successor)
                effects.append(self._ship_delta(stage, meeting, successor))
            elif not self._at_work(meeting.owner):
                meeting.stop_by(now + LAST_WORD_S)
        return effects

    def _at_work(self, owner: NodeId) -> bool:
        member = self.view.members.get(owner)
        return member is not None and member.live and member.facts.state == "training"

    def _successor(self, stage: int, meeting: Meeting) -> NodeId | None:
        """Who speaks for the owner's cell from now on: the owner died, or one before it came back."""
        delegate = self._delegate(meeting.owner_cell, stage)
        over = self._meetings.get(stage) is not meeting  # what came early has ended it
        if over or delegate is None or delegate == meeting.owner or not self._at_work(delegate):
            return None
        return delegate

    def _present(self, stage: int) -> tuple[str, ...]:
        """Cells with a live holder of the stage that still train, ours included."""
        others = {
            m.facts.cell
            for m in self.view.live()
            if stage in m.facts.stages and m.facts.state == "training" and m.facts.cell
        }
        return tuple(sorted(others | {self._cell}))

    def _delegate(self, cell: str, stage: int) -> NodeId | None:
        holders = self.view.holders(cell, stage)
        return holders[0].node if holders else None

    def start(
        self,
        stage: int,
        *,
        cell: str,
        iteration: int,
        anchor: int,
        digest: str,
        delta: Any,
        every: int,
        step_s: float,
        now: float,
    ) -> Sequence[Effect]:
        """This cell reached its round: `delta` is anchor minus weights of the stage.

        iteration: how many the cell has done; it does no more until the round is decided. every,
        step_s: iterations between rounds, and what one takes. Called again for a round that is
        closed once more, it goes on with the meeting, or ends it when it would have ended before.
        """
        self._cell = cell
        cells = self._present(stage)
        running = self._meetings.get(stage)
        if running and running.is_averaging(cell, iteration):
            return []
        if len(cells) == 1:
            behind = self._behind(self._meetings.pop(stage)) if running else ()
            why = "no other cell holds this stage"
            return [Settle(stage, cells, why, mean=delta, anchor=anchor, behind=behind)]
        owner_cell = cells[stage % len(cells)]
        owner = self.me if owner_cell == cell else self._delegate(owner_cell, stage)
        assert owner is not None
        if running and running.which == (cell, iteration, owner):
            return []
        begun = self._begun_at(stage, cell, iteration, now)
        wait_s = (owner_wait_s if owner == self.me else member_wait_s)(every, step_s)
        expected = frozenset(cells)
        meeting = Meeting(begun, every, anchor, digest, delta, wait_s, owner, owner_cell, expected)
        self._meetings[stage] = meeting
        if running:
            meeting.take_over(running)
        effects: list[Effect] = []
        if owner == self.me:
            meeting.parts[cell] = Came(self.me, iteration, delta)
        else:
            effects.append(self._ship_delta(stage, meeting, owner))
        effects += self._admit_early(stage)
        return [*effects, *self._average_if_complete(stage, meeting)]

    def _begun_at(self, stage: int, cell: str, iteration: int, now: float) -> Begun:
        """When the round of this iteration began for the first time."""
        begun = self._begun.get(stage)
        if begun is None or (begun.cell, begun.iteration) != (cell, iteration):
            begun = self._begun[stage] = Begun(cell, iteration, now, self._iterations(self._present(stage)))
        return begun

    def _iterations(self, cells: Iterable[str]) -> dict[str, int]:
        """At which iteration other cells are, by what their members say."""
        members = {cell: self.view.cell(cell) for cell in cells if cell != self._cell}
        return {cell: usual(m.facts.iteration for m in row) for cell, row in members.items() if row}

    def _ship_delta(self, stage: int, meeting: Meeting, to: NodeId) -> Effect:
        body = OuterDelta(
            cell=self._cell,
            stage=stage,
            iteration=meeting.iteration,
            anchor=meeting.anchor,
            anchor_digest=meeting.digest,
        )
        meeting.told.add(to)
        return ShipFlat(to, body, (meeting.delta,))

    def delta(self, peer: NodeId, body: OuterDelta, payload: Any) -> Sequence[Effect]:
        """Another cell's outer gradient."""
        meeting = self._meetings.get(body.stage)
        if meeting is None or not self._speaks_for(peer, body):
            self._keep_early(peer, body, payload)
            return []
        before = meeting.parts.get(body.cell)
        if meeting.averaging:
            if body.anchor > meeting.anchor:
                self._keep_early(peer, body, payload)
            elif before is None:
                meeting.behind[peer] = body.iteration
            elif before.iteration == body.iteration:
                # Who speaks for the cell next, perhaps: the part is the same, the mean goes to it.
                meeting.parts[body.cell] = replace(before, peer=peer)
            return []
        if (body.anchor, body.anchor_digest) != (meeting.anchor, meeting.digest):
            return self._other_anchor(peer, body, meeting)
        # A sender may take us for the owner that we are not, or not yet: its view knows of other cells.
        if before is None or before.iteration <= body.iteration:
            meeting.parts[body.cell] = Came(peer, body.iteration, payload)
            meeting.behind.pop(peer, None)
        return self._average_if_complete(body.stage, meeting)

    def _other_anchor(self, peer: NodeId, body: OuterDelta, meeting: Meeting) -> Sequence[Effect]:
        """Whoever has the older anchor takes the other's."""
        if body.anchor > meeting.anchor:
            return [self._ship_delta(body.stage, meeting, peer)]
        meeting.expected -= {body.cell}
        ship = ShipAnchor(peer, body.stage, body.iteration)
        if peer == meeting.owner:
            # An owner with an older anchor takes ours now, and can average nothing with it.
            del self._meetings[body.stage]
            reason = f"not averaged: cell {body.cell} had the anchor of {body.anchor} rounds"
            return [ship, self._settle(body.stage, meeting, (), reason)]
        if meeting.owner == self.me and len(meeting.expected | meeting.parts.keys()) > 1:
            # With our present one that cell would miss the mean to come, and be behind the next time too.
            meeting.behind[peer] = body.iteration
            return self._average_if_complete(body.stage, meeting)
        return [ship, *self._average_if_complete(body.stage, meeting)]

    def _speaks_for(self, peer: NodeId, body: OuterDelta) -> bool:
        """Whether the sender holds the stage in that cell, another one, which still waits for this."""
        member = self.view.members.get(peer)
        if member is None or not self._still_waits(peer, body.iteration):
            return False
        return member.facts.cell == body.cell != self._cell and body.stage in member.facts.stages

    def _still_waits(self, peer: NodeId, iteration: int) -> bool:
        """Not so once the sender's cell has gone on to its next iteration. A suspect may wait."""
        member = self.view.members.get(peer)
        return member is not None and _believed(member) and member.facts.iteration <= iteration

    def _keep_early(self, peer: NodeId, body: OuterDelta, payload: Any) -> None:
        """Keep the newest of each sender until our round begins, or the view has caught up."""
        key = (body.stage, peer)
        older = self._early.get(key)
        if older is not None and older[0].iteration > body.iteration:
            return
        if not self._still_waits(peer, body.iteration):
            return
        if older is not None or self._has_room(peer, body.stage):
            self._early[key] = (body, payload)

    def _has_room(self, peer: NodeId, stage: int) -> bool:
        """Whether one more may be kept: of one sender what it holds, of a stage one for each cell.

        A cell that the view does not know yet may be among them.
        """
        by_peer = sum(sender == peer for _, sender in self._early)
        by_stage = sum(of == stage for of, _ in self._early)
        cells = {m.facts.cell for m in self.view.members.values() if _believed(m)} - {"", self._cell}
        stages = self.view.members[peer].facts.stages
        return stage in self._held and by_peer < max(1, len(stages)) and by_stage <= len(cells)

    def _admit_early(self, stage: int) -> list[Effect]:
        """Take up what came early; what its sender waits for no more is dropped on the way."""
        effects: list[Effect] = []
        for key in [key for key in self._early if key[0] == stage]:
            body, payload = self._early.pop(key)
            effects += self.delta(key[1], body, payload)
        return effects

    def mean(self, peer: NodeId, body: OuterMean, payload: Any) -> Sequence[Effect]:
        """The owner's mean of a round this cell is in."""
        meeting = self._meetings.get(body.stage)
        if meeting is None or self._cell not in body.members:
            return []
        if peer != meeting.owner and peer not in meeting.predecessors:
            return []
        averaged = dict(zip(body.members, body.iterations, strict=False)).get(self._cell)
        said, ours = (body.anchor, body.anchor_digest), (meeting.anchor, meeting.digest)
        if said != ours or averaged != meeting.iteration:
            return []
        del self._meetings[body.stage]
        return [self._settle(body.stage, meeting, body.members, "", mean=payload)]

    def anchor(self, peer: NodeId, body: OuterAnchor, payload: Any) -> Sequence[Effect]:
        """Another anchor is the group's: move to it, if it answers what this cell has sent."""
        meeting = self._meetings.get(body.stage)
        if meeting is None or peer not in meeting.told or body.cell == self._cell:
            return []
        if body.iteration != meeting.iteration or body.anchor < meeting.anchor:
            return []
        del self._meetings[body.stage]
        reason = f"took the anchor of cell {body.cell}, made by {body.anchor} rounds"
        return [self._settle(body.stage, meeting, (body.cell,), reason, adopted=payload)]

    def averaged(self, work: Average, mean: Any, _: float) -> Sequence[Effect]:
        """The mean of those members whose parts could be read is there, or is None."""
        meeting = self._meetings.get(work.stage)
        if meeting is None or not meeting.averaging or not meeting.parts.keys() >= set(work.members):
            return []
        del self._meetings[work.stage]
        if mean is None or self._cell not in work.members or len(work.members) < 2:
            reason = "not averaged: no other outer gradient could be read"
            return [self._settle(work.stage, meeting, (), reason)]
        came = [meeting.parts.pop(cell) for cell in work.members]
        body = OuterMean(
            stage=work.stage,
            anchor=meeting.anchor,
            anchor_digest=meeting.digest,
            members=work.members,
            iterations=tuple(part.iteration for part in came),
        )
        ships = [ShipFlat(part.peer, body, (mean,)) for part in came if part.peer != self.me]
        return [*ships, self._settle(work.stage, meeting, work.members, "", mean=mean)]

    def _settle(
        self,
        stage: int,
        meeting: Meeting,
        members: tuple[str, ...],
        reason: str,
        *,
        mean: Any = None,
        adopted: Any = None,
    ) -> Settle:
        """The end of a meeting, for those who came to it and are behind, too."""
        return Settle(stage, members, reason, mean, adopted, meeting.anchor, self._behind(meeting))

    def _behind(self, meeting: Meeting) -> tuple[tuple[NodeId, int], ...]:
        """Who came to a meeting and still waits for what comes of it: all but those told a mean."""
        meeting.all_behind()
        waiting = sorted(meeting.behind.items())
        return tuple((peer, at) for peer, at in waiting if peer != self.me and self._still_waits(peer, at))

    def _average_if_complete(self, stage: int, meeting: Meeting) -> Sequence[Effect]:
        over = self._meetings.get(stage) is not meeting  # an early part has ended it already
        if over or meeting.owner != self.me or meeting.averaging:
            return []
        if meeting.expected <= {self._cell} and meeting.parts.keys() <= {self._cell}:
            del self._meetings[stage]
            return [self._settle(stage, meeting, (), "not averaged: no other cell came with this anchor")]
        complete = not meeting.expected - meeting.parts.keys()
        return self._average(stage, meeting) if complete else []

    def _average(self, stage: int, meeting: Meeting) -> Sequence[Effect]:
        meeting.averaging = True
        members = tuple(sorted(meeting.parts))
        return [Average(stage, members, tuple(meeting.parts[cell].payload for cell in members))]

    def tick(self, now: float) -> Sequence[Effect]:
        """Rounds whose wait is over: go on with who came, or without an average."""
        effects: list[Effect] = []
        for stage, meeting in list(self._meetings.items()):
            if now < meeting.until or meeting.averaging:
                continue
            others = self._iterations(meeting.awaited(self.me))
            if meeting.goes_on(others, now, owns=meeting.owner == self.me):
                continue
            if meeting.owner == self.me and len(meeting.parts) > 1:
                effects += self._average(stage, meeting)
                continue
            del self._meetings[stage]
            missing = sorted(meeting.expected - {self._cell})
            reason = f"not averaged: no answer from {', '.join(missing)}"[:200]
            effects.append(self._settle(stage, meeting, (), reason))
        return effects

    def deadline(self) -> float | None:
        """When the next round stops waiting."""
        return min((m.until for m in self._meetings.values() if not m.averaging), default=None)


def _believed(member: Member) -> bool:
    return member.status in ("alive", "suspect")
