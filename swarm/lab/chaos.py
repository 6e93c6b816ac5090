"""`farflung chaos`: a whole swarm of real processes under a fault script, and which of its promises held"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from swarm.daemon.options import UserError
from swarm.events import wall_time
from swarm.job import Job, load_job
from swarm.lab.chaos_checks import views_tell_the_truth
from swarm.lab.chaos_evidence import End, Evidence
from swarm.lab.chaos_history import training_went_on
from swarm.lab.chaos_limits import refuse_impossible
from swarm.lab.chaos_player import COORDINATOR, Player
from swarm.lab.chaos_summary import summarize
from swarm.lab.chaos_watch import EVERY_S, Watch
from swarm.lab.checkers import SETTLE_S
from swarm.lab.demo import next_directory, start_all
from swarm.lab.faults import Fault, load_faults
from swarm.lab.processes import LOOK_S, RealSwarm
from swarm.lab.recipes import demo_job
from swarm.lab.regions import load_regions
from swarm.lab.tally import Tally
from swarm.lab.wan import HOME, WideArea
from swarm.lab.wan_namespaces import why_not

ENDLESS = 1_000_000
"""Iterations of the job when a person names none: the minutes end the run."""
LEAVE_S = 40.0
"""How long all processes together may take to leave at the end: several times what one may."""
NODES = 8
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosOptions:
    """What a person asked for. See `farflung chaos --help`.

    nodes: 0: as many as the job waits for, 8 without a job. wan: None: where the machine allows.
    regions: a setting of regions that the nodes of the emulated network stand in, in turn.
    out: a new directory; None takes the next free chaos-out/N.
    """

    job: Path | None = None
    faults: Path | None = None
    nodes: int = 0
    minutes: float = 10.0
    wan: bool | None = None
    regions: str = ""
    seed: int = 0
    out: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a run is made of, checked.

    because: why there is no emulated network; empty: there is. regions: of its nodes, by name.
    """

    job: Job
    script: tuple[Fault, ...]
    nodes: int
    minutes: float
    because: str
    setting: str
    regions: Mapping[str, str]
    seed: int
    out: Path

    @property
    def names(self) -> tuple[str, ...]:
        """Of the nodes, as `start_all` names them."""
        return tuple(f"node-{number}" for number in range(1, self.nodes + 1))

    def network(self) -> str:
        """One line about what lies between the processes."""
        if self.because:
            return f"on loopback, with kills and pauses only: {self.because}"
        if self.setting:
            count = len(set(self.regions.values()))
            return f"over an emulated wide-area network: {self.setting}, {count} regions"
        rate = "" if HOME.bytes_per_s is None else f", {8e-6 * HOME.bytes_per_s:.0f} Mbit/s"
        round_trip_ms = 2000 * HOME.delay_s
        return f"over an emulated wide-area network: {round_trip_ms:.0f} ms there and back{rate} a path"

    def wide_area(self) -> WideArea:
        """The emulated network; the coordinator stands in the first region."""
        regions = [next(iter(self.regions.values())), *self.regions.values()] if self.regions else []
        return WideArea([COORDINATOR, *self.names], regions=regions, seed=self.seed)


