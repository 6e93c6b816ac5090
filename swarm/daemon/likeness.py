"""Whether this node's stages are what the other holders have: hashes from gossip, counted.

Each holder advertises the hash of each stage at each record. What one member says is its word
only: a stage is given up when most holders have another, or when one of a pair must yield.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from swarm.gossip.view import Facts
from transport.machine import NodeId

KEPT = 16
"""Records whose hashes are kept: gossip brings the others' a little later."""
AGAIN_ITERATIONS = 20
"""A stage that was taken anew is not given up again before: whoever lies would stop its fellows."""

Row = Sequence[NodeId]
"""Holders of one stage in the decided roster, of this node's platform, alive."""


class Likeness:
    """Hashes of the last records, by who advertised them."""

    def __init__(self, me: NodeId) -> None:
        self.me = me
        self._said: dict[tuple[int, int], dict[tuple[str, NodeId], str]] = {}
        self._given_up: dict[int, int] = {}

    def ours(self, facts: Facts) -> None:
        """What this node advertises."""
        said = self._said.setdefault((facts.iteration, facts.round), {})
        said |= {(stage, self.me): text for stage, text in facts.hashes.items()}
        for old in sorted(self._said)[:-KEPT]:
            del self._said[old]

    def forget(self) -> None:
        """Another cell, another history."""
        self._said.clear()
        self._given_up.clear()

    def differs(self, peer: NodeId, facts: Facts, rows: Mapping[int, Row]) -> list[tuple[int, str]]:
        """Stages to take anew now that `peer` has said this, each with the reason.

        rows: those holders by stage whose hashes should equal ours.
        """
        said = self._said.get((facts.iteration, facts.round))
        if said is None:
            return []
        wrong = []
        for stage, row in rows.items():
            theirs = facts.hashes.get(str(stage))
            if theirs is None or peer not in row or (str(stage), self.me) not in said:
                continue
            said[str(stage), peer] = theirs
            reason = self._outvoted({n: said.get((str(stage), n)) for n in (*row, self.me)})
            if reason and facts.iteration >= self._given_up.get(stage, 0):
                self._given_up[stage] = facts.iteration + AGAIN_ITERATIONS
                wrong.append((stage, f"stage {stage} {reason}"))
        return wrong

    def _outvoted(self, said: Mapping[NodeId, str | None]) -> str:
        """Why what we have is not what the holders have, or an empty text."""
        votes: dict[str, list[NodeId]] = {}
        for node, text in said.items():
            if text is not None:
                votes.setdefault(text, []).append(node)
        # Where no side has more, that of the lowest id stays.
        best = min(votes, key=lambda text: (-len(votes[text]), min(votes[text])))
        surely = 2 * len(votes[best]) > len(said) or None not in said.values()
        if said[self.me] == best or not surely:
            return ""
        return f"differs from {min(votes[best])[:8]}, as {len(votes[best])} of {len(said)} holders have it"
