"""What one member says of itself decides nothing for the others: machine by machine."""

import pytest

from swarm.daemon.likeness import AGAIN_ITERATIONS, Likeness
from swarm.gossip.view import Facts
from transport.machine import NodeId

A, B, C, D = (NodeId(letter * 64) for letter in "abcd")


def facts(text: str, iteration: int = 5, stage: int = 1) -> Facts:
    return Facts(cell="c0", stages=(stage,), iteration=iteration, hashes={str(stage): text})


def seen_by(me: NodeId, said: dict[NodeId, str], row: tuple[NodeId, ...], iteration: int = 5) -> list[str]:
    """Reasons to take stage 1 anew, when the others' hashes arrive in this order."""
    likeness = Likeness(me)
    likeness.ours(facts(said[me], iteration))
    others = [node for node in row if node != me]
    found = []
    for node, text in said.items():
        if node != me:
            found += likeness.differs(node, facts(text, iteration), {1: others})
    return [reason for _, reason in found]


def test_of_two_that_differ_the_higher_takes_the_state_again() -> None:
    said = {A: "aa", B: "bb"}
    assert seen_by(A, said, (A, B)) == []
    (reason,) = seen_by(B, said, (A, B))
    assert "aaaaaaaa" in reason


@pytest.mark.parametrize("me", [B, C])
def test_a_liar_with_the_lowest_id_does_not_take_the_state_of_two_that_agree(me: NodeId) -> None:
    assert seen_by(me, {A: "11", B: "22", C: "22"}, (A, B, C)) == []


def test_one_of_three_that_drifted_takes_the_state_of_the_two() -> None:
    (reason,) = seen_by(A, {A: "11", B: "22", C: "22"}, (A, B, C))
    assert "2 of 3" in reason


def test_three_that_all_differ_go_by_the_lowest() -> None:
    said = {A: "11", B: "22", C: "33"}
    assert [bool(seen_by(me, said, (A, B, C))) for me in (A, B, C)] == [False, True, True]


def test_a_hash_of_whom_the_roster_does_not_name_counts_for_nothing() -> None:
    assert seen_by(B, {B: "22", A: "11"}, (B, C)) == []


def test_a_stage_is_not_given_up_again_and_again_over_one_member() -> None:
    likeness = Likeness(B)
    given_up = []
    for iteration in range(5, 5 + 2 * AGAIN_ITERATIONS):
        likeness.ours(facts("22", iteration))
        given_up += [iteration for _ in likeness.differs(A, facts("11", iteration), {1: [A]})]
    assert given_up == [5, 5 + AGAIN_ITERATIONS]
