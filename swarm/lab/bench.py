"""`farflung bench throughput`: a swarm's speed as a share of what the cores could do.

The yardstick runs in a process of its own with one thread, before and after the swarm,
because the speed of a shared machine drifts; their mean times the cores is the ceiling.
Where others use the machine too, tokens per second of CPU time still say what the swarm
itself costs: they are counted over the same window, on all its processes.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from swarm.daemon.options import UserError
from swarm.events import wall_time
from swarm.job import Job, dump_job
from swarm.lab.demo import Watch, is_over, next_directory, start_all
from swarm.lab.processes import LOOK_S, Child, RealSwarm
from swarm.lab.recipes import demo_job
from swarm.lab.tally import Tally

YARDSTICK_ITERATIONS = 8
MEMORY_KINDS = {"Rss": "rss", "Pss": "pss", "Private_Dirty": "private_dirty"}


@dataclass(slots=True)
class Probe:
    """What the processes of a swarm use: memory once, CPU seconds at every look."""

    memory: dict[str, float] = field(default_factory=dict)
    samples: list[tuple[float, float]] = field(default_factory=list)

    def look(self, swarm: RealSwarm) -> None:
        """Note the wall time and what has been used by then. A swarm of which nobody dies is assumed."""
        used = sum(cpu_seconds(pid) for child in swarm.children.values() for pid in pids_of(child))
        self.samples.append((wall_time(), used))

    def cores(self, start: float, end: float) -> float:
        """CPU seconds per second between two times."""
        inside = [sample for sample in self.samples if start <= sample[0] <= end]
        if len(inside) < 2:
            return 0.0
        (first, before), (last, after) = inside[0], inside[-1]
        return (after - before) / (last - first)


def measure_throughput(*, nodes: int, iterations: int, out: Path | None) -> dict[str, Any]:
    """Run yardstick, swarm, yardstick. Raises UserError if the swarm commits nothing."""
    job = demo_job(nodes=nodes, iterations=iterations, name="throughput")
    before = run_yardstick(job)
    tally, probe = asyncio.run(_run_swarm(job, nodes, out or next_directory()))
    return summarize(tally, probe, [before, run_yardstick(job)]) | {"nodes": nodes}


def summarize(tally: Tally, probe: Probe, yardsticks: list[dict[str, float]]) -> dict[str, Any]:
    """The numbers of a run. ratio: swarm / (cores x one thread); cpu_ratio: the same per CPU second."""
    cores = len(os.sched_getaffinity(0))
    single = fmean(each["tokens_per_s"] for each in yardsticks)
    single_cpu = fmean(each["tokens_per_cpu_s"] for each in yardsticks)
    speed, used = tally.steady_tokens_per_s(), probe.cores(*tally.steady_window())
    per_cpu_s = speed / used if used else 0.0
    return {
        "swarm_tokens_per_s": round(speed, 1),
        "single_thread_tokens_per_s": round(single, 1),
        "single_thread_runs": [round(each["tokens_per_s"], 1) for each in yardsticks],
        "cores": cores,
        "ratio": round(speed / (cores * single), 3),
        "swarm_cores_used": round(used, 2),
        "swarm_tokens_per_cpu_s": round(per_cpu_s, 1),
        "single_thread_tokens_per_cpu_s": round(single_cpu, 1),
        "cpu_ratio": round(per_cpu_s / single_cpu, 3),
        "memory_per_node": probe.memory,
    }


def run_yardstick(job: Job) -> dict[str, float]:
    """The plain loop's speed on this job's model and microbatches, in a process with one thread."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "job.toml"
        file.write_text(dump_job(job), encoding="utf-8")
        command = [sys.executable, "-m", "swarm.lab.plain_loop", str(file), str(YARDSTICK_ITERATIONS)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise UserError("the plain loop failed: its reason is above")
    found: dict[str, float] = json.loads(done.stdout)
    return found


async def _run_swarm(job: Job, nodes: int, out: Path) -> tuple[Tally, Probe]:
    """Run a job to its end; memory is looked at in the middle."""
    watch, probe = Watch(), Probe()
    async with RealSwarm(out, job) as swarm:
        await start_all(swarm, nodes)
        while not is_over(swarm, watch.tally):
            watch.take(swarm)
            watch.check_moving(out)
            probe.look(swarm)
            if not probe.memory and watch.tally.iteration >= job.inner.iterations // 2:
                probe.memory = memory_per_node(swarm)
            await asyncio.sleep(LOOK_S)
        await swarm.stop()
        watch.take(swarm)
    return watch.tally, probe


def pids_of(child: Child) -> set[int]:
    """Both halves of a node, or the coordinator's one process."""
    return {child.pid, child.info.get("work_pid", child.pid)}


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process so far, 0 if it is gone (proc(5), stat)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0.0
    after_name = text.rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def memory_per_node(swarm: RealSwarm) -> dict[str, float]:
    """Mean over the nodes of what both halves hold, in MB. Shared pages count in full in `rss`."""
    nodes = [child for name, child in swarm.children.items() if name != "coordinator"]
    found = [held for child in nodes if (held := memory_of(child))]
    return {
        f"{kind}_mb": round(sum(held[kind] for held in found) / len(found) / 1e6, 1)
        for kind in (MEMORY_KINDS.values() if found else ())
    }


def memory_of(child: Child) -> dict[str, int]:
    """Bytes of a node's processes together, from the kernel's summary. Empty if it is gone."""
    totals = dict.fromkeys(MEMORY_KINDS.values(), 0)
    for pid in pids_of(child):
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        except OSError:
            return {}
        for line in text.splitlines():
            kind, _, rest = line.partition(":")
            if kind in MEMORY_KINDS:
                totals[MEMORY_KINDS[kind]] += int(rest.split()[0]) * 1024
    return totals


def render_throughput(found: dict[str, Any]) -> None:
    """The numbers as a table."""
    table = Table("what", "value")
    for key, value in found.items():
        table.add_row(key.replace("_", " "), str(value))
    Console().print(table)
