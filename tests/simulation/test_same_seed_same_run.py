"""Promise 4: same seed, same simulated run, bit for bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_worlds import small_job

from swarm.job import dump_job

ROOT = Path(__file__).parent.parent.parent
COMMAND = "import sys; from swarm.cli import main; sys.argv.insert(1, 'simulate'); main()"
FAULTS = """
[[fault]]
at_iteration = 2
kind = "restart"
node = "random"
after_s = 6
[[fault]]
at_s = 3
kind = "corrupt"
node = "node:1"
messages = 3
[[fault]]
at_s = 4
kind = "pause"
node = "random"
for_s = 2
[[fault]]
at_s = 7
kind = "partition"
groups = [["node:0", "node:1"], ["node:2", "node:3", "coordinator"]]
for_s = 3
[[fault]]
at_s = 5
kind = "slow_link"
node = "random"
factor = 5
for_s = 5
[[fault]]
at_s = 6
kind = "slow_compute"
node = "random"
factor = 5
for_s = 5
[[fault]]
at_s = 2
kind = "disk_full"
node = "coordinator"
for_s = 4
[[fault]]
at_s = 2
kind = "disk_full"
node = "holders:0"
for_s = 30
[[fault]]
at_s = 2
kind = "clock_skew"
node = "holder:1"
by_s = -3600
for_s = 4
[[fault]]
at_s = 8
kind = "cut"
between = [["node:0"], ["node:2"]]
one_way = true
for_s = 2
[[fault]]
at_s = 1.5
kind = "noise"
node = "random"
loss = 0.2
duplication = 0.2
reordering = 0.2
for_s = 8
[[fault]]
per_hour = 0.99
until_s = 30
kind = "pause"
node = "random"
for_s = 0.5
"""
KINDS = (
    "restart",
    "corrupt",
    "pause",
    "partition",
    "slow_link",
    "slow_compute",
    "disk_full",
    "clock_skew",
    "cut",
    "noise",
)
FAR_FAULTS = """
[[fault]]
at_iteration = 3
kind = "restart"
node = "holders:1"
after_s = 3
[[fault]]
at_s = 2
kind = "noise"
node = "random"
loss = 0.2
duplication = 0.2
reordering = 0.2
for_s = 20
"""
CHURN = ("--churn", "60", "--speed-up", "40")


def simulate(directory: Path, *more: str, seed: int, hash_seed: int) -> tuple[bytes, dict[str, object]]:
    out = directory / f"out-{seed}-{hash_seed}"
    inputs = [str(directory / "job.toml"), "--faults", str(directory / "faults.toml"), *more]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *inputs, *CHURN, "--seed", str(seed), "--out", str(out), "--json"],
        cwd=ROOT,
        env={"PYTHONHASHSEED": str(hash_seed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return (out / "run.jsonl").read_bytes(), json.loads(done.stdout)


@pytest.fixture
def job_directory(tmp_path: Path) -> Path:
    job = small_job(nodes=4, cells=1, stages=2, iterations=16, checkpoint_every=4)
    (tmp_path / "job.toml").write_text(dump_job(job))
    (tmp_path / "faults.toml").write_text(FAULTS)
    return tmp_path


def test_two_processes_write_the_same_bytes_and_another_seed_writes_others(job_directory: Path) -> None:
    first, found = simulate(job_directory, seed=7, hash_seed=1)
    second, _ = simulate(job_directory, seed=7, hash_seed=2)
    other, _ = simulate(job_directory, seed=8, hash_seed=1)
    assert first == second
    assert first != other
    assert found["finished"]
    assert found["iterations"] == 16
    assert len(found["killed"]) > 1  # type: ignore[arg-type]
    done = {json.loads(line).get("what") for line in first.splitlines() if b'"event":"fault"' in line}
    assert set(KINDS) <= done, set(KINDS) - done
    assert b"cannot write checkpoint node" in first, "where the disks of a run lie is no part of it"


def test_two_processes_write_the_same_bytes_of_cells_that_meet_across_the_world(tmp_path: Path) -> None:
    job = small_job(nodes=4, cells=2, stages=2, iterations=6, every=2)
    (tmp_path / "job.toml").write_text(dump_job(job))
    (tmp_path / "faults.toml").write_text(FAR_FAULTS)
    around = ("--regions", "geo-distributed")
    first, found = simulate(tmp_path, *around, seed=7, hash_seed=1)
    second, _ = simulate(tmp_path, *around, seed=7, hash_seed=77)
    assert first == second
    assert found["finished"]
    events = [json.loads(line) for line in first.splitlines()]
    rounds = [event["members"] for event in events if event["event"] == "round"]
    assert any(len(members) > 1 for met in rounds for members in met.values()), "no two cells met"
    killed = {event["node"] for event in events if event.get("what") == "restart"}
    assert killed, "nobody was lost"


def test_two_processes_without_tensors_write_the_same_bytes_and_no_loss(job_directory: Path) -> None:
    none = ("--tensors", "none")
    first, found = simulate(job_directory, *none, seed=7, hash_seed=1)
    second, _ = simulate(job_directory, *none, seed=7, hash_seed=2)
    assert first == second
    assert found["finished"]
    assert (found["loss_first"], found["loss_last"], found["loss_validation"]) == (None, None, None)
    losses = {event["loss"] for line in first.splitlines() if "loss" in (event := json.loads(line))}
    assert losses == {None}


def test_events_are_in_order_of_virtual_time_and_name_no_path(job_directory: Path) -> None:
    written, _ = simulate(job_directory, seed=7, hash_seed=3)
    times = [json.loads(line)["time"] for line in written.splitlines()]
    assert times == sorted(times)
    assert b"/tmp" not in written
    assert str(job_directory).encode() not in written
