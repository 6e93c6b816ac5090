"""A cell that is cut in two never has two histories; cells that are cut off meet again."""

from functools import cache

from small_worlds import Played, play, script, small_job

SLOW = 1e8
"""Floating point operations per second of a node that takes seconds for an iteration."""
HALVES = """
[[fault]]
at_iteration = 6
kind = "partition"
groups = [["node:0", "node:1"], ["node:2", "node:3", "node:4", "coordinator"]]
for_s = 60
"""


@cache
def parted() -> Played:
    """One cell of five nodes, two and three of which do not hear each other for a minute."""
    job = small_job(nodes=5, cells=1, stages=2, iterations=36, every=3)
    return play(job, script(HALVES), until_s=900, flops_per_s=SLOW)


def test_the_minority_of_a_cell_goes_on_under_a_new_name_and_meets_the_rest_after_healing() -> None:
    played = parted()
    played.assert_well()
    names = list(played.reached())
    assert len(names) == 2
    assert "c0" in names
    began, ended = (event.time for event in (played.of("fault")[0], played.of("fault")[-1]))
    both = [e for e in played.of("round") if any(len(m) == 2 for m in e.fields["members"].values())]
    assert not [event for event in both if began < event.time < ended]
    assert [event for event in both if event.time > ended]


def test_no_slot_has_two_records_whoever_leads_on_which_side() -> None:
    played = parted()
    told = dict[tuple[str, int], tuple[object, ...]]()
    for event in played.commits():
        key = (event.fields["cell"], event.fields["slot"])
        value = (event.fields["loss"], event.fields["tokens"], str(event.fields["holders"]))
        assert told.setdefault(key, value) == value


def test_a_round_that_another_cell_missed_is_not_called_averaged_and_they_meet_later() -> None:
    calm = play(small_job(iterations=2))
    cells = {"c0": list[str](), "c1": list[str]()}
    for index, node in enumerate(calm.world.nodes):
        half = node.training
        assert half is not None
        assert half.trainer is not None
        cells[half.trainer.cell].append(f'"node:{index}"')
    groups = ", ".join(f"[{', '.join(side)}]" for side in cells.values())
    cut = f'[[fault]]\nat_s = 2\nkind = "partition"\ngroups = [{groups}]\nfor_s = 40\n'
    played = play(small_job(iterations=18, every=3), script(cut), until_s=900, flops_per_s=SLOW)
    played.assert_well()
    healed = played.of("fault")[-1].time
    for event in played.of("round"):
        members = event.fields["members"].values()
        if 2 < event.time < healed:
            assert all(len(cells) < 2 for cells in members)
    assert any("not averaged" in reason for e in played.of("round") for reason in e.fields["reasons"])
    met = [e for e in played.of("round") if all(len(m) == 2 for m in e.fields["members"].values())]
    assert met
    assert met[0].time > healed
