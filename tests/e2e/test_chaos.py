"""`farflung chaos --json` on small swarms: on loopback, and over namespaces where the machine allows them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from real_world import small_job

from swarm.job import dump_job
from swarm.lab.wan_namespaces import ours, why_not

pytestmark = pytest.mark.e2e
BECAUSE = why_not()
ITERATIONS = 100
MINUTES = "4"
"""At most: the job is finished long before."""
KILLS = """
[[fault]]
at_iteration = 10
kind = "restart"
node = "node:1"
after_s = 3

[[fault]]
at_iteration = 30
kind = "pause"
node = "random"
for_s = 1
"""
PARTITION = """
[[fault]]
at_iteration = 3
kind = "partition"
groups = [["node:0"], ["node:1", "node:2", "coordinator"]]
for_s = 1
"""


def chaos(directory: Path, script: str, network: str) -> tuple[dict[str, Any], str]:
    """Run the command on three nodes of one cell; its last line, and what it said at first."""
    (directory / "faults.toml").write_text(script)
    job = small_job(nodes=3, pipeline={"stages": 1}, inner={"iterations": ITERATIONS})
    (directory / "job.toml").write_text(dump_job(job))
    arguments = [
        "job.toml",
        "--faults",
        "faults.toml",
        "--minutes",
        MINUTES,
        network,
        "--out",
        "run",
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "from swarm.cli import main; main()", "chaos", *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=directory,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_kills_and_pauses_on_loopback_break_no_promise(tmp_path: Path) -> None:
    found, said = chaos(tmp_path, KILLS, "--no-wan")
    assert said.startswith("on loopback, with kills and pauses only: --no-wan was given")
    assert (found["wan"], found["because"]) == (False, "--no-wan was given")
    assert found["faults"] == {"restart": 1, "pause": 1}
    assert found["kills"] == 1
    assert found["broken"] == []
    # The killed one may be back before anybody buries it.
    unchecked = {name for name, each in found["checks"].items() if "not_checked" in each}
    assert unchecked <= {"nobody_stays_buried"}
    assert found["iterations"] == ITERATIONS
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == found


@pytest.mark.slow
@pytest.mark.skipif(bool(BECAUSE), reason=BECAUSE or "never")
def test_a_partition_of_the_emulated_network_heals_and_leaves_nothing_behind(tmp_path: Path) -> None:
    before = ours()
    found, said = chaos(tmp_path, PARTITION, "--wan")
    assert said.startswith("over an emulated wide-area network: 40 ms there and back")
    assert found["wan"] is True
    assert found["faults"] == {"partition": 1}
    assert found["packets"]["cut"] > 0
    assert found["broken"] == []
    assert [name for name in ours() if name not in before] == []
