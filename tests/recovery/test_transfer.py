"""The transfer machine among several nodes, over a made-up network in made-up time."""

import heapq
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recovery.donor import DonorLimits, NeedSnapshot
from recovery.fetch import DonorDropped, Fetched, FetchFailed, FetchOptions
from recovery.snapshot import (
    Chunk,
    Get,
    Manifest,
    NotHere,
    Queued,
    Unwanted,
    Want,
    describe,
    take_snapshot,
    to_tensors,
)
from recovery.transfer import TRANSFER_KINDS, Transfer
from transport.machine import Send
from transport.wire import Message, Schema, TensorSpec, WireError, check_buffers

SCHEMA = Schema(TRANSFER_KINDS)
CHUNK = 1024
TAKER = "taker"
END = (Fetched, FetchFailed)


def state(seed=0, size=8 * CHUNK):
    generator = torch.Generator().manual_seed(seed)
    return {
        "weights": torch.randn(size // 4, generator=generator),
        "moments": torch.randn(3, 7, generator=generator).bfloat16(),
        "steps": torch.tensor(seed),
        "nothing": torch.zeros(0, 4),
    }


class Net:
    """Nodes, each a Transfer, and messages that take `latency_s` and the time of their bytes."""

    def __init__(self, holders, *, latency_s=0.05, bytes_per_s=1e6, options=None, lose=0.0, seed=0):
        self.now = 0.0
        self.states = dict(holders)  # node -> (slot, tensors)
        self.nodes = {node: Transfer() for node in holders} | {TAKER: Transfer(options=options)}
        self.latency_s = latency_s
        self.pace = dict.fromkeys(holders, bytes_per_s)
        self.free_at = dict.fromkeys(self.nodes, 0.0)
        self.events, self.order, self.seen, self.dead = [], 0, [], set()
        self.random, self.lose_share = Random(seed), lose
        self.bend = lambda sender, message: message  # what the network does to a message
        self.chunks_sent = dict.fromkeys(holders, 0)
        self.snapshots = []

    def fetch(self, donors=None, slot=None, expected=None, name="stage:2"):
        expected = describe(state()) if expected is None else expected
        donors = list(self.states) if donors is None else donors
        self.do(TAKER, self.nodes[TAKER].fetch(name, donors, expected, self.now, slot))

    def do(self, node, effects):
        for effect in effects:
            match effect:
                case Send():
                    self.send(node, effect.peer, effect.message)
                case NeedSnapshot():
                    self.answer(node, effect)
                case _:
                    self.seen.append(effect)

    def answer(self, node, need):
        self.snapshots.append(node)
        slot, tensors = self.states[node]
        if need.slot not in (None, slot):
            self.do(node, self.nodes[node].decline(need.name, need.slot, f"is at slot {slot}", self.now))
            return
        snapshot = take_snapshot(need.name, slot, tensors, {"iteration": slot}, CHUNK)
        self.do(node, self.nodes[node].provide(snapshot, self.now))

    def send(self, sender, to, message):
        message = self.bend(sender, message)
        if isinstance(message, Message) and isinstance(message.body, Chunk):
            self.chunks_sent[sender] += 1
        if message is None or sender in self.dead or self.random.random() < self.lose_share:
            return
        start = max(self.now, self.free_at[sender])
        self.free_at[sender] = start + message.nbytes / self.pace.get(sender, 1e9)
        self.order += 1
        at = self.free_at[sender] + self.latency_s
        heapq.heappush(self.events, (at, self.order, sender, to, message))

    def run(self, until=1e4, stop=lambda net: False):
        """Until the fetch ended, `stop` says so, or nothing is left to happen."""
        while not any(isinstance(effect, END) for effect in self.seen) and not stop(self):
            due = self.nodes[TAKER].deadline()
            times = [due] * (due is not None) + [event[0] for event in self.events[:1]]
            if not times or min(times) > until:
                break
            self.now = max(self.now, min(times))
            if self.events and self.events[0][0] <= self.now:
                _, _, sender, to, message = heapq.heappop(self.events)
                if to not in self.dead and sender not in self.dead:
                    self.do(to, self.nodes[to].handle(sender, over_the_wire(message), self.now))
            else:
                self.do(TAKER, self.nodes[TAKER].tick(self.now))
        return self

    def of(self, kind):
        return [effect for effect in self.seen if isinstance(effect, kind)]

    def fetched(self):
        assert self.of(FetchFailed) == []
        (done,) = self.of(Fetched)
        return done


def over_the_wire(message):
    body = SCHEMA.unpack(SCHEMA.pack(message.body))
    check_buffers(body, message.buffers)
    return Message(body, tuple(memoryview(bytes(buffer)) for buffer in message.buffers))


def assert_same(fetched, tensors):
    got = to_tensors(fetched.holds, fetched.tensors)
    assert got.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor)


