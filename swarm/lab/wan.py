"""A wide-area network on one machine: a namespace for each process, and a forwarder between them

What runs in it is kernel TCP over devices of its own; what is emulated is only the wire.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Any

from swarm.daemon.options import UserError
from swarm.lab.processes import Place
from swarm.lab.regions import load_regions
from swarm.lab.wan_forwarder import encode_plan
from swarm.lab.wan_namespaces import remove, remove_stale
from swarm.lab.wan_shaper import Access, Pair, PathShape, address_of, between, full_mesh
from transport.sim_paths import LinkShape

COMMAND = (sys.executable, "-m", "swarm.lab.wan_forwarder")
LINE_BYTES_MAX = 1 << 20
END_S = 20.0
"""How long the forwarder may take to remove what it made."""
HOME = PathShape(delay_s=0.02, jitter_s=0.004, loss=0.0005, bytes_per_s=12.5e6)
"""Between two homes of one continent: 40 ms and more there and back, 100 Mbit/s, 0.05 % lost."""
LOSS = 1e-4
"""Between regions, of which nothing but latency and bandwidth was measured."""


def regional(regions: Sequence[str]) -> tuple[dict[Pair, PathShape], list[Access]]:
    """Paths and accesses of processes in these regions, in order, as the simulated world has them."""
    known = load_regions()
    paths = {
        (one, other): _path(known.shape(here, there))
        for one, here in enumerate(regions)
        for other, there in enumerate(regions)
        if one != other
    }
    rates = [known.shape(region, region).bandwidth_bytes_per_s for region in regions]
    return paths, [Access(up_bytes_per_s=rate, down_bytes_per_s=rate) for rate in rates]


def _path(shape: LinkShape) -> PathShape:
    return PathShape(
        delay_s=shape.latency_s,
        jitter_s=shape.latency_s / 10,
        loss=LOSS,
        bytes_per_s=shape.bandwidth_bytes_per_s,
    )


class WideArea:
    """An async context manager. Inside, every named process has a place on the network.

    names: of the processes, in the order of their addresses. regions: where each of them stands;
    none: they are homes of one continent. congestion_control: of TCP in the namespaces.
    """

    def __init__(self, names: Sequence[str], *, regions: Sequence[str] = (), seed: int = 0) -> None:
        self._names = tuple(names)
        self._paths, self._accesses = full_mesh(len(names), HOME), [Access()] * len(names)
        if regions:
            self._paths, self._accesses = regional(regions)
        self._seed = seed
        self._process: asyncio.subprocess.Process | None = None
        self._asking = asyncio.Lock()
        self._namespaces: list[str] = []
        self.congestion_control = ""

    async def __aenter__(self) -> WideArea:
        remove_stale()
        self._process = await asyncio.create_subprocess_exec(
            *COMMAND,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Its own session: Ctrl-C in the terminal reaches us, and we decide what it means.
            start_new_session=True,
            limit=LINE_BYTES_MAX,
        )
        try:
            made = await self._ask(encode_plan(self._paths, self._accesses, self._seed))
        except BaseException:
            await self._close()
            raise
        self._namespaces = made["namespaces"]
        self.congestion_control = made["congestion_control"]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(END_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        for name in self._namespaces:  # all gone already, unless the forwarder was killed
            remove(name)

    @property
    def places(self) -> dict[str, Place]:
        """Where each process runs."""
        return {
            name: Place(host=address_of(index), namespace=namespace)
            for index, (name, namespace) in enumerate(zip(self._names, self._namespaces, strict=True))
        }

    async def cut(self, name: str, sides: Sequence[Collection[str]], *, one_way: bool = False) -> None:
        """Let nothing pass between the sides (from the first to the second, if `one_way`)."""
        indices = [[self._names.index(member) for member in side] for side in sides]
        pairs = sorted(between(indices, one_way=one_way))
        await self._ask({"do": "cut", "name": name, "pairs": pairs})

    async def heal(self, name: str) -> None:
        """Undo a cut."""
        await self._ask({"do": "heal", "name": name})

    async def slow(self, process: str, factor: float, *, over_s: float = 0.0) -> None:
        """Make all paths of a process slower by a factor, reached over so many seconds; 1 undoes it."""
        node = self._names.index(process)
        await self._ask({"do": "slow", "node": node, "factor": factor, "over_s": over_s})

    async def disturb(
        self, process: str, loss: float = 0.0, duplication: float = 0.0, reordering: float = 0.0
    ) -> None:
        """Lose, double and delay these shares of a process's packets, both ways; nothing given undoes it."""
        node = self._names.index(process)
        await self._ask({"do": "disturb", "node": node, "noise": [loss, duplication, reordering]})

    async def stats(self) -> dict[str, int]:
        """Packets and bytes so far."""
        return dict(await self._ask({"do": "stats"}))

    async def _ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._asking:
            try:
                self._process.stdin.write(json.dumps(order).encode() + b"\n")
                await self._process.stdin.drain()
                line = await self._process.stdout.readline()
            except ConnectionError:
                line = b""
        if not line:
            raise UserError("the forwarder of the emulated network ended: see the error above")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise UserError(f"the emulated network could not be made: {found['error']}")
        return found