def run_chaos(options: ChaosOptions, say: Say) -> dict[str, Any]:
    """Run a swarm under faults and sum it up. Raises an error of one sentence.

    say: takes what a person should hear at once, a line at a time.
    """
    scene = prepare(options)
    say(scene.network())
    found = asyncio.run(_run(scene, say))
    (scene.out / "summary.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
    return found


def prepare(options: ChaosOptions) -> Scene:
    """Check all that can be checked before a process is started. Raises UserError."""
    because = "--no-wan was given" if options.wan is False else why_not()
    if options.wan and because:
        raise UserError(f"--wan is not possible here: {because}")
    if options.job is None:
        nodes = options.nodes or NODES
        job = chaos_job(nodes)
    else:
        job = load_job(options.job)
        nodes = options.nodes or job.pipeline.nodes
    if nodes < job.pipeline.nodes:
        raise UserError(f"the job waits for {job.pipeline.nodes} nodes: --nodes {nodes} would never begin")
    script = load_faults(options.faults) if options.faults else ()
    dealt = _deal(options.regions, nodes, because)
    refuse_impossible(
        script,
        nodes=nodes,
        stages=job.pipeline.stages,
        because=because,
        regions=set(dealt.values()),
    )
    return Scene(
        job=job,
        script=script,
        nodes=nodes,
        minutes=options.minutes,
        because=because,
        setting=options.regions,
        regions=dealt,
        seed=options.seed,
        out=options.out or next_directory(Path("chaos-out")),
    )


def _deal(setting: str, nodes: int, because: str) -> dict[str, str]:
    """The region of every node, in turn; none without a setting. Raises UserError."""
    if not setting:
        return {}
    if because:
        raise UserError(f"regions need the emulated network, but {because}")
    regions = load_regions().setting(setting)
    return {f"node-{index + 1}": regions[index % len(regions)] for index in range(nodes)}


def chaos_job(nodes: int) -> Job:
    """The demo's job without an end, and with two holders of each stage where there are nodes for them.

    Holders of a stage can be compared, and one of them can die alone.
    """
    job = demo_job(nodes=nodes, iterations=ENDLESS, name="chaos")
    stages = max(1, nodes // (2 * job.pipeline.cells))
    pipeline = job.pipeline.model_copy(update={"stages": min(job.pipeline.stages, stages)})
    return job.model_copy(update={"pipeline": pipeline})


async def _run(scene: Scene, say: Say) -> dict[str, Any]:
    around = nullcontext() if scene.because else scene.wide_area()
    async with around as wan:
        swarm = RealSwarm(scene.out, scene.job, places=wan.places if wan else None)
        async with swarm:
            run = _Run(scene, swarm, say)
            evidence = await run.suffer(wan)
            ends = await run.stop()
        network: dict[str, Any] = {"wan": False, "because": scene.because}
        if wan is not None:
            carried = {"packets": await wan.stats(), "congestion_control": wan.congestion_control}
            network = {"wan": True, "network": scene.network()} | carried
    logs = {name: run.log(name) for name in swarm.children}
    whole = replace(evidence, ends=(*run.watch.ends, *ends), logs=logs)
    return network | {"seed": scene.seed, "out": str(scene.out)} | summarize(whole, run.player, run.began)


class _Run:
    """One swarm from its start to its stop."""

    def __init__(self, scene: Scene, swarm: RealSwarm, say: Say) -> None:
        self._scene, self._swarm, self._say = scene, swarm, say
        self._tally = Tally()
        self._looked = 0.0
        self.began = 0.0
        self.player: Player
        self.watch = Watch(swarm, scene.out / "sightings.jsonl")

    async def suffer(self, wan: WideArea | None) -> Evidence:
        """Start everything, play the script, and wait until the swarm has come to rest."""
        scene = self._scene
        async with asyncio.TaskGroup() as tasks:
            self.player = Player(
                self._swarm,
                wan,
                scene.script,
                scene.names,
                Random(scene.seed + 1),
                tasks,
                until_s=60 * scene.minutes,
            )
            self.player.regions = scene.regions
            try:
                await start_all(self._swarm, scene.nodes)
                self.began = wall_time()
                began = time.monotonic()
                while (now_s := time.monotonic() - began) < 60 * scene.minutes and not self._finished():
                    await self._look()
                    await self._play(now_s)
                    await asyncio.sleep(LOOK_S)
                return await self._settle()
            finally:
                self.player.release()

    async def _play(self, now_s: float) -> None:
        told = len(self.player.met_nobody), sum(self.player.begun.values())
        iteration = max((iteration for _, iteration in self._tally.commits), default=0)
        await self.player.step(now_s, iteration)
        if (len(self.player.met_nobody), sum(self.player.begun.values())) != told:
            counts = ", ".join(f"{count} {kind}" for kind, count in self.player.begun.items())
            self._say(f"{now_s:6.1f} s  iteration {iteration}, loss {self._tally.loss}: {counts}")

    async def _look(self) -> None:
        """New events at every call, everybody's status once in a while, and who ended by itself."""
        self._tally.add(self._swarm.events())
        await self.watch.count_ends(self.player.killed)
        if time.monotonic() - self._looked >= EVERY_S:
            self._looked = time.monotonic()
            await self.watch.look(self.player.paused)
            self.player.holders = self.watch.holders()

    def _finished(self) -> bool:
        running = {self._swarm.children[name].node for name in self._swarm.alive if name != COORDINATOR}
        return bool(running) and running <= self._tally.finished

    async def _settle(self) -> Evidence:
        """Nothing is done any more: until all views are right and something is committed, or for a bound."""
        until = time.monotonic() + SETTLE_S + EVERY_S
        while True:
            await self._look()
            found = self._evidence()
            calm = not any(check(found).broken for check in (views_tell_the_truth, training_went_on))
            if (calm and views_tell_the_truth(found).why_not == "") or time.monotonic() > until:
                return found
            await asyncio.sleep(EVERY_S)

    def _evidence(self) -> Evidence:
        story = sorted(self._swarm.story, key=lambda event: float(event["time"]))
        return Evidence(
            job=self._scene.job, story=story, judged_at=wall_time(), sightings=tuple(self.watch.sightings)
        )

    async def stop(self) -> list[End]:
        """Ask all that run to leave. How each of them ended."""
        running = self._swarm.alive
        for name in running:
            self._swarm.note_fault(self._swarm.children[name], "stopped")
        codes = await self._swarm.stop(timeout_s=LEAVE_S)
        return [End(name, codes[name], wanted=True) for name in running]

    def log(self, name: str) -> str:
        """All that a process and those before it under its name wrote to standard error."""
        path = self._swarm.children[name].directory / "stderr.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
