"""The picture of a run: what it tells of the events, and that it is drawn."""

from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from swarm.daemon.options import UserError
from swarm.events import Event
from swarm.lab import plot
from swarm.lab.plot import check_plot, per_second, plot_run, story

ANN, BOB, EVE = "a" * 64, "b" * 64, "e" * 64


def _commit(time: float, cell: str, loss: float, tokens: int = 100) -> Event:
    return Event("committed", time, ANN, {"cell": cell, "iteration": 1, "loss": loss, "tokens": tokens})


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


def test_throughput_is_all_cells_tokens_over_the_time_they_took() -> None:
    assert per_second(story(EVENTS).tokens, 10.0, 5) == [0.0, 50.0, 150.0, 0.0, 50.0]
    assert per_second([(10.0, 7)], 10.0, 2) == [0.0, 7 / 5]


def test_a_picture_is_drawn_of_a_run_and_of_one_in_which_nothing_happened(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name, events in (("run.png", EVENTS), ("nothing.png", ())):
        plot_run(events, 10.0, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


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
