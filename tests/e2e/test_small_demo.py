"""`farflung demo --json` at a reduced size, as a program runs it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from real_world import commits
from transformers import AutoModelForCausalLM

from swarm.lab.headlines import HOWS
from swarm.messages import origin_of

pytestmark = pytest.mark.e2e
ITERATIONS, NODES = 9, 5
KEYS = [
    "iterations",
    "loss_first",
    "loss_last",
    "tokens_per_s",
    "killed",
    "recoveries",
    "checkpoint",
    "bytes_sent",
]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "run"


@pytest.fixture(scope="module")
def summary(out: Path) -> dict[str, Any]:
    code = "from swarm.cli import main; main()"
    arguments = ["demo", "--nodes", str(NODES), "--iterations", str(ITERATIONS), "--json", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def story(out: Path, summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "run.jsonl").read_text().splitlines()]


def test_its_last_line_has_these_keys(summary: dict[str, Any]) -> None:
    assert list(summary) == KEYS
    assert summary["iterations"] == ITERATIONS
    assert summary["tokens_per_s"] > 0
    assert summary["bytes_sent"] > 0


def test_a_node_and_the_coordinator_died_and_the_stage_came_back(summary: dict[str, Any]) -> None:
    assert [name.partition("-")[0] for name in summary["killed"]] == ["node", "coordinator"]
    assert summary["recoveries"] != []
    for recovery in summary["recoveries"]:
        assert recovery["how"] in HOWS
        assert 0 <= recovery["seconds"] < 30


def test_the_loss_fell(summary: dict[str, Any]) -> None:
    assert summary["loss_last"] < summary["loss_first"] - 0.5


def test_the_checkpoint_is_a_model_that_transformers_loads(summary: dict[str, Any]) -> None:
    model = AutoModelForCausalLM.from_pretrained(summary["checkpoint"])
    with torch.no_grad():
        logits = model(torch.arange(32)[None]).logits
    assert logits.shape == (1, 32, model.config.vocab_size)
    assert bool(torch.isfinite(logits).all())


def test_the_story_is_in_order_and_no_iteration_is_missing(story: list[dict[str, Any]]) -> None:
    assert story == sorted(story, key=lambda event: event["time"])
    done: dict[str, set[int]] = {}
    for commit in commits(story):
        done.setdefault(origin_of(commit["cell"]), set()).add(commit["iteration"])
    assert done == {cell: set(range(1, ITERATIONS + 1)) for cell in ("c0", "c1")}


def test_training_went_on_after_the_coordinator_died(story: list[dict[str, Any]]) -> None:
    killed = next(e["time"] for e in story if e["event"] == "fault" and e["name"] == "coordinator")
    after = [origin_of(commit["cell"]) for commit in commits(story) if commit["time"] > killed]
    assert set(after) == {"c0", "c1"}
