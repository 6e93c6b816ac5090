"""GET /status and /metrics say what a snapshot says, on loopback, and a taken port is one sentence."""

import json
from dataclasses import replace
from urllib.parse import urlsplit

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from swarm.daemon.bridge import Progress
from swarm.daemon.gossip_setup import StatusSnapshot
from swarm.daemon.options import UserError
from swarm.daemon.status import metrics_of, serve_status, status_of
from swarm.gossip.view import Facts, Member, MemberRecord, Status, View
from swarm.job import Job


def member(index: int, status: Status, **facts: object) -> Member:
    record = MemberRecord(
        job="ab",
        node=f"{index:064x}",
        incarnation=1,
        seq=0,
        gossip="",
        work="",
        curve_key="",
        certificate=b"",
        facts=Facts.model_validate(facts),
    )
    return Member(record, status, "silent for 12 s" if status == "dead" else "")


def snapshot(**progress: object) -> StatusSnapshot:
    view = View()
    for each in (member(1, "alive", cell="c0", stages=(0, 2), state="training"), member(2, "dead")):
        view = view.with_member(each)
    return StatusSnapshot(
        node=f"{1:064x}",
        role="worker",
        job=Job(name="little"),
        view=view,
        progress=Progress.model_validate({"bytes_sent": 1000, "dropped": {"late": 2}} | progress),
        gossip_sent_bytes=34,
        gossip_received_bytes=5,
        dropped={"the record has a bad signature": 3},
    )


def metrics(of: StatusSnapshot) -> dict[str, float]:
    families = text_string_to_metric_families(metrics_of(of).decode())
    return {
        sample.name + "".join(f"|{value}" for value in sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_status_tells_who_holds_what_and_what_is_wrong() -> None:
    waiting_for = "a holder of stage 1"
    told = status_of(snapshot(cell="c0", stages=(0, 2), iteration=7, loss=4.25, waiting_for=waiting_for))
    assert told["job"] == {"name": "little", "digest": Job(name="little").digest}
    assert (told["cell"], told["stages"], told["iteration"], told["loss"]) == ("c0", [0, 2], 7, 4.25)
    assert told["waiting_for"] == waiting_for
    assert told["bytes_sent"] == 1034
    assert told["dropped"] == {"late": 2, "gossip: the record has a bad signature": 3}
    rows = [(m["status"], m["cell"], m["stages"], m["state"], m["reason"]) for m in told["members"]]
    assert rows == [("alive", "c0", [0, 2], "training", ""), ("dead", "", [], "standby", "silent for 12 s")]
    json.dumps(told, allow_nan=False)


def test_metrics_are_prometheus_text_with_our_prefix() -> None:
    told = metrics(snapshot(cell="c0", iteration=7, loss=4.25))
    assert {name.partition("_")[0] for name in told} == {"farflung"}
    assert told["farflung_iteration"] == 7
    assert told["farflung_loss"] == 4.25
    assert told["farflung_bytes_sent_total"] == 1034
    assert (told["farflung_members|alive"], told["farflung_members|dead"]) == (1, 1)
    assert told["farflung_dropped_total|late"] == 2


def test_a_coordinator_tells_what_it_hears_and_leaves_out_what_it_does_not() -> None:
    view = View().with_member(member(1, "alive", cell="c0", iteration=295, round=5, loss=4.5))
    coordinates = replace(snapshot(), role="coordinator", view=view)
    told, measured = status_of(coordinates), metrics(coordinates)
    assert (told["iteration"], told["round"], told["loss"]) == (295, 5, 4.5)
    assert (told["tokens"], told["tokens_per_s"], told["recoveries"]) == (None, None, None)
    found = [measured[f"farflung_{name}"] for name in ("iteration", "round", "loss")]
    assert found == [295, 5, 4.5]
    assert not any("tokens" in name or "recoveries" in name or "stages" in name for name in measured)


def test_a_loss_that_does_not_exist_yet_is_not_a_perfect_one() -> None:
    assert "farflung_loss" not in metrics(snapshot())
    assert status_of(snapshot())["loss"] is None


async def test_both_are_served_fresh_on_loopback() -> None:
    iteration = 1
    server = await serve_status(lambda: snapshot(iteration=iteration, cell="c0"), port=0)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
            for iteration in (1, 2):
                async with session.get("/status") as response:
                    assert (await response.json())["iteration"] == iteration
            async with session.get("/metrics") as response:
                assert response.headers["Content-Type"].startswith("text/plain; version=")
                assert b"farflung_iteration 2.0" in await response.read()
            async with session.get("/anything") as response:
                assert response.status == 404
            assert urlsplit(str(response.url)).hostname == "127.0.0.1"
    finally:
        await server.close()


async def test_a_taken_port_is_one_sentence() -> None:
    server = await serve_status(snapshot, port=0)
    try:
        with pytest.raises(
            UserError, match=f"status port {server.port} on 127.0.0.1 is in use: choose another"
        ):
            await serve_status(snapshot, port=server.port)
    finally:
        await server.close()


async def test_a_closed_server_frees_its_port() -> None:
    first = await serve_status(snapshot, port=0)
    await first.close()
    second = await serve_status(snapshot, port=first.port)
    await second.close()
    assert second.port == first.port