def chunk_of(message):
    return message.body.index if isinstance(message.body, Chunk) else None


def test_a_state_arrives_bit_for_bit_with_its_facts():
    net = Net({"a": (7, state(1))})
    net.fetch()
    done = net.run().fetched()
    assert_same(done, state(1))
    assert (done.name, done.slot, done.facts, done.donors) == ("stage:2", 7, {"iteration": 7}, ("a",))
    assert done.seconds == net.now > 0
    assert net.nodes[TAKER].fetching == ()
    assert net.nodes[TAKER].deadline() is None


def test_a_snapshot_is_a_copy_that_training_cannot_change():
    tensors = state(1)
    net = Net({"a": (7, tensors)})
    net.fetch()
    net.run(stop=lambda net: net.chunks_sent["a"] > 0)
    tensors["weights"].zero_()
    assert_same(net.run().fetched(), state(1))


def test_an_empty_state_arrives_at_once():
    net = Net({"a": (7, {})})
    net.fetch(expected=())
    assert net.run().fetched().tensors == {}


def test_two_donors_of_the_same_state_serve_in_parallel():
    big = 64 * CHUNK
    alone = Net({"a": (7, state(1, big))}, bytes_per_s=1e4)
    alone.fetch(expected=describe(state(0, big)))
    both = Net({"a": (7, state(1, big)), "b": (7, state(1, big))}, bytes_per_s=1e4)
    both.fetch(slot=7, expected=describe(state(0, big)))
    one, two = alone.run().fetched(), both.run().fetched()
    assert two.donors == ("a", "b")
    assert two.seconds < 0.6 * one.seconds
    assert_same(two, state(1, big))


def test_a_second_donor_helps_as_soon_as_the_slot_is_known():
    net = Net({"a": (7, state(1, 64 * CHUNK)), "b": (7, state(1, 64 * CHUNK))}, bytes_per_s=1e4)
    net.fetch(slot=None, expected=describe(state(0, 64 * CHUNK)))
    net.run(stop=lambda net: net.snapshots)
    assert net.snapshots == ["a"]
    assert net.run().fetched().donors == ("a", "b")


def test_a_dead_donor_is_carried_on_from_by_another_without_starting_again():
    big = 32 * CHUNK
    net = Net({"a": (7, state(1, big)), "b": (7, state(1, big))}, bytes_per_s=1e4)
    net.fetch(slot=7, expected=describe(state(0, big)))
    net.run(stop=lambda net: net.chunks_sent["a"] >= 12)
    net.dead.add("a")
    net.do(TAKER, net.nodes[TAKER].lose("a", net.now))
    assert_same(net.run().fetched(), state(1, big))
    assert [drop.peer for drop in net.of(DonorDropped)] == ["a"]
    assert net.chunks_sent["b"] < 33  # those of "a" that arrived were not sent again


def test_a_silent_donor_is_waited_for_only_as_long_as_its_pace_explains():
    big = 64 * CHUNK
    net = Net({"a": (7, state(1, big)), "b": (7, state(1, big))}, bytes_per_s=1e5)
    net.fetch(slot=7, expected=describe(state(0, big)))
    net.run(stop=lambda net: net.chunks_sent["a"] >= 12)
    net.dead.add("a")
    done = net.run().fetched()
    assert done.seconds < 4.0  # far less than first_wait_s: what it owed was asked of "b"
    assert_same(done, state(1, big))


