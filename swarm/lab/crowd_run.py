"""`farflung simulate --only membership`: a crowd with churn, stalls and loss, and its figures."""

from __future__ import annotations

import gc
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal

from swarm.daemon.options import UserError
from swarm.gossip.config import volunteer_wan
from swarm.gossip.view import Status
from swarm.lab.crowd import Crowd, Host
from swarm.lab.crowd_sizes import OVERHEAD
from transport.machine import NodeId
from transport.sim_paths import LinkShape

WARM_UP_S = 60.0
"""Everyone starts at once; what follows is counted from here."""
QUIET_S = 120.0
"""Before the end, without churn. Who is wrong about somebody as it begins has to know better at the end."""
CHURN_MAX = 10_000.0
AWAY_S = (120.0, 600.0)
STALL_S = (2.0, 8.0)
STALL_EVERY_S = 30.0
PATH = LinkShape(latency_s=0.03, jitter_s=0.04, bandwidth_bytes_per_s=2.5e6)
"""50 ms +- 20 ms one way, and an uplink of 20 Mbit/s."""

Evidence = Literal["silence", "closed"]
ALIVE: tuple[Status, ...] = ("alive",)
ALIVE_OR_DOUBTED: tuple[Status, ...] = ("alive", "suspect")


@dataclass(frozen=True, slots=True, kw_only=True)
class CrowdOptions:
    """What a person asked for.

    churn: per cent of all nodes that crash in an hour, each at a random moment; back 2-10 minutes
        later. stalls: nodes that stand still for 2-8 s in every 30 s. loss: of each message. On
        our reliable lanes that is a retransmission; drops: for good, as with datagrams.
    evidence: whether a crash closes the connections of its process or is only silent.
    """

    nodes: int = 1000
    hours: float = 1.0
    churn: float = 10.0
    seed: int = 0
    stalls: int = 0
    loss: float = 0.0
    drops: bool = False
    lifeguard: bool = True
    evidence: Evidence = "silence"

    def __post_init__(self) -> None:
        if self.nodes < 2:
            raise UserError("a crowd has at least 2 nodes: give --nodes")
        if not self.hours * 3600 >= WARM_UP_S + QUIET_S:
            raise UserError(f"--hours is at least {(WARM_UP_S + QUIET_S) / 3600}: a start and a quiet end")
        if not 0 <= self.loss < 1 or not 0 <= self.stalls <= self.nodes:
            raise UserError("--loss is at least 0 and below 1, --profile-stalls at most --nodes")
        if not 0 <= self.churn <= CHURN_MAX:
            raise UserError(f"with --only membership --churn is between 0 and {CHURN_MAX:g} percent an hour")


def crowd_options(churn: str, **others: Any) -> CrowdOptions:
    """From what a person typed; `churn` may be empty. Raises UserError."""
    try:
        return CrowdOptions(churn=float(churn or 0), **others)
    except ValueError:
        raise UserError(f"with --only membership --churn is a percentage, not {churn!r}") from None


def run_crowd(options: CrowdOptions) -> dict[str, Any]:
    """Let a crowd live; the figures are a function of the options, but for the real seconds."""
    began, cpu = time.monotonic(), time.process_time()
    # Millions of rows live until the end: looking for cycles among them takes longer than the run.
    collects = gc.isenabled()
    gc.disable()
    try:
        crowd, agree, for_long = _lived(options)
    finally:
        if collects:
            gc.enable()
    stated = {name: getattr(options, name) for name in options.__slots__}
    return {
        **stated,
        **crowd.tally.summary(crowd.now),
        "views_agree": agree,
        "views_wrong_for_long": for_long,
        "largest_message_bytes": crowd.largest_bytes,
        "transport_overhead": OVERHEAD,
        "facts": "none advertised",
        "signatures": "real; verified once in the process, remembered by signature",
        "virtual_s": round(crowd.now, 3),
        "cpu_s": round(time.process_time() - cpu, 1),
        "real_s": round(time.monotonic() - began, 1),
    }


