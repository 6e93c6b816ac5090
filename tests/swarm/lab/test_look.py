import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from swarm.daemon.options import UserError
from swarm.lab.look import fetch_status, render_status

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


def test_rows_become_a_table_and_facts_become_lines() -> None:
    file = io.StringIO()
    render_status(STATUS, Console(file=file, width=80))
    shown = file.getvalue()
    assert "iteration: 7" in shown
    assert "0, 1" in shown
    assert "cd" in shown


def test_a_person_sees_short_ids_and_nothing_empty() -> None:
    long = "ab" * 32
    member = {"node": long, "reason": "", "stages": [0, 1], "hashes": {"0": long}, "platform": "cpu"}
    console = Console(file=io.StringIO(), width=100)
    render_status({"node": long, "cell": "", "loss": None, "iteration": 0, "members": [member]}, console)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert shown.startswith("node: abababababab\niteration: 0\n")
    assert "0, 1" in shown
    assert not any(word in shown for word in (long, "cell", "loss", "reason", "hashes", "platform"))
