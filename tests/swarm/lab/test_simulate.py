"""What `farflung simulate` says of a run, and of a person's mistakes."""

import inspect
import shlex
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from swarm.cli import app
from swarm.daemon.options import UserError
from swarm.events import Event
from swarm.job import Job, JobError, dump_job
from swarm.lab.commands import again, simulate
from swarm.lab.crowd_run import CrowdOptions
from swarm.lab.faults import FaultError
from swarm.lab.recipes import ModelName, large_job, simulated_job
from swarm.lab.regions import load_regions
from swarm.lab.simulate import SimulateOptions, render, run_simulate, summary, write_run
from swarm.lab.world import Outcome


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(dump_job(Job.model_validate({"pipeline": {"nodes": 3, "stages": 2}})))
    return path


@pytest.mark.parametrize("who", ["node:3", "holder:2", "holders:9"])
def test_a_script_that_names_who_cannot_exist_is_a_mistake(tmp_path: Path, job: Path, who: str) -> None:
    faults = tmp_path / "faults.toml"
    faults.write_text(f'[[fault]]\nat_s = 1\nkind = "crash"\nnode = "{who}"\n')
    with pytest.raises(UserError, match=who):
        run_simulate(SimulateOptions(job=job, faults=faults, out=tmp_path / "out"))


def test_fewer_nodes_than_the_job_waits_for_would_never_begin(tmp_path: Path, job: Path) -> None:
    with pytest.raises(UserError, match="waits for 3"):
        run_simulate(SimulateOptions(job=job, nodes=2, out=tmp_path / "out"))


def test_files_that_are_not_there_are_named(tmp_path: Path, job: Path) -> None:
    with pytest.raises(JobError, match="nowhere"):
        run_simulate(SimulateOptions(job=tmp_path / "nowhere.toml"))
    with pytest.raises(FaultError, match="nofaults"):
        run_simulate(SimulateOptions(job=job, faults=tmp_path / "nofaults.toml"))


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        ({}, r"name a job\.toml, or give --nodes or --regions"),
        ({"regions": "moon"}, "there is no setting 'moon' of regions"),
        ({"nodes": 4, "churn": "often"}, "--churn often is not a percentage"),
        ({"nodes": 4, "trace": Path("noday.csv")}, "noday"),
        ({"nodes": 4, "plot": Path("run.txt")}, r"ends in \.png|needs matplotlib"),
        ({"nodes": 1500, "model": "7b"}, r"GB of states, this machine has \d+: --tensors none leaves"),
        ({"nodes": 5000}, "no job for 5000 nodes: .*nodes is over 2048"),
    ],
)
def test_what_cannot_be_simulated_is_one_sentence_before_the_run(
    mistake: dict[str, Any], sentence: str
) -> None:
    with pytest.raises((UserError, FaultError), match=sentence):
        run_simulate(SimulateOptions(**mistake))


def test_a_job_says_itself_which_model_it_trains(job: Path) -> None:
    with pytest.raises(UserError, match="leave --model out"):
        run_simulate(SimulateOptions(job=job, model="1b"))


@pytest.mark.parametrize(("model", "nodes", "cells"), [("125m", 3, 1), ("1b", 100, 8), ("7b", 100, 5)])
def test_the_recipe_of_a_large_model_fits_any_number_of_nodes(
    model: ModelName, nodes: int, cells: int
) -> None:
    recipe = large_job(model, nodes=nodes)
    assert recipe.model.preset == model
    assert (recipe.pipeline.nodes, recipe.pipeline.cells) == (nodes, cells)
    assert recipe.pipeline.stages * cells <= nodes


def test_without_tensors_a_summary_says_that_there_are_no_losses(tmp_path: Path) -> None:
    fields = {"cell": "c0", "iteration": 1, "loss": None, "tokens": 900}
    events = (Event("committed", 1.0, "n", fields),)
    world = Outcome(events=events, seconds=9.0, finished=True, broken=(), bytes_sent=2_000_000_000)
    found = summary(world, 1.0) | {"tensors": "none", "events": "run.jsonl"}
    assert (found["loss_first"], found["loss_last"], found["loss_validation"]) == (None, None, None)
    assert "no losses: the tensors were left out" in render(found)
    assert "100 tokens a second, 2.000 GB sent" in render(found)


