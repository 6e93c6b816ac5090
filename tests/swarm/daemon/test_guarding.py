"""What breaks on one peer's message ends that message; a bug of this node's own ends the node."""

from pathlib import Path
from typing import Any

import pytest
from cell_world import Cells, run_cells, small_job

from swarm.daemon.guarding import Guard
from swarm.pipeline.trainer import Trainer
from transport.wire import Message


@pytest.mark.parametrize("error", [ValueError("v"), KeyError("k"), IndexError("i"), ZeroDivisionError("z")])
def test_a_peers_fault_is_counted_each_time_and_told_once(error: Exception) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    guard = Guard(lambda kind, **fields: events.append((kind, fields)))
    for peer in ("a" * 64, "a" * 64, "b" * 64):
        with guard.against(peer, "plan"):
            raise error
    assert [(kind, fields["peer"]) for kind, fields in events] == [
        ("dropped", "a" * 12),
        ("dropped", "b" * 12),
    ]
    assert list(guard.dropped.values()) == [3]


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError(), EOFError(), MemoryError()])
def test_what_is_no_peers_fault_passes(error: Exception) -> None:
    guard = Guard(lambda kind, **fields: None)
    with pytest.raises(type(error)), guard.against("a" * 64, "plan"):
        raise error


def test_a_cell_trains_on_past_messages_that_break_their_handlers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(tmp_path, inner={"iterations": 8}, pipeline={"nodes": 2, "stages": 2})
    deliver = Trainer.deliver

    def breaking(self: Trainer, peer: Any, message: Message, now: float) -> None:
        deliver(self, peer, message, now)
        if message.body.kind == "accept":
            raise IndexError("tuple index out of range")

    monkeypatch.setattr(Trainer, "deliver", breaking)

    async def scenario(cells: Cells) -> None:
        await cells.finish()

    cells = run_cells(job, tmp_path, 2, scenario)
    broke = [fields for fields in cells.of_kind("dropped") if "broke its handler" in fields["what"]]
    assert [fields["what"].split()[0] for fields in broke] == ["accept"]
    assert all(node.iteration == 8 for node in cells.nodes)