def test_a_donor_that_only_stops_is_dropped_after_its_strikes_and_the_fetch_says_so():
    net = Net({"a": (7, state(1))}, bytes_per_s=1e4)
    net.fetch()
    net.run(stop=lambda net: net.chunks_sent["a"] >= 5)
    net.dead.add("a")
    net.run()
    (failed,) = net.of(FetchFailed)
    assert failed.reason == "No donor is left for stage:2: a did not answer in time."
    assert net.nodes[TAKER].fetching == ()


def test_a_corrupted_chunk_is_refused_its_donor_named_and_the_rest_taken_elsewhere():
    net = Net({"bad": (7, state(1)), "good": (7, state(1))})

    def corrupt(sender, message):
        if sender == "bad" and chunk_of(message) is not None:
            return Message(message.body, (b"\0" * message.nbytes,))
        return message

    net.bend = corrupt
    net.fetch(slot=7)
    assert_same(net.run().fetched(), state(1))
    (dropped,) = net.of(DonorDropped)
    assert (dropped.peer, dropped.hostile) == ("bad", True)
    assert "wrong hash" in dropped.reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"holds": describe(state(0, 1 << 20))}, "offered other tensors"),
        ({"holds": ()}, "offered other tensors"),
        ({"chunk_bytes": 2 * CHUNK}, "wrong number of chunk hashes"),
        ({"slot": 8}, "slot 8 when asked for slot 7"),
        ({"facts": {"iteration": 99}}, "not what its digest says"),
        ({"digest": "0" * 32}, "not what its digest says"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused_before_anything_is_allocated(change, reason, monkeypatch):
    net = Net({"bad": (7, state(1))})
    net.bend = lambda sender, message: (
        Message(message.body.model_copy(update=change), message.buffers)
        if isinstance(message.body, Manifest)
        else message
    )
    monkeypatch.setattr("recovery.fetch.bytearray", _no_allocation, raising=False)
    net.fetch(slot=7)
    net.run()
    (dropped,) = net.of(DonorDropped)
    assert dropped.hostile
    assert reason in dropped.reason
    assert len(net.of(FetchFailed)) == 1


def _no_allocation(size):
    raise AssertionError(f"{size} bytes were allocated for a manifest that was not trusted")


def test_a_manifest_without_its_hashes_is_counted_and_never_believed():
    net = Net({"bad": (7, state(1))})
    net.bend = lambda sender, message: (
        Message(message.body.model_copy(update={"tensors": ()}))
        if isinstance(message.body, Manifest)
        else message
    )
    net.fetch()
    net.run()
    assert net.nodes[TAKER].dropped == {"manifest": 1}
    assert len(net.of(FetchFailed)) == 1


def test_only_the_slot_asked_for_will_do():
    net = Net({"old": (6, state(1)), "right": (7, state(2))})
    net.fetch(slot=7)
    done = net.run().fetched()
    assert (done.slot, done.donors) == (7, ("right",))
    assert_same(done, state(2))


def test_donors_with_different_states_are_never_mixed_and_the_other_is_a_reserve():
    big = 32 * CHUNK
    net = Net({"a": (7, state(1, big)), "b": (7, state(2, big))}, bytes_per_s=1e4)
    net.fetch(slot=7, expected=describe(state(0, big)))
    net.run(stop=lambda net: net.chunks_sent["a"] >= 8)
    net.dead.add("a")
    net.do(TAKER, net.nodes[TAKER].lose("a", net.now))
    done = net.run().fetched()
    assert done.donors[-1] == "b"
    assert_same(done, state(2, big))


def test_a_donor_at_another_slot_is_a_reserve_too():
    big = 32 * CHUNK
    net = Net({"a": (7, state(1, big)), "b": (9, state(2, big))}, bytes_per_s=1e4)
    net.fetch(expected=describe(state(0, big)))
    net.run(stop=lambda net: net.chunks_sent["a"] >= 8)
    net.dead.add("a")
    net.do(TAKER, net.nodes[TAKER].lose("a", net.now))
    assert_same(net.run().fetched(), state(2, big))


def test_donors_are_asked_in_order_and_one_that_declines_costs_nothing_more():
    net = Net(
        {"a": (6, state(1)), "b": (7, state(2)), "c": (7, state(2))}, options=FetchOptions(donors_max=1)
    )
    net.fetch(slot=7)
    net.run()
    assert net.snapshots == ["a", "b"]
    assert [drop.reason for drop in net.of(DonorDropped)] == ["is at slot 6"]


def test_without_donors_the_fetch_fails_at_once():
    net = Net({})
    net.fetch(donors=[])
    (failed,) = net.of(FetchFailed)
    assert failed.reason == "No donor is left for stage:2: none was named."


def test_a_snapshot_that_expired_in_between_is_asked_for_anew():
    net = Net({"a": (7, state(1, 32 * CHUNK))}, bytes_per_s=1e4)
    net.fetch(expected=describe(state(0, 32 * CHUNK)))
    net.run(stop=lambda net: net.chunks_sent["a"] >= 12)
    net.nodes["a"].tick(net.now + 61.0)
    net.states["a"] = (8, state(2, 32 * CHUNK))
    done = net.run().fetched()
    assert done.slot == 8
    assert_same(done, state(2, 32 * CHUNK))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), lose=st.floats(0, 0.25), donors=st.integers(1, 4))