@pytest.mark.parametrize("nodes", [1, 3, 8, 20])
def test_the_recipe_without_a_job_fits_any_number_of_nodes(nodes: int) -> None:
    recipe = simulated_job(nodes=nodes)
    assert recipe.pipeline.nodes == nodes
    assert recipe.pipeline.stages * recipe.pipeline.cells <= nodes
    assert recipe.model.preset == "demo"
    assert recipe.inner.iterations == 200


def test_a_summary_tells_of_the_cell_that_came_furthest(tmp_path: Path) -> None:
    def commit(cell: str, iteration: int, loss: float) -> Event:
        told = {"cell": cell, "iteration": iteration, "loss": loss, "tokens": 8 if loss else 0}
        return Event("committed", float(iteration), "n", told)

    events = (
        commit("c0", 1, 5.0),
        commit("c1", 1, 6.0),
        Event("fault", 1.5, "dead", {"what": "crash"}),
        Event("recovered", 2.0, "n", {"stage": 1, "how": "other_cell", "seconds": 3.0}),
        commit("c1~dead.7", 2, 4.0),
        commit("c1~dead.7", 3, 0.0),
    )
    found = summary(Outcome(events=events, seconds=9.0, finished=True, broken=("two records",)), 1.0)
    assert (found["iterations"], found["loss_first"], found["loss_last"]) == (3, 6.0, 4.0)
    assert (found["killed"], found["longest_gap_s"]) == (["dead"], 1.0)
    assert found["recoveries"] == [{"stage": 1, "how": "other_cell", "seconds": 3.0}]
    path = write_run(events, tmp_path)
    assert len(path.read_text().splitlines()) == len(events)
    again = {"seed": 3, "again": "farflung simulate --seed 3 --until 7", "last": ['{"event":"fault"}']}
    again |= {"speed_up": 60.0, "drawn": {"began": 0, "drawn": 4, "in_company": 0.75}, "trace_left_out": 9}
    text = render(found | {"events": str(path), "tensors": "real"} | again)
    assert "BROKEN: two records" in text
    assert '{"event":"fault"}' in text
    assert "churn 60 times as fast: 0 of 4 faults before the end, 75 % of the losses" in text
    assert "DID NOT HAPPEN: all that was drawn" in text
    assert "for want of nodes: 9 arrivals" in text
    assert text.endswith("--seed 3 --until 7")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--only", "membership", "--faults", "storm.toml"], "--faults"),
        (["--only", "membership", "--regions", "moon", "--plot", "x.png"], "--regions, --plot"),
        (["--nodes", "4", "--loss", "0.1"], "--loss"),
        (["--only", "membership", "--flops-per-s", "1e12", "--out", "there"], "--flops-per-s, --out"),
        (["job.toml", "--only", "membership", "--jitter", "uniform"], "JOB, --jitter"),
        (
            ["--nodes", "4", "--no-lifeguard", "--evidence", "silence"],
            "--lifeguard/--no-lifeguard, --evidence",
        ),
    ],
)
def test_what_would_be_passed_over_is_refused(words: list[str], named: str) -> None:
    refused = CliRunner().invoke(app, ["simulate", *words])
    assert isinstance(refused.exception, UserError)
    assert str(refused.exception).endswith(named)


def test_every_option_fills_a_field_of_what_was_asked_for() -> None:
    """The fields say which options mean something: one that fills none would be refused always."""
    parameters = set(inspect.signature(simulate).parameters) - {"context", "only", "as_json"}
    asked, crowd = ({each.name for each in fields(kind)} for kind in (SimulateOptions, CrowdOptions))
    assert parameters == asked | crowd
    assert asked & crowd == {"churn", "seed", "nodes"}


@pytest.mark.parametrize("churn", ["nan", "inf", "1e300", "-1"])
def test_churn_of_a_crowd_that_is_no_percentage_is_refused(churn: str) -> None:
    refused = CliRunner().invoke(app, ["simulate", "--only", "membership", f"--churn={churn}"])
    assert isinstance(refused.exception, UserError)
    assert "--churn is between 0 and" in str(refused.exception)


