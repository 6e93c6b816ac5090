import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from swarm.daemon.look import fetch_status, render_status, shortest
from swarm.daemon.options import UserError

STATUS = {"iteration": 7, "loss": 3.25, "members": [{"node": "ab", "stages": [0, 1]}, {"node": "cd"}]}


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(STATUS if self.path == "/status" else []).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["coordinator.json", "node.json"])
def test_a_process_is_found_by_its_directory(port: int, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(json.dumps({"pid": 1, "status_port": port}))
    assert fetch_status(tmp_path) == STATUS


def test_a_process_is_found_by_its_address(port: int) -> None:
    assert fetch_status(Path(), f"127.0.0.1:{port}") == STATUS


@pytest.mark.parametrize("text", ["", "[]", '{"status_port": null}', '{"status_port": "x"}'])
def test_a_file_of_any_shape_is_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "node.json").write_text(text)
    with pytest.raises(UserError, match="nothing runs in"):
        fetch_status(tmp_path)


@pytest.mark.parametrize("address", ["here", ":80", "host:", "host:99999", "host:-1"])
def test_an_address_of_any_shape_is_one_sentence(address: str) -> None:
    with pytest.raises(UserError, match="host:port"):
        fetch_status(Path(), address)


def shown(status: dict[str, Any], *, terminal: bool, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    render_status(status, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def member(node: str, **fields: Any) -> dict[str, Any]:
    """A worker as /status tells of it."""
    about = {"role": "worker", "status": "alive", "reason": "new", "cell": "c0~3fa2c417.117", "stages": [1]}
    numbers = {"state": "restoring", "iteration": 12345, "round": 123, "loss": 3.25012, "hashes": {"1": node}}
    return {"node": node, "platform": "cpu"} | about | numbers | fields


def test_rows_become_a_table_and_facts_become_lines() -> None:
    text = shown(STATUS, terminal=False)
    assert "iteration: 7" in text
    assert "0 1" in text
    assert "cd" in text


def test_a_person_sees_short_ids_and_nothing_empty() -> None:
    long = "ab" * 32
    status = {"node": long, "cell": "", "loss": None, "iteration": 0, "bytes_sent": 0}
    text = shown(status | {"members": [member(long, cell="", stages=[], loss=None)]}, terminal=False)
    assert text.startswith("node: abababababab\niteration: 0\n")
    assert not any(word in text for word in (long, "cell", "loss", "hashes", "platform", "new", "bytes"))


def test_ids_are_as_long_as_it_takes_to_tell_them_apart() -> None:
    alike = ["ab" * 32, "ab" * 5 + "c" * 54]
    assert shortest(alike) == {alike[0]: "ab" * 5 + "a", alike[1]: "ab" * 5 + "c"}
    assert shortest(["ab" * 32]) == {"ab" * 32: "abababab"}


REASON = "no answer, and nobody else got one either, in all the time there was to refute the suspicion"


def test_80_columns_hold_every_column() -> None:
    dead = member("cd" * 32, status="suspect", reason=REASON)
    text = shown({"members": [dead, member("ab" * 32)]}, terminal=True)
    rows = [line.split() for line in text.splitlines()]
    assert ["abababab", "c0~3fa2c417.117", "1", "restoring", "12345", "123", "3.25", "alive"] in rows
    assert max(len(line) for line in text.splitlines() if "no answer" not in line) <= 80


def test_a_pipe_gets_every_line_whole(capsys: pytest.CaptureFixture[str]) -> None:
    stages = list(range(100))
    render_status({"members": [member("cd" * 32, status="dead", reason=REASON, stages=stages)]})
    text = capsys.readouterr().out
    assert f"cdcdcdcd dead: {REASON}\n" in text
    assert " ".join(map(str, stages)) in text