def test_a_lossy_network_delays_a_state_and_never_changes_it(seed, lose, donors):
    patient = FetchOptions(strikes_max=30, manifest_wait_s=1e3, first_wait_s=1.0)
    net = Net({f"d{i}": (7, state(3)) for i in range(donors)}, options=patient, lose=lose, seed=seed)
    net.fetch(slot=7)
    net.run(until=1e6)
    if net.of(Fetched):
        assert_same(net.fetched(), state(3))
    else:  # every answer to Want was lost, which only manifest_wait_s ends
        assert "did not answer" in net.of(FetchFailed)[0].reason


def test_chunks_on_their_way_never_exceed_the_window():
    net = Net({"a": (7, state(1, 64 * CHUNK))}, options=FetchOptions(window=4))
    asked, most = set(), 0

    def watch(sender, message):
        nonlocal most
        if isinstance(message.body, Get):
            asked.update(range(message.body.first, message.body.first + message.body.count))
            most = max(most, len(asked))
        return message

    net.bend = watch
    net.fetch(expected=describe(state(0, 64 * CHUNK)))
    real = net.nodes[TAKER].handle

    def handle(peer, message, now):
        asked.discard(chunk_of(message))
        return real(peer, message, now)

    net.nodes[TAKER].handle = handle
    net.run().fetched()
    assert most == 4


def test_messages_that_belong_to_no_fetch_are_counted_and_their_sender_is_told():
    node = Transfer()
    spec = TensorSpec(name="chunk", shape=(4,), dtype="uint8", nbytes=4)
    chunk = Message(Chunk(tensors=(spec,), digest="0" * 32, index=0), (b"1234",))
    assert node.handle("a", chunk, 0.0) == [Send("a", Message(Unwanted(digest="0" * 32)))]
    assert node.handle("a", Message(NotHere(name="x", reason="no")), 0.0) == []
    assert node.dropped == {"chunk": 1, "not_here": 1}


@pytest.mark.parametrize("count", [0, 17, 1 << 40])
def test_a_request_for_many_chunks_does_not_pass_the_schema(count):
    good = Get(digest="0" * 32, first=0, count=1)
    with pytest.raises(WireError, match="count"):
        SCHEMA.unpack(SCHEMA.pack(good.model_copy(update={"count": count})))


