import json
from pathlib import Path

from swarm.events import Event, EventFile
from swarm.lab.tail import Tail, merge


def event(time: float, node: str, **fields: object) -> dict[str, object]:
    return {"time": time, "node": node, "event": "progress"} | fields


def append(path: Path, *events: dict[str, object]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(each) + "\n" for each in events)


def test_each_event_is_told_once(tmp_path: Path) -> None:
    tail, path = Tail(), tmp_path / "events.jsonl"
    tail.follow(path)
    assert tail.read() == []
    append(path, event(1, "a"))
    assert [each["time"] for each in tail.read()] == [1]
    append(path, event(2, "a"), event(3, "a"))
    tail.follow(path)
    assert [each["time"] for each in tail.read()] == [2, 3]
    assert tail.read() == []


def test_an_unfinished_line_waits_for_its_end(tmp_path: Path) -> None:
    tail, path = Tail(), tmp_path / "events.jsonl"
    tail.follow(path)
    line = json.dumps(event(1, "a")) + "\n"
    path.write_text(line[:9])
    assert tail.read() == []
    path.write_text(line)
    assert tail.read() == [event(1, "a")]


def test_files_are_told_together_in_order_of_time(tmp_path: Path) -> None:
    tail = Tail()
    for name, times in (("a", (1, 4)), ("b", (2, 3))):
        tail.follow(tmp_path / name)
        append(tmp_path / name, *(event(time, name) for time in times))
    assert [each["node"] for each in tail.read()] == ["a", "b", "b", "a"]


def test_a_line_torn_by_a_crash_does_not_hide_the_others(tmp_path: Path) -> None:
    emit = EventFile(tmp_path / "a")
    emit(Event("started", 2.0, "a"))
    emit.close()
    (tmp_path / "b").write_bytes(json.dumps(event(1, "b")).encode() + b'\n{"time":3,"no')
    count = merge([tmp_path / "a", tmp_path / "b", tmp_path / "never"], tmp_path / "run.jsonl")
    lines = (tmp_path / "run.jsonl").read_text().splitlines()
    assert count == 2
    assert [json.loads(line)["time"] for line in lines] == [1, 2.0]
