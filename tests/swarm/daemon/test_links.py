"""A process listens where its last life did, so that whoever remembers it finds it."""

from pathlib import Path

import pytest

from swarm.daemon.links import forget_ports, open_link
from swarm.events import Event
from swarm.gossip.messages import GOSSIP_KINDS
from transport.identity import Identity
from transport.resolving import CannotResolve
from transport.wire import Schema
from transport.zmq_link import ZmqLink
from transport.zmq_listen import PortInUse

SCHEMA = Schema(GOSSIP_KINDS)


async def life(directory: Path, events: list[Event], port: int = 0) -> ZmqLink:
    return await open_link(
        Identity.create(),
        SCHEMA,
        what="gossip",
        directory=directory,
        emit=events.append,
        host="127.0.0.1",
        port=port,
    )


async def address_of_a_life(directory: Path, events: list[Event], port: int = 0) -> str:
    link = await life(directory, events, port)
    await link.close()
    return link.endpoint.address


async def test_the_next_life_listens_where_the_last_one_did(tmp_path: Path) -> None:
    events: list[Event] = []
    first = await address_of_a_life(tmp_path, events)
    assert await address_of_a_life(tmp_path, events) == first
    assert events == []


async def test_a_port_that_others_have_taken_is_replaced_by_a_free_one_and_told_of(tmp_path: Path) -> None:
    events: list[Event] = []
    taken = await life(tmp_path, events)
    second = await address_of_a_life(tmp_path, events)
    assert second != taken.endpoint.address
    (told,) = events
    assert (told.kind, told.fields["what"]) == ("dropped", "gossip port")
    assert f"is in use; choose another or 0 for any: it listens at {second} instead" in told.fields["why"]
    await taken.close()
    assert await address_of_a_life(tmp_path, events) == second


async def test_a_port_that_a_person_names_wins_and_is_kept(tmp_path: Path) -> None:
    events: list[Event] = []
    await address_of_a_life(tmp_path / "mine", events)
    other = await address_of_a_life(tmp_path / "another", events)
    named = int(other.rpartition(":")[2])
    assert await address_of_a_life(tmp_path / "mine", events, named) == other
    assert await address_of_a_life(tmp_path / "mine", events) == other


async def test_a_port_that_a_person_names_is_not_replaced_when_it_is_taken(tmp_path: Path) -> None:
    taken = await life(tmp_path, [])
    with pytest.raises(PortInUse):
        await life(tmp_path, [], int(taken.endpoint.address.rpartition(":")[2]))
    await taken.close()


@pytest.mark.parametrize("damaged", ["", "no port", "0", "70000", "-1"])
async def test_a_damaged_note_of_the_port_costs_only_the_port(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "gossip-port").write_text(damaged)
    first = await address_of_a_life(tmp_path, [])
    assert await address_of_a_life(tmp_path, []) == first


async def test_who_cannot_write_its_port_down_listens_all_the_same_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "gossip-port").mkdir()
    events: list[Event] = []
    assert await address_of_a_life(tmp_path, events)
    (told,) = events
    assert "cannot be written down" in told.fields["why"]


async def test_ports_that_are_forgotten_are_chosen_anew(tmp_path: Path) -> None:
    events: list[Event] = []
    first = await life(tmp_path, events)
    forget_ports(tmp_path)
    assert await address_of_a_life(tmp_path, events) != first.endpoint.address
    assert events == []
    await first.close()


async def test_whoever_goes_by_a_name_looks_it_up_and_tells_the_number(tmp_path: Path) -> None:
    link = await open_link(
        Identity.create(),
        SCHEMA,
        what="gossip",
        directory=tmp_path,
        emit=lambda _: None,
        host="0.0.0.0",
        advertise="localhost",
        port=0,
    )
    await link.close()
    assert link.endpoint.address.startswith("tcp://127.0.0.1:")


async def test_a_name_that_nobody_knows_is_a_sentence_before_anything_listens(tmp_path: Path) -> None:
    with pytest.raises(CannotResolve, match="stands for no address"):
        await open_link(
            Identity.create(),
            SCHEMA,
            what="gossip",
            directory=tmp_path,
            emit=lambda _: None,
            host="127.0.0.1",
            advertise="x" * 64 + ".example.org",
            port=0,
        )
    assert not list(tmp_path.iterdir())
