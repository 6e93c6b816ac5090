"""One look at a running process: GET /status on loopback, shown to a person."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from swarm.daemon.options import UserError

WAIT_S = 5.0
ID_CHARS = 12
"""Of an id or digest: as many as events have."""
ROW_ID_CHARS = 8
COLUMNS = ("node", "cell", "stages", "state", "iteration", "round", "loss", "status")
"""Of the members. `--json` has the rest, for which 80 columns have no room."""
PIPE_CHARS = 1000
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
        f"nothing runs in {directory} yet: name the directory of a coordinator or a node that has said "
        "where its status is, or --address"
    )


def render_status(status: dict[str, Any], console: Console | None = None) -> None:
    """Plain facts as lines, the members as a table. What is empty or zero of bytes is left out."""
    console = console or _console()
    for key, value in status.items():
        text = _bytes(value) if "bytes" in key else _text(value)
        if key != "members" and text:
            console.print(f"{key.replace('_', ' ')}: {text}", highlight=False, soft_wrap=True)
    if status.get("members"):
        _print_members(status["members"], console)


def _console() -> Console:
    """A file or a pipe gets every line whole, however long."""
    console = Console()
    if not console.is_terminal:
        console.width = PIPE_CHARS
    return console


def _print_members(members: list[dict[str, Any]], console: Console) -> None:
    """One line a member, and below them why some are not alive."""
    members = sorted(members, key=_rank)
    ids = shortest([str(member.get("node", "")) for member in members])
    rows = [_row(member, ids) for member in members]
    shown = [name for name in COLUMNS if any(row[name] for row in rows)]
    table = Table(title="members", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in shown:
        table.add_column(name, overflow="fold", no_wrap=True)
    for row in rows:
        table.add_row(*(row[name] for name in shown))
    console.print(table, highlight=False)
    for row, member in zip(rows, members, strict=True):
        if row["status"] != "alive" and _text(member.get("reason")):
            reason = f"{row['node']} {row['status']}: {_text(member['reason'])}"
            console.print(reason, highlight=False, soft_wrap=True)


def _rank(member: dict[str, Any]) -> tuple[bool, bool, str, list[int]]:
    """Coordinators, then the living by cell and stage, then those who are gone."""
    gone = member.get("status") in ("dead", "left")
    worker = member.get("role") != "coordinator"
    return gone, worker, str(member.get("cell", "")), list(member.get("stages", []))


def _row(member: dict[str, Any], ids: dict[str, str]) -> dict[str, str]:
    """What a line has room for. A coordinator neither trains nor waits to."""
    coordinates = member.get("role") == "coordinator"
    return {
        "node": ids[str(member.get("node", ""))],
        "cell": _text(member.get("cell")),
        "stages": _text(member.get("stages")),
        "state": "serving" if coordinates else _text(member.get("state")),
        "iteration": "" if coordinates else _text(member.get("iteration")),
        "round": "" if coordinates else _text(member.get("round")),
        "loss": _text(member.get("loss")),
        "status": _text(member.get("status")),
    }


def shortest(ids: Sequence[str], least: int = ROW_ID_CHARS) -> dict[str, str]:
    """Every id by its beginning, just long enough that no two are alike."""
    longest = max(map(len, ids), default=least)
    fits = (n for n in range(least, longest) if len({each[:n] for each in ids}) == len(set(ids)))
    chars = next(fits, longest)
    return {each: each[:chars] for each in ids}


def _bytes(value: Any) -> str:
    return f"{value / 1e6:,.1f} MB" if isinstance(value, int) and value else ""


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " ".join(_text(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return str(value)[:ID_CHARS] if _ID.fullmatch(str(value)) else str(value)