def _lived(options: CrowdOptions) -> tuple[Crowd, bool, int]:
    """The crowd at the end; whether all views agree then, without a doubt; how many rows of views are wrong
    at both ends of the quiet time."""
    crowd = Crowd(
        options.nodes,
        seed=options.seed,
        shape=replace(PATH, loss=0.0 if options.drops else options.loss),
        drops=options.loss if options.drops else 0.0,
        closes=options.evidence == "closed",
        gossip=replace(volunteer_wan(), lifeguard=options.lifeguard),
    )
    crowd.begin()
    crowd.run(WARM_UP_S)
    crowd.tally.start_again(WARM_UP_S)
    end = options.hours * 3600
    _plan_churn(crowd, options, end - QUIET_S)
    _plan_stalls(crowd, options, end - QUIET_S)
    crowd.run(end - QUIET_S)
    before = _wrong(crowd, ALIVE_OR_DOUBTED)
    crowd.run(end)
    for_long = before & _wrong(crowd, ALIVE_OR_DOUBTED)
    return crowd, not _wrong(crowd, ALIVE), len(for_long)


def _plan_churn(crowd: Crowd, options: CrowdOptions, until_s: float) -> None:
    """Crashes at random moments; all are back before the quiet end."""
    count = round(options.nodes * options.churn / 100 * (until_s - crowd.now) / 3600)

    def crash(host: Host, away_s: float) -> None:
        if host.alive and sum(each.alive for each in crowd.hosts) > 2:
            crowd.crash(host)
            crowd.at(away_s, lambda: crowd.restart(host))

    for _ in range(count):
        delay, index = crowd.rng.uniform(0, until_s - crowd.now), crowd.rng.randrange(options.nodes)
        away = min(crowd.rng.uniform(*AWAY_S), max(0.0, until_s - crowd.now - delay))
        crowd.at(delay, lambda index=index, away=away: crash(crowd.hosts[index], away))  # type: ignore[misc]


def _plan_stalls(crowd: Crowd, options: CrowdOptions, until_s: float) -> None:
    rounds = int((until_s - crowd.now) / STALL_EVERY_S)
    for index in range(options.stalls):
        for turn in range(rounds):
            begins = (turn + crowd.rng.random()) * STALL_EVERY_S
            seconds = crowd.rng.uniform(*STALL_S)
            crowd.at(begins, lambda i=index, s=seconds: crowd.stall(crowd.hosts[i], s))  # type: ignore[misc]


def _wrong(crowd: Crowd, living: Collection[Status]) -> set[tuple[NodeId, NodeId]]:
    """Who takes whom for gone who lives, or for living who is gone."""
    live = {host.node for host in crowd.hosts if host.alive}
    found: set[tuple[NodeId, NodeId]] = set()
    for host in crowd.hosts:
        if host.alive:
            rows = host.membership.register.rows
            believed = {node for node, row in rows.items() if row.member.status in living}
            found |= {(host.node, about) for about in believed ^ (live - {host.node})}
    return found


def render_crowd(found: dict[str, Any]) -> str:
    """The figures for a person."""

    def line(name: str, unit: str) -> str:
        values = found[name]
        if values["median"] is None:
            return "none"
        return f"median {values['median']:g}, 99 % {values['p99']:g}, most {values['max']:g} {unit}"

    deaths, doubts = found["false_deaths"], found["false_suspicions"]
    return "\n".join(
        [
            f"{found['nodes']} nodes, {found['virtual_s'] / 3600:g} virtual hours in {found['real_s']} s"
            f" ({found['cpu_s']} s of one core): {found['crashes']} crashes, {found['returns']} returns",
            f"crash to first suspicion: {line('first_suspicion_s', 's')}",
            f"crash to dead in the views of all who were there: {line('known_everywhere_s', 's')}"
            f" ({found['never_known_everywhere']} not everywhere)",
            f"newcomers believed in the dead for: {line('newcomers_believed_s', 's')}",
            f"false deaths: {deaths['nodes']} nodes in {deaths['views']} views,"
            f" {found['false_deaths_per_node_hour']:g} a node-hour",
            f"false suspicions: {doubts['nodes']} nodes in {doubts['views']} views",
            f"sent by a node: {line('bytes_per_s', 'B/s')}; {line('messages_per_s', 'messages/s')}",
            f"bytes count {found['transport_overhead']}; facts: {found['facts']}",
            f"at the end all views agree: {'yes' if found['views_agree'] else 'NO'};"
            f" wrong for {QUIET_S:g} s: {found['views_wrong_for_long'] or 'none'}",
        ]
    )
