"""A process that carries packets between network namespaces, as a shaper tells it

It makes the namespaces and removes them, at the latest when its owner ends, in whatever way:
then its standard input closes. Orders and answers are lines of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from random import Random
from typing import Any

from swarm.lab.wan_namespaces import congestion_control, make, name_of, open_tun, remove
from swarm.lab.wan_shaper import Access, Disturbance, Pair, PathShape, Shaper, address_of

PACKET_BYTES_MAX = 1 << 16
PACKETS_AT_ONCE = 64
"""From one device before the others have their turn."""
NICE = -10
"""The emulated wire must not wait for the processors that the nodes keep busy."""


def encode_plan(paths: Mapping[Pair, PathShape], accesses: list[Access], seed: int) -> dict[str, Any]:
    """The first order: what to make."""
    return {
        "paths": [[*pair, asdict(shape)] for pair, shape in paths.items()],
        "accesses": [asdict(access) for access in accesses],
        "seed": seed,
    }


def decode_plan(plan: Mapping[str, Any]) -> Shaper:
    """The machine of a plan."""
    paths = {(one, other): PathShape(**shape) for one, other, shape in plan["paths"]}
    accesses = [Access(**access) for access in plan["accesses"]]
    return Shaper(paths, accesses, Random(plan["seed"]))


def obey(shaper: Shaper, order: Mapping[str, Any]) -> dict[str, int]:
    """Carry an order of the owner out; the answer is what was carried so far."""
    match order["do"]:
        case "cut":
            shaper.cut(order["name"], [(one, other) for one, other in order["pairs"]])
        case "heal":
            shaper.heal(order["name"])
        case "slow":
            shaper.slow(order["node"], order["factor"], time.monotonic(), order["over_s"])
        case "disturb":
            shaper.disturb(order["node"], Disturbance(*order["noise"]))
    return shaper.stats.as_map()


class Forwarder:
    """The loop: packets from devices, orders from the owner."""

    def __init__(self, shaper: Shaper, devices: list[int]) -> None:
        self._shaper = shaper
        self._devices = devices
        self._index = {device: node for node, device in enumerate(devices)}
        self._unread = b""
        self._polled = select.epoll()
        for device in (*devices, sys.stdin.fileno()):
            self._polled.register(device, select.EPOLLIN)

    def run(self) -> None:
        """Until the owner is gone."""
        while True:
            due = self._shaper.deadline()
            wait_s = None if due is None else max(0.0, due - time.monotonic())
            for source, _ in self._polled.poll(wait_s):
                if source in self._index:
                    self._take(source)
                elif not self._hear():
                    return
            for delivery in self._shaper.tick(time.monotonic()):
                # A device whose queue is full drops, as a router does; TCP sends again.
                with contextlib.suppress(OSError):
                    os.write(self._devices[delivery.receiver], delivery.packet)

    def _take(self, device: int) -> None:
        node = self._index[device]
        for _ in range(PACKETS_AT_ONCE):
            try:
                packet = os.read(device, PACKET_BYTES_MAX)
            except BlockingIOError:
                return
            self._shaper.handle(node, packet, time.monotonic())

    def _hear(self) -> bool:
        data = os.read(sys.stdin.fileno(), PACKET_BYTES_MAX)
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            answer(obey(self._shaper, json.loads(line)))
        return bool(data)


def answer(value: Mapping[str, Any]) -> None:
    """One line to the owner; one that is gone is found out at the next read."""
    with contextlib.suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), json.dumps(value).encode() + b"\n")


def main() -> None:
    """`python -m swarm.lab.wan_forwarder`: the plan is the first line of standard input."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    plan = json.loads(read_line(sys.stdin.fileno()))
    names = [name_of(node) for node in range(len(plan["accesses"]))]
    try:
        devices = []
        for node, name in enumerate(names):
            make(name, f"{address_of(node)}/24")
            devices.append(open_tun(name))
        with contextlib.suppress(PermissionError):
            os.nice(NICE)
        answer({"namespaces": names, "congestion_control": congestion_control(names[0])})
        Forwarder(decode_plan(plan), devices).run()
    except OSError as error:
        answer({"error": str(error)})
        sys.exit(1)
    finally:
        for name in names:
            remove(name)


def read_line(descriptor: int) -> bytes:
    """One line, and not a byte of the next."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        if not byte:
            sys.exit(0)  # the owner ended before it said what it wants
        line += byte
    return line


if __name__ == "__main__":
    main()
