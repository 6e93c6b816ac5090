"""Who dies in the middle of an outer round costs the round its own stage, and nothing else."""

import pytest
from small_worlds import fault, play, small_job


@pytest.mark.parametrize("victim", [0, 5])
def test_what_a_round_made_before_a_member_died_is_kept_when_it_is_closed_again(victim: int) -> None:
    """The other cell had had its round: a second meeting waited for nobody, and anchors came apart."""
    job = small_job(iterations=10)
    begun = max(event.time for event in play(job).commits() if event.fields["iteration"] == job.outer.every)
    played = play(job, fault("crash", f"node:{victim}", at_s=begun + 0.02))
    played.assert_well()
    (recovered,) = played.of("recovered")
    assert recovered.fields["seconds"] < 2.0, "it was fetched while the round lasted"
    for cell in ("c0", "c1"):
        members = played.of("round", cell=cell)[0].fields["members"]
        whole = [stage for stage, named in members.items() if len(named) == 2]
        assert set(members) - set(whole) <= {str(recovered.fields["stage"])}
