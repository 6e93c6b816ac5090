"""The picture of a run: what it tells of the events, and that it is drawn."""

from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.daemon.options import UserError
from swarm.events import Event
from swarm.lab import plot
from swarm.lab.plot import check_plot, per_second, plot_run, smoothed, story

ANN, BOB, EVE = "a" * 64, "b" * 64, "e" * 64


def _commit(time: float, cell: str, loss: float, tokens: int = 100) -> Event:
    fields = {"cell": cell, "iteration": 1, "loss": loss, "tokens": tokens, "seconds": 2.0}
    return Event("committed", time, ANN, fields)


EVENTS = (
    Event("started", 0.0, EVE, {"role": "coordinator"}),
    Event("started", 0.5, ANN, {"role": "worker"}),
    Event("started", 0.7, BOB, {"role": "worker"}),
    _commit(2.0, "c0", 5.0),
    Event("fault", 3.0, EVE, {"what": "restart"}),
    Event("fault", 4.0, BOB, {"what": "restart"}),
    _commit(5.0, "c1", 4.5, 300),
    Event("fault", 6.0, BOB, {"what": "restart ended"}),
    Event("started", 6.0, BOB, {"role": "worker"}),
    Event("fault", 7.0, ANN, {"what": "pause"}),
    _commit(8.0, "c0", 4.0),
    Event("left", 9.0, ANN, {}),
)


def test_only_workers_are_counted_and_only_crashes_and_leaves_end_them() -> None:
    assert story(EVENTS).live == [(0.5, 1), (0.7, 2), (4.0, 1), (6.0, 2), (9.0, 1)]


def test_losses_are_by_cell_and_the_end_of_a_fault_is_no_fault() -> None:
    told = story(EVENTS)
    assert told.losses == {"c0": [(2.0, 5.0), (8.0, 4.0)], "c1": [(5.0, 4.5)]}
    assert told.faults == [(3.0, "restart"), (4.0, "restart"), (7.0, "pause")]


def test_an_iteration_that_counted_no_token_has_no_loss() -> None:
    assert story([_commit(2.0, "c0", 5.0), _commit(3.0, "c0", 0.0, tokens=0)]).losses == {
        "c0": [(2.0, 5.0), (3.0, None)]
    }


def test_a_run_without_tensors_is_drawn_and_says_what_it_lacks(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    unknown = [Event(e.kind, e.time, e.node, {**e.fields, "loss": None}) for e in EVENTS]
    assert story(unknown).losses["c0"] == [(2.0, None), (8.0, None)]
    plot_run(unknown, 10.0, tmp_path / "run.svg")
    plot_run(EVENTS, 10.0, tmp_path / "known.svg")
    absent = "<!-- no losses: the tensors were left out -->"
    assert absent in (tmp_path / "run.svg").read_text()
    assert absent not in (tmp_path / "known.svg").read_text()


def test_throughput_is_all_cells_tokens_over_the_time_they_took() -> None:
    assert per_second(story(EVENTS).tokens, 10.0, 5) == pytest.approx([50.0, 75.0, 75.0, 50.0, 0.0])
    assert per_second([(9.0, 10.0, 7)], 10.0, 2) == pytest.approx([0.0, 7 / 5])


@given(
    spans=st.lists(st.tuples(st.floats(0, 90), st.floats(0.01, 9.0), st.integers(0, 1000)), max_size=9),
    bins=st.integers(1, 70),
)
def test_no_token_is_drawn_twice_or_left_out(spans: list[tuple[float, float, int]], bins: int) -> None:
    tokens = [(begin, begin + lasts, count) for begin, lasts, count in spans]
    drawn = sum(per_second(tokens, 100.0, bins)) * 100.0 / bins
    assert drawn == pytest.approx(sum(count for _, _, count in spans), abs=1e-6)


def test_a_smoothed_loss_is_the_mean_of_the_last_ones_and_the_first_is_itself() -> None:
    losses = [float(value) for value in range(1, 11)]
    assert smoothed(losses)[0] == 1.0
    assert smoothed(losses)[1] == 1.5
    assert smoothed(losses)[-1] == sum(losses[-plot.SMOOTH :]) / plot.SMOOTH


def test_a_picture_is_drawn_of_a_run_and_of_one_in_which_nothing_happened(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name, events in (("run.png", EVENTS), ("nothing.png", ())):
        plot_run(events, 10.0, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_run_that_an_error_ended_before_its_first_event_is_drawn_as_well(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot_run((), 0.0, tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_said_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda name: ModuleSpec(name, None))
    check_plot(tmp_path / "run.png")
    with pytest.raises(UserError, match=r"ends in \.png"):
        check_plot(tmp_path / "run.txt")
    with pytest.raises(UserError, match="no directory"):
        check_plot(tmp_path / "nowhere" / "run.png")
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs matplotlib"):
        check_plot(tmp_path / "run.png")
