"""One look at a running process: GET /status on loopback, shown to a person."""

from __future__ import annotations

import http.client
import json
import re
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from swarm.daemon.options import UserError

WAIT_S = 5.0
ID_CHARS = 12
"""Of an id or digest: as many as events have."""
FOR_PROGRAMS = ("hashes", "platform")
"""Columns that `--json` has and a person's terminal has no room for."""
_ID = re.compile(r"[0-9a-f]{32,64}")


def fetch_status(directory: Path, address: str = "") -> dict[str, Any]:
    """The status of the process at `host:port`, or of the one that runs in `directory`.

    Raises UserError if nobody answers there.
    """
    host, port = _split(address) if address else ("127.0.0.1", _port(directory))
    connection = http.client.HTTPConnection(host, port, timeout=WAIT_S)
    try:
        connection.request("GET", "/status")
        found = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        raise UserError(f"nobody answers on {host}:{port}: is it still running?") from None
    finally:
        connection.close()
    if not isinstance(found, dict):
        raise UserError(f"what answers on {host}:{port} is not farflung")
    return found


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise UserError(f"{address!r} is not an address: write it as host:port")
    return host, int(port)


def _port(directory: Path) -> int:
    for name in ("coordinator.json", "node.json"):
        try:
            port = json.loads((directory / name).read_bytes())["status_port"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(port, int):
            return port
    raise UserError(
        f"nothing runs in {directory}: name the directory of a coordinator or a node, or --address"
    )


def render_status(status: dict[str, Any], console: Console | None = None) -> None:
    """Plain facts as lines, lists of maps (members) as tables. What is empty is left out."""
    console = console or Console()
    for key, value in status.items():
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            console.print(_table(key, value))
        elif _text(value):
            console.print(f"{key.replace('_', ' ')}: {_text(value)}", highlight=False)


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    keys = dict.fromkeys(key for row in rows for key in row if key not in FOR_PROGRAMS)
    columns = [key for key in keys if any(_text(row.get(key)) for row in rows)]
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column.replace("_", " "))
    for row in rows:
        table.add_row(*(_text(row.get(column)) for column in columns))
    return table


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return str(value)[:ID_CHARS] if _ID.fullmatch(str(value)) else str(value)
