"""GET /status (JSON) and GET /metrics (Prometheus) of a node or coordinator, on loopback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from errno import EADDRINUSE
from importlib.metadata import version
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, generate_latest

from swarm.daemon.bridge import Progress
from swarm.daemon.gossip_setup import StatusSnapshot
from swarm.daemon.options import UserError
from swarm.daemon.waiting import heard
from swarm.gossip.view import Facts

Snapshot = Callable[[], StatusSnapshot]


def status_of(snapshot: StatusSnapshot) -> dict[str, Any]:
    """What /status says, as JSON values."""
    progress = snapshot.progress
    figures = figures_of(snapshot)
    works = snapshot.role == "worker"  # a coordinator hears nobody's count of these: that is not zero
    return {
        "version": version("farflung"),
        "node": snapshot.node,
        "role": snapshot.role,
        "job": {"name": snapshot.job.name, "digest": snapshot.job.digest},
        "iterations": snapshot.job.inner.iterations,
        "cell": progress.cell,
        "stages": list(progress.stages),
        "iteration": figures.iteration,
        "round": figures.round,
        "loss": figures.loss,
        "tokens": progress.tokens if works else None,
        "tokens_per_s": progress.tokens_per_s if works else None,
        "bytes_sent": progress.bytes_sent + snapshot.gossip_sent_bytes,
        "bytes_received": progress.bytes_received + snapshot.gossip_received_bytes,
        "memory_bytes": progress.memory_bytes,
        "recoveries": progress.recoveries if works else None,
        "leader": progress.leader,
        "waiting_for": progress.waiting_for,
        "dropped": dropped_of(snapshot),
        "members": [
            {
                "node": member.node,
                "role": member.record.role,
                "status": member.status,
                "reason": member.reason,
                "cell": member.facts.cell,
                "stages": list(member.facts.stages),
                "state": member.facts.state,
                "iteration": member.facts.iteration,
                "round": member.facts.round,
                "loss": member.facts.loss,
                "hashes": dict(member.facts.hashes),
                "platform": member.facts.platform,
            }
            for _, member in sorted(snapshot.view.members.items())
        ],
    }


def figures_of(snapshot: StatusSnapshot) -> Progress | Facts:
    """Whose iteration, round and loss are told: this node's own, else the newest that it heard of."""
    return snapshot.progress if snapshot.progress.cell else heard(snapshot.view)


def dropped_of(snapshot: StatusSnapshot) -> dict[str, int]:
    """Input dropped by either half, by reason."""
    return dict(snapshot.progress.dropped) | {f"gossip: {k}": v for k, v in snapshot.dropped.items()}


def metrics_of(snapshot: StatusSnapshot) -> bytes:
    """What /metrics says, in Prometheus' text format."""
    registry = CollectorRegistry()
    progress, figures = snapshot.progress, figures_of(snapshot)
    works = snapshot.role == "worker"
    gauges: dict[str, tuple[str, float]] = {
        "iteration": ("Last committed iteration", figures.iteration),
        "round": ("Outer rounds applied", figures.round),
    }
    if works:
        speed = "Target tokens trained on a second over the last iterations, as leader"
        gauges["tokens_per_s"] = (speed, progress.tokens_per_s)
        gauges["memory_bytes"] = ("Peak resident memory of the training process", progress.memory_bytes)
        gauges["stages_held"] = ("Stages held", len(progress.stages))
    if figures.loss is not None:
        gauges["loss"] = ("Mean training loss of the last iteration, nats", figures.loss)
    for name, (text, value) in gauges.items():
        Gauge(f"farflung_{name}", text, registry=registry).set(value)
    members = Gauge("farflung_members", "Members in the view", ["status"], registry=registry)
    for status in ("alive", "suspect", "dead", "left"):
        members.labels(status).set(sum(m.status == status for m in snapshot.view.members.values()))
    counters = {
        "bytes_sent": ("Bytes sent", progress.bytes_sent + snapshot.gossip_sent_bytes),
        "bytes_received": ("Bytes received", progress.bytes_received + snapshot.gossip_received_bytes),
    }
    if works:
        counters["tokens"] = ("Target tokens committed, as leader", progress.tokens)
        counters["recoveries"] = ("Stages recovered, as leader", progress.recoveries)
    for name, (text, value) in counters.items():
        Counter(f"farflung_{name}", text, registry=registry).inc(value)
    dropped = Counter("farflung_dropped", "Input dropped", ["what"], registry=registry)
    for what, count in dropped_of(snapshot).items():
        dropped.labels(what).inc(count)
    return generate_latest(registry)


@dataclass(frozen=True, slots=True)
class StatusServer:
    """A running status server."""

    port: int
    _runner: web.AppRunner

    async def close(self) -> None:
        """Stop serving."""
        await self._runner.cleanup()


async def serve_status(snapshot: Snapshot, *, host: str = "127.0.0.1", port: int) -> StatusServer:
    """Serve until closed; port 0 takes a free one. Raises UserError if the port is in use."""

    async def status(_: web.Request) -> web.Response:
        return web.json_response(status_of(snapshot()))

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics_of(snapshot()), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/status", status), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError as error:
        await runner.cleanup()
        why = "is in use" if error.errno == EADDRINUSE else f"cannot be used ({error.strerror})"
        raise UserError(
            f"status port {port} on {host} {why}: choose another, or 0 for any free one"
        ) from None
    bound: int = runner.addresses[0][1]
    return StatusServer(bound, runner)
