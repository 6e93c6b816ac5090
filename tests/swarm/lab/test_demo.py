import io
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from swarm.daemon.options import UserError
from swarm.lab.bench import memory_of
from swarm.lab.demo import (
    DemoOptions,
    Watch,
    choose_victim,
    is_over,
    next_directory,
    plan_kills,
    run_demo,
    screen_on,
)
from swarm.lab.processes import Child
from swarm.lab.recipes import demo_job
from swarm.lab.screen import Screen
from swarm.lab.tally import NodeRow, Tally


def swarm_of(**stages: tuple[int, ...]) -> tuple[Any, Tally]:
    """A swarm whose nodes are named like their ids, and what its events said."""
    names = ["coordinator", *stages]
    children = {name: SimpleNamespace(name=name, node=name) for name in names}
    swarm = SimpleNamespace(children=children, alive=list(names), killed=[], log=lambda name: "why it ended")
    return swarm, Tally(nodes={name: NodeRow(cell="c0", stages=held) for name, held in stages.items()})


@pytest.mark.parametrize(
    ("kill", "plan"),
    [
        ("both", [(20, "node"), (30, "coordinator")]),
        ("node", [(20, "node")]),
        ("coordinator", [(30, "coordinator")]),
        ("none", []),
    ],
)
def test_a_node_dies_at_a_third_and_the_coordinator_at_half(kill: Any, plan: list[tuple[int, str]]) -> None:
    assert plan_kills(kill, 60) == plan


def test_a_kill_is_due_once_its_iteration_is_behind_every_cell() -> None:
    watch = Watch(due=plan_kills("both", 6))
    assert watch.next_kill() is None
    watch.tally.add([{"event": "committed", "cell": "c0", "iteration": 2}])
    assert watch.next_kill() == "node"
    assert watch.next_kill() is None


@pytest.mark.parametrize("kill", ["node", "both"])
def test_the_only_node_is_not_killed_and_nothing_is_begun(tmp_path: Path, kill: Any) -> None:
    with pytest.raises(UserError, match="give --kill none or coordinator, or more --nodes"):
        run_demo(DemoOptions(nodes=1, iterations=3, kill=kill, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_in_a_file_the_last_words_begin_a_line_of_their_own() -> None:
    screen = Screen(60, Console(file=io.StringIO(), width=80))
    with screen_on(screen, quiet=False) as live:
        assert live is not None
        live.update("the table")
    screen.console.print("the last words")
    assert isinstance(screen.console.file, io.StringIO)
    assert screen.console.file.getvalue() == "the table\nthe last words\n"


def test_the_victim_holds_a_body_stage_where_one_does() -> None:
    swarm, tally = swarm_of(a=(0,), b=(0, 1), c=(2,))
    assert choose_victim(swarm, tally, "node") == "c"
    assert choose_victim(swarm, tally, "coordinator") == "coordinator"
    swarm.alive.remove("c")
    assert choose_victim(swarm, tally, "node") == "a"


def test_it_is_over_when_every_node_that_runs_has_finished() -> None:
    swarm, tally = swarm_of(a=(0,), b=(1,))
    tally.add([{"event": "finished", "node": "a"}])
    assert not is_over(swarm, tally)
    swarm.alive.remove("b")
    assert is_over(swarm, tally)


def test_a_standby_is_not_waited_for() -> None:
    swarm, tally = swarm_of(a=(0,), b=())
    assert not is_over(swarm, tally)
    tally.add([{"event": "finished", "node": "a"}])
    assert is_over(swarm, tally)


def test_nodes_that_end_early_are_one_sentence() -> None:
    swarm, tally = swarm_of(a=(0,), b=(1,))
    swarm.alive.remove("a")
    swarm.alive.remove("b")
    swarm.killed.append("b")
    swarm.log = lambda name: "error: why it ended\nin cell c0"
    with pytest.raises(UserError, match=r"finished: a said error: why it ended; b was killed$"):
        is_over(swarm, tally)


def test_output_never_lands_in_an_older_run(tmp_path: Path) -> None:
    assert next_directory(tmp_path) == tmp_path / "1"
    (tmp_path / "1").mkdir()
    assert next_directory(tmp_path) == tmp_path / "2"


def test_the_table_shows_nodes_and_totals() -> None:
    swarm, tally = swarm_of(a=(0,), b=(1, 2))
    commit = {"event": "committed", "time": 1.0, "cell": "c0", "iteration": 3, "loss": 4.25}
    tally.add([commit | {"holders": {"0": ["a"], "1": ["b"], "2": ["b"]}}])
    swarm.killed, swarm.alive = ["b"], ["coordinator", "a"]
    console = Console(file=io.StringIO(), width=120)
    console.print(Screen(60).table(swarm, tally))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "iteration 3/60" in shown
    assert "loss 4.25 " in shown
    assert "1 2" in shown
    assert "killed" in shown


def test_80_columns_hold_the_table_of_a_cell_with_a_long_name() -> None:
    swarm, tally = swarm_of(a=(0,), b=(1, 2))
    commit = {"event": "committed", "time": 1.0, "cell": "c0~3fa2c417.17", "iteration": 45, "loss": 4.25}
    tally.add([commit | {"holders": {"0": ["a"], "1": ["b"], "2": ["b"], "3": ["b"]}}])
    tally.add([{"event": "progress", "node": "b", "bytes_sent": 1_234_560_000, "memory_bytes": 429_000_000}])
    console = Console(file=io.StringIO(), width=80)
    console.print(Screen(60).table(swarm, tally))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown
    for word in (
        "c0~3fa2c417.17",
        "1 2 3",
        "training",
        "45/60",
        "1,235 MB",
        "429.0 MB",
        "recoveries 0",
    ):
        assert word in shown


def test_a_demo_of_one_node_is_one_cell() -> None:
    assert demo_job(nodes=1, iterations=4).pipeline.cells == 1
    assert demo_job(nodes=8, iterations=60).pipeline.cells == 2


def test_memory_of_a_process_is_what_the_kernel_says(tmp_path: Path) -> None:
    (tmp_path / "node.json").write_text(json.dumps({"pid": os.getpid(), "work_pid": os.getpid()}))
    held = memory_of(Child("me", os.getpid(), tmp_path))
    assert held["rss"] >= held["pss"] >= held["private_dirty"] > 0
    assert memory_of(Child("gone", 1 << 22, tmp_path)) == {}
