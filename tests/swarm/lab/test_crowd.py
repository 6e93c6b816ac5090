"""A crowd is the same swarm, only leaner: messages, bytes and verdicts are those of the machine."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.daemon.options import UserError
from swarm.gossip.compact import Renewal, packed_claim
from swarm.gossip.messages import BUCKETS, GOSSIP_KINDS, HASHES_BYTES, MARK_BYTES, SHOWN_BYTES, Updates, Want
from swarm.lab import crowd_run
from swarm.lab.crowd import Crowd
from swarm.lab.crowd_run import PATH, CrowdOptions, crowd_options, render_crowd, run_crowd
from swarm.lab.crowd_sizes import Sizes
from transport.wire import Body, Message, Schema, Signed

SCHEMA = Schema(GOSSIP_KINDS)
KINDS = {kind.kind: kind for kind in GOSSIP_KINDS}
HEX = st.integers(0, (1 << 256) - 1).map(lambda value: f"{value:064x}")
SIGNED = st.fixed_dictionaries(
    {
        "payload": (st.integers(0, 300) | st.integers(65_530, 65_540)).map(bytes),
        "signer": HEX,
        "signature": st.integers(0, (1 << 512) - 1).map(lambda value: value.to_bytes(64, "big")),
    }
)
CLAIM = SIGNED.map(lambda signed: packed_claim(Signed(**{**signed, "payload": bytes(41)})))
RENEWAL = st.builds(
    Renewal, HEX, st.integers(0, 65_535), st.just(7), st.binary(min_size=1, max_size=300), st.just(bytes(64))
)
NOTICE = st.fixed_dictionaries(
    {"topic": st.just("genesis"), "version": st.integers(0, 1 << 40), "notice": SIGNED}
)
FIELDS: dict[str, dict[str, Any]] = {
    "ping": {"seq": st.integers(0, (1 << 53) - 1)},
    "ack": {"seq": st.integers(0, 70_000)},
    "nack": {"seq": st.integers(0, 300)},
    "ping_request": {"seq": st.integers(0, 300), "target": HEX},
    "spread": {},
    "exchange": {},
    "compare": {
        "hashes": st.just(bytes(range(256)) * (HASHES_BYTES // 256)),
        "answer": st.booleans(),
        "newcomer": st.booleans(),
        "whole": st.booleans(),
    },
    "marks": {
        "buckets": st.binary(min_size=1, max_size=BUCKETS),
        "shown": st.integers(0, 40).map(lambda count: bytes(count * SHOWN_BYTES)),
    },
    "want": {"nodes": st.lists(HEX, max_size=20).map(tuple)},
}
MARKED = st.sampled_from((b"", bytes(MARK_BYTES), bytes(40 * MARK_BYTES)))


@st.composite
def bodies(draw: Any) -> Body:
    kind = draw(st.sampled_from(sorted(KINDS)))
    updates = {
        "records": tuple(draw(st.lists(SIGNED, max_size=2))) * draw(st.sampled_from((1, 1, 7))),
        "renewals": tuple(draw(st.lists(RENEWAL, max_size=2))) * draw(st.sampled_from((1, 9))),
        "claims": tuple(draw(st.lists(CLAIM, max_size=2))) * draw(st.sampled_from((1, 9))),
        "notices": tuple(draw(st.lists(NOTICE, max_size=1))),
        "told": draw(MARKED),
        "wanted": draw(MARKED),
    }
    fields = {name: draw(strategy) for name, strategy in FIELDS[kind].items()}
    return KINDS[kind].model_validate(fields | updates)


def test_every_kind_of_gossip_is_tried() -> None:
    assert set(FIELDS) == set(KINDS)


@settings(deadline=None, max_examples=60)
@given(bodies())
def test_bytes_are_those_of_the_encoding_and_decoding_gives_back_the_same(body: Body) -> None:
    assert isinstance(body, Updates)
    header = SCHEMA.pack(body)
    assert Sizes().of(body) == len(header)
    assert SCHEMA.unpack(header) == body


def test_what_a_crowd_says_would_survive_the_wire() -> None:
    """All that is sent in a crash, a stall and a return, encoded and decoded after all."""
    heard: list[Message] = []

    class Overheard(Crowd):
        def _arrive(self, host: Any, sender: Any, message: Message) -> None:
            heard.append(message)
            super()._arrive(host, sender, message)

    crowd = Overheard(40, seed=3, shape=PATH)
    crowd.begin()
    crowd.crash(crowd.hosts[3])
    crowd.at(1.0, lambda: crowd.stall(crowd.hosts[5], 6.0))
    for turn in range(8):
        crowd.at(40.0 + 9.0 * turn, lambda turn=turn: crowd.crash(crowd.hosts[10 + turn]))
        crowd.at(80.0 + 9.0 * turn, lambda turn=turn: crowd.restart(crowd.hosts[10 + turn]))
    crowd.at(40.0, lambda: crowd.restart(crowd.hosts[3]))
    crowd.run(160.0)
    heard.append(Message(Want(nodes=tuple(host.node for host in crowd.hosts))))
    sizes = Sizes()
    for message in heard:
        assert isinstance(message.body, Updates)
        header = SCHEMA.pack(message.body)
        assert len(header) == sizes.of(message.body)
        assert SCHEMA.unpack(header) == message.body
    assert {message.body.kind for message in heard} == set(KINDS)


def figures(**options: Any) -> dict[str, Any]:
    found = run_crowd(CrowdOptions(**{"hours": 0.15, "seed": 1, **options}))
    return {name: value for name, value in found.items() if name not in ("real_s", "cpu_s")}


def test_sixty_four_nodes_find_the_dead_wrong_nobody_and_agree() -> None:
    found = figures(nodes=64, churn=60)
    assert found["crashes"] == found["returns"] >= 3  # one may be struck who is already down
    assert found["never_known_everywhere"] == 0
    assert found["first_suspicion_s"]["max"] <= 15
    assert found["known_everywhere_s"]["max"] <= 45
    assert found["false_deaths"] == {"nodes": 0, "views": 0}
    assert found["views_agree"]
    assert found["views_wrong_for_long"] == 0
    assert found["bytes_per_s"]["median"] < 1000
    assert "agree: yes" in render_crowd(found | {"real_s": 1.0, "cpu_s": 1.0})


def test_the_same_seed_gives_the_same_figures_and_another_gives_others() -> None:
    options = {"nodes": 16, "churn": 300, "stalls": 2, "loss": 0.05, "hours": 0.08}
    assert figures(**options) == figures(**options)
    assert figures(**options) != figures(**options, seed=2)


def test_a_crash_that_closes_connections_is_known_in_two_seconds_and_silence_in_fifteen() -> None:
    """Eight nodes, 100 ms round trip, as promised."""
    shape = replace(PATH, latency_s=0.05, jitter_s=0.0)
    closed, silent = [], []
    for seed in range(4):
        for closes, known in ((True, closed), (False, silent)):
            crowd = Crowd(8, seed=seed, shape=shape, closes=closes)
            crowd.begin()
            crowd.run(60.0)
            crowd.crash(crowd.hosts[seed])
            crowd.run(120.0)
            [incident] = crowd.tally.incidents
            assert incident.known_at is not None
            known.append(incident.known_at - incident.at)
    assert max(closed) <= 2.0
    assert sorted(silent)[len(silent) // 2] <= 15.0  # the worst of many waits for its turn to be probed


@pytest.mark.parametrize("drops", [False, True])
def test_a_quarter_of_all_messages_lost_buries_nobody(drops: bool) -> None:
    found = figures(nodes=16, churn=0, loss=0.25, drops=drops, hours=0.1)
    assert found["false_deaths"]["views"] == 0
    assert found["views_agree"]


def test_who_is_wrong_at_both_ends_of_the_quiet_time_did_not_come_to_agree(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A node that hears nobody any more does not learn who has gone and who is back."""
    planned = crowd_run._plan_churn

    def deaf(crowd: Crowd, options: CrowdOptions, until_s: float) -> None:
        crowd.cut = lambda sender, receiver: 0 in (sender, receiver)
        planned(crowd, options, until_s)

    monkeypatch.setattr(crowd_run, "_plan_churn", deaf)
    found = figures(nodes=8, churn=0)
    assert not found["views_agree"]
    assert found["views_wrong_for_long"] == 2 * 7
    assert "agree: NO; wrong for 120 s: 14" in render_crowd(found | {"real_s": 1.0, "cpu_s": 1.0})