@pytest.mark.parametrize("wrong", [0, 3])
def test_membership_alone_ends_with_1_if_views_did_not_come_to_agree(
    wrong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarm.lab.crowd_run.run_crowd", lambda _: {"views_wrong_for_long": wrong})
    done = CliRunner().invoke(app, ["simulate", "--only", "membership", "--json"])
    assert done.exit_code == (1 if wrong else 0)


def test_the_command_that_plays_a_broken_run_again_spares_its_events_and_its_picture(tmp_path: Path) -> None:
    out, plot = tmp_path / "out", tmp_path / "run.png"
    words = ["simulate", "--nodes", "2", "--out", str(out), "--plot", str(plot)]
    command = again(words, SimulateOptions(nodes=2, out=out, plot=plot), 26.5)
    told = dict(pairwise(shlex.split(command)[len(words) + 1 :]))
    assert told["--until"] == "26.5"
    assert told["--out"] == str(out / "again")
    assert told["--plot"] == str(tmp_path / "run-again.png")


def test_an_error_before_the_first_event_is_told_and_not_hidden_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came of a run was divided by its length, which was nothing."""

    def end(*_: Any) -> None:
        raise RuntimeError("no ground")

    monkeypatch.setattr("swarm.lab.playing.World", end)
    found = run_simulate(SimulateOptions(nodes=2, out=tmp_path))
    [broken] = found["broken"]
    assert "no ground" in broken
    assert found["tokens_per_s"] == 0.0


def test_failures_at_iterations_cannot_be_sped_up() -> None:
    with pytest.raises(UserError, match="--speed-up is of --churn or --trace, and neither is given"):
        run_simulate(SimulateOptions(nodes=8, speed_up=60))
    with pytest.raises(UserError, match="--churn checkfree:10 fails stages at iterations: leave --speed-up"):
        run_simulate(SimulateOptions(nodes=8, churn="checkfree:10", speed_up=60))


def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> dict[str, Any]:
    """What is said of churn and a trace, of a world that is over at once."""
    over = Outcome(events=(), seconds=1.0, finished=True, broken=(), drawn=(0, 3))
    monkeypatch.setattr("swarm.lab.simulate.run_world", lambda _: over)
    return run_simulate(SimulateOptions(nodes=8, out=tmp_path, **options))


def test_nothing_is_said_of_the_company_of_failures_at_iterations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = drawn(tmp_path, monkeypatch, churn="checkfree:33")
    assert found["drawn"]["in_company"] is None
    assert "in the same minute" not in render(found)


def test_seats_that_are_empty_from_the_start_keep_no_loss_company(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = tmp_path / "day.csv"
    day.write_text("0,add,a\n0,add,b\n600000,remove,a\n900000,remove,b\n930000,add,c\n")
    found = drawn(tmp_path, monkeypatch, trace=day, speed_up=10.0)
    assert found["drawn"]["in_company"] == 0.0


def test_a_region_that_nobody_stands_in_is_a_mistake(tmp_path: Path, job: Path) -> None:
    faults = tmp_path / "faults.toml"
    faults.write_text('[[fault]]\nkind = "crash"\nnode = "region:Mars"\nat_s = 1\n')
    with pytest.raises(UserError, match=r"'region:Mars' hits nobody: .* in no region, without --regions"):
        run_simulate(SimulateOptions(job=job, faults=faults, out=tmp_path / "out"))


def test_a_region_of_the_setting_that_no_node_was_dealt_to_is_a_mistake(tmp_path: Path, job: Path) -> None:
    region = load_regions().setting("geo-distributed")[3]
    faults = tmp_path / "faults.toml"
    faults.write_text(f'[[fault]]\nkind = "crash"\nnode = "region:{region}"\nat_s = 1\n')
    asked = SimulateOptions(job=job, faults=faults, regions="geo-distributed", out=tmp_path / "out")
    with pytest.raises(UserError, match=f"region:{region}' hits nobody: the nodes of this swarm are only in"):
        run_simulate(asked)
