"""A process that has imported everything once and forks nodes on request.

Eight interpreters that import torch take seconds and a gigabyte; eight forks of one that
has take milliseconds and share its pages. The server owns no thread, no ZeroMQ context and
no autograd state, so a fork of it is a fresh process in every respect that matters.
Requests and replies are one packet of JSON each on a socket pair; when the pair closes,
because its owner ended in whatever way, the server kills every process it started.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

from swarm.daemon.options import explain
from swarm.lab.wan_namespaces import enter

PACKET_BYTES_MAX = 1 << 16
"""One request: options and an invitation are a few kilobytes."""

Runner = Callable[[dict[str, Any]], int]
"""Options as JSON values in, exit code out."""

_PR_SET_PDEATHSIG = 1


def encode_options(options: Any) -> dict[str, Any]:
    """A frozen options dataclass as JSON values."""
    assert is_dataclass(options), "options are dataclasses"
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def run_node_process(values: dict[str, Any]) -> int:
    """In the child: a node with these options."""
    from swarm.daemon.node import run_node
    from swarm.daemon.options import NodeOptions

    return run_node(NodeOptions(**values | {"data_dir": Path(values["data_dir"])}))


def run_coordinator_process(values: dict[str, Any]) -> int:
    """In the child: the coordinator with these options."""
    from swarm.daemon.coordinator import run_coordinator
    from swarm.daemon.options import CoordinatorOptions

    return run_coordinator(CoordinatorOptions(**values | {"directory": Path(values["directory"])}))


def tell(error: BaseException) -> int:
    """Say on stderr what ended a child, as the command line would; its exit code."""
    sentence = explain(error)
    if sentence is None:
        traceback.print_exception(error)
        return 1
    print(f"error: {sentence}", file=sys.stderr)  # noqa: T201 - the child's own log
    return 2


RUNNERS: Mapping[str, Runner] = {"node": run_node_process, "coordinator": run_coordinator_process}


def warm_up() -> None:
    """Pay once for what every node would pay alone, and leave nothing running behind.

    Frozen objects are never visited by the collector, so that their pages stay shared.
    """
    import torch

    import swarm.daemon.coordinator
    import swarm.daemon.node  # noqa: F401

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


class _Server:
    """The loop: requests from the owner, exits of children."""

    def __init__(self, owner: socket.socket, runners: Mapping[str, Runner]) -> None:
        self._owner = owner
        self._runners = runners
        self._children: dict[int, int] = {}  # pidfd -> pid
        self._selector = selectors.DefaultSelector()
        self._selector.register(owner, selectors.EVENT_READ)

    def serve(self) -> None:
        """Until the owner is gone; then no child is left."""
        self._say({"ready": True})
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._owner:
                    self._reap(key.fd)
                elif not self._take_request():
                    return self._kill_all()

    def _take_request(self) -> bool:
        try:
            packet = self._owner.recv(PACKET_BYTES_MAX)
        except ConnectionError:
            return False
        if not packet:
            return False
        request = json.loads(packet)
        pid = os.fork()
        if pid == 0:
            self._become(request)
        os.setpgid(pid, pid)  # here too: whoever hears of `pid` may kill its group at once
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = pid
        self._selector.register(pidfd, selectors.EVENT_READ)
        self._say({"spawned": pid})
        return True

    def _become(self, request: dict[str, Any]) -> NoReturn:
        """The child's whole life. It never returns into the server's loop."""
        code = 1
        try:
            self._detach(Path(request["log"]))
            if request["namespace"]:
                enter(request["namespace"])
            code = self._runners[request["kind"]](request["options"])
        except BaseException as error:  # noqa: BLE001 - nothing above this frame is the child's
            code = tell(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def _detach(self, log: Path) -> None:
        """Own group (one kill takes the node's two halves), own log, no descriptor shared."""
        server = os.getppid()
        die_with_parent()
        if os.getppid() != server:
            os._exit(1)
        os.setpgid(0, 0)
        self._selector.close()
        self._owner.close()
        for pidfd in self._children:
            os.close(pidfd)
        log.parent.mkdir(parents=True, exist_ok=True)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        silence = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((silence, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        os.close(output)
        os.close(silence)

    def _reap(self, pidfd: int) -> None:
        pid = self._children.pop(pidfd)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        self._say({"exited": pid, "code": os.waitstatus_to_exitcode(status)})

    def _say(self, reply: dict[str, Any]) -> None:
        try:
            self._owner.send(json.dumps(reply).encode())
        except ConnectionError:
            # The owner is gone: the next read says so and ends the loop.
            return

    def _kill_all(self) -> None:
        for pid in self._children.values():
            kill_group(pid)
            os.waitpid(pid, 0)


def die_with_parent() -> None:
    """Ask Linux to kill this process when the thread that forked it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def kill_group(pid: int) -> bool:
    """SIGKILL a child and whatever it started. False if nothing of it was left."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def serve(owner: socket.socket, runners: Mapping[str, Runner] = RUNNERS) -> None:
    """Fork children on request until the other end of `owner` closes."""
    _Server(owner, runners).serve()


def main() -> None:
    """`python -m swarm.lab.fork_server FD`: serve on an inherited socket pair."""
    warm_up()
    with socket.socket(fileno=int(sys.argv[1])) as owner:
        serve(owner)


if __name__ == "__main__":
    main()
