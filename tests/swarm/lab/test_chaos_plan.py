"""What is refused before anything starts, and what the player does to whom."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest

from swarm.daemon.options import UserError
from swarm.lab import chaos
from swarm.lab.chaos import ChaosOptions, chaos_job, prepare
from swarm.lab.chaos_lasting import TURN_S, limit_files
from swarm.lab.chaos_limits import refuse_impossible
from swarm.lab.chaos_player import Player
from swarm.lab.chaos_summary import render
from swarm.lab.faults import Restart, load_faults, never_drawn, parse_faults
from swarm.lab.processes import Child, RealSwarm
from swarm.lab.regions import load_regions
from swarm.lab.wan import WideArea

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "twenty_kills.toml"
CUT = '[[fault]]\nat_s = 1\nkind = "cut"\nbetween = [["node:0"], ["coordinator"]]\nfor_s = 5\n'


def test_a_script_with_cuts_is_refused_where_there_is_no_network_to_cut(tmp_path: Path) -> None:
    (tmp_path / "cut.toml").write_text(CUT)
    with pytest.raises(UserError, match="'cut' needs the emulated network, but --no-wan was given"):
        prepare(ChaosOptions(faults=tmp_path / "cut.toml", wan=False))


def test_a_network_that_is_demanded_and_impossible_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos, "why_not", lambda: "network namespaces need root")
    with pytest.raises(UserError, match="--wan is not possible here: network namespaces need root"):
        prepare(ChaosOptions(wan=True))
    scene = prepare(ChaosOptions())
    assert scene.network() == "on loopback, with kills and pauses only: network namespaces need root"


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ('kind = "corrupt"\nnode = "random"', "for `farflung simulate`"),
        ('kind = "clock_skew"\nnode = "random"\nby_s = 5', "share this machine's clock"),
        ('kind = "noise"\nnode = "random"\nduplication = 0.1', "needs the emulated network"),
        ('kind = "crash"\nnode = "region:Tokyo"', "are in no region"),
        ('kind = "crash"\nnode = "node:8"', "there are 8"),
        ('kind = "crash"\nnode = "holders:2"', "'holders:2' hits nobody: the job has 2 stages"),
        ('kind = "slow_link"\nnode = "node:1"\nfactor = 3', "needs the emulated network"),
    ],
)
def test_what_real_processes_cannot_suffer_is_refused_in_a_sentence(script: str, sentence: str) -> None:
    faults = parse_faults(f"[[fault]]\nat_s = 1\n{script}\n")
    with pytest.raises(UserError, match=sentence):
        refuse_impossible(faults, nodes=8, stages=2, because="network namespaces need root")


def test_regions_are_dealt_in_turn_and_named_ones_can_be_hit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chaos, "why_not", lambda: "")
    region = load_regions().setting("geo-distributed")[1]
    (tmp_path / "gone.toml").write_text(f'[[fault]]\nat_s = 1\nkind = "crash"\nnode = "region:{region}"\n')
    scene = prepare(ChaosOptions(faults=tmp_path / "gone.toml", regions="geo-distributed", nodes=13))
    assert (scene.regions["node-2"], scene.regions["node-1"]) == (region, scene.regions["node-13"])
    assert "geo-distributed, 12 regions" in scene.network()
    with pytest.raises(UserError, match="regions need the emulated network, but --no-wan was given"):
        prepare(ChaosOptions(regions="geo-distributed", wan=False))


def test_fewer_nodes_than_the_job_waits_for_are_refused(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text("[pipeline]\nnodes = 4\n")
    with pytest.raises(UserError, match="would never begin"):
        prepare(ChaosOptions(job=tmp_path / "job.toml", nodes=2, wan=False))


@pytest.mark.parametrize(("nodes", "stages"), [(1, 1), (4, 1), (8, 2), (16, 4), (40, 4)])
def test_every_stage_of_the_default_job_has_two_holders_where_there_are_enough(
    nodes: int, stages: int
) -> None:
    job = chaos_job(nodes)
    assert job.pipeline.stages == stages
    assert nodes < 4 or nodes >= 2 * job.pipeline.cells * stages


def test_the_example_kills_twenty_times_and_cuts_two_nodes_off_for_half_a_minute() -> None:
    faults = load_faults(EXAMPLE)
    kills = [fault for fault in faults if isinstance(fault, Restart)]
    assert len(kills) == 20
    assert Counter(fault.node == "coordinator" for fault in kills) == {False: 17, True: 3}
    assert [(fault.kind, fault.lasts_s) for fault in faults if fault not in kills] == [("partition", 30)]
    assert max(fault.at_s or 0 for fault in faults) <= 540
    refuse_impossible(faults, nodes=8, stages=2, because="")


@dataclass
class FakeSwarm:
    """Remembers what was done to it."""

    directory: Path
    done: list[tuple[str, ...]] = field(default_factory=list)
    children: dict[str, Child] = field(default_factory=dict)
    alive: list[str] = field(default_factory=list)
    job: Any = field(default_factory=lambda: chaos_job(4))
    job_directory: Path = Path("job")

    def add(self, name: str) -> None:
        child = Child(name, 1000 + len(self.done), self.directory / name)
        self.children[name] = child
        self.alive.append(name)

    def run(self, name: str, work_pid: int) -> None:
        """The process says who computes for it."""
        child = self.children[name]
        child.directory.mkdir(exist_ok=True)
        (child.directory / "node.json").write_text(f'{{"pid": {child.pid}, "work_pid": {work_pid}}}')

    async def start_node(self, name: str) -> None:
        self.done.append(("start", name))
        self.add(name)

    async def start_coordinator(self, *, resume: bool) -> None:
        self.done.append(("resume" if resume else "start", "coordinator"))
        self.add("coordinator")

    def kill(self, name: str) -> None:
        self.done.append(("kill", name))
        self.alive.remove(name)

    def pause(self, name: str) -> None:
        self.done.append(("pause", name))

    def proceed(self, name: str) -> None:
        self.done.append(("proceed", name))

    def note_fault(self, child: Child, what: str) -> None:
        self.done.append((what, child.name))

    def note(self, what: str, **fields: object) -> None:
        self.done.append((what, str(fields.get("names", fields.get("cut")))))


@dataclass
class FakeWan:
    done: list[tuple[object, ...]]

    async def slow(self, process: str, factor: float, *, over_s: float = 0.0) -> None:
        self.done.append(("wan slow", process, factor, over_s)[: 4 if over_s else 3])

    async def disturb(self, process: str, *shares: float) -> None:
        self.done.append(("wan noise", process, *shares))

    async def cut(self, name: str, sides: list[list[str]], *, one_way: bool = False) -> None:
        self.done.append(("wan cut", *map(tuple, sides)))

    async def heal(self, name: str) -> None:
        self.done.append(("wan heal", name))


async def play(
    script: str, times: list[float], directory: Path, placed_at: dict[float, Any] | None = None
) -> tuple[FakeSwarm, Player]:
    swarm = FakeSwarm(directory)
    names = ["node-1", "node-2", "node-3"]
    for name in ("coordinator", *names):
        swarm.add(name)
    wan = cast(WideArea, FakeWan(cast(list[tuple[object, ...]], swarm.done)))
    async with asyncio.TaskGroup() as tasks:
        faults = parse_faults(script)
        player = Player(cast(RealSwarm, swarm), wan, faults, names, Random(0), tasks, until_s=99)
        player.holders = {1: ("node-2",)}
        for now_s in times:
            player.holders = (placed_at or {}).get(now_s, player.holders)
            await player.step(now_s, 0)
    return swarm, player


async def test_the_killed_return_and_the_coordinator_resumes_only_what_was_kept(tmp_path: Path) -> None:
    script = """
        fault = [
            {at_s = 1, kind = "restart", node = "holder:1", after_s = 5},
            {at_s = 2, kind = "restart", node = "coordinator", after_s = 5},
            {at_s = 3, kind = "crash", node = "holder:3"},
        ]
    """
    swarm, player = await play(script, [1.0, 2.0, 3.0, 8.0], tmp_path)
    assert swarm.done == [
        ("kill", "node-2"),
        ("kill", "coordinator"),
        ("start", "node-2"),
        ("start", "coordinator"),
    ]
    assert player.begun == {"restart": 2}
    assert player.not_happened() == ["crash of holder:3 met nobody alive"]


async def test_a_fault_waits_for_a_victim_that_is_not_placed_yet_and_lasts_from_then(
    tmp_path: Path,
) -> None:
    script = """
        fault = [
            {at_s = 1, kind = "restart", node = "holder:2", after_s = 5},
            {at_s = 1, kind = "crash", node = "coordinator"},
            {at_s = 2, kind = "crash", node = "coordinator"},
        ]
    """
    swarm, player = await play(script, [1.0, 2.0, 3.5, 6.5, 8.6], tmp_path, placed_at={3.5: {2: ("node-3",)}})
    assert swarm.done == [("kill", "coordinator"), ("kill", "node-3"), ("start", "node-3")]
    assert player.begun == {"crash": 1, "restart": 1}
    assert player.not_happened() == ["crash of coordinator met nobody alive"]


async def test_a_paused_node_that_is_killed_is_not_told_to_go_on(tmp_path: Path) -> None:
    script = """
        fault = [
            {at_s = 1, kind = "pause", node = "node:0", for_s = 5},
            {at_s = 1, kind = "pause", node = "node:1", for_s = 5},
            {at_s = 2, kind = "crash", node = "node:0"},
        ]
    """
    swarm, player = await play(script, [1.0, 2.0, 7.0], tmp_path)
    assert swarm.done == [("pause", "node-1"), ("pause", "node-2"), ("kill", "node-1"), ("proceed", "node-2")]
    assert player.paused == set()


async def test_links_degrade_over_time_and_noise_ends(tmp_path: Path) -> None:
    script = """
        fault = [
            {at_s = 1, kind = "slow_link", node = "node:1", factor = 3, over_s = 4},
            {at_s = 1, kind = "noise", node = "node:0", loss = 0.1, duplication = 0.2, for_s = 5},
            {at_s = 2, kind = "noise", node = "node:0", reordering = 0.3, for_s = 9},
        ]
    """
    swarm, _ = await play(script, [1.0, 2.0, 7.0, 12.0], tmp_path)
    assert [done for done in swarm.done if done[0] in ("wan slow", "wan noise")] == [
        ("wan slow", "node-2", 3.0, 4.0),
        ("wan noise", "node-1", 0.1, 0.2, 0.0),
        ("wan noise", "node-1", 0.0, 0.0, 0.3),
        ("wan noise", "node-1"),
    ]
    assert swarm.done[-1] == ("noise_over", "node-1")


async def test_of_two_faults_of_a_kind_the_newer_holds_until_each_has_ended(tmp_path: Path) -> None:
    script = """
        fault = [
            {at_s = 1, kind = "pause", node = "node:0", for_s = 5},
            {at_s = 2, kind = "pause", node = "node:0", for_s = 9},
            {at_s = 1, kind = "slow_link", node = "node:1", factor = 3, for_s = 5},
            {at_s = 2, kind = "slow_link", node = "node:1", factor = 7, for_s = 9},
        ]
    """
    swarm, player = await play(script, [1.0, 2.0, 7.0], tmp_path)
    assert ("proceed", "node-1") not in swarm.done
    slowed = [done for done in cast(list[tuple[object, ...]], swarm.done) if done[0] == "wan slow"]
    assert slowed == [("wan slow", "node-2", factor) for factor in (3.0, 7.0)]
    assert player.paused == {"node-1"}
    swarm, player = await play(script, [1.0, 2.0, 7.0, 12.0], tmp_path)
    assert swarm.done[-3:] == [
        ("proceed", "node-1"),
        ("wan slow", "node-2", 1.0),
        ("link_restored", "node-2"),
    ]
    assert player.paused == set()


async def test_the_end_of_an_older_fault_does_not_hurry_a_link_that_degrades(tmp_path: Path) -> None:
    script = """
        fault = [
            {at_s = 1, kind = "slow_link", node = "node:1", factor = 3, for_s = 2},
            {at_s = 2, kind = "slow_link", node = "node:1", factor = 9, over_s = 60},
        ]
    """
    swarm, _ = await play(script, [1.0, 2.0, 4.0], tmp_path)
    done = cast(list[tuple[object, ...]], swarm.done)
    slowed = [each for each in done if each[0] == "wan slow"]
    assert slowed == [("wan slow", "node-2", 3.0), ("wan slow", "node-2", 9.0, 60.0)]


async def test_of_two_slownesses_of_a_process_the_newer_alone_stops_it_and_its_next_life_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps: list[float] = []
    signals: list[tuple[int, str]] = []
    rest = asyncio.sleep

    async def sleep(seconds: float) -> None:
        naps.append(round(seconds / TURN_S, 3))
        await rest(0)

    async def turns() -> tuple[set[float], set[int]]:
        naps.clear()
        signals.clear()
        for _ in range(40):
            await rest(0)
        return set(naps), {pid for pid, _ in signals}

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(os, "kill", lambda pid, number: signals.append((pid, signal.Signals(number).name)))
    swarm = FakeSwarm(tmp_path)
    swarm.add("node-1")
    script = """
        fault = [
            {at_s = 1, kind = "slow_compute", node = "node:0", factor = 2, for_s = 50},
            {at_s = 2, kind = "slow_compute", node = "node:0", factor = 10},
            {at_s = 3, kind = "restart", node = "node:0", after_s = 5},
        ]
    """
    async with asyncio.TaskGroup() as tasks:
        faults = parse_faults(script)
        player = Player(cast(RealSwarm, swarm), None, faults, ["node-1"], Random(0), tasks, 99)
        swarm.run("node-1", work_pid=7)
        await player.step(1.0, 0)
        assert await turns() == ({0.5}, {7})
        await player.step(2.0, 0)
        await turns()
        assert await turns() == ({0.9, 0.1}, {7})
        await player.step(3.0, 0)
        await turns()
        assert await turns() == (set(), set())
        await player.step(8.0, 0)
        assert await turns() == ({0.9, 0.1}, set()), "it has not said yet who computes"
        swarm.run("node-1", work_pid=8)
        assert await turns() == ({0.9, 0.1}, {8})
        await player.step(52.0, 0)
        assert await turns() == ({0.9, 0.1}, {8})
        player.release()
    assert signals[-1] == (8, "SIGCONT")


async def test_a_process_that_is_killed_while_its_disk_is_full_starts_when_it_can_write(
    tmp_path: Path,
) -> None:
    script = """
        fault = [
            {at_s = 1, kind = "disk_full", node = "node:0", for_s = 9},
            {at_s = 2, kind = "restart", node = "node:0", after_s = 3},
        ]
    """
    swarm, _ = await play(script, [1.0, 2.0, 5.0, 10.0], tmp_path)
    assert swarm.done == [
        ("disk_full", "node-1"),
        ("kill", "node-1"),
        ("disk_free", "node-1"),
        ("start", "node-1"),
    ]
    swarm, _ = await play(script, [1.0, 2.0, 5.0], tmp_path)
    assert ("start", "node-1") not in swarm.done


async def test_a_fault_whose_moment_never_came_is_told(tmp_path: Path) -> None:
    script = """
        fault = [
            {at_s = 99, kind = "crash", node = "node:0"},
            {at_iteration = 7, kind = "pause", node = "node:1"},
            {at_s = 1, kind = "partition", groups = [["node:0"], ["holder:0"]]},
            {at_s = 1, kind = "cut", between = [["node:1"], ["holder:1"]]},
            {per_hour = 1e-9, kind = "crash", node = "random"},
        ]
    """
    _, player = await play(script, [1.0, 2.0], tmp_path)
    assert player.not_happened() == [
        "crash of node:0 was to be at 99 s, and the run ended before",
        "pause of node:1 was to be at iteration 7, and the run ended before",
        "partition of node:0, holder:0 met nobody alive",
        "cut of node:1, holder:1 met nobody alive",
        never_drawn(parse_faults(script)[4], 0),
    ]


async def test_who_vanishes_unheard_is_cut_off_first_and_back_before_it_starts(tmp_path: Path) -> None:
    script = 'fault = [{at_s = 1, kind = "restart", node = "node:0", after_s = 5, silent = true}]'
    swarm, _ = await play(script, [1.0, 7.0], tmp_path)
    assert swarm.done == [
        ("wan cut", ("node-1",), ("coordinator", "node-2", "node-3")),
        ("kill", "node-1"),
        ("wan heal", "restart-0"),
        ("start", "node-1"),
    ]


async def test_a_partition_is_cut_and_healed_and_nobody_is_on_two_sides(tmp_path: Path) -> None:
    script = """
        [[fault]]
        at_s = 1
        kind = "partition"
        groups = [["node:0", "node:1"], ["holder:1", "node:2", "coordinator"]]
        for_s = 5
    """
    swarm, _ = await play(script, [1.0, 7.0], tmp_path)
    sides = [["node-1", "node-2"], ["node-3", "coordinator"]]
    assert swarm.done == [
        ("wan cut", *map(tuple, sides)),
        ("cut", str(sides)),
        ("wan heal", "partition-0"),
        ("healed", "partition-0"),
    ]


WRITER = """
import sys
for line in sys.stdin:
    try:
        with open(sys.argv[1], "a") as file:
            file.write("x" * 10)
        print("written", flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
"""


def test_a_full_disk_refuses_what_is_written_and_takes_it_again_when_it_is_free(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "file")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    (tmp_path / "node.json").write_text(f'{{"pid": {writer.pid}, "work_pid": {writer.pid}}}')
    child, said = Child("n", writer.pid, tmp_path), []
    with writer:
        for full in (None, True, False):
            if full is not None:
                limit_files(child, full=full)
            writer.stdin.write("go\n")
            writer.stdin.flush()
            said.append(writer.stdout.readline().strip())
        writer.stdin.close()
    assert said == ["written", "OSError", "written"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 0


def test_the_summary_says_what_was_not_checked_and_what_broke() -> None:
    found: dict[str, Any] = {
        "iterations": 7,
        "seconds": 60.0,
        "tokens": 1000,
        "loss_first": 5.0,
        "loss_last": 4.0,
        "kills": 1,
        "killed": {"node-1": 1},
        "longest_gap_s": 3.0,
        "recoveries": [{"stage": 1, "how": "holder", "seconds": 2.0}],
        "false_deaths": 0,
        "missed": ["crash of holder:1 met nobody alive"],
        "checks": {
            "a_b": {"held": True, "looked_at": "3 slots", "broken": []},
            "c_d": {"held": False, "looked_at": "3 slots", "broken": ["this is wrong"]},
            "e_f": {"not_checked": "there was nothing to look at", "looked_at": "0 slots", "broken": []},
        },
        "not_judged": ["queues and memory"],
        "broken": ["this is wrong"],
        "out": "chaos-out/1",
        "packets": {"delivered": 2000, "late": 10, "latest_ms": 120},
    }
    text = render(found)
    assert "held   (3 slots)  a b" in text
    assert "BROKEN (3 slots)  c d" in text
    assert "not checked (there was nothing to look at)  e f" in text
    assert "BROKEN: this is wrong" in text
    assert "not judged  queues and memory" in text
    assert "2,000 packets carried, 0.50% over 10 ms late, the latest by 120 ms" in text
    assert "DID NOT HAPPEN: crash of holder:1 met nobody alive" in text
