"""A node that starts again may use an incarnation that its earlier life came to by refuting."""

from gossip_world import World, node_name, record_of, signed_record
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.gossip.messages import Spread
from swarm.gossip.view import Facts


@settings(deadline=None, max_examples=40)
@given(
    written=st.integers(1, 4),
    refuted=st.integers(0, 3),
    seq=st.integers(0, 4),
    renewals=st.integers(0, 4),
    silent=st.booleans(),
)
def test_everybody_comes_to_show_the_new_life_whatever_the_old_one_had_signed(
    written: int, refuted: int, seq: int, renewals: int, silent: bool
) -> None:
    """Only starts are written down: of two records of one version the new life's must win, too."""
    world = World(4)
    node = node_name(0)
    old = record_of(0, incarnation=written + refuted, seq=seq)
    old = old.model_copy(update={"gossip": "tcp://10.9.9.9:9"})
    for other in range(1, 4):
        world.tell(node, node_name(other), Spread(records=(signed_record(old),)))
    world.run(0.2)
    world.crash(node, silent=silent)
    world.start(0, incarnation=written + 1)
    for iteration in range(renewals):
        facts = Facts(cell=f"c{iteration}", iteration=iteration)
        world.call(node, lambda machine, now, facts=facts: machine.set_facts(facts, now))
    world.run(60.0)
    mine = world.hosts[node].membership.own.record
    assert mine.gossip != old.gossip
    for other in world.live():
        assert world.hosts[other].membership.view.members[node].record == mine
    assert world.agree()