BODIES = st.one_of(
    st.builds(
        Want, name=st.sampled_from(["stage:0", "weights:2", "ends-copy"]), slot=st.none() | st.integers(0, 9)
    ),
    st.builds(Get, digest=st.just("0" * 32), first=st.integers(0, 9), count=st.integers(1, 16)),
    st.builds(NotHere, name=st.just("stage:0"), digest=st.sampled_from(["", "0" * 32]), reason=st.just("no")),
    st.builds(
        Manifest,
        tensors=st.sampled_from([(), describe({"hashes": torch.zeros(2, 16, dtype=torch.uint8)})]),
        name=st.just("stage:0"),
        digest=st.just("0" * 32),
        slot=st.integers(0, 9),
        holds=st.sampled_from([(), describe(state())]),
        chunk_bytes=st.sampled_from([1024, 8 << 20]),
        facts=st.dictionaries(st.text(max_size=3), st.integers(0, 1 << 63) | st.text(max_size=3)),
    ),
    st.builds(
        Chunk,
        tensors=st.sampled_from([(), describe({"chunk": torch.zeros(3)})]),
        digest=st.just("0" * 32),
        index=st.integers(0, (1 << 32) - 1),
    ),
)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), BODIES, st.floats(0, 100)), max_size=20))
def test_no_valid_message_in_any_order_breaks_a_node(received):
    node = Transfer()
    node.fetch("stage:0", ["a", "b"], describe(state()), 0.0)
    for peer, body, now in sorted(received, key=lambda item: item[2]):
        message = Message(body, tuple(bytes(spec.nbytes) for spec in body.tensors))
        effects = [*node.tick(now), *node.handle(peer, over_the_wire(message), now)]
        assert not any(isinstance(effect, Fetched) for effect in effects)


def test_a_donor_that_says_that_others_are_before_us_is_not_taken_for_dead():
    taker = Transfer()
    taker.fetch("stage:2", ["a"], describe(state()), 0.0)
    for _ in range(20):
        now = taker.deadline() - 1.0
        assert taker.handle("a", Message(Queued(name="stage:2")), now) == []
    assert now > 200.0
    dropped, failed = taker.tick(taker.deadline())
    assert isinstance(dropped, DonorDropped)
    assert isinstance(failed, FetchFailed), "until it says nothing any more"


def test_while_one_donor_lets_us_wait_the_next_is_asked():
    taker = Transfer()
    taker.fetch("stage:2", ["a", "b"], describe(state()), 0.0)
    (asked,) = taker.handle("a", Message(Queued(name="stage:2")), 1.0)
    assert (asked.peer, type(asked.message.body)) == ("b", Want)


def test_only_so_many_states_come_at_once_and_the_others_in_their_turn():
    taker = Transfer(options=FetchOptions(at_once=2))
    wanted = [f"stage:{k}" for k in range(4)]
    begun = [[e.message.body.name for e in taker.fetch(n, ["a"], describe(state()), 0.0)] for n in wanted]
    assert begun == [["stage:0"], ["stage:1"], [], []]
    assert taker.fetching == tuple(wanted)
    effects = taker.handle("a", Message(NotHere(name="stage:1", reason="gone")), 1.0)
    assert [e.message.body.name for e in effects if isinstance(e, Send)] == ["stage:2"]
    taker.cancel("stage:0")
    assert [e.message.body.name for e in taker.tick(max(1.0, taker.deadline()))] == ["stage:3"]


def test_whose_donors_died_before_its_turn_fails_when_it_comes():
    taker = Transfer(options=FetchOptions(at_once=1))
    taker.fetch("stage:0", ["a"], describe(state()), 0.0)
    taker.fetch("stage:1", ["b"], describe(state()), 0.0)
    assert [type(effect) for effect in taker.lose("b", 1.0)] == [DonorDropped]
    effects = taker.handle("a", Message(NotHere(name="stage:0", reason="gone")), 2.0)
    assert [e.name for e in effects if isinstance(e, FetchFailed)] == ["stage:0", "stage:1"]


def test_a_donor_lets_one_peer_wait_for_more_states_than_it_asks_for_at_once():
    assert DonorLimits().waiting_per_peer_max > FetchOptions().at_once