@pytest.mark.slow
def test_stalls_bury_nobody_with_lifeguard() -> None:
    assert figures(nodes=16, churn=0, stalls=4, hours=1.0)["false_deaths"]["nodes"] == 0


@pytest.mark.slow
def test_load_stays_flat_and_detection_grows_with_the_logarithm() -> None:
    small, large = (figures(nodes=nodes, churn=20, hours=0.5) for nodes in (100, 400))
    assert large["bytes_per_s"]["median"] <= 1.5 * small["bytes_per_s"]["median"]
    grew = large["known_everywhere_s"]["median"] / small["known_everywhere_s"]["median"]
    assert grew <= math.log(400) / math.log(100)


@pytest.mark.parametrize(
    "wrong",
    [
        {"nodes": 1},
        {"hours": 0.01},
        {"loss": 1.0},
        {"stalls": 9, "nodes": 8},
        {"churn": -1.0},
        {"churn": math.inf},
        {"hours": math.nan},
    ],
)
def test_a_crowd_that_cannot_be_is_refused_in_a_sentence(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        CrowdOptions(**wrong)


def test_churn_of_a_crowd_is_a_percentage() -> None:
    assert crowd_options("10").churn == 10
    assert crowd_options("").churn == 0
    with pytest.raises(UserError, match="percentage"):
        crowd_options("spot")
