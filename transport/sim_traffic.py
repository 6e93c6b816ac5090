"""Messages on their way through the simulated network: when they leave, arrive, wait or are lost.

`sim_paths.py` says how long a message travels and who is cut off, `sim_sharing.py` how fast bulk
leaves, and `sim_stream.py` accounts for every byte.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextvars import Context
from math import inf
from typing import TypeVarTuple

from transport.machine import NodeId
from transport.sim_paths import Paths
from transport.sim_sharing import Sharing
from transport.sim_stream import ByteCount, DropCause, Packet, Stream
from transport.wire import Lane

Ts = TypeVarTuple("Ts")

CHANGE_STEP_S = 1.0
"""How often transfers under way follow a path that changes little by little."""


class Traffic:
    """All streams between links, and the transfers that share the capacity between nodes."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._default = paths.default.bandwidth_bytes_per_s
        self._sharing = Sharing[Stream](self._default)
        self._access: dict[NodeId, tuple[float, float]] = {}
        self._streams: dict[Stream, None] = {}
        self._past: dict[Lane, ByteCount] = {"control": ByteCount(), "bulk": ByteCount()}
        self._wakes = inf
        self._follows = False
        # What is under way belongs to nobody: it arrives even if its sender stands still.
        self._context = Context()

    def at(self, when: float, callback: Callable[[*Ts], None], *args: *Ts) -> None:
        """Call back then, whoever stands still."""
        asyncio.get_running_loop().call_at(when, callback, *args, context=self._context)

    # -- streams -----------------------------------------------------------------------------

    def begin(self, stream: Stream) -> None:
        """A link sends to another on a lane for the first time since they last parted."""
        self._streams[stream] = None

    def end(self, stream: Stream, cause: DropCause) -> None:
        """What is under way is lost, and nothing follows it."""
        if stream not in self._streams:
            return
        del self._streams[stream]
        self._sharing.stop(stream)
        stream.drop_all(cause)
        self._past[stream.lane].add(stream.count)
        key = (stream.receiver, stream.lane)
        if stream.sender.streams.get(key) is stream:
            del stream.sender.streams[key]

    def drop_unsent(self, stream: Stream) -> None:
        """The sender goes away: lose what has not left it, and what is held back."""
        self._sharing.stop(stream)
        if self._held(stream):
            stream.drop_all("unsent")  # what is held back would need its sender to send it again
        else:
            stream.drop_unsent(clock_s())

    # -- messages ----------------------------------------------------------------------------

    def lose(self, lane: Lane, nbytes: int) -> None:
        """A message was sent where nobody listens."""
        self._past[lane].sent += nbytes
        self._past[lane].drop("unheard", nbytes)

    def send(self, stream: Stream, packet: Packet) -> None:
        """Send a message on its way: control at once, bulk as fast as it shares its way with others."""
        stream.keep(packet)
        if stream.lane == "control":
            self._post(stream, packet)
            return
        stream.unsent.append(packet)
        if len(stream.unsent) == 1:
            self._transfer(stream)
            self.share()

    def _post(self, stream: Stream, packet: Packet) -> None:
        """Send a control message on its way, and perhaps a copy of it."""
        paths, sender, now = self._paths, stream.sender.me, clock_s()
        shape = paths.shape(sender, stream.receiver.me, now)
        packet.leaves, packet.due = paths.journey(sender, shape, packet.nbytes, self._uplink(sender), now)
        if paths.chance(shape.duplication):
            copy = Packet(packet.header, packet.buffers, packet.nbytes, packet.leaves)
            copy.due = packet.due + paths.resend_s()
            stream.keep(copy)
            stream.strays[copy] = None
            self.at(copy.due, self._deliver, stream)
        if paths.chance(shape.reordering):
            packet.due += paths.resend_s()
            stream.strays[packet] = None
        else:
            stream.packets.append(packet)
        self.at(packet.due, self._deliver, stream)

    def _deliver(self, stream: Stream) -> None:
        """Hand over what is due, in order, unless it is held back."""
        if stream not in self._streams:
            return
        if stream.receiver.closed:
            self.end(stream, "closed")
        elif self._held(stream):
            if stream.sender.closed:
                self.end(stream, "unsent")  # nobody is left to send it again
            return
        for packet in stream.due(clock_s()):
            stream.receiver.arrive(stream, packet)
        if stream.sender.closed and stream.idle():
            self.end(stream, "closed")

    def _held(self, stream: Stream) -> bool:
        """Whether nothing of it gets through. Who shakes hands must be heard, and hear."""
        one, other = stream.sender.me, stream.receiver.me
        connected = stream.receiver in stream.sender.connected
        return self._paths.blocked(one, other) or (not connected and self._paths.blocked(other, one))

    def resend(self) -> None:
        """Set what was held back in motion."""
        for stream in self._streams:
            if stream.packets or stream.strays:
                latency_s = self._paths.shape(stream.sender.me, stream.receiver.me, clock_s()).latency_s
                self.at(clock_s() + latency_s, self._deliver, stream)

    # -- transfers ---------------------------------------------------------------------------

    def set_access(self, node: NodeId, up_bytes_per_s: float, down_bytes_per_s: float) -> None:
        """What `node` sends and receives at most, all its bulk transfers together."""
        self._access[node] = (up_bytes_per_s, down_bytes_per_s)
        self._open(node)
        self.share()

    def _open(self, node: NodeId) -> None:
        """Give a node what its access carries now."""
        up, down = self._access.get(node, (self._default, self._default))
        slowness = self._paths.slowness(node, clock_s())
        self._sharing.set_access(node, up / slowness, down / slowness)

    def _uplink(self, node: NodeId) -> float:
        up, _ = self._access.get(node, (self._default, self._default))
        return up / self._paths.slowness(node, clock_s())

    def _transfer(self, stream: Stream) -> None:
        """The first unsent message of a stream begins to leave."""
        ends = (stream.sender.me, stream.receiver.me)
        self._sharing.start(stream, ends, stream.unsent[0].nbytes, self._bandwidth(stream), clock_s())

    def _bandwidth(self, stream: Stream) -> float:
        one, other = stream.sender.me, stream.receiver.me
        if self._paths.blocked(one, other) or self._paths.blocked(other, one):
            return 0.0  # without acknowledgements the window is soon full
        return self._paths.shape(one, other, clock_s()).bandwidth_bytes_per_s

    def share(self) -> None:
        """Divide capacity anew, and wake when the next transfer will have ended."""
        self._sharing.settle(clock_s())
        ends = self._sharing.next_s()
        if ends is not None and ends < self._wakes:
            self._wakes = ends
            self.at(ends, self._leave, ends)

    def _leave(self, wakes: float) -> None:
        """Whatever has left its sender by now travels on; what waited behind it begins to leave."""
        if wakes != self._wakes:
            return
        self._wakes, now = inf, clock_s()
        for stream in self._sharing.ended(now):
            packet = stream.unsent.popleft()
            shape = self._paths.shape(stream.sender.me, stream.receiver.me, now)
            packet.leaves, packet.due = now, now + self._paths.travel_s(shape)
            stream.packets.append(packet)
            stream.sender.left.set()
            self.at(packet.due, self._deliver, stream)
            if stream.unsent:
                self._transfer(stream)
        self.share()

    def follow(self) -> None:
        """Let transfers follow what became of their paths, again and again while any is changing."""
        now = clock_s()
        for node in self._paths.slowed():
            self._open(node)
        for stream in self._sharing.flows():
            self._sharing.set_path(stream, self._bandwidth(stream))
        self.share()
        if self._paths.changing(now) and not self._follows:
            self._follows = True
            self.at(now + CHANGE_STEP_S, self._follow_on)

    def _follow_on(self) -> None:
        self._follows = False
        self.follow()

    # -- accounts ----------------------------------------------------------------------------

    def count(self, lane: Lane) -> ByteCount:
        """What became of all bytes that were ever sent on a lane."""
        total = ByteCount()
        total.add(self._past[lane])
        for stream in self._streams:
            if stream.lane == lane:
                total.add(stream.count)
        return total

    def under_way_bytes(self, lane: Lane) -> int:
        """Bytes of the messages that are on their way now, by looking at each of them."""
        streams = [stream for stream in self._streams if stream.lane == lane]
        return sum(packet.nbytes for stream in streams for packet in stream.under_way())

    def imbalances(self) -> Iterator[str]:
        """Where sent is not delivered, dropped and under way together, in sentences."""
        for stream in self._streams:
            under_way = sum(packet.nbytes for packet in stream.under_way())
            if under_way != stream.count.open:
                ends = f"{stream.sender.me[:12]} to {stream.receiver.me[:12]}"
                yield f"{stream.lane} from {ends}: {under_way} bytes under way, {stream.count} says otherwise"
        for lane, past in self._past.items():
            if past.open:
                yield f"{lane} of connections that are gone: {past.open} bytes are unaccounted for"


def clock_s() -> float:
    """Virtual seconds since the world began."""
    return asyncio.get_running_loop().time()
