"""Promises 1-6 in worlds drawn from seeds; `scripts/soak` plays many more of them."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swarm.events import Event
from swarm.lab.soak import CLASSES, Scenario, draw
from swarm.lab.soaking import SoakOptions, known, main, play_seed, render, soak
from swarm.lab.world import Outcome, World, WorldOptions

PLAYED = 50


def test_fifty_drawn_worlds_break_no_promise(tmp_path: Path) -> None:
    played = list(soak(SoakOptions(seeds=PLAYED, jobs=2, out=tmp_path)))
    assert not [render(found) for found in played if found["broken"]]
    assert [found["seed"] for found in played] == list(range(PLAYED))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(PLAYED, 200))
def test_no_drawn_world_breaks_a_promise(seed: int, tmp_path: Path) -> None:
    found = play_seed(seed, SoakOptions(out=tmp_path))
    assert not found["broken"], render(found)


def test_a_seed_draws_the_same_world_each_time_and_seeds_draw_every_class() -> None:
    assert draw(7).options == draw(7).options
    drawn = [draw(seed) for seed in range(100)]
    assert {name for scenario in drawn for name in scenario.classes} == {*CLASSES, "liar"}
    assert {scenario.options.job.pipeline.cells for scenario in drawn} == {1, 2, 3}
    assert {scenario.options.tensors for scenario in drawn} == {"real", "none"}
    assert {scenario.options.job.pipeline.hop_codec for scenario in drawn} == {"raw", "bf16", "int8"}
    assert {len(scenario.options.regions) for scenario in drawn} == {0, 5, 12}
    assert any(fault.at_iteration for scenario in drawn for fault in scenario.options.faults)
    assert any(getattr(fault, "silent", False) for scenario in drawn for fault in scenario.options.faults)
    assert any(scenario.options.uplink_bytes_per_s for scenario in drawn)
    assert {scenario.options.jitter for scenario in drawn} == {"uniform", "log-normal"}


def test_leaving_a_class_out_changes_nothing_about_the_others() -> None:
    seed = next(seed for seed in range(100) if {"pause", "corrupt"} <= set(draw(seed).classes))
    whole, part = draw(seed), draw(seed, [name for name in CLASSES if name != "corrupt"])
    assert replace(part.options, faults=(), until_s=0) == replace(whole.options, faults=(), until_s=0)
    assert part.options.faults == tuple(f for f in whole.options.faults if f.kind != "corrupt")


def test_an_interrupted_soak_goes_on_where_it_was(tmp_path: Path) -> None:
    options = SoakOptions(seeds=2, first=20, commit="abc", out=tmp_path)
    first = list(soak(options))
    lines = options.cache.read_text().splitlines()
    options.cache.write_text(lines[0] + "\n" + lines[1][:20])
    assert list(known(options.cache)) == [20]
    again = list(soak(options))
    assert [found["seed"] for found in again] == [20, 21]
    assert again[0] == first[0]
    assert {**again[1], "cpu_s": 0} == {**first[1], "cpu_s": 0}


@pytest.mark.slow
def test_jobs_play_the_same_worlds_as_one_and_tell_them_in_the_same_order(tmp_path: Path) -> None:
    options = SoakOptions(seeds=3, first=20, out=tmp_path)
    alone, together = (
        [{**found, "cpu_s": 0} for found in soak(replace(options, jobs=jobs))] for jobs in (1, 2)
    )
    assert [found["seed"] for found in alone] == [20, 21, 22]
    assert alone == together


def test_a_job_that_dies_ends_the_soak_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "false")
    with pytest.raises(SystemExit, match="a job of the soak ended with code 1"):
        list(soak(SoakOptions(seeds=2, jobs=2, out=tmp_path)))


@pytest.mark.parametrize("spins", [False, True])
def test_an_error_that_ends_a_whole_world_is_a_finding_with_its_seed_and_the_soak_goes_on(
    spins: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A livelock, say: what one soaks for. It ended the soak with a traceback that named no seed."""

    async def spin(world: World) -> None:
        loop = asyncio.get_running_loop()

        def again() -> None:
            loop.call_soon(again)

        loop.call_later(3, again)
        await asyncio.sleep(5)

    async def fail(world: World) -> None:
        await asyncio.sleep(3)
        asyncio.get_running_loop().call_later(1, lambda: 1 // 0)
        await asyncio.sleep(2)

    monkeypatch.setattr("transport.virtual_time.STEPS_PER_INSTANT_MAX", 10_000)
    hurt = spin if spins else fail
    whole = World.__init__

    def hurting(world: World, options: WorldOptions, *rest: Any) -> None:
        whole(world, options, *rest)
        if options.seed == 20:
            world.beside(hurt(world))

    monkeypatch.setattr(World, "__init__", hurting)
    assert main(["--seeds", "2", "--first", "20", "--out", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "livelock at" in told if spins else "ZeroDivisionError" in told
    assert "seed 20 broke at" in told
    assert '"event":"committed"' in told
    assert "2 worlds" in told
    assert "broken: 20" in told


def test_a_broken_seed_is_told_with_its_sentence_its_events_and_how_to_play_it_again() -> None:
    found = {
        "seed": 5,
        "virtual_s": 30.3,
        "classes": ["pause"],
        "broken": ["two records (at 29.3 s)"],
        "last": ['{"event":"fault"}'],
    }
    text = render(found, ("pause",))
    assert "two records (at 29.3 s)" in text
    assert '{"event":"fault"}' in text
    assert "scripts/soak --seeds 1 --first 5 --classes pause --until 26.8" in text


def test_playing_until_just_before_stops_there_and_writes_the_events(tmp_path: Path) -> None:
    assert main(["--seeds", "1", "--first", "0", "--until", "5", "--out", str(tmp_path)]) == 0
    times = [
        json.loads(line)["time"]
        for line in (tmp_path / "seed-0-until-5" / "run.jsonl").read_text().splitlines()
    ]
    assert 4 < max(times) < 8


def test_jobs_end_their_worlds_where_they_were_told_to(tmp_path: Path) -> None:
    played = list(soak(SoakOptions(seeds=2, jobs=2, until_s=4.0, out=tmp_path)))
    assert [found["seed"] for found in played] == [0, 1]
    assert all(4 <= found["virtual_s"] < 8 for found in played)


@pytest.mark.parametrize("until", ["-3", "0", "nan", "inf", "soon"])
def test_an_end_that_no_world_comes_to_is_a_mistake(until: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--seeds", "1", f"--until={until}"])
    assert ended.value.code == 2
    assert f"{until} is not a number of seconds above 0" in capsys.readouterr().err


def test_playing_again_until_just_before_spares_the_events_of_the_broken_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broke(scenario: Scenario) -> Outcome:
        event = Event("fault", scenario.options.until_s, "n", {"what": "crash"})
        return Outcome(events=(event,), seconds=9.0, finished=False, broken=("two records",))

    monkeypatch.setattr("swarm.lab.soaking.play", broke)
    play_seed(3, SoakOptions(out=tmp_path))
    written = (tmp_path / "seed-3" / "run.jsonl").read_bytes()
    play_seed(3, SoakOptions(out=tmp_path, until_s=5.0))
    assert (tmp_path / "seed-3" / "run.jsonl").read_bytes() == written
    assert b'"time":5' in (tmp_path / "seed-3-until-5" / "run.jsonl").read_bytes()


def test_a_class_that_does_not_exist_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--classes", "explosion"])
    assert ended.value.code == 2
    assert "no class of faults named explosion" in capsys.readouterr().err
